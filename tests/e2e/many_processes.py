"""Many processes on one vault in PostgreSQL, killed and cut off all the while; and judged.

``python -m tests.e2e.many_processes [SECONDS] [SEED]`` runs it by hand.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio

from apex_creds.audit.verify import check
from apex_creds.errors import CredentialNotFoundError
from apex_creds.fs.home import audit_directory
from apex_creds.keys.keyset import KeyState
from apex_creds.model import SECTIONS, ApiKey
from apex_creds.storage.storage_factory import configured, open_sql, remember_storage
from apex_creds.vault import Vault
from apex_creds.vault.config import node_of
from apex_creds.vault.log_replication import copies, verify_copy
from tests.e2e.many_worker import GATE, GUEST, NAMES, PLUGIN, PROCESSES, SECRET, name_of
from tests.support.postgres import Postgres, postgres

REPOSITORY: Final = Path(__file__).parents[2]
CANARIES: Final = ("canary",)
_PATIENCE: Final = 480.0


class Process:
    """A worker process, and what it said."""

    def __init__(self, home: Path, index: int, number: int, said: list[list[Any]]) -> None:
        self.index, self.number = index, number
        self.running = subprocess.Popen(
            [
                *(sys.executable, "-B", "-W", "error", "-m", "tests.e2e.many_worker"),
                *map(str, (home, index, number)),
            ],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._said = said
        self.lines: list[list[Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.running.stdout is not None
        for line in self.running.stdout:
            with contextlib.suppress(ValueError):  # the last one of a killed process
                at, *what = json.loads(line)
                self.lines.append([at, self.index, self.number, *what])
                self._said.append(self.lines[-1])

    def wait_for(self, what: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while all(line[3] != what for line in self.lines):
            assert self.running.poll() is None, f"process {self.index} ended before {what!r}"
            assert time.monotonic() < deadline, f"process {self.index} never said {what!r}"
            time.sleep(0.02)

    def tell(self, what: str) -> None:
        assert self.running.stdin is not None
        self.running.stdin.write(what + "\n")
        self.running.stdin.flush()

    def kill(self) -> None:
        self.running.kill()
        self.finish()

    def finish(self) -> int:
        code = self.running.wait(_PATIENCE)
        self._reader.join()
        for pipe in (self.running.stdin, self.running.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        return code


@dataclass
class Write:
    """What a process did to one of its own credentials: negative numbers are deletions."""

    seq: int
    began: float
    ended: float | None = None


@dataclass
class Story:
    """What happened."""

    said: list[list[Any]] = field(default_factory=list)
    kills: int = 0
    restarts: int = 0

    def of(self, *kinds: str) -> Iterator[list[Any]]:
        return (line for line in sorted(self.said) if line[3] in kinds)

    def writes(self) -> dict[str, list[Write]]:
        """Of each credential, in the order of its only writer."""
        found: dict[str, list[Write]] = defaultdict(list)
        for at, _, _, kind, name, seq in self.of("write", "wrote"):
            if kind == "write":
                found[name].append(Write(seq, at))
            else:
                last = found[name][-1]
                assert last.seq == seq
                last.ended = at
        return found

    def counts(self) -> Counter[str]:
        return Counter(line[3] for line in self.said)


def allowed(writes: list[Write], began: float, ended: float) -> set[int]:
    """What a reader may have found between two moments; 0 for nothing."""
    first = max((n for n, w in enumerate(writes) if w.ended and w.ended < began), default=-1)
    seen = {w.seq for w in writes[max(first, 0) :] if w.began <= ended}
    return {max(seq, 0) for seq in seen} | ({0} if first < 0 else set())


# -- the run ---------------------------------------------------------------------------


async def make(where: Path, server: Postgres) -> list[Path]:
    """The vault, and the homes that share it."""
    homes = [where / f"home{index}" for index in range(PROCESSES)]
    for home in homes:
        home.mkdir(mode=0o700)
    master = f"file:{where}/master.key"
    async with await Vault.create(homes[0], master=master, storage=server.url()) as vault:
        await vault.put(GATE, ApiKey(f"{SECRET}-0-1"))
        for owner in range(PROCESSES):
            for number in range(NAMES):
                await vault.grant(PLUGIN, name_of(owner, number), reveal=True)
    place = configured(homes[0])
    assert place is not None
    for home in homes[1:]:
        storage = open_sql(place)
        await remember_storage(home, storage)
        await storage.close()
    return homes


def run(homes: list[Path], server: Postgres, *, seconds: float, seed: int) -> Story:
    """Has the processes work, kills one after the other, restarts the server twice."""
    story, choose = Story(), random.Random(seed)
    processes = [Process(home, n, 0, story.said) for n, home in enumerate(homes)]
    try:
        for process in processes:
            process.wait_for("ready")
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            time.sleep(choose.uniform(0.5, 2.5))
            if passed > seconds * (story.restarts + 1) / 3 and story.restarts < 2:
                server.restart(crash=story.restarts == 1)
                story.restarts += 1
                continue
            victim = choose.randrange(PROCESSES)
            old = processes[victim]
            old.kill()
            story.kills += 1
            processes[victim] = Process(homes[victim], victim, old.number + 1, story.said)
        end(processes, homes[0], story)
    finally:
        for process in processes:
            if process.running.poll() is None:
                process.kill()
    return story


def end(processes: list[Process], home: Path, story: Story) -> None:
    """Everybody stops; what is still permitted to the guest is revoked; all close."""
    for process in processes:
        process.wait_for("ready")
        process.tell("calm")
    for process in processes:
        process.wait_for("calm")
    anyio.run(_revoke, home)
    story.said.append([time.monotonic(), 0, 10**6, "last revoked"])
    for process in processes:
        process.tell("end")
    for process in processes:
        process.wait_for("closed")  # each waits until its lease has ended
        assert process.finish() == 0


async def _revoke(home: Path) -> None:
    async with await Vault.unseal(home) as vault:
        await vault.revoke(plugin=GUEST)


# -- the judgement -----------------------------------------------------------------------


def judge_reads(story: Story) -> int:
    """Each found what was last acknowledged, or something that was being written."""
    writes, judged = story.writes(), 0
    for at, index, _, _, plugin, name, found, began, stale in story.of("read"):
        if plugin != PLUGIN:
            continue
        judged += 1
        may = allowed(writes.get(name, []), began - stale, at)
        assert found in may, (index, name, found, may, began, at, stale)
    return judged


def judge_guests(story: Story) -> int:
    """A use is refused from the moment on that its revocation was acknowledged."""
    steps = [(line[0], line[3]) for line in story.of("grant", "revoked", "revoke", "granted")]
    judged = 0
    for at, *_, plugin, _, found, began, stale in story.of("read"):
        if plugin == GUEST and found:
            judged += 1
            assert _may_be_granted(steps, began - stale, at), (began, at, stale)
    return judged


def _may_be_granted(steps: list[tuple[float, str]], began: float, ended: float) -> bool:
    """Whether a grant was begun that no revocation before ``began`` took back for sure."""
    state = False
    for at, kind in steps:
        if at > ended:
            break
        if kind == "grant":
            state = True
        elif kind == "revoked" and at < began:
            state = False
        elif kind == "revoked":
            return True  # it was granted, at the latest until now
    return state


def judge_leases(story: Story) -> int:
    """None is open: those of processes that were killed ended with them."""
    last = {line[1]: line[2] for line in story.of("ready")}
    opened = {line[4] for line in story.of("hold") if line[2] == last[line[1]]}
    ended = {line[4] for line in story.of("held")}
    assert opened <= ended, opened - ended
    return len(ended)


async def judge_vault(home: Path, story: Story) -> None:
    """The rules of DESIGN section 6, as a new process sees the vault."""
    writes = story.writes()
    async with await Vault.unseal(home) as vault:
        now = time.monotonic()
        for owner in range(PROCESSES):
            for number in range(NAMES):
                name = name_of(owner, number)
                found, may = await _value(vault, name), allowed(writes.get(name, []), now, now)
                assert found in may, (name, found, may)
        keystore = await vault.store.keystore()
        for keyset in (keystore.root_header.keks, *keystore.body.deks):
            states = [version.state for version in keyset.versions]
            assert states.count(KeyState.PRIMARY) == 1, (keyset.label, states)
        for section in SECTIONS.values():
            for record in (await vault.store.sections.read(section)).records.values():
                state = keystore.by_id[record.key[0]].get(record.key[1]).state
                assert state is not KeyState.DESTROYED


async def _value(vault: Vault, name: str) -> int:
    try:
        async with vault.open(name) as opened:
            return int(bytes(opened.view()).rpartition(b"-")[2])
    except CredentialNotFoundError:
        return 0


async def judge_logs(homes: list[Path]) -> int:
    """Each home's log verifies, and so does its copy in the database, which has all of it."""
    events = 0
    async with await Vault.unseal(homes[0]) as vault:
        shared = vault.store.shared
        assert shared is not None
        assert set(await copies(shared)) == {node_of(home) for home in homes}
        for home in homes[1:]:  # the first one's log is being written
            node = node_of(home)
            assert node is not None
            report = check(audit_directory(home), vault_id=node, complete=True)
            assert report.ok, report
            copy = await verify_copy(shared, vault.store.unsealed(), node)
            assert copy == report
            events += report.count
    return events


def judge_dump(server: Postgres) -> None:
    """Nothing in the database names a plugin, a service, a credential, or is a secret."""
    dump = server.dump_all().lower()
    assert len(dump) > 100_000
    for canary in (b"canary", b"acme"):
        assert canary not in dump
        assert canary.hex().encode() not in dump


def whole(where: Path, *, seconds: float, seed: int) -> str:
    """All of it; raises what is wrong, and says what was done."""
    with postgres() as server:
        homes = anyio.run(make, where, server)
        story = run(homes, server, seconds=seconds, seed=seed)
        reads, guests = judge_reads(story), judge_guests(story)
        leases = judge_leases(story)
        anyio.run(judge_vault, homes[0], story)
        events = anyio.run(judge_logs, homes)
        judge_dump(server)
    counts = story.counts()
    assert counts["rotated"]
    return (
        f"{story.kills} kills, {story.restarts} restarts, {counts['wrote']} writes, {reads} "
        f"reads, {guests} by the guest, {leases} leases ended, {counts['rotated']} rotations, "
        f"{counts['failed']} failures told, {events} events in the copies"
    )


def main(seconds: str = "60", seed: str = "0") -> None:
    with tempfile.TemporaryDirectory() as place:
        print(whole(Path(place), seconds=float(seconds), seed=int(seed)))


if __name__ == "__main__":
    main(*sys.argv[1:])

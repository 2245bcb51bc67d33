"""The worker and its events, on a real vault with a real scheduler and loop."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from apex_creds.clocks import boot_id
from apex_creds.errors import CredentialNotFoundError, InvalidInputError
from apex_creds.integrations.apexagent_events import SecurityEvent, connect
from apex_creds.keys.keyset import KeyState
from apex_creds.model import ApiKey
from apex_creds.policy.grants import GrantDecision
from apex_creds.scheduler import worker as worker_module
from apex_creds.scheduler.reencryption import Pace, worker_runs
from apex_creds.scheduler.rotation_state import (
    Accepted,
    AuditTampered,
    CompromiseSuspected,
    LeakDetected,
    OperatorRequest,
    PluginRemoved,
    Reaction,
    WorkerLease,
    parse_event,
    request_key,
)
from apex_creds.scheduler.schedule import Level, LevelPolicy, Policies
from apex_creds.scheduler.worker import Rhythm, RotationWorker
from apex_creds.vault import Vault
from apex_creds.vault.config import AuditConfig, Config, write_config
from tests.support.clocks import FakeClock, TwoClocks
from tests.support.vaults import create, master_in, unseal, values

pytestmark = pytest.mark.anyio

QUICK = Rhythm(check=0.05, events=0.05, checkpoint=0.05, sweep=0.05, health=0.05)


@pytest.fixture
async def vault(tmp_path: Path):
    async with await create(tmp_path, clock=FakeClock()) as made:
        await made.put("a", ApiKey("value a"), service="one")
        await made.put("b", ApiKey("value b"), service="two")
        yield made


async def states(vault: Vault, label: str) -> list[str]:
    keyset = (await vault.store.keystore()).by_label[label]
    return [version.state.value for version in keyset.versions]


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_a_compromised_service_is_rotated_and_its_key_destroyed(vault: Vault) -> None:
    ended = []
    vault.watch_revocations(lambda *pair: ended.append(pair))
    worker = RotationWorker(vault)
    assert await worker.emit(CompromiseSuspected(service="one"))
    await worker.run_once()
    assert await states(vault, "api_keys/one") == ["destroyed", "primary"]
    assert await states(vault, "api_keys/two") == ["primary"]
    assert ended == [(None, None)]
    assert await values(vault) == {"a": b"value a", "b": b"value b"}


async def test_a_compromised_master_key_takes_everything_with_it(
    vault: Vault, tmp_path: Path
) -> None:
    worker = RotationWorker(vault)
    await worker.emit(CompromiseSuspected(level=Level.MASTER))
    outcome = await worker.run_once()
    assert not outcome.failed
    keystore = await vault.store.keystore()
    assert keystore.root_header.master.version == 2
    assert {v.state for v in keystore.root_header.keks.versions[:-1]} == {KeyState.DESTROYED}
    assert await states(vault, "api_keys/one") == ["destroyed", "primary"]
    assert "v1 " not in (tmp_path / "master.key").read_text()
    async with await unseal(tmp_path) as other:
        assert await values(other) == {"a": b"value a", "b": b"value b"}


@pytest.mark.parametrize("level", [Level.MASTER, Level.KEK])
async def test_a_key_is_destroyed_also_if_it_was_renewed_before_the_event_was_acted_on(
    vault: Vault, level: Level
) -> None:
    worker = RotationWorker(vault)
    vault.clock.now += 1
    await worker.bus.accept(CompromiseSuspected(level=level))
    vault.clock.now += 1
    wanted = {request_key(level): vault.clock.now}
    await worker.engine.document.change(lambda s: replace(s, requested=wanted))
    assert not (await worker.engine.run()).failed
    keks = (await vault.store.keystore()).root_header.keks
    assert [v.state for v in keks.versions] == [KeyState.RETIRED, KeyState.PRIMARY]
    await worker.run_once()
    keks = (await vault.store.keystore()).root_header.keks
    assert [v.state for v in keks.versions] == [KeyState.DESTROYED, KeyState.PRIMARY]
    assert await states(vault, "api_keys/one") == ["destroyed", "primary"]


async def test_an_event_outlives_the_process_that_accepted_it(
    vault: Vault, tmp_path: Path
) -> None:
    await RotationWorker(vault).bus.accept(CompromiseSuspected(service="one"))
    async with await Vault.unseal(vault.home, clock=vault.clock) as other:
        await RotationWorker(other).run_once()
        assert await states(other, "api_keys/one") == ["destroyed", "primary"]
        await RotationWorker(other).run_once()
        assert await states(other, "api_keys/one") == ["destroyed", "primary"]


async def test_acting_twice_is_acting_once(vault: Vault) -> None:
    """As after a crash between an action and the note that it is done."""
    worker = RotationWorker(vault)
    await worker.bus.accept(CompromiseSuspected(service="one"))
    before = await worker.engine.document.read()
    await worker.run_once()
    vault.clock.now += 1
    await worker.engine.document.change(lambda s: replace(s, queue=before.queue))
    await worker.run_once()
    assert await states(vault, "api_keys/one") == ["destroyed", "primary"]


async def test_the_same_event_is_accepted_once_within_the_debounce_time(vault: Vault) -> None:
    bus = RotationWorker(vault).bus
    assert await bus.accept(LeakDetected(credential="a", source="one"))
    assert not await bus.accept(LeakDetected(credential="a", source="two"))
    assert await bus.accept(LeakDetected(credential="b"))
    vault.clock.now += 61
    assert await bus.accept(LeakDetected(credential="a"))


@pytest.mark.parametrize("jump", [-3.2e8, -86_400.0, 3.2e8])
async def test_a_clock_that_was_set_drops_no_event_and_doubles_none(
    tmp_path: Path, jump: float
) -> None:
    clock = TwoClocks()
    async with await create(tmp_path, clock=clock) as vault:
        bus = RotationWorker(vault).bus
        assert await bus.accept(LeakDetected(credential="a"))
        clock.set_by(jump)
        assert not await bus.accept(LeakDetected(credential="a"))
        clock.go_on(61)
        clock.set_by(-jump - 30)
        assert await bus.accept(LeakDetected(credential="a"))


async def test_what_an_earlier_program_left_is_done(vault: Vault) -> None:
    """Orders by time, some from a wrong clock, and an event without key versions."""
    worker = RotationWorker(vault)
    requested = {"kek": 0.0, "dek api_keys/one": 9e12, "dek api_keys/gone": 1.0}
    old = Accepted(
        id="0" * 32,
        event=CompromiseSuspected(service="two"),
        at=0.0,
        reactions=(Reaction.ROTATE_AND_DESTROY,),
    )
    lease = WorkerLease(holder="x", until=9e12)
    await worker.engine.document.change(
        lambda s: replace(s, requested=requested, queue=(old,), lease=lease)
    )
    assert not (await worker.run_once()).failed
    assert await states(vault, "api_keys/one") == ["retired", "primary"]
    assert await states(vault, "api_keys/two") == ["destroyed", "primary"]
    assert (await vault.store.keystore()).root_header.keks.primary.version == 2
    state = await worker.engine.document.read()
    assert (state.requested, state.renew, state.queue) == ({}, {}, ())


async def test_the_operator_asks_for_one_service(vault: Vault) -> None:
    worker = RotationWorker(vault)
    vault.clock.now += 5
    await worker.emit(OperatorRequest(service="two"))
    vault.clock.now += 5
    await worker.run_once()
    assert await states(vault, "api_keys/two") == ["retired", "primary"]
    assert await states(vault, "api_keys/one") == ["primary"]
    assert (await worker.engine.document.read()).renew == {}


async def test_a_service_with_more_than_the_limit_is_renewed_once_in_so_many_messages(
    vault: Vault,
) -> None:
    """Each version begins with all that is stored: more than the limit, and was due at once."""
    for name in ("c", "d", "e", "f"):
        await vault.put(name, ApiKey(f"value {name}"), service="one")
    worker = RotationWorker(vault)
    policies = Policies(dek=LevelPolicy(interval=None, max_encryptions=3, grace=0.0))
    await worker.engine.document.change(lambda state: replace(state, policies=policies))
    for number in range(3):  # five are stored
        await vault.put("a", ApiKey(f"again {number}"))
    await worker.run_once()
    assert await states(vault, "api_keys/one") == ["destroyed", "primary"]
    await worker.run_once()
    for number in range(3):
        assert await states(vault, "api_keys/one") == ["destroyed", "primary"]
        await vault.put("a", ApiKey(f"once more {number}"))
        await worker.run_once()
    assert await states(vault, "api_keys/one") == ["destroyed", "destroyed", "primary"]
    assert (await values(vault))["a"] == b"once more 2"


async def test_a_removed_plugin_rotates_what_it_had_grants_for(vault: Vault) -> None:
    await vault.grant("weather", "a")
    vault.clock.now += 5
    worker = RotationWorker(vault)
    await worker.emit(PluginRemoved(plugin="weather"))
    vault.clock.now += 5
    await worker.run_once()
    assert await states(vault, "api_keys/one") == ["retired", "primary"]
    assert await states(vault, "api_keys/two") == ["primary"]


async def test_a_tampered_log_locks_the_vault_down(vault: Vault) -> None:
    told = []

    async def notify(event: object) -> None:
        told.append(event)

    worker = RotationWorker(vault, notify=notify)
    await worker.emit(AuditTampered(detail="line 7"))
    await worker.run_once()
    assert (await vault.grants()).lockdown is not None
    assert [type(event) for event in told] == [AuditTampered]


async def test_an_event_about_nothing_does_not_stop_those_after_it(vault: Vault) -> None:
    worker = RotationWorker(vault)
    await worker.emit(PluginRemoved(plugin="nobody"))
    await worker.emit(CompromiseSuspected(service="no such service"))
    await worker.emit(CompromiseSuspected(service="one"))
    await worker.run_once()
    assert await states(vault, "api_keys/one") == ["destroyed", "primary"]
    assert (await worker.engine.document.read()).queue == ()


def test_events_are_closed_and_typed() -> None:
    assert parse_event("plugin_removed", {"plugin": "x"}) == PluginRemoved(plugin="x")
    assert parse_event("compromise_suspected", {"service": "x", "version": "3"}).version == 3
    for kind, fields in (
        ("nothing", {}),
        ("plugin_removed", {}),
        ("plugin_removed", {"plugin": "x", "secret": "y"}),
        ("plugin_removed", {"plugin": "x\n"}),
        ("compromise_suspected", {"version": 3}),
    ):
        with pytest.raises(InvalidInputError):
            parse_event(kind, fields)


# -- several workers, and the loop -----------------------------------------------------


async def test_one_rotates_and_its_work_is_taken_over_when_it_dies(vault: Vault) -> None:
    async with await Vault.unseal(vault.home, clock=vault.clock) as other:
        first, second = RotationWorker(vault).engine, RotationWorker(other).engine
        assert await first.hold()
        assert not await second.hold()
        assert (await second.run()).waiting
        await first.release()
        assert not (await second.run()).waiting
        assert await first.hold()
        await first.release()


async def test_who_dies_while_it_rotates_holds_nobody_up(vault: Vault) -> None:
    code = (
        "import asyncio, sys\n"
        "from apex_creds.scheduler.reencryption import ROTATION, Leader\n"
        "from apex_creds.storage.file_storage import FileStorage\n"
        "from pathlib import Path\n"
        "async def main():\n"
        "    assert await Leader(FileStorage(Path(sys.argv[1])), ROTATION).hold()\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
        "asyncio.run(main())\n"
    )
    pipe, engine = subprocess.PIPE, RotationWorker(vault).engine
    command = [sys.executable, "-c", code, str(vault.home)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert await asyncio.to_thread(process.stdout.readline) == b"held\n"
        assert (await engine.run()).waiting
        process.kill()
        process.wait()
        assert not (await engine.run()).waiting


async def test_a_locked_master_key_does_not_stop_deks(vault: Vault, tmp_path: Path) -> None:
    worker = RotationWorker(vault)
    (tmp_path / "master.key").rename(tmp_path / "away")
    wanted = {request_key(Level.DEK): vault.clock.now + 1, request_key(Level.KEK): 9e9}
    vault.clock.now += 2
    await worker.engine.document.change(lambda s: replace(s, requested=wanted))
    outcome = await worker.run_once()
    assert {step.level for step in outcome.failed} == {Level.KEK}
    assert await states(vault, "api_keys/one") == ["retired", "primary"]
    (tmp_path / "away").rename(tmp_path / "master.key")
    assert not (await worker.run_once()).failed


async def test_in_the_loop_of_the_runtime(vault: Vault, tmp_path: Path) -> None:
    called = []
    health = tmp_path / "health.json"
    vault.clock.now += 1
    worker = RotationWorker(
        vault,
        rhythm=QUICK,
        checkpoint=lambda: called.append("checkpoint"),
        sweep=lambda: called.append("sweep"),
        health_file=health,
    )
    async with worker:
        assert await worker_runs(vault.store.storage)
        await worker.emit(CompromiseSuspected(service="one"))

        async def destroyed() -> bool:
            return await states(vault, "api_keys/one") == ["destroyed", "primary"]

        await until(destroyed)

        async def reported() -> bool:
            return health.exists() and {"checkpoint", "sweep"} <= set(called)

        await until(reported)
    assert json.loads(health.read_text())["worker"] == worker.id
    assert health.stat().st_mode & 0o777 == 0o600
    assert not await worker_runs(vault.store.storage)


async def test_a_rotation_is_not_broken_off_by_the_end_of_its_worker(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()
    write = vault.store.storage.write

    async def slow(name: str, data: bytes, **options: object) -> object:
        if name == "keystore":
            reached.set()
            await go_on.wait()
        return await write(name, data, **options)

    worker = RotationWorker(vault, rhythm=QUICK)
    vault.clock.now += 1
    wanted = {request_key(Level.DEK): vault.clock.now}
    await worker.engine.document.change(lambda s: replace(s, requested=wanted))
    monkeypatch.setattr(vault.store.storage, "write", slow)

    async def live() -> None:
        async with worker:
            await reached.wait()

    life = asyncio.create_task(live())
    await reached.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not life.done()
    go_on.set()
    await life
    assert await states(vault, "api_keys/one") == ["active", "primary"]
    assert not caplog.records
    monkeypatch.undo()
    await worker.run_once()
    assert await states(vault, "api_keys/one") == ["active", "primary"]  # stopped is stopped
    async with worker:

        async def retired() -> bool:
            return await states(vault, "api_keys/one") == ["retired", "primary"]

        await until(retired)


async def test_redeems_go_on_through_every_rotation(vault: Vault) -> None:
    worker = RotationWorker(vault)
    stop = False

    async def redeem() -> int:
        count = 0
        while not stop:
            assert await values(vault) == {"a": b"value a", "b": b"value b"}
            count += 1
            await asyncio.sleep(0)
        return count

    tasks = [asyncio.create_task(redeem()) for _ in range(4)]
    quick = LevelPolicy(interval=10.0, grace=0.0)
    policies = Policies(master=quick, kek=quick, dek=quick)
    await worker.engine.document.change(lambda s: replace(s, policies=policies))
    for _ in range(4):
        vault.clock.now += 11
        assert not (await worker.run_once()).failed
    stop = True
    assert all(await asyncio.gather(*tasks))
    keystore = await vault.store.keystore()
    assert keystore.root_header.master.version == 5


async def test_requests_of_a_service_that_is_not_there(vault: Vault) -> None:
    from apex_creds.scheduler.compromise import declare

    engine = RotationWorker(vault).engine
    with pytest.raises(CredentialNotFoundError):
        await declare(vault.store, engine.document, level=Level.DEK, service="x")


async def test_a_wall_clock_that_jumps_changes_neither_pace_nor_health(
    vault: Vault, tmp_path: Path
) -> None:
    health, turns = tmp_path / "health.json", list[float]()
    worker = RotationWorker(
        vault,
        rhythm=QUICK,
        sweep=lambda: turns.append(vault.clock.now),
        health_file=health,
    )
    async with worker:
        for jump in (-7200.0, 365 * 86_400.0, -56 * 365 * 86_400.0, 1e10):
            vault.clock.now += jump
            seen = turns.count(vault.clock.now)

            async def went_on(seen: int = seen) -> bool:
                return turns.count(vault.clock.now) > seen + 1

            await until(went_on)
        beat = worker.health()["beat"]

        async def written() -> bool:
            return health.exists() and json.loads(health.read_text())["beat"] > beat

        await until(written)
        assert worker.health()["boot"] == boot_id()
        assert worker.health()["ok"]


async def test_events_end_leases_whatever_the_clock_said_when_the_worker_began(
    vault: Vault,
) -> None:
    ended = []
    vault.watch_revocations(lambda *pair: ended.append(pair))
    async with (
        await Vault.unseal(vault.home, clock=vault.clock) as other,
        RotationWorker(vault, rhythm=QUICK),
    ):
        vault.clock.now -= 1e6
        elsewhere = RotationWorker(other)
        await elsewhere.emit(CompromiseSuspected(service="one"))
        await elsewhere.run_once()

        async def told() -> bool:
            return (None, None) in ended

        await until(told)


async def test_a_job_that_does_not_get_on_is_in_the_health_report(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on, now = asyncio.Event(), asyncio.Event(), [1000.0]

    async def stuck() -> None:
        entered.set()
        await go_on.wait()

    monkeypatch.setattr(worker_module, "boot_time", lambda: now[0])
    async with RotationWorker(vault, rhythm=QUICK, sweep=stuck) as worker:
        await entered.wait()
        assert worker.health()["ok"]
        now[0] += 301.0
        report = worker.health()
        assert not report["ok"]
        assert "no progress for 301 seconds" in report["problems"]["sweep stalled"]
        go_on.set()

        async def well() -> bool:
            return worker.health()["ok"]

        await until(well)


async def test_a_job_that_fails_in_any_way_comes_again(
    vault: Vault, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def sweep() -> None:
        tries.append(None)
        raise ZeroDivisionError

    async with RotationWorker(vault, rhythm=QUICK, sweep=sweep) as worker:

        async def again() -> bool:
            return len(tries) > 2

        await until(again)
        assert worker.health()["problems"]["sweep"] == "ZeroDivisionError"
    assert {record.message for record in caplog.records} == {"sweep failed"}


async def test_the_end_of_a_worker_does_not_wait_for_one_who_only_looks(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = RotationWorker(vault, rhythm=QUICK, watching=True)
    looking = asyncio.Event()

    async def verify() -> None:
        looking.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(worker._watch, "verify", verify)
    async with asyncio.timeout(60), worker:
        await looking.wait()


# -- the runtime's own events ----------------------------------------------------------


@dataclass
class Manager:
    """As ApexAgent's ``EventManager``."""

    callbacks: dict[str, list] = field(default_factory=dict)
    emitted: list = field(default_factory=list)

    async def register_callback(self, callback, event_types) -> None:
        for kind in event_types:
            self.callbacks.setdefault(kind, []).append(callback)

    async def emit(self, event) -> None:
        self.emitted.append(event)
        for callback in self.callbacks.get(event.event_type, ()):
            await callback(event)


async def test_events_pass_both_ways_and_do_not_come_back(vault: Vault) -> None:
    manager, worker = Manager(), RotationWorker(vault)
    await connect(manager, worker.bus)
    await worker.bus.accept(LeakDetected(credential="a", plugin="weather"))
    assert [e.event_type for e in manager.emitted] == ["security.leak_detected"]
    whole = {"plugin": "weather", "credential": "a"}
    assert manager.emitted[0].data == whole
    data = {"plugin": "chatter"}
    await manager.emit(
        SecurityEvent(event_type="security.plugin_removed", source="plugins", data=data)
    )
    await manager.emit(
        SecurityEvent(event_type="security.plugin_removed", source="x", data={"what": 1})
    )
    queue = (await worker.engine.document.read()).queue
    assert [item.event.source for item in queue] == ["operator", "runtime:plugins"]
    assert len(manager.emitted) == 3


# -- alone -----------------------------------------------------------------------------


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not worker_module.notify_systemd(READY="1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert worker_module.notify_systemd(READY="1", STATUS="well")
        assert listening.recv(100) == b"READY=1\nSTATUS=well"


@pytest.mark.e2e
async def test_the_command_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        await vault.put("a", ApiKey("value a"), service="one")
        await RotationWorker(vault).bus.accept(CompromiseSuspected(service="one"))
    command = [sys.executable, "-m", "apex_creds.cli", "--home", str(tmp_path / "home")]
    command += ["worker", "--every", "0.1", "--health", str(tmp_path / "health")]
    process = subprocess.Popen(
        [*command, "--master", master_in(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        line = await asyncio.to_thread(process.stdout.readline)
        assert line.startswith("worker ")

        async def healthy() -> bool:
            path = tmp_path / "health"
            return path.exists() and "events" in json.loads(path.read_text())["last"]

        await until(healthy)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    async with await unseal(tmp_path) as vault:
        assert await states(vault, "api_keys/one") == ["destroyed", "primary"]


async def test_a_removed_plugin_has_no_grants_any_more(vault: Vault) -> None:
    await vault.grant("weather", "a")
    await vault.grant("weather", "b", decision=GrantDecision.DENY)
    worker = RotationWorker(vault)
    await worker.emit(PluginRemoved(plugin="weather"))
    await worker.run_once()
    assert [grant.credential for grant in await vault.grants()] == ["b"]


async def test_a_lockdown_by_an_event_is_done_once(vault: Vault) -> None:
    worker = RotationWorker(vault)
    await worker.emit(AuditTampered(detail="line 7"))
    assert (await worker.run_once()).waiting
    assert vault.store.sealed
    await vault.unlock()
    vault.clock.now += 100
    await worker.run_once()
    assert (await vault.grants()).lockdown is None


async def test_a_worker_that_runs_on_has_no_keys_in_a_lockdown(vault: Vault) -> None:
    vault.store.for_operator = True  # as if it was unsealed after the lockdown
    await vault.lockdown()
    async with RotationWorker(vault, rhythm=Rhythm(check=0.01, events=0.01)) as worker:
        assert vault.store.sealed
        with anyio.fail_after(60):
            while "rotate kek" not in worker.health()["problems"]:
                await anyio.sleep(0.01)
            assert vault.store.sealed
            await vault.unlock()
            while "rotate kek" in worker.health()["problems"]:
                await anyio.sleep(0.01)


async def test_the_log_names_no_service_where_it_has_pseudonyms(tmp_path: Path) -> None:
    home, master = tmp_path / "home", f"file:{tmp_path / 'master.key'}"
    async with await Vault.create(home, master=master) as vault:
        await vault.put("name", ApiKey("x"), service="very private service")
        await write_config(vault.store.storage, Config(audit=AuditConfig(pseudonyms=True)))
    async with await Vault.unseal(home, master=master) as vault:
        shown = vault.audit.shown("very private service")
        worker = RotationWorker(vault)
        await worker.emit(OperatorRequest(level=Level.DEK))
        await worker.run_once()
    raw = b"".join(path.read_bytes() for path in (home / "security/audit").glob("*.jsonl"))
    assert b"very private service" not in raw
    assert b"api_keys/" + shown.encode() in raw


@pytest.mark.parametrize("number", [math.inf, math.nan, 0.0, -1.0, 1e300])
def test_how_often_and_how_fast_are_numbers_that_can_be_waited_for(number: float) -> None:
    with pytest.raises(InvalidInputError):
        Rhythm(check=number)
    if number != 1e300:
        with pytest.raises(InvalidInputError):
            Pace(per_second=number)

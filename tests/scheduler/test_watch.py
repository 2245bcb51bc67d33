"""What a worker sees of a real vault is in its metrics: the log, what is due, what is wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec import structs
from msgspec.structs import replace
from opentelemetry.metrics import _internal as metering

from apex_creds.audit.verify import MAX_UNSIGNED_SECONDS, Report, check
from apex_creds.documents import key_versions
from apex_creds.errors import AuditTamperedError
from apex_creds.fs.home import audit_directory
from apex_creds.model import ApiKey, Rotation, key_of
from apex_creds.scheduler import status as status_module
from apex_creds.scheduler.rotation_state import AuditTampered
from apex_creds.scheduler.schedule import LevelPolicy, Policies
from apex_creds.scheduler.status import Watch
from apex_creds.scheduler.worker import Rhythm, RotationWorker
from apex_creds.telemetry import semconv
from apex_creds.vault import Vault, credential_writes
from tests.support.clocks import FakeClock, TwoClocks
from tests.support.fake_rotator import ORIGIN, URI
from tests.support.recording import Recording, recording
from tests.support.vaults import create

pytestmark = pytest.mark.anyio
HOUR = 3600.0
IDLE = Rhythm(**dict.fromkeys(["check", "events", "health", "verify", "count", "due"], 1e6))


@pytest.fixture
async def vault(tmp_path: Path):
    async with await create(tmp_path, clock=FakeClock()) as made:
        await made.put("openai", ApiKey("value"))
        yield made


def _watch(vault: Vault) -> Watch:
    return Watch(vault, RotationWorker(vault).engine)


def _events(seen: Recording, kind: str) -> float:
    found = seen.values(semconv.AUDIT_EVENTS).items()
    return sum(
        number for attributes, number in found if (semconv.AUDIT_KIND, kind) in attributes
    )


def _alter(vault: Vault, old: bytes, new: bytes) -> None:
    vault.audit.sync()
    (segment,) = audit_directory(vault.home).glob("0*")
    data = segment.read_bytes()
    assert old in data
    segment.write_bytes(data.replace(old, new))


async def test_nothing_is_said_before_a_look(vault: Vault) -> None:
    with recording() as seen:
        watch = _watch(vault)
        found = seen.metrics()
        assert semconv.AUDIT_INTACT not in found
        assert semconv.ROTATION_DUE not in found
        assert seen.values(semconv.WORKER_PROBLEMS) == {(): 0}
        assert watch.log_check() is None


async def test_the_log_is_counted_and_found_whole(vault: Vault) -> None:
    with recording() as seen:
        watch = _watch(vault)
        await vault.grant("weather", "openai")
        await vault.revoke(plugin="weather", credential="openai")
        await watch.count()
        await watch.verify()
        vault.clock.now += 5
        assert _events(seen, "revoke") == 1
        assert _events(seen, "put") == 1
        assert seen.values(semconv.AUDIT_INTACT) == {(): 1}
        assert seen.values(semconv.AUDIT_CHECK_AGE) == {(): 5}


async def test_what_only_metrics_want_costs_nothing_without_them(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering, "_METER_PROVIDER", None)
    watch = _watch(vault)
    await watch.count()
    await watch.due()
    assert dict(watch.log_events()) == {}
    assert watch.rotations_due() == {}
    await watch.verify()
    check = watch.log_check()
    assert check is not None
    assert check.intact


async def test_a_log_that_somebody_edited_is_not_intact(vault: Vault) -> None:
    with recording() as seen:
        watch = _watch(vault)
        (segment,) = audit_directory(vault.home).glob("0*")
        data = segment.read_bytes()
        segment.write_bytes(data.replace(b'"put"', b'"get"'))
        with pytest.raises(AuditTamperedError, match="Event 2"):
            await watch.verify()
        assert seen.values(semconv.AUDIT_INTACT) == {(): 0}
        segment.write_bytes(data)
        await watch.verify()
        assert seen.values(semconv.AUDIT_INTACT) == {(): 1}


@pytest.mark.parametrize("jump", [-3.2e8, -3600.0, 3600.0, 3.2e8])
async def test_what_is_not_signed_yet_is_an_alarm_after_its_time_whatever_the_clock_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    clock = TwoClocks()
    async with await create(tmp_path, clock=clock) as vault:
        await vault.put("openai", ApiKey("value"))
        watch, found = _watch(vault), [1, 1]

        def checked(*arguments: object, **options: object) -> Report:
            whole = check(*arguments, **options)
            return structs.replace(whole, signed=found[0], count=sum(found))

        monkeypatch.setattr(status_module, "check", checked)
        await watch.verify()
        clock.set_by(jump)
        await watch.verify()
        clock.go_on(MAX_UNSIGNED_SECONDS - 1)
        await watch.verify()
        clock.go_on(2)
        with pytest.raises(AuditTamperedError, match="not signed"):
            await watch.verify()
        for found[:] in ([2, 1], [3, 0], [3, 0]):  # another one waits; none does
            await watch.verify()
            clock.go_on(MAX_UNSIGNED_SECONDS - 1)


async def test_when_rotations_are_due(vault: Vault) -> None:
    with recording() as seen:
        worker = RotationWorker(vault)
        policies = Policies(
            master=LevelPolicy(),
            kek=LevelPolicy(interval=2 * HOUR),
            dek=LevelPolicy(interval=HOUR),
        )
        await worker.engine.document.change(lambda s: replace(s, policies=policies))
        watch = Watch(vault, worker.engine)
        await watch.due()
        vault.clock.now += 1.5 * HOUR
        due = seen.values(semconv.ROTATION_DUE)
        assert due[((semconv.KEY_LEVEL, "dek"),)] == pytest.approx(-HOUR / 2, abs=60)
        assert due[((semconv.KEY_LEVEL, "kek"),)] == pytest.approx(HOUR / 2, abs=60)


async def test_when_credentials_are_due_at_their_provider(vault: Vault) -> None:
    def due() -> float | None:
        return seen.values(semconv.ROTATION_DUE).get(((semconv.KEY_LEVEL, "credential"),))

    with recording() as seen:
        watch = _watch(vault)
        await watch.due()
        assert due() is None
        for hours, who in ((1, "alice"), (3, "")):
            await vault.put("key", ApiKey("value"), origins=[ORIGIN], principal=who)
            state = Rotation(rotator=URI, interval=hours * HOUR, changed=vault.clock.now)
            await credential_writes.edit(
                vault.store,
                "api_keys",
                key_of("key", who),
                credential_writes.Edit(rotation=state),
                clock=vault.clock,
            )
        await watch.due()
        vault.clock.now += 2 * HOUR
        assert due() == pytest.approx(-HOUR, abs=60)


async def test_versions_of_each_level_and_state(vault: Vault) -> None:
    with recording() as seen:
        await key_versions.renew(vault.store, "api_keys/openai", now=vault.clock.time())

        def counted(level: str, state: str) -> float:
            wanted = ((semconv.KEY_LEVEL, level), (semconv.KEY_STATE, state))
            return seen.values(semconv.KEY_VERSIONS).get(wanted, 0)

        assert counted("master", "primary") == 1
        assert counted("kek", "primary") == 1
        assert counted("dek", "primary") >= 2  # its own, and the vault's root key
        assert counted("dek", "active") == 1


async def test_a_worker_looks_by_itself_and_goes_on_after_what_is_wrong(vault: Vault) -> None:
    quick = Rhythm(
        check=0.05, events=0.05, health=0.05, verify=0.05, count=0.05, due=0.05, sweep=0.05
    )
    with recording() as seen:
        async with RotationWorker(vault, rhythm=quick, watching=True) as worker:
            async with asyncio.timeout(60):
                while semconv.ROTATION_DUE not in seen.metrics() or not _events(seen, "put"):
                    await asyncio.sleep(0.01)
                while semconv.AUDIT_INTACT not in seen.metrics():
                    await asyncio.sleep(0.01)
                assert seen.values(semconv.AUDIT_INTACT) == {(): 1}
                _alter(vault, b'"put"', b'"get"')
                while "verify" not in worker.health()["problems"]:
                    await asyncio.sleep(0.01)
                assert seen.values(semconv.WORKER_PROBLEMS)[()] >= 1
                assert "Event 2" in str(worker.health()["problems"]["verify"])
                while (await vault.grants()).lockdown is None:
                    await asyncio.sleep(0.01)
                _alter(vault, b'"get"', b'"put"')
                await vault.unlock()
                while seen.values(semconv.WORKER_PROBLEMS)[()]:
                    await asyncio.sleep(0.01)
        assert seen.values(semconv.AUDIT_INTACT) == {(): 1}


async def _looked(worker: RotationWorker) -> bool:
    """Whether the vault is locked down after the worker's look at its log."""
    await worker.job("verify")
    await worker.job("events")
    vault = worker._vault
    locked = (await vault.grants()).lockdown is not None
    vault.clock.now += HOUR
    await vault.unlock()
    return locked


async def test_an_altered_log_locks_the_vault_down_once(vault: Vault) -> None:
    told: list[AuditTampered] = []

    async def notify(event: object) -> None:
        assert isinstance(event, AuditTampered)
        told.append(event)

    async with RotationWorker(vault, rhythm=IDLE, watching=True, notify=notify) as worker:
        assert not await _looked(worker)
        _alter(vault, b'"put"', b'"get"')
        assert await _looked(worker)
        assert not await _looked(worker), "the operator knows, and has unlocked it"
        assert not await _looked(worker)
        assert [event.source for event in told] == ["worker"]
        assert "Event 2" in told[0].detail
        _alter(vault, b'"seq":1,"time":17', b'"seq":1,"time":18')
        assert await _looked(worker), "that is another damage"
        assert "verify" in worker.health()["problems"]
        assert len(told) == 2


async def test_a_lockdown_for_a_log_that_takes_no_events_is_made_once(vault: Vault) -> None:
    """Its events can't be logged; it is in force all the same, and whoever asked is told."""
    told = []

    async def notify(event: object) -> None:
        told.append(event)

    async with RotationWorker(vault, rhythm=IDLE, watching=True, notify=notify) as worker:
        vault.audit.sync()
        (segment,) = audit_directory(vault.home).glob("0*")
        data = segment.read_bytes()
        segment.write_bytes(data[:100])
        await worker.job("verify")
        await worker.job("events")
        first = (await vault.grants()).lockdown
        assert first is not None
        assert len(told) == 1
        vault.clock.now += HOUR
        await worker.job("events")
        await worker.job("verify")
        await worker.job("events")
        assert (await vault.grants()).lockdown == first
        assert len(told) == 1
        segment.write_bytes(data)

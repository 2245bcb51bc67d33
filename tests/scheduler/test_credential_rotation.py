"""Secrets at their providers are replaced by the clock and by events, before keys are."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from apex_creds.errors import ApexCredsError, InvalidInputError
from apex_creds.keys.keyset import KeyState
from apex_creds.model import ApiKey, key_of
from apex_creds.rotators import Mode, Rotations, configuration, configure
from apex_creds.scheduler import CompromiseSuspected, RotationWorker
from apex_creds.scheduler.credential_rotation import CredentialRotation
from apex_creds.scheduler.rotation_state import (
    LeakDetected,
    OperatorRequest,
    PluginRemoved,
    Reaction,
    parse_event,
    read_event,
)
from apex_creds.scheduler.schedule import DAY, Level
from apex_creds.scheduler.worker import next_fire
from tests.support.clocks import FakeClock
from tests.support.fake_rotator import ORIGIN, URI, FakeRotator, Provider, refuses
from tests.support.rotators import parts_of
from tests.support.vaults import create, value_of

pytestmark = pytest.mark.anyio
FIRST = "first-value-of-the-key"


@pytest.fixture
def provider():
    return Provider(valid={FIRST.encode()})


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
async def vault(tmp_path, clock, provider, monkeypatch):
    def find(uri):
        return FakeRotator(provider, Mode.DUAL)

    monkeypatch.setattr(configuration, "rotator_from_uri", find)
    monkeypatch.setattr("apex_creds.rotators.rotation.rotator_from_uri", find)
    monkeypatch.setattr(Rotations.__init__, "__kwdefaults__", {"find": find})
    async with await create(tmp_path, clock=clock) as made:
        await made.put("key", ApiKey(FIRST), service="mail", origins=[ORIGIN])
        await made.put("other", ApiKey("other"), origins=[ORIGIN])
        yield made


async def test_by_interval(vault, clock, provider):
    await configure(vault, "key", uri=URI, interval=30 * DAY, grace=0.0)
    rotation = CredentialRotation(vault, next_fire=next_fire)
    await rotation.run()
    assert provider.steps == []
    for _ in range(2):
        clock.now += 30 * DAY
        await rotation.run()
        await rotation.run()
    assert provider.steps == ["create", "set", "test", "finish"] * 2


async def test_by_cron(vault, clock, provider):
    await configure(vault, "key", uri=URI, cron="0 3 * * *", grace=0.0)
    rotation = CredentialRotation(vault, next_fire=next_fire)
    clock.now += DAY
    await rotation.run()
    assert provider.steps.count("create") == 1


async def test_what_another_process_has_replaced_meanwhile_is_not_replaced_again(
    vault, clock, provider, monkeypatch
):
    await configure(vault, "key", uri=URI, interval=30 * DAY, grace=0.0)
    clock.now += 30 * DAY
    look = vault.list

    async def and_then(**options):
        found = await look(**options)
        monkeypatch.setattr(vault, "list", look)
        assert await CredentialRotation(vault, next_fire=next_fire).run() == 0
        return found

    monkeypatch.setattr(vault, "list", and_then)
    assert await CredentialRotation(vault, next_fire=next_fire).run() == 0
    assert provider.steps.count("create") == 1


async def test_what_ends_by_itself_is_replaced_before(vault, clock, provider):
    await configure(vault, "key", uri=URI, grace=0.0)
    await vault.edit("key", expires=clock.now + 3600.0)
    rotation = CredentialRotation(vault, next_fire=next_fire)
    clock.now += 2900.0
    await rotation.run()
    assert provider.steps == []
    clock.now += 200.0
    await rotation.run()
    assert provider.steps.count("create") == 1


@pytest.mark.parametrize(
    "event",
    [
        CompromiseSuspected(),
        CompromiseSuspected(service="mail"),
        CompromiseSuspected(credential="key"),
        CompromiseSuspected(level=Level.KEK),
        CompromiseSuspected(level=Level.MASTER),
    ],
)
async def test_a_compromise_replaces_it_without_grace_before_keys(vault, provider, event):
    await configure(vault, "key", uri=URI, grace=1e6)
    worker = RotationWorker(vault, harden=False)
    states = []

    async def look(step):
        keyset = (await vault.store.keystore()).by_label["api_keys/mail"]
        states.append([version.state for version in keyset.versions])

    provider.around = look
    await worker.emit(event)
    await worker.run_once()
    assert (await parts_of(vault, "key"))["value"] != FIRST
    assert FIRST.encode() in provider.ended
    assert all(state == [KeyState.PRIMARY] for state in states)
    await worker.bus.act()
    assert provider.steps.count("create") == 1


@pytest.mark.parametrize(
    "event",
    [CompromiseSuspected(service="other"), OperatorRequest(), PluginRemoved(plugin="x")],
)
async def test_an_event_about_something_else_does_not(vault, provider, event):
    await configure(vault, "key", uri=URI)
    worker = RotationWorker(vault, harden=False)
    await worker.emit(event)
    await worker.run_once()
    assert provider.steps == []


async def test_a_plugin_that_was_removed(vault, provider):
    await configure(vault, "key", uri=URI, grace=100.0)
    await vault.grant("weather", "key")
    worker = RotationWorker(vault, harden=False)
    await worker.emit(PluginRemoved(plugin="weather"))
    await worker.run_once()
    assert provider.steps == ["create", "set", "test"]  # others have its grace


async def test_a_provider_that_refuses_does_not_keep_keys_from_being_renewed(vault, provider):
    await configure(vault, "key", uri=URI)
    provider.around = refuses("create")
    worker = RotationWorker(vault, harden=False)
    await worker.emit(CompromiseSuspected(service="mail"))
    await worker.run_once()
    keyset = (await vault.store.keystore()).by_label["api_keys/mail"]
    assert [version.state for version in keyset.versions] == ["destroyed", "primary"]
    info = await vault.get("key")
    assert info.rotation.asked >= info.rotation.since  # and it stays asked for
    await worker.job("credentials")
    assert "credentials" in worker.health()["problems"]
    provider.around = Provider().around
    await worker._credentials.rotations.ask("key", by_hand=True)
    await worker.job("credentials")
    assert "credentials" not in worker.health()["problems"]
    assert FIRST.encode() in provider.ended


async def test_nothing_is_replaced_in_a_lockdown(vault, clock, provider):
    await configure(vault, "key", uri=URI, interval=DAY)
    clock.now += 2 * DAY
    await vault.lockdown(reason="test")
    worker = RotationWorker(vault, harden=False)
    await worker.job("credentials")
    rotations = Rotations(vault)
    with pytest.raises(ApexCredsError):
        await rotations.ask("key")
    assert provider.steps == []


# -- of principals -----------------------------------------------------------------------------

PEOPLE = ("", "alice", "bob")


@pytest.fixture
async def people(vault, monkeypatch):
    """A credential of each, at a provider of each."""
    found = {who: Provider(valid={f"{FIRST}-{who}".encode()}) for who in PEOPLE}

    def find(uri):
        return FakeRotator(found[uri.partition("#")[2]], Mode.DUAL)

    monkeypatch.setattr(configuration, "rotator_from_uri", find)
    monkeypatch.setattr(Rotations.__init__, "__kwdefaults__", {"find": find})
    for who in PEOPLE:
        value = ApiKey(f"{FIRST}-{who}")
        await vault.put("mine", value, service="mail", origins=[ORIGIN], principal=who)
        await configure(vault, "mine", uri=f"{URI}#{who}", grace=1e6, principal=who)
    return found


def replaced(people):
    return {who for who, provider in people.items() if provider.ended}


async def test_by_interval_each_has_a_turn(vault, clock, people):
    for who, days in (("alice", 1), ("bob", 40)):
        await configure(vault, "mine", interval=days * DAY, grace=0.0, principal=who)
    rotation = CredentialRotation(vault, next_fire=next_fire)
    clock.now += 30 * DAY
    assert await rotation.run() == 0
    assert replaced(people) == {"alice"}
    assert await value_of(vault, "mine") == f"{FIRST}-".encode()


@pytest.mark.parametrize("who", PEOPLE)
async def test_a_compromise_is_of_whose_credential_it_is(vault, people, who):
    worker = RotationWorker(vault, harden=False)
    await worker.emit(CompromiseSuspected(credential="mine", principal=who))
    await worker.run_once()
    assert replaced(people) == {who}
    async with vault.open("mine", principal=who) as opened:
        assert bytes(opened.view()) in people[who].valid


async def test_a_compromise_of_all_is_of_everybody_s(vault, people):
    worker = RotationWorker(vault, harden=False)
    await worker.emit(CompromiseSuspected(service="mail"))
    await worker.run_once()
    assert replaced(people) == set(PEOPLE)


async def test_a_leak_that_rotates_is_of_whose_credential_it_is(vault, people):
    worker = RotationWorker(vault, harden=False)
    await worker.engine.document.change(
        lambda s: replace(s, table={**s.table, "leak_detected": (Reaction.ROTATE_AND_DESTROY,)})
    )
    await worker.emit(LeakDetected(credential="mine", principal="alice"))
    await worker.run_once()
    assert replaced(people) == {"alice"}


@pytest.mark.parametrize("who", ["alice", ""])
async def test_a_leak_ends_the_leases_on_whose_credential_it_is(vault, people, who):
    ended = []
    vault.watch_revocations(lambda plugin, credential: ended.append((plugin, credential)))
    worker = RotationWorker(vault, harden=False)
    await worker.emit(LeakDetected(credential="mine", principal=who))
    await worker.run_once()
    assert set(ended) == {(None, key_of("mine", who))}


@pytest.mark.parametrize("kind", ["compromise_suspected", "leak_detected"])
async def test_a_principal_alone_is_no_event(kind):
    with pytest.raises(InvalidInputError, match="Which credential"):
        parse_event(kind, {"principal": "alice"})
    made, left_out = read_event(kind, {"principal": "alice"})  # an alarm is heard all the same
    assert (bool(made.principal), left_out) == (False, ("'principal'",))
    made, _ = read_event(kind, {"credential_name": "mine", "principal": "alice"})
    assert (made.credential, made.principal) == ("mine", "alice")


async def test_a_program_of_before_reads_events_without_principals():
    for event in (CompromiseSuspected(credential="x"), LeakDetected(plugin="p")):
        assert "principal" not in msgspec.to_builtins(event)

"""The state machine over a vault: steps, failures, undoing, grace, what a person does."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import io
import json
import logging
import traceback
from urllib.parse import quote

import pytest

from apex_creds.errors import InvalidInputError, RotatorError, RotatorRefusedError
from apex_creds.model import ApiKey, RotationStage
from apex_creds.rotators import Mode, Rotations, configuration, configure
from apex_creds.rotators.plan import MOST_REFUSALS
from apex_creds.rotators.protocol import Created
from apex_creds.scheduler.credential_rotation import CredentialRotation
from apex_creds.scheduler.rotation_state import PluginRemoved
from apex_creds.telemetry import semconv
from tests.support.fake_rotator import (
    ORIGIN,
    URI,
    FakeRotator,
    Provider,
    refuses,
    unreachable,
)
from tests.support.recording import recording
from tests.support.rotators import parts_of
from tests.support.vaults import create

pytestmark = pytest.mark.anyio
FIRST = "first-value-of-the-key"
MODES = pytest.mark.parametrize("mode", list(Mode))


@pytest.fixture
async def vault(tmp_path, clock):
    async with await create(tmp_path, clock=clock) as made:
        yield made


@pytest.fixture
def provider():
    return Provider(valid={FIRST.encode()})


@pytest.fixture
def begin(vault, provider, monkeypatch):
    async def begin(mode, *, grace=0.0):
        def find(uri):
            return FakeRotator(provider, mode)

        monkeypatch.setattr(configuration, "rotator_from_uri", find)
        await vault.put("key", ApiKey(FIRST), origins=[ORIGIN])
        await configure(vault, "key", uri=URI, grace=grace)
        return Rotations(vault, find=find)

    return begin


async def value(vault):
    return (await parts_of(vault, "key"))["value"].encode()


@MODES
async def test_the_new_value_is_the_only_one(vault, provider, begin, mode):
    rotations = await begin(mode)
    await rotations.ask("key")
    info = await rotations.advance("key")
    assert info.rotation.stage is RotationStage.IDLE
    assert set(await parts_of(vault, "key")) == {"value"}
    assert provider.valid == {await value(vault)}
    assert provider.steps == ["create", "set", "test", "finish"]


async def test_the_old_value_has_its_grace_and_no_more(vault, provider, begin, clock):
    rotations = await begin(Mode.DUAL, grace=100.0)
    await rotations.ask("key")
    await rotations.advance("key")
    assert provider.valid == {await value(vault), FIRST.encode()}
    clock.now += 99.0
    await rotations.run_due()
    assert provider.takes(FIRST.encode())
    clock.now += 1.0
    assert await rotations.run_due() == 0
    assert provider.valid == {await value(vault)}


@MODES
@pytest.mark.parametrize("step", ["create", "set", "after set", "test", "finish"])
async def test_a_provider_that_does_not_answer_is_asked_again(
    vault, provider, begin, mode, step
):
    rotations = await begin(mode)
    await rotations.ask("key")
    provider.around = unreachable(step)
    with pytest.raises(RotatorError):
        await rotations.advance("key")
    info = await vault.get("key")
    assert info.rotation.outcome == "unreachable"
    assert await rotations.run_due() == 1  # it waits before it asks again
    provider.around = Provider().around
    assert await Rotations(vault, find=rotations._steps._find).run_due() == 0
    assert provider.valid == {await value(vault)}
    assert await value(vault) != FIRST.encode()


@MODES
@pytest.mark.parametrize("step", ["create", "set", "test", "finish"])
@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError(),
        BaseExceptionGroup("all", [asyncio.CancelledError(), asyncio.CancelledError()]),
        BaseExceptionGroup("all", [asyncio.CancelledError(), ValueError()]),
        SystemExit(1),
        GeneratorExit(),
        BaseException(),
    ],
    ids=repr,
)
async def test_a_rotator_that_ends_more_than_its_step_has_failed(
    vault, provider, begin, mode, step, error
):
    rotations = await begin(mode)

    async def ends(name):
        if name == step:
            raise error

    provider.around = ends
    await rotations.ask("key")
    assert await rotations.run_due() == 1
    assert (await vault.get("key")).rotation.outcome == "unreachable"
    provider.around = Provider().around
    assert await Rotations(vault, find=rotations._steps._find).run_due() == 0
    assert provider.valid == {await value(vault)}


@MODES
async def test_a_rotator_that_gives_back_the_old_value_has_failed(
    vault, provider, begin, mode, monkeypatch
):
    async def create(self, task):
        return Created(secret=task.current)

    monkeypatch.setattr(FakeRotator, "create", create)
    rotations = await begin(mode)
    await rotations.ask("key")
    with pytest.raises(RotatorError, match="no new value"):
        await rotations.advance("key")
    assert provider.valid == {FIRST.encode()} == {await value(vault)}
    assert provider.steps == []


async def test_a_plugin_with_a_principal_s_grant_concerns_no_shared_credential(
    vault, provider, begin
):
    rotations = await begin(Mode.DUAL)
    await vault.put("key", ApiKey("alices-own-secret-value"), principal="alice")
    await vault.grant("org.p", "key", principal="alice")
    by_clock = CredentialRotation(vault, next_fire=lambda *_: None, rotations=rotations)
    assert await by_clock.concerned(PluginRemoved(plugin="org.p")) == {}
    await vault.grant("org.p", "key")
    assert len(await by_clock.concerned(PluginRemoved(plugin="org.p"))) == 1


async def test_the_metric_says_what_failed_and_what_needs_a_person(vault, provider, begin):
    def counted():
        return {
            dict(key)[semconv.ROTATION_STATE]: value
            for key, value in seen.values(semconv.ROTATIONS).items()
        }

    rotations = await begin(Mode.SWAP)
    with recording() as seen:
        assert counted() == {"works": 1, "failed": 0, "needs_person": 0}
        provider.around = unreachable("create")
        await rotations.ask("key")
        with pytest.raises(RotatorError):
            await rotations.advance("key")
        assert counted() == {"works": 0, "failed": 1, "needs_person": 0}

        async def dead(step):
            if step in ("test", "set") and "create" in provider.steps:
                provider.valid.clear()
                raise RotatorRefusedError("Not you.")

        provider.around = dead
        with pytest.raises(RotatorRefusedError):
            await rotations.advance("key")
        assert counted() == {"works": 0, "failed": 0, "needs_person": 1}
        provider.around = Provider().around
        await rotations.ask("key", by_hand=True)
        await rotations.advance("key")
        assert counted() == {"works": 1, "failed": 0, "needs_person": 0}


@MODES
@pytest.mark.parametrize("step", ["create", "set", "test"])
async def test_what_is_refused_is_undone(vault, provider, begin, mode, step):
    rotations = await begin(mode)
    await rotations.ask("key")
    tries = 0

    async def once(name):
        nonlocal tries
        if name == step and not tries:
            tries += 1
            raise RotatorRefusedError("Not you.")

    provider.around = once
    with pytest.raises(RotatorRefusedError):
        await rotations.advance("key")
    info = await vault.get("key")
    assert (info.rotation.stage, info.rotation.refusals) == (RotationStage.IDLE, 1)
    assert await parts_of(vault, "key") == {"value": FIRST}
    assert provider.valid == {FIRST.encode()}


@MODES
async def test_a_provider_that_refuses_is_asked_three_times_and_then_by_hand(
    vault, provider, begin, mode
):
    rotations = await begin(mode)
    provider.around = refuses("create")
    await rotations.ask("key")
    for _ in range(MOST_REFUSALS + 2):
        await Rotations(vault, find=rotations._steps._find).run_due()
    assert provider.steps == ["create"] * MOST_REFUSALS
    provider.around = Provider().around
    await rotations.ask("key", by_hand=True)
    await rotations.advance("key")
    assert provider.valid == {await value(vault)}


async def test_a_swap_that_can_not_be_undone_needs_a_person(vault, provider, stuck):
    rotations = stuck
    info = await vault.get("key")
    assert info.rotation.stage is RotationStage.NEEDS_PERSON
    steps = list(provider.steps)
    await rotations.ask("key")
    assert await rotations.run_due() == 1  # and it is not asked any more
    assert provider.steps == steps
    provider.around = Provider().around
    await rotations.ask("key", by_hand=True)
    await rotations.advance("key")
    assert provider.valid == {await value(vault)}


@pytest.fixture
async def stuck(vault, provider, begin):
    """It needs a person, and the value before is stored beside the current one."""
    rotations = await begin(Mode.SWAP)
    await rotations.ask("key")
    provider.around = refuses("test")
    with pytest.raises(RotatorRefusedError):
        await rotations.advance("key")
    assert set(await parts_of(vault, "key")) == {"value", "previous_value"}
    return rotations


async def test_a_rotator_that_is_taken_away_leaves_no_other_value(vault, stuck):
    current = await value(vault)
    info = await configure(vault, "key", uri="")
    assert info.rotation is None
    assert await parts_of(vault, "key") == {"value": current.decode()}


async def test_nor_does_one_that_is_taken_away_between_two_tries_by_hand(vault, stuck):
    await stuck.ask("key", by_hand=True)
    assert (await vault.get("key")).rotation.stage is RotationStage.IDLE
    await configure(vault, "key", uri="")
    assert set(await parts_of(vault, "key")) == {"value"}


async def test_who_changes_when_it_is_rotated_does_not_hide_what_was_left(vault, stuck):
    before = (await vault.get("key")).rotation
    after = (await configure(vault, "key", interval=60.0)).rotation
    assert (after.stage, after.previous) == (RotationStage.NEEDS_PERSON, before.previous)
    await configure(vault, "key", uri=URI)
    assert (await vault.get("key")).rotation.stage is RotationStage.NEEDS_PERSON


async def test_what_was_asked_for_is_not_forgotten_when_the_rotator_is_changed(
    vault, provider, begin
):
    rotations = await begin(Mode.DUAL)
    await rotations.ask("key", lost=True)
    await configure(vault, "key", grace=5.0)
    await rotations.run_due()
    assert FIRST.encode() in provider.ended


async def test_a_value_that_a_person_stores_instead_is_the_only_one(vault, stuck):
    await vault.put("key", ApiKey("typed-by-a-person"))
    assert await parts_of(vault, "key") == {"value": "typed-by-a-person"}


async def test_a_value_that_was_made_before_a_compromise_is_replaced_too(
    vault, provider, begin
):
    rotations = await begin(Mode.DUAL, grace=1e6)
    await rotations.ask("key")
    provider.around = unreachable("test")
    with pytest.raises(RotatorError):
        await rotations.advance("key")
    pending = (await parts_of(vault, "key"))["pending_value"].encode()
    await rotations.ask("key", lost=True)
    provider.around = Provider().around
    await rotations.advance("key")
    assert provider.valid == {await value(vault)}
    assert {FIRST.encode(), pending} <= provider.ended
    assert provider.steps.count("create") == 2


async def test_asking_twice_for_the_same_values_is_asking_once(vault, provider, begin):
    rotations = await begin(Mode.DUAL)
    upto = (await vault.get("key")).version
    for _ in range(2):
        await rotations.ask("key", upto=upto, lost=True)
        await rotations.advance("key")
    assert provider.steps.count("create") == 1


@MODES
async def test_a_value_that_a_person_stores_meanwhile_stays(vault, provider, begin, mode):
    rotations = await begin(mode)
    await rotations.ask("key")

    async def store(step):
        if step == "after set":
            provider.around = Provider().around
            await vault.put("key", ApiKey("a person's value"))

    provider.around = store
    info = await rotations.advance("key")
    assert info.rotation.stage is RotationStage.IDLE
    assert await parts_of(vault, "key") == {"value": "a person's value"}


async def test_many_tasks_are_one_rotation(vault, provider, begin):
    rotations = await begin(Mode.DUAL)
    await rotations.ask("key")
    await asyncio.gather(*(rotations.advance("key") for _ in range(8)))
    assert provider.steps == ["create", "set", "test", "finish"]


async def test_a_rotator_that_fails_is_passed_over_and_its_words_are_not_repeated(
    vault, provider, begin, caplog
):
    rotations = await begin(Mode.DUAL)
    await rotations.ask("key")

    async def around(step):
        raise ValueError(f"I was sent {FIRST}")

    provider.around = around
    with pytest.raises(RotatorError) as caught:
        await rotations.advance("key")
    shown = "".join(traceback.format_exception(caught.value))
    assert FIRST not in shown + caught.value.hint + caplog.text
    assert (await vault.get("key")).rotation.outcome == "failed"


async def test_a_failure_is_in_the_log(vault, provider, begin):
    rotations = await begin(Mode.DUAL)
    await rotations.ask("key")
    provider.around = refuses("set")
    with pytest.raises(RotatorRefusedError):
        await rotations.advance("key")
    vault.audit.sync()
    log = (vault.home / "security/audit").glob("*.jsonl")
    text = "".join(path.read_text() for path in log)
    assert '"action":"set credential"' in text
    assert '"reason":"refused"' in text
    assert FIRST not in text


async def test_how_it_rotates_is_not_changed_in_the_middle(vault, provider, begin):
    rotations = await begin(Mode.DUAL, grace=100.0)
    await rotations.ask("key")
    await rotations.advance("key")
    with pytest.raises(InvalidInputError, match="under way"):
        await configure(vault, "key", grace=5.0)


async def test_a_part_of_another_value_is_not_put_by_hand(vault):
    from apex_creds.model import CredentialKind, Secret

    with pytest.raises(InvalidInputError, match="pending_"):
        await vault.put("x", Secret(CredentialKind.GENERIC, {"pending_value": b"x"}))


FORMS = {
    "as it is": lambda text: text,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64, within more": lambda text: base64.b64encode(f"user:{text}!".encode()).decode(),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "hexadecimal": lambda text: text.encode().hex(),
    "in a URL": lambda text: quote(text, safe=""),
    "in JSON": json.dumps,
    "in JSON of a browser": lambda text: json.dumps(text).replace("/", "\\/"),
    "as Python shows it": lambda text: repr(text.encode()),
}
ODD = 'a/long+secret="value"&\\so on'


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["message", "attribute", "hint", "note"])
async def test_an_error_that_repeats_a_secret_in_any_form_is_not_shown(
    vault, provider, begin, caplog, form, where
):
    rotations = await begin(Mode.DUAL)
    await vault.put("key", ApiKey(ODD))
    await rotations.ask("key")
    shown = FORMS[form](ODD)

    async def around(step):
        error = RotatorRefusedError(
            f"sent {shown}" if where == "message" else "no",
            hint=f"Try {shown}" if where == "hint" else "",
        )
        if where == "note":
            error.add_note(f"It was {shown}.")
        elif where == "attribute":
            error.asked = {"body": shown}
        raise error

    provider.around = around
    with pytest.raises(RotatorRefusedError, match="has a secret in it") as caught:
        await rotations.advance("key")
    said = "".join(traceback.format_exception(caught.value))
    assert shown not in said + caught.value.hint + caplog.text + repr(vars(caught.value))


async def test_an_error_with_an_object_that_can_not_be_shown_is_not_shown(
    vault, provider, begin
):
    class Odd:
        def __repr__(self):
            raise ValueError("no")

    rotations = await begin(Mode.DUAL)
    await rotations.ask("key")

    async def around(step):
        error = RotatorError("It failed.")
        error.odd = Odd()
        raise error

    provider.around = around
    with pytest.raises(RotatorError, match="has a secret in it"):
        await rotations.advance("key")


@pytest.mark.parametrize("kind", [RotatorError, RotatorRefusedError])
async def test_an_error_that_repeats_a_secret_is_not_shown(
    vault, provider, begin, caplog, kind
):
    rotations = await begin(Mode.DUAL)
    await rotations.ask("key")

    async def around(step):
        raise kind(f"I was sent {FIRST}", hint=f"Try {FIRST}")

    provider.around = around
    with pytest.raises(kind) as caught:
        await rotations.advance("key")
    shown = "".join(traceback.format_exception(caught.value))
    assert FIRST not in shown + caught.value.hint + caplog.text


@MODES
async def test_what_was_late_is_made_good_and_the_old_value_does_not_come_back_with_it(
    vault, provider, begin, mode
):
    rotations = await begin(mode)
    await rotations.ask("key")
    provider.around = unreachable("after set")
    with pytest.raises(RotatorError):
        await rotations.advance("key")
    provider.around, valid = Provider().around, {*provider.valid}
    record = await vault.find("key")
    await rotations._steps.make_good(record, record)
    assert provider.valid == valid
    assert await Rotations(vault, find=rotations._steps._find).run_due() == 0
    assert provider.valid == {await value(vault)}


# -- what rotators log ---------------------------------------------------------------------


class Logs(FakeRotator):
    """Logs all that it is given, as a client of a provider does that shows its requests."""

    async def create(self, task):
        await self._log(*task.current.parts.values())
        return await super().create(task)

    async def set(self, task, new):
        await self._log(*new.parts.values(), *task.current.parts.values())
        await super().set(task, new)

    async def test(self, task, new):
        await self._log(*new.parts.values())
        await super().test(task, new)

    async def finish(self, task, old):
        await self._log(*old.parts.values())
        await super().finish(task, old)

    async def _log(self, *values):
        for value in map(bytes.decode, values):
            seen.append(value)
            for show in (str, *FORMS.values()):
                log.warning("sent %s", show(value), extra={"body": show(value)})
                await asyncio.to_thread(log.warning, show(value))
            try:
                raise ValueError(value)
            except ValueError:
                log.exception("it failed")
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                pool.submit(log.error, "sent %r", {"body": value}).result()


async def logged(vault, provider, monkeypatch, find):
    """What a client logs to; the credential is odd, and replaced by that rotator."""
    monkeypatch.setattr(configuration, "rotator_from_uri", find)
    seen.clear()
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    handler.setFormatter(logging.Formatter("%(message)s %(body)s", defaults={"body": ""}))
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(log, "propagate", False)
    provider.valid = {ODD.encode()}
    await vault.put("key", ApiKey(ODD), origins=[ORIGIN])
    await configure(vault, "key", uri=URI, grace=0.0)
    return shown


log = logging.getLogger("a_client_of_a_provider")
seen: list[str] = []


@MODES
async def test_what_a_rotator_logs_has_no_value_in_any_form(vault, provider, monkeypatch, mode):
    def find(uri):
        return Logs(provider, mode)

    shown = await logged(vault, provider, monkeypatch, find)
    filtered = logging.Filterer.filter
    rotations = Rotations(vault, find=find)
    await rotations.ask("key")
    await rotations.advance("key")
    assert {ODD, (await value(vault)).decode()} == set(seen)
    text = shown.getvalue()
    assert text.count("[redacted:key]") > len(seen) * len(FORMS)
    for each in {*seen}:
        for show in (str, *FORMS.values()):
            assert show(each) not in text
    assert logging.Filterer.filter is filtered


class LogsAnswers(FakeRotator):
    """Logs what its provider answers, before it returns it."""

    broken = False

    async def create(self, task):
        log.warning("asking")
        made = await super().create(task)
        answer = made.secret.parts["value"].decode()
        seen.append(answer)
        for show in (str, *FORMS.values()):
            log.warning("got %s", show(answer), extra={"body": show(answer)})
            await asyncio.to_thread(log.warning, "got %r", {"body": show(answer)})
            await asyncio.create_task(asyncio.to_thread(log.warning, show(answer)))
        if self.broken:
            raise RotatorError("The answer ends in the middle.")
        return made


@MODES
async def test_what_a_rotator_logs_has_no_value_that_it_has_just_made(
    vault, provider, monkeypatch, mode
):
    shown = await logged(
        vault, provider, monkeypatch, find := lambda uri: LogsAnswers(provider, mode)
    )
    rotations = Rotations(vault, find=find)
    await rotations.ask("key")
    await rotations.advance("key")
    (made,) = seen
    assert (await value(vault)).decode() == made
    lines = shown.getvalue().splitlines()
    assert lines[0] == "asking "
    assert len(lines) == 1 + 3 * (1 + len(FORMS))
    assert all("[redacted:key]" in line for line in lines[1:])
    assert not any(show(made) in line for line in lines for show in (str, *FORMS.values()))


async def test_nothing_that_a_failed_step_logs_is_lost(vault, provider, monkeypatch):
    monkeypatch.setattr(LogsAnswers, "broken", True)
    shown = await logged(
        vault, provider, monkeypatch, find := lambda uri: LogsAnswers(provider, Mode.DUAL)
    )
    rotations = Rotations(vault, find=find)
    await rotations.ask("key")
    with pytest.raises(RotatorError, match="in the middle"):
        await rotations.advance("key")
    assert len(shown.getvalue().splitlines()) == 1 + 3 * (1 + len(FORMS))
    log.warning("afterwards")
    assert shown.getvalue().endswith("afterwards \n")


async def test_a_rotator_that_logs_without_end_does_not_fill_the_memory(
    vault, provider, monkeypatch
):
    class Floods(FakeRotator):
        async def create(self, task):
            made = await super().create(task)
            for number in range(3000):
                log.warning("%d %s", number, made.secret.parts["value"].decode())
            return made

    shown = await logged(
        vault, provider, monkeypatch, find := lambda uri: Floods(provider, Mode.DUAL)
    )
    rotations = Rotations(vault, find=find)
    await rotations.ask("key")
    await rotations.advance("key")
    assert (await value(vault)).decode() not in shown.getvalue()
    lines = shown.getvalue().splitlines()
    assert len(lines) == 3000
    assert sum("too many are held back" in line for line in lines) == 2000

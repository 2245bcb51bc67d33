"""A person decides: what is asked, how often, and what each answer allows."""

from __future__ import annotations

import contextlib

import anyio
import pytest

from apex_creds.auth.consent_queue import QueueConsent, Requests
from apex_creds.errors import AccessDeniedError, HandleRevokedError, LeaseEndedError
from apex_creds.leases.handle import current_credentials
from apex_creds.policy.consent import (
    CallbackConsent,
    Choice,
    ConsentAnswer,
    ConsentRequest,
    lines,
)
from apex_creds.policy.manifest import Access
from tests.support.worlds import KEY, World, manifest_for, world_in

pytestmark = pytest.mark.anyio


class Person:
    """Answers as told, when told."""

    def __init__(self, *answers: Choice | ConsentAnswer | Exception | None) -> None:
        self.answers = list(answers)
        self.asked: list[ConsentRequest] = []
        self.was_asked = anyio.Event()
        self.may_answer = anyio.Event()
        self.may_answer.set()
        self.cancelled = 0

    async def ask(self, request: ConsentRequest) -> ConsentAnswer:
        self.asked.append(request)
        self.was_asked.set()
        try:
            await self.may_answer.wait()
        except BaseException:
            self.cancelled += 1
            raise
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return ConsentAnswer(choice=answer) if isinstance(answer, Choice) else answer


@contextlib.asynccontextmanager
async def asking(where, person, **options):
    async with world_in(where, consent=person, **options) as world:
        yield world


async def use() -> str:
    async with current_credentials()["ungranted"].reveal() as secret:
        return secret.expose_str()


async def ask(world: World, **options) -> object:
    return await world.call(use, needs=("ungranted",), **options)


READ = "[redacted:ungranted]"


async def test_once_is_once(tmp_path):
    person = Person(Choice.ONCE, Choice.DENY)
    async with asking(tmp_path, person) as world:
        assert await ask(world) == READ
        with pytest.raises(AccessDeniedError):
            await ask(world)
        assert len(person.asked) == 2
        assert ("ungranted", "not_granted") in world.reasons()
        assert [e.reason for e in world.events("grant") if e.reason] == [
            "consent_once",
            "consent_deny",
        ]


async def test_a_session_is_this_middleware(tmp_path):
    person = Person(Choice.SESSION, Choice.DENY)
    async with asking(tmp_path, person) as world:
        assert [await ask(world) for _ in range(3)] == [READ] * 3
        assert len(person.asked) == 1
        await world.middleware.close()
        from apex_creds.middleware import CredentialMiddleware

        world.middleware = CredentialMiddleware(world.vault, consent=person)
        with pytest.raises(AccessDeniedError):
            await ask(world)
        assert len(person.asked) == 2


async def test_always_is_stored_and_until_ends(tmp_path):
    end = 1_700_000_060.0
    until = ConsentAnswer(choice=Choice.UNTIL, until=end, by="me")
    person = Person(until, Choice.ALWAYS)
    async with asking(tmp_path, person) as world:
        assert await ask(world) == READ
        assert await ask(world) == READ
        grant = (await world.vault.grants()).find("demo", "ungranted")
        assert (grant.until, grant.created_by) == (end, "me")
        world.clock.now = end
        assert await ask(world) == READ
        assert len(person.asked) == 2
        assert "until @1700000060" in person.asked[1].before
        grant = (await world.vault.grants()).find("demo", "ungranted")
        assert grant.until is None
        assert grant.manifest == manifest_for("ungranted").digest


async def test_never_is_not_asked_again(tmp_path):
    person = Person(Choice.NEVER)
    async with asking(tmp_path, person) as world:
        for _ in range(3):
            with pytest.raises(AccessDeniedError):
                await ask(world)
        assert len(person.asked) == 1
        assert world.reasons()[-1] == ("ungranted", "grant_denied")


@pytest.mark.parametrize("answer", [None, RuntimeError("lost"), "yes", True])
async def test_what_is_no_answer_is_a_denial(tmp_path, answer):
    person = Person(answer)
    async with asking(tmp_path, person) as world:
        with pytest.raises(AccessDeniedError):
            await ask(world)


async def test_no_answer_by_the_deadline_is_a_denial(tmp_path):
    person = Person()
    person.may_answer = anyio.Event()
    async with asking(tmp_path, person, consent_deadline=0.01) as world:
        with pytest.raises(AccessDeniedError):
            await ask(world)
        assert person.cancelled == 1


async def test_without_anybody_it_is_denied_at_once(tmp_path):
    async with world_in(tmp_path) as world:
        with pytest.raises(AccessDeniedError):
            await ask(world)


async def test_an_undeclared_credential_is_never_asked_about(tmp_path):
    person = Person()

    async def other() -> None:
        async with current_credentials()["ungranted"].reveal():
            pass

    async with asking(tmp_path, person) as world:
        with pytest.raises(AccessDeniedError):
            await world.call(other, needs=("key",))
        assert person.asked == []


async def test_the_same_at_once_is_asked_once(tmp_path):
    person = Person(Choice.ONCE)
    person.may_answer = anyio.Event()
    found: list[object] = []

    async def one(world: World) -> None:
        found.append(await ask(world))

    async with asking(tmp_path, person) as world:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(one, world)
            await anyio.wait_all_tasks_blocked()
            person.may_answer.set()
        assert found == [READ] * 20
        assert len(person.asked) == 1


async def test_a_question_outlives_the_one_who_asked_first(tmp_path):
    person = Person(Choice.ONCE)
    person.may_answer = anyio.Event()
    found: list[object] = []

    async def one(world: World, scope: anyio.CancelScope) -> None:
        with scope:
            found.append(await ask(world))

    async with asking(tmp_path, person) as world:
        scopes = [anyio.CancelScope() for _ in range(3)]
        async with anyio.create_task_group() as group:
            for scope in scopes:
                group.start_soon(one, world, scope)
                await anyio.wait_all_tasks_blocked()
            scopes[0].cancel()
            await anyio.wait_all_tasks_blocked()
            assert person.cancelled == 0
            person.may_answer.set()
        assert found == [READ] * 2
        assert len(person.asked) == 1


async def test_a_question_nobody_waits_for_is_withdrawn(tmp_path):
    person = Person()
    person.may_answer = anyio.Event()
    async with asking(tmp_path, person) as world:
        async with anyio.create_task_group() as group:
            group.start_soon(ask, world)
            await person.was_asked.wait()
            group.cancel_scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert person.cancelled == 1


async def test_closing_denies_what_is_open(tmp_path):
    person = Person()
    person.may_answer = anyio.Event()

    async def one(world: World) -> None:
        with pytest.raises(AccessDeniedError):
            await ask(world)

    async with asking(tmp_path, person) as world, anyio.create_task_group() as group:
        group.start_soon(one, world)
        await anyio.wait_all_tasks_blocked()
        await world.middleware.close()


@pytest.mark.parametrize("choice", [Choice.ONCE, Choice.SESSION, Choice.ALWAYS])
@pytest.mark.parametrize("what", ["revoke", "lockdown"])
async def test_what_is_taken_back_meanwhile_wins_over_the_answer(tmp_path, choice, what):
    person = Person(choice, Choice.DENY, Choice.DENY)
    person.may_answer = anyio.Event()

    async def one(world: World) -> None:
        with pytest.raises(AccessDeniedError):
            await ask(world)

    async with asking(tmp_path, person) as world:
        async with anyio.create_task_group() as group:
            group.start_soon(one, world)
            await anyio.wait_all_tasks_blocked()
            if what == "revoke":
                await world.vault.revoke(plugin="demo")
            else:
                await world.vault.lockdown()
            person.may_answer.set()
        assert (await world.vault.grants()).find("demo", "ungranted") is None


@pytest.mark.parametrize("choice", [Choice.UNTIL, Choice.ALWAYS])
@pytest.mark.parametrize("what", ["revoke(plugin='demo')", "lockdown()"])
async def test_what_another_process_takes_back_at_the_last_moment_wins(
    tmp_path, monkeypatch, choice, what
):
    """Between the look at the revocations and the commit of the answer."""
    until = 1_700_000_900.0 if choice is Choice.UNTIL else None
    person = Person(ConsentAnswer(choice=choice, until=until), Choice.DENY)
    async with asking(tmp_path, person) as world:
        real = world.vault.store.grants.commit

        async def commit(change):
            if person.asked and not person.may_answer.is_set():
                person.may_answer.set()
                await anyio.to_thread.run_sync(world.elsewhere, f"await vault.{what}")
            return await real(change)

        real_ask = person.ask

        async def answered(request):
            answer = await real_ask(request)
            person.may_answer = anyio.Event()
            return answer

        monkeypatch.setattr(person, "ask", answered)
        monkeypatch.setattr(world.vault.store.grants, "commit", commit)
        with pytest.raises(AccessDeniedError):
            await ask(world)
        assert person.may_answer.is_set()
        assert (await world.vault.grants()).find("demo", "ungranted") is None
        assert world.events("grant")[-1].decision == "deny"


async def test_a_revocation_ends_what_was_allowed_for_the_session(tmp_path):
    person = Person(Choice.SESSION, Choice.DENY)

    async def while_running(world: World) -> None:
        handle = current_credentials()["ungranted"]
        async with handle.reveal() as secret:
            assert await world.vault.revoke(plugin="demo", credential="ungranted") == ()
            assert secret.closed
            assert not handle.active

    async with asking(tmp_path, person) as world:
        await world.call(while_running, world, needs=("ungranted",))
        with pytest.raises(AccessDeniedError):
            await ask(world)
        assert len(person.asked) == 2


async def test_another_process_revokes_what_was_allowed_for_the_session(tmp_path):
    async def while_running(world: World) -> None:
        handle = current_credentials()["ungranted"]
        async with handle.reveal():
            pass
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(
                world.elsewhere, "await vault.revoke(plugin='demo', credential='ungranted')"
            )
        with pytest.raises(HandleRevokedError):
            async with handle.reveal():
                pass

    async with asking(tmp_path, Person(Choice.SESSION)) as world:
        await world.call(while_running, world, needs=("ungranted",))


# -- what does not exist ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["ungranted", "nothing"])
async def test_what_does_not_exist_is_asked_about_like_what_is_not_granted(tmp_path, name):
    """So the time to a refusal does not tell which credentials there are."""
    person = Person(Choice.DENY)
    person.may_answer = anyio.Event()
    found: list[object] = []

    async def one(world: World) -> None:
        needs = ({"name": name, "required": False},)
        found.append(await world.call(lambda: sorted(current_credentials()), needs=needs))

    async with asking(tmp_path, person) as world:
        async with anyio.create_task_group() as group:
            group.start_soon(one, world)
            await person.was_asked.wait()
            assert found == []
            person.may_answer.set()
        assert found == [[]]


@pytest.mark.parametrize("choice", [Choice.ONCE, Choice.SESSION, Choice.ALWAYS])
async def test_a_yes_makes_nothing_of_what_does_not_exist(tmp_path, choice):
    person = Person(choice, Choice.DENY)
    async with asking(tmp_path, person) as world:
        with pytest.raises(AccessDeniedError):
            await world.call(use, needs=("nothing",))
        assert world.reasons() == [("nothing", "unknown_credential")]
        assert any("no credential of that name" in line for line in lines(person.asked[0]))
        assert person.asked[0].why == "unknown_credential"
        with pytest.raises(AccessDeniedError):
            await world.call(use, needs=("nothing",))
        assert len(person.asked) == (2 if choice is Choice.ONCE else 1)


async def test_never_is_not_asked_again_where_there_is_nothing(tmp_path):
    person = Person(Choice.NEVER)
    async with asking(tmp_path, person) as world:
        for _ in range(2):
            with pytest.raises(AccessDeniedError):
                await world.call(use, needs=("nothing",))
        assert len(person.asked) == 1


# -- what a new version asks for --------------------------------------------------------


NEED = {"name": "key", "access": "reveal", "scopes": ["read"]}


async def read_key() -> str:
    async with current_credentials()["key"].reveal() as secret:
        return secret.expose_str()


async def test_a_version_that_asks_for_nothing_new_keeps_its_grants(tmp_path):
    async with world_in(tmp_path) as world:
        wide = {**NEED, "scopes": ["read", "write"], "reason": "more"}
        assert await world.call(read_key, needs=(wide,)) == "[redacted:key]"
        assert await world.call(read_key, needs=(NEED,)) == "[redacted:key]"
        assert await world.call(read_key, needs=(wide,)) == "[redacted:key]"


async def test_the_weightiest_of_many_changes_is_told_first(tmp_path):
    person = Person(Choice.ALWAYS, *[Choice.DENY] * 61)
    fillers = [{"name": f"cache-{n:02}", "required": n == 3} for n in range(60)]
    async with asking(tmp_path, person) as world:
        await world.call(read_key, needs=(NEED,))
        with pytest.raises(AccessDeniedError):
            await world.call(read_key, needs=(NEED, *fillers, {**NEED, "name": "root"}))
        changes = person.asked[0].changes
        assert changes[:3] == ("credential root", "credential cache-03", "credential cache-00")
        assert len(changes) == 61


@pytest.mark.parametrize(
    "more",
    [
        ({**NEED, "scopes": ["read", "write"]},),
        (NEED, {"name": "token"}),
        ({**NEED, "paths": []},),
    ],
)
async def test_one_that_asks_for_more_loses_them_until_a_person_decides(tmp_path, more):
    person = Person(Choice.DENY, Choice.ALWAYS)
    first = {**NEED, "paths": ["/v1/*"]}
    more = tuple({**first, **need} if need["name"] == "key" else need for need in more)
    async with asking(tmp_path, person) as world:
        await world.call(read_key, needs=(first,))
        assert person.asked == []
        with pytest.raises(AccessDeniedError):
            await world.call(read_key, needs=more)
        assert await world.call(read_key, needs=more) == "[redacted:key]"
        assert person.asked[0].why == "manifest_changed"
        assert len(person.asked[0].changes) == 1
        assert person.asked[0].before
        if len(more) == 1:
            # What was decided on is what the next version is compared with.
            assert await world.call(read_key, needs=(first,)) == "[redacted:key]"


async def test_the_switch_asks_about_every_new_version(tmp_path):
    person = Person(Choice.DENY)
    async with asking(tmp_path, person) as world:
        await world.call(read_key, needs=(NEED,))
        policy = world.where / "home" / "security" / "policy.toml"
        policy.write_text('version = 1\n[grants]\nnew_version = "ask"\n')
        policy.chmod(0o600)
        world.middleware.broker.authorizer.reload()
        assert await world.call(read_key, needs=(NEED,)) == "[redacted:key]"
        with pytest.raises(AccessDeniedError):
            await world.call(read_key, needs=({**NEED, "reason": "other words"},))


async def test_code_that_is_not_what_its_metadata_says_is_asked_about(tmp_path):
    import msgspec

    person = Person(Choice.DENY, Choice.ALWAYS, Choice.DENY)
    good = msgspec.structs.replace(manifest_for(NEED), checksum="sha256:aa")
    bad = msgspec.structs.replace(good, checksum="unverified:sha256:bb")
    worse = msgspec.structs.replace(good, checksum="unverified:sha256:cc")
    none = msgspec.structs.replace(good, checksum="")
    async with asking(tmp_path, person) as world:
        run = world.middleware.invoke
        await run(good, read_key)
        with pytest.raises(AccessDeniedError):
            await run(bad, read_key)
        assert person.asked[0].unverified
        assert "WARNING" in "\n".join(lines(person.asked[0]))
        await run(bad, read_key)
        await run(bad, read_key)
        with pytest.raises(AccessDeniedError):
            await run(worse, read_key)
        assert len(person.asked) == 3
        person.answers = [Choice.DENY]
        with pytest.raises(AccessDeniedError):
            await run(none, read_key)


# -- levels -----------------------------------------------------------------------------


async def test_normal_is_allowed_where_the_policy_says_so(tmp_path):
    person = Person(Choice.DENY)
    async with asking(tmp_path, person) as world:
        policy = world.where / "home" / "security" / "policy.toml"
        policy.write_text('version = 1\n[levels.normal]\ndecision = "allow"\n')
        policy.chmod(0o600)
        world.middleware.broker.authorizer.reload()
        from apex_creds.model import ApiKey

        await world.vault.put("ungranted", ApiKey("never-granted"), sensitivity="normal")
        needs = ({"name": "ungranted"},)
        assert await world.call(lambda: 1, needs=needs) == 1
        assert person.asked == []
        await world.vault.put("ungranted", ApiKey("never-granted"), sensitivity="sensitive")
        with pytest.raises(AccessDeniedError):
            await world.call(lambda: 1, needs=needs)
        assert len(person.asked) == 1


# -- lockdown ---------------------------------------------------------------------------


async def test_a_lockdown_ends_everything_until_it_is_unlocked(tmp_path):
    async def while_running(world: World) -> None:
        handle = current_credentials()["key"]
        async with handle.reveal() as secret:
            await world.middleware.lockdown(reason="drill")
            assert secret.closed
        with pytest.raises(LeaseEndedError):
            async with handle.reveal():
                pass

    async with world_in(tmp_path) as world:
        await world.call(while_running, world)
        with pytest.raises(AccessDeniedError):
            await world.call(read_key)
        assert ("key", "locked_down") in world.reasons()
        with pytest.raises(AccessDeniedError):
            async with world.vault.open("key"):
                pass
        assert await world.vault.unlock()
        assert not await world.vault.unlock()
        assert list(await world.vault.grants()) == []
        with pytest.raises(AccessDeniedError):
            await world.call(read_key)
        await world.vault.grant("demo", "key", reveal=True)
        assert await world.call(read_key) == "[redacted:key]"


async def test_a_lockdown_in_another_process_is_seen_by_the_next_redeem(tmp_path):
    async def while_running(world: World) -> None:
        handle = current_credentials()["key"]
        async with handle.reveal():
            pass
        code = "await vault.lockdown(keep_grants=True)"
        await anyio.to_thread.run_sync(world.elsewhere, code)
        with pytest.raises(HandleRevokedError):
            async with handle.reveal():
                pass

    async with world_in(tmp_path) as world:
        await world.call(while_running, world)
        assert world.vault.store.sealed
        await anyio.to_thread.run_sync(world.elsewhere, "await vault.unlock()")
        assert await world.call(read_key) == "[redacted:key]"


async def test_removing_a_plugin_takes_all_it_had(tmp_path):
    async with world_in(tmp_path) as world:
        await world.call(read_key)
        await world.middleware.remove_plugin("demo")
        with pytest.raises(AccessDeniedError):
            await world.call(read_key)
        assert await world.call(read_key, plugin="inner") == "[redacted:key]"


# -- the queue --------------------------------------------------------------------------


async def test_a_queued_question_is_answered_and_forgotten(tmp_path):
    async with world_in(tmp_path) as world:
        await world.middleware.close()
        from apex_creds.middleware import CredentialMiddleware

        queue = QueueConsent(world.vault, period=0.01)
        world.middleware = CredentialMiddleware(world.vault, consent=queue)
        requests, found = Requests(world.vault), []

        async def one() -> None:
            found.append(await ask(world))

        async with anyio.create_task_group() as group:
            group.start_soon(one)
            while not (waiting := await requests.open()):
                await anyio.sleep(0.01)
            assert waiting[0].request.access is Access.REVEAL
            await requests.answer(waiting[0].id, ConsentAnswer(choice=Choice.ONCE))
        assert found == [READ]
        assert await requests.open() == []


async def test_a_queue_has_room_for_a_few_of_each_plugin(tmp_path):
    async with world_in(tmp_path) as world:
        queue = QueueConsent(world.vault, period=0.01)
        async with anyio.create_task_group() as group:
            for number in range(16):
                request = ConsentRequest(plugin="p", credential=str(number))
                group.start_soon(queue.ask, request)
            while len(await Requests(world.vault).open()) < 16:
                await anyio.sleep(0.01)
            with pytest.raises(AccessDeniedError):
                await queue.ask(ConsentRequest(plugin="p", credential="more"))
            group.cancel_scope.cancel()
        assert await Requests(world.vault).open() == []


# -- what is shown ----------------------------------------------------------------------


def test_nothing_that_a_plugin_says_drives_a_terminal():
    evil = "\x1b[2J\u202e[red]x\r\nPlugin good wants\x07"
    request = ConsentRequest(
        plugin=evil, version=evil, action=evil, credential=evil, scopes=(evil,),
        reason=evil * 300, changes=(evil,), before=evil,
    )  # fmt: skip
    shown = lines(request)
    assert all(line.isprintable() for line in shown)
    assert max(map(len, shown)) < 8000
    assert not any(line.startswith("Plugin good") for line in shown)


async def test_a_callback_may_be_synchronous():
    request = ConsentRequest(plugin="p", credential="c")
    yes = ConsentAnswer(choice=Choice.ONCE)
    assert await CallbackConsent(lambda _: yes).ask(request) is yes

    async def later(_: ConsentRequest) -> ConsentAnswer | None:
        return None

    assert (await CallbackConsent(later).ask(request)).choice is Choice.DENY
    assert KEY

"""A token is renewed once, for all who need it; what can't be renewed is never used."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from apex_creds.errors import (
    AccessDeniedError,
    ChallengeError,
    NeedsReconnectError,
    OAuthUnreachableError,
    RequestNotAllowedError,
    TokenError,
)
from apex_creds.middleware import CredentialMiddleware
from apex_creds.model import ApiKey, Connection, ConnectionState, CredentialInfo, OAuthToken
from apex_creds.oauth import Provider, Refresher, connect
from apex_creds.oauth import refresh as refresh_module
from apex_creds.oauth.endpoints import Answer, Client
from apex_creds.oauth.messages import Form
from apex_creds.oauth.refresh import refresher_of
from apex_creds.scheduler.worker import Rhythm, RotationWorker
from apex_creds.telemetry import semconv
from tests.oauth.test_connect import SCOPE, somebody
from tests.support.oidc import Server
from tests.support.recording import recording
from tests.support.worlds import World, _templates

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
NEED = {"name": "calendar", "access": "reveal"}


@pytest.fixture
async def connected(world: World, provider: Provider) -> CredentialInfo:
    made = await connect(
        world.vault, "calendar", provider, client_id="desk", scope=SCOPE, show=somebody()
    )
    await world.vault.grant("demo", "calendar", reveal=True)
    return made.info


async def used(world: World, times: int = 1) -> list[str]:
    """The tokens that as many invocations at once have used; a result would be redacted."""
    seen: list[str] = []

    async def plugin(credentials: object) -> None:
        async with credentials["calendar"].reveal() as secret:
            seen.append(secret.expose_str())

    await asyncio.gather(*(world.call(plugin, needs=(NEED,)) for _ in range(times)))
    return seen


async def token_of(world: World, part: str = "access") -> str:
    async with world.vault.open("calendar") as opened:
        return bytes(opened.view(part)).decode()


async def test_a_token_that_is_valid_is_left_alone(
    world: World, connected: CredentialInfo, server: Server
) -> None:
    before = await token_of(world)
    assert await used(world) == [before]


async def test_an_expired_token_is_renewed_for_the_invocation_that_needs_it(
    world: World, connected: CredentialInfo
) -> None:
    before = await token_of(world), await token_of(world, "refresh")
    world.clock.now += 600
    assert await used(world) == [await token_of(world)] != [before[0]]
    assert await token_of(world, "refresh") != before[1], "a rotated refresh token is kept"
    info = await world.vault.get("calendar")
    assert info.expires == world.clock.time() + 600
    assert info.connection is not None
    assert (info.connection.state, info.connection.outcome) == ("connected", "ok")
    assert info.version == connected.version + 1


async def test_one_that_is_declared_and_not_used_is_not_renewed(
    world: World, connected: CredentialInfo
) -> None:
    world.clock.now += 600

    async def plugin(credentials: object) -> str:
        return "nothing"

    await world.call(plugin, needs=(NEED,))
    assert (await world.vault.get("calendar")).version == connected.version


async def test_a_lease_lives_through_a_refresh(world: World, connected: CredentialInfo) -> None:
    world.middleware = CredentialMiddleware(world.vault, ttl=3600)
    seen: list[str] = []

    async def plugin(credentials: object) -> None:
        handle = credentials["calendar"]
        for _ in range(2):
            async with handle.reveal() as secret:
                seen.append(secret.expose_str())
            world.clock.now += 700

    await world.call(plugin, needs=(NEED,))
    assert seen[0] != seen[1] == await token_of(world)


async def test_all_who_need_it_wait_for_one_refresh(
    world: World, connected: CredentialInfo, server: Server
) -> None:
    world.clock.now += 600
    assert set(await used(world, times=20)) == {await token_of(world)}
    assert (await world.vault.get("calendar")).version == connected.version + 1


async def test_threads_wait_for_the_same_one(world: World, connected: CredentialInfo) -> None:
    seen: list[str] = []

    def plugin(credentials: object) -> None:
        with credentials["calendar"].reveal() as secret:
            seen.append(secret.expose_str())

    world.clock.now += 600
    await asyncio.gather(*(world.call(plugin, needs=(NEED,)) for _ in range(8)))
    assert set(seen) == {await token_of(world)}
    assert (await world.vault.get("calendar")).version == connected.version + 1


async def test_a_plugin_never_has_the_refresh_token(
    world: World, connected: CredentialInfo
) -> None:
    async def plugin(credentials: object) -> None:
        async with credentials["calendar"].reveal(part="refresh"):
            pytest.fail("it has it")

    with pytest.raises(RequestNotAllowedError, match="for apex-creds alone"):
        await world.call(plugin, needs=(NEED,))


async def test_the_worker_renews_it_before_it_expires(
    world: World, connected: CredentialInfo
) -> None:
    world.clock.now += 500
    async with RotationWorker(world.vault, rhythm=Rhythm(refresh=0.01), harden=False):
        while (await world.vault.get("calendar")).version == connected.version:
            await asyncio.sleep(0.01)
            world.clock.now += 1  # a pause after an answer that came too late is over, too
    assert await state_of(world) == ("connected", "ok", 0)


async def test_the_worker_says_that_a_person_is_needed(
    world: World, connected: CredentialInfo
) -> None:
    assert connected.connection is not None
    lost = msgspec.structs.replace(connected.connection, state=ConnectionState.NEEDS_RECONNECT)
    await world.vault.note_connection(connected, lost)
    async with RotationWorker(world.vault, rhythm=Rhythm(refresh=0.01), harden=False) as worker:
        while "refresh" not in worker.health()["problems"]:
            await asyncio.sleep(0.01)
        assert "1 OAuth connections need" in worker.health()["problems"]["refresh"]


# -- what goes wrong -------------------------------------------------------------------


Post = Callable[[str, Form, Client], Awaitable[Answer]]


def refresher(world: World, post: Post) -> Refresher:
    made = world.middleware.broker.refresher = Refresher(world.vault, post=post)
    return made


async def state_of(world: World) -> tuple[str, str, int]:
    connection = (await world.vault.get("calendar")).connection
    assert connection is not None
    return connection.state, connection.outcome, connection.attempts


async def test_a_refused_refresh_needs_a_person(
    world: World, connected: CredentialInfo, provider: Provider
) -> None:
    token = OAuthToken("x", refresh_token="no such", expires_at=world.clock.time() + 1)
    assert connected.connection is not None
    await world.vault.renew(connected, token, connection=connected.connection)
    world.clock.now += 600
    with pytest.raises(NeedsReconnectError) as caught:
        await used(world)
    assert "no such" not in str(caught.value)
    assert await state_of(world) == ("needs_reconnect", "invalid_grant", 1)
    assert ("calendar", "needs_reconnect") in world.reasons()
    # The next lease is refused before it begins.
    world.clock.now += 1
    with pytest.raises(AccessDeniedError):
        await used(world)
    assert world.reasons()[-1] == ("calendar", "needs_reconnect")
    again = await connect(
        world.vault, "calendar", provider, client_id="desk", scope=SCOPE, show=somebody()
    )
    assert await used(world) == [await token_of(world)]
    assert again.info.id == connected.id


async def test_a_server_that_can_not_be_reached_changes_nothing(
    world: World, connected: CredentialInfo
) -> None:
    async def post(url: str, form: Form, client: Client) -> Answer:
        raise OAuthUnreachableError("down", sent=False)

    world.clock.now += 600
    asked = refresher(world, post)
    with pytest.raises(TokenError):
        await asked.ensure("calendar")
    assert await state_of(world) == ("connected", "unreachable", 0)
    with pytest.raises(TokenError, match="a moment ago"):  # not asked again at once
        await asked.ensure("calendar")
    await Refresher(world.vault).ensure("calendar")
    assert await state_of(world) == ("connected", "ok", 0)


async def test_an_answer_that_is_lost_is_known_and_asked_for_again(
    world: World, connected: CredentialInfo
) -> None:
    async def post(url: str, form: Form, client: Client) -> Answer:
        raise OAuthUnreachableError("lost", sent=True)

    world.clock.now += 600
    with pytest.raises(TokenError):
        await refresher(world, post).ensure("calendar")
    assert await state_of(world) == ("refreshing", "ok", 1)
    await Refresher(world.vault).ensure("calendar")  # the server had not had it
    assert await state_of(world) == ("connected", "ok", 0)


async def test_an_answer_that_is_lost_after_the_token_was_used_needs_a_person(
    world: World, connected: CredentialInfo
) -> None:
    async def post(url: str, form: Form, client: Client) -> Answer:
        await refresh_module.endpoints.post(url, form, client)
        raise OAuthUnreachableError("lost", sent=True)

    world.clock.now += 600
    with pytest.raises(TokenError):
        await refresher(world, post).ensure("calendar")
    with pytest.raises(NeedsReconnectError):  # the server takes a second use for theft
        await Refresher(world.vault).ensure("calendar")
    assert (await state_of(world))[:2] == ("needs_reconnect", "invalid_grant")


async def test_answers_that_are_lost_again_and_again_are_no_loop(
    world: World, connected: CredentialInfo
) -> None:
    sent = 0

    async def post(url: str, form: Form, client: Client) -> Answer:
        nonlocal sent
        sent += 1
        raise OAuthUnreachableError("lost", sent=True)

    world.clock.now += 600
    for _ in range(5):
        with pytest.raises(TokenError):
            await refresher(world, post).ensure("calendar")
    with pytest.raises(NeedsReconnectError):
        await refresher(world, post).ensure("calendar")
    assert sent == 5
    assert (await state_of(world))[:2] == ("needs_reconnect", "answer_lost")


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b'{"access_token": 5}', b'{"access_token": "a", "expires_in": "1"}'],
)
async def test_an_answer_that_can_not_be_used_is_not_stored(
    world: World, connected: CredentialInfo, body: bytes
) -> None:
    async def post(url: str, form: Form, client: Client) -> Answer:
        return Answer(200, body)

    before = await token_of(world)
    world.clock.now += 600
    with pytest.raises(NeedsReconnectError):
        await refresher(world, post).ensure("calendar")
    assert await token_of(world) == before


async def test_a_token_that_was_set_meanwhile_is_not_lost(
    world: World, connected: CredentialInfo
) -> None:
    sent: list[tuple[str, Form]] = []

    async def post(url: str, form: Form, client: Client) -> Answer:
        sent.append((url, form))
        await world.vault.put("calendar", OAuthToken("by hand"))
        return Answer(200, msgspec.json.encode({"access_token": "late", "refresh_token": "r"}))

    world.clock.now += 600
    refresher(world, post)
    assert await used(world) == ["by hand"]
    # What came is nobody's: it is revoked.
    assert connected.connection is not None
    url, form = sent[1]
    assert url == connected.connection.revocation_endpoint
    assert form == {"token": "r", "token_type_hint": "refresh_token"}


async def test_a_person_who_connects_before_the_request_keeps_the_new_refresh_token(
    world: World, connected: CredentialInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own answer alone could be stored: sent for another, it would be spent."""
    sent: list[Form] = []
    noted = world.vault.note_connection

    async def post(url: str, form: Form, client: Client) -> Answer:
        sent.append(form)
        return Answer(200, b'{"access_token": "late"}')

    async def meanwhile(before: CredentialInfo, connection: Connection) -> CredentialInfo:
        made = await noted(before, connection)
        monkeypatch.undo()
        again = OAuthToken("again", refresh_token="r2", expires_at=world.clock.time() + 600)
        await world.vault.put("calendar", again, connection=connected.connection)
        return made

    world.clock.now += 600
    refresher(world, post)
    monkeypatch.setattr(world.vault, "note_connection", meanwhile)
    assert await used(world) == ["again"]
    assert sent == []


async def test_what_came_late_is_not_revoked_beside_a_new_connection(
    world: World, connected: CredentialInfo
) -> None:
    """A server may end the whole authorization with one token (RFC 7009, section 2.1)."""
    sent: list[str] = []

    async def post(url: str, form: Form, client: Client) -> Answer:
        sent.append(url)
        again = OAuthToken("again", expires_at=world.clock.time() + 600)
        await world.vault.put("calendar", again, connection=connected.connection)
        return Answer(200, msgspec.json.encode({"access_token": "late"}))

    world.clock.now += 600
    refresher(world, post)
    assert await used(world) == ["again"]
    assert len(sent) == 1


async def test_a_token_that_comes_in_a_lockdown_is_kept_and_not_used(
    world: World, connected: CredentialInfo
) -> None:
    async def post(url: str, form: Form, client: Client) -> Answer:
        await world.vault.lockdown(reason="while it is on its way", keep_grants=True)
        return await refresh_module.endpoints.post(url, form, client)

    before = await token_of(world)
    world.clock.now += 600
    refresher(world, post)
    with pytest.raises(AccessDeniedError):
        await used(world)
    assert await world.vault.unlock()
    assert await state_of(world) == ("connected", "ok", 0)
    assert await used(world) == [await token_of(world)] != [before]
    assert (await world.vault.get("calendar")).version == connected.version + 1


async def test_a_token_that_can_not_be_kept_in_a_lockdown_is_revoked(
    world: World, connected: CredentialInfo, server: Server
) -> None:
    key = _templates[0] / "master" / "key"

    async def post(url: str, form: Form, client: Client) -> Answer:
        if form.get("grant_type"):
            await world.vault.lockdown(reason="while it is on its way", keep_grants=True)
            answer = await refresh_module.endpoints.post(url, form, client)
            key.rename(key.with_name("away"))
            return answer
        revoked.append(form)
        return await refresh_module.endpoints.post(url, form, client)

    revoked: list[Form] = []
    world.clock.now += 600
    refresher(world, post)
    with pytest.raises(AccessDeniedError):
        await used(world)
    assert [form["token_type_hint"] for form in revoked] == ["refresh_token"]
    key.with_name("away").rename(key)
    assert await world.vault.unlock()
    refresher(world, refresh_module.endpoints.post)
    with pytest.raises(NeedsReconnectError):
        await used(world)
    assert (await state_of(world))[:2] == ("needs_reconnect", "invalid_grant")


async def test_nothing_is_renewed_before_it_is_signed_for(
    world: World, connected: CredentialInfo
) -> None:
    async def post(url: str, form: Form, client: Client) -> Answer:
        pytest.fail("nobody has signed for it")

    await world.vault.edit("calendar", challenge=True)
    world.clock.now += 600
    refresher(world, post)
    with pytest.raises(ChallengeError):
        await used(world)
    assert await state_of(world) == ("connected", "ok", 0)


async def test_a_credential_that_is_deleted_meanwhile_ends_the_lease(
    world: World, connected: CredentialInfo
) -> None:
    async def post(url: str, form: Form, client: Client) -> Answer:
        if form.get("grant_type"):
            await world.vault.delete("calendar")
        return Answer(200, msgspec.json.encode({"access_token": "late"}))

    world.clock.now += 600
    refresher(world, post)
    with pytest.raises(AccessDeniedError):
        await used(world)


async def test_a_vault_has_one_that_renews(world: World) -> None:
    async with RotationWorker(world.vault, harden=False) as worker:
        assert (
            worker._refresher is world.middleware.broker.refresher is refresher_of(world.vault)
        )


async def test_looking_for_what_is_due_lists_once(
    world: World, connected: CredentialInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = 0
    real = world.vault.list

    async def counted() -> list[CredentialInfo]:
        nonlocal listed
        listed += 1
        return await real()

    monkeypatch.setattr(world.vault, "list", counted)
    assert await Refresher(world.vault).renew_due() == 0
    assert listed == 1


async def test_who_is_cancelled_leaves_the_refresh_to_its_end(
    world: World, connected: CredentialInfo
) -> None:
    arrived, go = asyncio.Event(), asyncio.Event()

    async def post(url: str, form: Form, client: Client) -> Answer:
        arrived.set()
        await go.wait()
        return await refresh_module.endpoints.post(url, form, client)

    world.clock.now += 600
    task = asyncio.create_task(refresher(world, post).ensure("calendar"))
    await arrived.wait()
    task.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    while (await state_of(world))[0] == "refreshing":
        await asyncio.sleep(0)
    assert await state_of(world) == ("connected", "ok", 0)
    assert (await world.vault.get("calendar")).version == connected.version + 1


async def test_no_token_is_in_the_log(world: World, connected: CredentialInfo) -> None:
    tokens = [await token_of(world), await token_of(world, "refresh")]
    world.clock.now += 600
    await used(world)
    tokens += [await token_of(world), await token_of(world, "refresh")]
    world.vault.audit.flush()
    for path in (world.where / "home").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(token.encode() in data for token in tokens)


# -- what plugins and servers try ------------------------------------------------------


def in_frames(error: BaseException) -> str:
    """All that the frames of an error and of those behind it show."""
    shown, left = [], [error]
    while left:
        each = left.pop()
        left += [other for other in (each.__context__, each.__cause__) if other is not None]
        for frame, _ in traceback.walk_tb(each.__traceback__):
            for value in frame.f_locals.values():
                shown.append(repr(value))
                if isinstance(value, Client):
                    shown.append(value.secret)
    return " ".join(shown)


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        Answer(400, b'{"error": "invalid_grant"}'),
        Answer(503, b""),
        OAuthUnreachableError("lost"),
        OAuthUnreachableError("down", sent=False),
        ValueError("a fault of ours"),
    ],
)
async def test_the_error_that_a_plugin_gets_has_no_frame_with_a_token(
    world: World, connected: CredentialInfo, answer: Answer | Exception, blocking: bool
) -> None:
    secret = "client-secret-canary"
    await world.vault.put("ours", ApiKey(secret))
    assert connected.connection is not None
    await world.vault.note_connection(
        connected,
        msgspec.structs.replace(connected.connection, client_secret="ours", client_auth="post"),
    )

    async def post(url: str, form: Form, client: Client) -> Answer:
        body = client.secret + str(form)
        assert body
        if isinstance(answer, Exception):
            raise answer
        return answer

    caught: list[str] = []

    async def waits(credentials: object) -> None:
        try:
            async with credentials["calendar"].reveal():
                pytest.fail("it has expired")
        except Exception as error:
            caught.append(in_frames(error))

    def blocks(credentials: object) -> None:
        try:
            with credentials["calendar"].reveal():
                pytest.fail("it has expired")
        except Exception as error:
            caught.append(in_frames(error))

    refresher(world, post)
    canaries = [secret, await token_of(world, "refresh")]
    world.clock.now += 600
    plugin = blocks if blocking else waits
    # A call that begins after the refresh was refused is denied before the plugin runs.
    ended = await asyncio.gather(
        *(world.call(plugin, needs=(NEED,)) for _ in range(3)), return_exceptions=True
    )
    caught += [in_frames(error) for error in ended if isinstance(error, AccessDeniedError)]
    assert len(caught) == 3
    for shown in caught:
        assert not [each for each in canaries if each in shown]


# -- what is shown ---------------------------------------------------------------------


async def test_states_of_connections_are_a_metric(
    world: World, connected: CredentialInfo
) -> None:
    with recording() as seen:
        assert dict(seen.values(semconv.CONNECTIONS))
        assert connected.connection is not None
        lost = msgspec.structs.replace(
            connected.connection, state=ConnectionState.NEEDS_RECONNECT
        )
        await world.vault.note_connection(connected, lost)
        counts = {
            dict(key)[semconv.CONNECTION_STATE]: value
            for key, value in seen.values(semconv.CONNECTIONS).items()
        }
    assert counts == {"connected": 0, "refreshing": 0, "needs_reconnect": 1}

"""Credentials that are marked for it: each redeem takes a nonce that a client signed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace

import anyio
import httpx
import pytest

from apex_creds import ApiKey, CredentialMiddleware
from apex_creds.auth.challenge import MAX_OPEN, Challenge
from apex_creds.auth.challenge_client import ClientKey
from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.second_factor import Subject
from apex_creds.auth.step_up import (
    PER_PLUGIN,
    ChallengeGate,
    LocalResponder,
    answering,
    current_responder,
)
from apex_creds.errors import (
    AccessDeniedError,
    ChallengeError,
    HandleExhaustedError,
    LeaseEndedError,
    RequestNotAllowedError,
)
from apex_creds.leases.handle import current_credentials
from apex_creds.middleware.call import WrappedCall
from tests.support.worlds import KEY, World, manifest_for, world_in

pytestmark = pytest.mark.anyio
READ = "[redacted:key]"


class Client(LocalResponder):
    """A client that remembers what it was asked, and may be made to wait."""

    def __init__(self, key: ClientKey, vault_id: str) -> None:
        super().__init__(key, vault_id=vault_id, allow=self.wants)
        self.asked: list[Challenge] = []
        self.heard: list[bytes] = []
        self.willing = True
        self.may_answer = anyio.Event()
        self.may_answer.set()

    def wants(self, found: Challenge) -> bool:
        self.asked.append(found)
        return self.willing

    async def answer(self, message: bytes) -> bytes:
        await self.may_answer.wait()
        self.heard.append(await super().answer(message))
        return self.heard[-1]


@contextlib.asynccontextmanager
async def marked(tmp_path, **options: object) -> AsyncIterator[tuple[World, Client]]:
    """A world whose credential ``key`` takes a challenge, and a client that may answer."""
    async with world_in(tmp_path, **options) as world:
        await world.vault.edit("key", challenge=True)
        with ClientKey.generate(tmp_path / "client.key", clock=world.clock) as key:
            await Challenger(world.vault).enrol("worker", key.public, credentials=["key"])
            yield world, Client(key, world.vault.vault_id)


async def asked(order: list[str], count: int) -> None:
    """Waits until a client was asked so often."""
    while len(order) < count:
        await asyncio.sleep(0)


class _NoStep:
    def enter(self) -> None: ...

    def leave(self, outer: object) -> None: ...

    def finish(self, outcome: str) -> None: ...


def _begun_observed(middleware: CredentialMiddleware, *how: object) -> WrappedCall:
    call = _begin(middleware, *how)
    call.step = _NoStep()
    return call


_begin = CredentialMiddleware._begin


async def read(name: str = "key", **how: object) -> str:
    async with current_credentials()[name].reveal(**how) as secret:
        return secret.expose_str()


def read_now() -> str:
    with current_credentials()["key"].reveal() as secret:
        return secret.expose_str()


async def test_each_redeem_is_signed_for(tmp_path):
    async def twice() -> list[str]:
        return [await read(), await read()]

    async with marked(tmp_path) as (world, client):
        with answering(client):
            assert await world.call(twice) == [READ, READ]
        assert len({each.nonce for each in client.asked}) == 2
        assert {(each.plugin, each.credential) for each in client.asked} == {("demo", "key")}
        kinds = [event.kind.value for event in world.events() if event.credential == "key"]
        assert kinds[kinds.index("lease") + 1 :][:6] == ["challenge", "redeem", "expose"] * 2


async def test_without_a_client_it_is_denied(tmp_path):
    async with marked(tmp_path) as (world, _):
        with pytest.raises(ChallengeError, match="no client"):
            await world.call(read)
        assert world.reasons() == [("key", "challenge_needed")]
        assert not world.events("redeem")


async def test_one_that_is_not_marked_asks_nobody(tmp_path):
    async with marked(tmp_path) as (world, client):
        with answering(client):
            assert await world.call(read, "token", needs=("token",)) == "[redacted:token]"
        assert not client.asked


async def test_a_use_that_can_not_wait_is_denied(tmp_path):
    async with marked(tmp_path) as (world, client):
        with answering(client):
            with pytest.raises(ChallengeError):
                await world.call(read_now)
            with pytest.raises(ChallengeError):
                world.middleware.invoke_sync(manifest_for("key"), "run", read_now)
            task = world.middleware.invoke_sync(manifest_for("key"), "run", read)
            assert await task == READ
        assert len(client.asked) == 1


async def test_requests_are_signed_for_too(tmp_path):
    sent: list[str] = []

    def served(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["authorization"])
        return httpx.Response(200)

    async def send(path: str = "/") -> int:
        async with current_credentials()["key"].client() as http:
            return (await http.get(f"https://api.example.com{path}")).status_code

    def send_now() -> int:
        with current_credentials()["key"].sync_client() as http:
            return http.get("https://api.example.com/").status_code

    transport = httpx.MockTransport(served)
    async with marked(tmp_path, transport=transport, sync_transport=transport) as pair:
        world, client = pair
        with pytest.raises(ChallengeError):
            await world.call(send)
        with answering(client):
            with pytest.raises(ChallengeError):
                await world.call(send_now)
            assert not sent
            assert await world.call(send) == 200
        assert sent == [f"Bearer {KEY}"]


async def test_the_client_is_asked_only_for_what_is_permitted(tmp_path):
    async def elsewhere() -> None:
        async with current_credentials()["key"].client() as http:
            await http.get("https://elsewhere.test/")

    async with marked(tmp_path) as (world, client):
        with answering(client):
            with pytest.raises(RequestNotAllowedError):
                await world.call(elsewhere)
            with pytest.raises(AccessDeniedError):
                await world.call(read, scope="write")
        assert not client.asked


async def test_what_is_signed_names_who_uses_it_and_the_scope(tmp_path):
    async def inner(handle) -> None:
        async with handle.reveal(scope="read"):
            return

    async def outer(world: World) -> None:
        narrow = current_credentials()["key"].attenuate(scopes=("read",))
        await world.call(inner, narrow, needs=(), plugin="inner")

    needs = ({"name": "key", "access": "reveal", "scopes": ["read", "write"]},)
    async with marked(tmp_path) as (world, client):
        with answering(client):
            await world.call(outer, world, needs=needs)
            await world.call(read, needs=needs)
        assert [(c.plugin, c.scopes) for c in client.asked] == [
            ("inner", ("read",)),
            ("demo", ("read", "write")),
        ]


async def test_a_handle_that_is_passed_on_needs_it_as_well(tmp_path):
    async def inner(handle) -> None:
        with pytest.raises(ChallengeError):
            async with handle.reveal():
                pass

    async def outer(world: World) -> None:
        narrow = current_credentials()["key"].attenuate(max_uses=1)
        await world.call(inner, narrow, needs=(), plugin="inner")

    async with marked(tmp_path) as (world, client):
        await world.call(outer, world)
        client.willing = False
        with answering(client):
            await world.call(outer, world)


async def test_a_mark_counts_for_leases_that_are_open(tmp_path):
    async def long(world: World) -> None:
        await read("token")
        await world.vault.edit("token", challenge=True)
        with pytest.raises(ChallengeError):
            await read("token")
        code = "await vault.edit('token', challenge=False)"
        await anyio.to_thread.run_sync(world.elsewhere, code)
        await read("token")

    async with world_in(tmp_path) as world:
        await world.call(long, world, needs=("token",))


async def test_a_new_value_keeps_the_mark(tmp_path):
    async with marked(tmp_path) as (world, _):
        assert (await world.vault.put("key", ApiKey("new"))).challenge
        assert not (await world.vault.put("key", ApiKey("new"), challenge=False)).challenge


async def test_a_stream_keeps_the_client_it_began_with(tmp_path):
    async def stream():
        for _ in range(2):
            yield len(await read())

    async with marked(tmp_path) as (world, client):
        with answering(client):
            chunks = await world.call(stream)
        assert [chunk async for chunk in chunks] == [len(KEY)] * 2
        assert len(client.asked) == 2


@pytest.mark.parametrize("begun_for_one", [False, True])
async def test_who_consumes_a_stream_does_not_sign_for_it(tmp_path, begun_for_one):
    async def stream():
        yield len(await read())

    async with marked(tmp_path) as (world, client):
        other = Client(client._key, world.vault.vault_id)
        with answering(client) if begun_for_one else contextlib.nullcontext():
            chunks = await world.call(stream)
        with answering(other):
            if begun_for_one:
                assert [chunk async for chunk in chunks] == [len(KEY)]
            else:
                with pytest.raises(ChallengeError, match="no client"):
                    await anext(chunks)
            assert current_responder() is other
        assert (len(client.asked), other.asked) == (int(begun_for_one), [])


@pytest.mark.parametrize("observed", [False, True])
async def test_a_plugin_neither_sees_nor_names_who_signs(tmp_path, observed, monkeypatch):
    async def plants(planted: Client) -> bool:
        seen = current_responder()
        answering(planted).__enter__()
        with contextlib.suppress(ChallengeError):
            await world.call(read, plugin="inner")
        with contextlib.suppress(ChallengeError):
            await read()
        return seen is None

    if observed:
        monkeypatch.setattr(CredentialMiddleware, "_begin", _begun_observed)
    async with marked(tmp_path) as (world, client):
        planted = Client(client._key, world.vault.vault_id)
        assert await world.call(plants, planted)
        assert current_responder() is None
        assert world.reasons() == [("key", "challenge_needed")] * 2
        with answering(client):
            assert await world.call(plants, planted)
            assert current_responder() is client
            assert await world.call(read) == READ
        assert not planted.asked
        assert [each.plugin for each in client.asked] == ["inner", "demo", "demo"]


async def test_nobody_signs_for_what_a_plugin_leaves_behind(tmp_path):
    late: list[asyncio.Task[object]] = []
    go_on = anyio.Event()

    async def leftover() -> object:
        await go_on.wait()
        return await world.call(read, plugin="inner")

    async def leaves() -> None:
        late.append(asyncio.create_task(leftover()))

    async with marked(tmp_path) as (world, client):
        with answering(client):
            await world.call(leaves)
            go_on.set()
            with pytest.raises(AccessDeniedError):
                await late[0]
        assert not client.asked


async def test_uses_at_once_wait_and_keep_no_other_plugin_from_its_turn(tmp_path):
    waiting, order = 2 * MAX_OPEN, []

    class Counting(Client):
        async def answer(self, message: bytes) -> bytes:
            order.append(Challenge.decode(message).plugin)
            return await super().answer(message)

    async def many() -> int:
        found: list[str] = []

        async def one(handle) -> None:
            async with handle.reveal() as secret:
                found.append(secret.expose_str())

        async with anyio.create_task_group() as group:
            for _ in range(waiting):
                group.start_soon(one, current_credentials()["key"])
        return len(found)

    async def call_many() -> None:
        results.append(await world.call(many))

    results: list[object] = []
    async with marked(tmp_path) as (world, plain):
        client = Counting(plain._key, world.vault.vault_id)
        client.may_answer = anyio.Event()
        with answering(client):
            async with anyio.create_task_group() as group:
                group.start_soon(call_many)
                await asked(order, PER_PLUGIN)
                group.start_soon(lambda: world.call(read, plugin="inner"))
                await asked(order, PER_PLUGIN + 1)
                client.may_answer.set()
        assert order[: PER_PLUGIN + 1] == ["demo"] * PER_PLUGIN + ["inner"]
        assert results == [waiting]


async def test_a_use_whose_turn_does_not_come_in_time_is_refused(tmp_path):
    async with marked(tmp_path) as (world, client):
        client.may_answer = anyio.Event()
        gate = ChallengeGate(Challenger(world.vault), deadline=0.05)
        subject = Subject(plugin="demo", credential="key")
        async with contextlib.AsyncExitStack() as held:
            for _ in range(PER_PLUGIN):
                await held.enter_async_context(gate._queue.place("worker", "demo"))
            client_named_so = SimpleNamespace(client="worker", answer=client.answer)
            with pytest.raises(ChallengeError, match="did not get to"):
                await gate.require_challenge(subject, client_named_so)
        assert not world.events("challenge")


async def test_a_runtime_may_have_one_client_for_all(tmp_path):
    async with marked(tmp_path) as (world, client):
        async with CredentialMiddleware(world.vault, responder=client) as middleware:
            assert await middleware.invoke(manifest_for("key"), read) == READ
        assert len(client.asked) == 1


async def test_a_client_that_fails_is_not_shut_out_by_it(tmp_path):
    async with marked(tmp_path) as (world, client):
        with answering(client):
            client.willing = False
            for _ in range(MAX_OPEN + 1):
                with pytest.raises(ChallengeError):
                    await world.call(read)
            client.willing = True
            assert await world.call(read) == READ
        assert not (await Challenger(world.vault).access.read()).challenges
        told = [event.reason for event in world.events("challenge")]
        assert told == ["not_answered"] * (MAX_OPEN + 1) + ["answered"]


async def test_a_way_to_the_client_that_breaks_is_a_refusal(tmp_path):
    class Broken:
        client = "worker"

        async def answer(self, message: bytes) -> bytes:
            raise OSError("connection reset")

    async with marked(tmp_path) as (world, _):
        with answering(Broken()), pytest.raises(ChallengeError, match="could not be asked"):
            await world.call(read)


@pytest.mark.parametrize("taken", ["revoke", "lockdown", "client", "credential"])
async def test_what_is_taken_back_while_the_client_thinks_wins(tmp_path, taken):
    async def one(world: World) -> None:
        with pytest.raises(AccessDeniedError):
            await world.call(read)

    async with marked(tmp_path) as (world, client):
        client.may_answer = anyio.Event()
        with answering(client):
            async with anyio.create_task_group() as group:
                group.start_soon(one, world)
                await anyio.wait_all_tasks_blocked()
                if taken == "revoke":
                    await world.vault.revoke(plugin="demo")
                elif taken == "lockdown":
                    await world.vault.lockdown()
                elif taken == "client":
                    await Challenger(world.vault).revoke("worker")
                else:
                    await world.vault.delete("key")
                    await world.vault.put("key", ApiKey("another"))
                client.may_answer.set()
        assert not world.events("redeem")


async def test_a_use_is_counted_once_however_many_wait(tmp_path):
    found: list[str] = []

    async def one(handle) -> None:
        try:
            async with handle.reveal():
                found.append("read")
        except HandleExhaustedError:
            found.append("exhausted")
        except LeaseEndedError:
            found.append("ended")

    async def both(client: Client) -> None:
        handle = current_credentials()["key"].attenuate(max_uses=1)
        async with anyio.create_task_group() as group:
            group.start_soon(one, handle)
            group.start_soon(one, handle)
            await anyio.wait_all_tasks_blocked()
            client.may_answer.set()

    async with marked(tmp_path) as (world, client):
        client.may_answer = anyio.Event()
        with answering(client):
            await world.call(both, client)
        assert sorted(found) == ["exhausted", "read"]


async def test_an_answer_is_of_no_use_in_another_process(tmp_path):
    async with marked(tmp_path) as (world, client):
        with answering(client):
            await world.call(read)
        code = f"""
from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.second_factor import Subject
subject = Subject(plugin="demo", credential="key")
try:
    await Challenger(vault).redeem(bytes.fromhex({client.heard[0].hex()!r}), subject)
except ChallengeError:
    result = "refused"
"""
        code = "from apex_creds.errors import ChallengeError\n" + code
        assert await anyio.to_thread.run_sync(world.elsewhere, code) == "refused"


async def test_programs_do_not_get_it_past_the_handles(tmp_path):
    async with marked(tmp_path) as (world, _):
        with pytest.raises(ChallengeError):
            async with world.vault.open("key", for_program=True):
                pass
        async with world.vault.open("key") as opened:  # a person's, on the command line
            assert bytes(opened.view()).decode() == KEY
        assert world.reasons() == [("key", "challenge_needed")]

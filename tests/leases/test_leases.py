"""A lease is checked at each use, and ends when it must."""

from __future__ import annotations

import asyncio
import threading

import anyio
import pytest
from anyio import to_thread

from apex_creds.audit.segment import Segment
from apex_creds.crypto.memory import SecretBytes, arena
from apex_creds.errors import (
    AccessDeniedError,
    AuditTamperedError,
    AuditUnavailableError,
    HandleExhaustedError,
    HandleExpiredError,
    HandleForeignError,
    HandleRevokedError,
    InvalidInputError,
    LeaseEndedError,
    SecretWipedError,
    StorageError,
)
from apex_creds.policy.rate_limits import DEFAULT
from apex_creds.vault import vault as vault_module
from tests.support.loops import WITHIN
from tests.support.worlds import KEY, World

pytestmark = pytest.mark.anyio
REFUSED = (AuditUnavailableError, AuditTamperedError, StorageError)


async def use(handle, **options) -> str:
    async with handle.reveal(**options) as secret:
        return secret.expose_str()


# -- time ----------------------------------------------------------------------------


async def test_it_expires(world: World) -> None:
    async def plugin(credentials):
        handle = credentials["key"]
        world.clock.now += 299.9
        assert await use(handle) == KEY
        world.clock.now += 0.1
        assert not handle.active
        with pytest.raises(HandleExpiredError):
            await use(handle)
        world.clock.now -= 100
        assert not handle.active, "what has ended does not come back"
        with pytest.raises(HandleExpiredError):
            await use(handle)
        return handle

    await world.call(plugin)


async def test_the_deadline_wipes_what_is_revealed(world: World) -> None:
    async def plugin(credentials):
        narrow = credentials["key"].attenuate(ttl=0.05)
        async with narrow.reveal() as secret:
            world.clock.now += 0.05
            while not secret.closed:
                await asyncio.sleep(0.001)
            with pytest.raises(SecretWipedError):
                secret.expose_str()
        with pytest.raises(HandleExpiredError):
            await use(narrow)
        assert await use(credentials["key"]) == KEY

    with anyio.fail_after(WITHIN):
        await world.call(plugin)


async def test_the_deadline_reaches_worker_threads(world: World) -> None:
    """Also where the first to reveal anything is a thread, which has no event loop."""

    def plugin(credentials):
        narrow = credentials["key"].attenuate(ttl=0.05)
        with narrow.reveal() as secret:
            world.clock.now += 0.05
            wiped = threading.Event()
            while not secret.closed:
                wiped.wait(0.001)
        return "wiped"

    with anyio.fail_after(WITHIN):
        assert await world.call(plugin) == "wiped"


async def test_the_nearest_deadline_comes_first(world: World) -> None:
    async def plugin(credentials):
        handles = [credentials["key"].attenuate(ttl=ttl) for ttl in (30, 20, 0.05, 10)]
        reveals = [handle.reveal() for handle in handles]
        secrets = [await reveal.__aenter__() for reveal in reveals]
        world.clock.now += 0.05
        while not secrets[2].closed:
            await asyncio.sleep(0.001)
        assert [secret.closed for secret in secrets] == [False, False, True, False]

    with anyio.fail_after(WITHIN), world.nothing_left():
        await world.call(plugin)


async def test_it_ends_with_its_grant_or_credential(world: World) -> None:
    await world.vault.grant("demo", "key", reveal=True, until=world.clock.now + 10)

    async def plugin(credentials):
        assert credentials["key"].expires == world.clock.now + 10
        world.clock.now += 10
        with pytest.raises(LeaseEndedError):
            await use(credentials["key"])

    await world.call(plugin)
    with pytest.raises(AccessDeniedError):
        await world.call(plugin)
    assert world.reasons()[-1] == ("key", "grant_expired")


# -- revocation ----------------------------------------------------------------------


async def test_it_ends_with_its_invocation(world: World) -> None:
    kept = []

    async def plugin(credentials):
        kept.append(credentials["key"])
        kept.append(credentials["key"].attenuate())
        kept.append(await credentials["key"].reveal().__aenter__())

    with world.nothing_left():
        await world.call(plugin)
        assert kept.pop().closed
    for handle in kept:
        assert not handle.active
        with pytest.raises(HandleRevokedError):
            await use(handle)
        with pytest.raises(HandleRevokedError):
            handle.attenuate()


async def test_revoked_while_it_is_used(world: World) -> None:
    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            assert world.middleware.broker.revoke(plugin="demo", credential="key") == 1
            assert secret.closed
        with pytest.raises(HandleRevokedError):
            await use(credentials["key"])
        assert await use(credentials["token"])

    await world.call(plugin, needs=("key", "token"))


async def test_revoked_by_another_process_while_it_is_used(world: World) -> None:
    async def plugin(credentials):
        assert await use(credentials["key"]) == KEY
        await to_thread.run_sync(
            world.elsewhere, "await vault.revoke(plugin='demo', credential='key')"
        )
        with pytest.raises(HandleRevokedError):
            await use(credentials["key"])
        assert not credentials["key"].active
        assert await use(credentials["token"])

    await world.call(plugin, needs=("key", "token"))
    assert ("key", "not_granted") in world.reasons()


async def test_narrowed_by_another_process_while_it_is_used(world: World) -> None:
    async def plugin(credentials):
        assert await use(credentials["key"]) == KEY
        await to_thread.run_sync(
            world.elsewhere, "await vault.grant('demo', 'key', scopes=['read', 'write'])"
        )
        with pytest.raises(AccessDeniedError):
            await use(credentials["key"])

    await world.call(plugin)
    assert ("key", "reveal_not_granted") in world.reasons()


async def test_a_credential_that_was_deleted_meanwhile(world: World) -> None:
    async def plugin(credentials):
        await to_thread.run_sync(
            world.elsewhere,
            "await vault.delete('key'); await vault.put('key', ApiKey('another'))",
        )
        with pytest.raises(HandleRevokedError):
            await use(credentials["key"])

    await world.call(plugin)


async def test_a_new_version_is_what_the_next_use_gets(world: World) -> None:
    async def plugin(credentials):
        assert await use(credentials["key"]) == KEY
        await to_thread.run_sync(world.elsewhere, "await vault.put('key', ApiKey('new one'))")
        return [await use(credentials["key"]), KEY]

    assert await world.call(plugin) == ["[redacted:key]"] * 2


async def test_an_end_in_another_thread_leaves_nothing_revealed(world: World) -> None:
    """Ending and revealing race; whoever wins, the secret is wiped and the slot free."""

    async def plugin(credentials):
        for _ in range(200):
            narrow = credentials["key"].attenuate()
            from apex_creds.leases.broker import _OPEN

            lease = _OPEN[narrow.id][0]
            ender = threading.Thread(target=lease.end)
            ender.start()
            reveal = narrow.reveal()
            try:
                secret = await reveal.__aenter__()
            except LeaseEndedError:
                ender.join()
                continue
            ender.join()
            assert secret.closed
            assert not lease.revealed

    with world.nothing_left():
        await world.call(plugin)


# -- use counts ------------------------------------------------------------------------


@pytest.mark.parametrize("max_uses", [1, 7])
async def test_uses_are_counted_under_concurrency(world: World, max_uses: int) -> None:
    async def plugin(credentials):
        handle = credentials["key"].attenuate(max_uses=max_uses)
        served = []

        async def once():
            try:
                served.append(await use(handle))
            except HandleExhaustedError:
                served.append(None)

        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(once)
        assert served.count(KEY) == max_uses
        assert not handle.active

    await world.call(plugin)
    assert len(world.events("redeem")) == max_uses


async def test_uses_are_counted_across_threads_and_narrower_handles(world: World) -> None:
    def once(handle) -> bool:
        try:
            with handle.reveal():
                return True
        except HandleExhaustedError:
            return False

    async def plugin(credentials):
        wide = credentials["key"].attenuate(max_uses=9)
        handles = [wide, *(wide.attenuate(max_uses=5) for _ in range(4))]
        served = []

        async def in_thread(handle):
            served.append(await to_thread.run_sync(once, handle))

        async with anyio.create_task_group() as tasks:
            for turn in range(30):
                tasks.start_soon(in_thread, handles[turn % 5])
        assert served.count(True) == 9

    await world.call(plugin)


@pytest.mark.parametrize(
    "bad", [{"ttl": 0}, {"ttl": -1}, {"ttl": float("nan")}, {"max_uses": 0}]
)
async def test_a_limit_must_be_one(world: World, bad: dict) -> None:
    async def plugin(credentials):
        with pytest.raises(InvalidInputError):
            credentials["key"].attenuate(**bad)

    with world.nothing_left():
        await world.call(plugin)


# -- scopes and other invocations --------------------------------------------------------


async def test_scopes(world: World) -> None:
    async def plugin(credentials):
        handle = credentials["key"]
        assert await use(handle, scope="read") == KEY
        with pytest.raises(AccessDeniedError):
            await use(handle, scope="write")
        with pytest.raises(AccessDeniedError):
            handle.attenuate(scopes=("read", "write"))
        with pytest.raises(AccessDeniedError):
            await use(handle.attenuate(scopes=()), scope="read")

    await world.call(plugin, needs=({"name": "key", "access": "reveal", "scopes": ["read"]},))
    assert world.reasons() == [("key", "scope_not_granted")] * 3


async def test_revealing_needs_both_to_say_so(world: World) -> None:
    async def plugin(credentials):
        with pytest.raises(AccessDeniedError):
            await use(credentials["key"])

    await world.call(plugin, needs=({"name": "key"},))
    await world.vault.grant("demo", "key", reveal=False)
    await world.call(plugin)
    assert world.reasons() == [("key", "reveal_not_granted")] * 2


async def test_a_handle_of_another_invocation(world: World) -> None:
    """Neither beside it, nor within it, nor outside of any."""
    there, done = asyncio.Event(), asyncio.Event()
    kept = []

    async def holder(credentials):
        kept.append(credentials["key"])
        kept.append(credentials["key"].attenuate())
        there.set()
        await done.wait()

    async def thief(credentials):
        for handle in kept:
            with pytest.raises(HandleForeignError):
                await use(handle)
            with pytest.raises(HandleForeignError):
                handle.attenuate()
            with pytest.raises(HandleForeignError):
                async with handle.client() as http:
                    await http.get("https://api.example.com/")
        await world.call(nested, plugin="inner")
        done.set()

    async def nested(credentials):
        with pytest.raises(HandleForeignError):
            await use(kept[0])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.call, holder)
        await there.wait()
        with pytest.raises(HandleForeignError):
            await use(kept[0])
        await world.call(thief)
    assert {reason for _, reason in world.reasons()} == {"foreign_handle"}
    assert world.events("redeem") == []


async def test_a_theft_is_told_of_the_thief_and_never_of_its_victim(world: World) -> None:
    """The victim keeps its credential, however often its handle is tried elsewhere."""
    there, done = asyncio.Event(), asyncio.Event()
    kept = []

    async def victim(credentials):
        kept.append(credentials["key"])
        there.set()
        await done.wait()
        return await use(credentials["key"]) == KEY

    def in_thread() -> None:
        for _ in range(DEFAULT.amount + 5):
            with pytest.raises(AccessDeniedError), kept[0].reveal():
                pass

    async def thief() -> None:
        in_thread()

    async def owner_of_some(credentials) -> None:
        in_thread()

    async with anyio.create_task_group() as tasks:
        served = []

        async def serve() -> None:
            served.append(await world.call(victim))

        tasks.start_soon(serve)
        await there.wait()
        in_thread()  # of no plugin
        await world.call(thief, plugin="bare", needs=())  # of one without an invocation
        await world.call(in_thread, plugin="bare-thread", needs=())
        await world.call(owner_of_some, plugin="inner")
        done.set()
    assert served == [True]
    told = {event.plugin for event in world.events("denial")}
    assert told == {"", "bare", "bare-thread", "inner"}
    foreign = [e for e in world.events("denial") if e.reason == "foreign_handle"]
    assert {event.lease for event in foreign} == {kept[0].id}


async def test_every_way_out_of_a_revealed_secret_is_an_exposure(world: World) -> None:
    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            assert len(secret) == len(KEY)
            assert secret.equals(KEY.encode())
            assert world.events("expose") == []
            seen = []
            for way in (
                lambda: bytes(secret.view()),
                lambda: SecretBytes.copy_of(secret).expose_bytes(),
                lambda: SecretBytes.part_of(secret, 0, 3).expose_bytes(),
                lambda: SecretBytes.from_bytes(secret.view()).expose_str(),
                secret.expose_bytes,
                secret.expose_str,
            ):
                assert way()
                seen.append(len(world.events("expose")))
            return seen

    seen = await world.call(plugin)
    assert seen == sorted(set(seen))
    assert seen[0] == 1


async def test_passing_on_takes_an_attenuated_handle(world: World) -> None:
    async def inner(handle, own):
        return (await use(handle)) == KEY and handle.active

    async def refused(handle):
        with pytest.raises(HandleForeignError):
            await use(handle)

    async def outer(credentials):
        handle = credentials["key"]
        await world.call(refused, handle, plugin="inner", needs=())
        return await world.call(inner, handle.attenuate(), None, plugin="inner", needs=())

    assert await world.call(outer) is True
    assert [event.plugin for event in world.events("redeem")] == ["inner"]


async def test_what_an_inner_invocation_narrows_ends_with_it(world: World) -> None:
    kept = []

    async def inner(handle):
        narrower = handle.attenuate()
        kept.append(narrower)
        kept.append(await narrower.reveal().__aenter__())

    async def outer(credentials):
        passed = credentials["key"].attenuate()
        await world.call(inner, passed, plugin="inner", needs=())
        secret = kept.pop()
        assert secret.closed
        assert not kept[0].active
        assert passed.active

    await world.call(outer)


@pytest.mark.parametrize("deep", [0, 1, 2])
async def test_what_was_passed_on_is_of_no_use_when_the_call_is_over(
    world: World, deep: int
) -> None:
    """Nor to what is still running below a call that is over."""
    left: list[asyncio.Task[None]] = []
    over = anyio.Event()

    async def later(handle):
        await over.wait()
        for attempt in (use(handle), narrow(handle)):
            with pytest.raises(HandleForeignError):
                await attempt

    async def narrow(handle):
        handle.attenuate()

    async def helper(handle, below):
        if below:
            work = world.call(helper, handle, below - 1, plugin=f"below{below}", needs=())
            left.append(asyncio.create_task(work))
            await anyio.wait_all_tasks_blocked()
            return
        left.append(asyncio.create_task(later(handle)))
        if deep:
            await over.wait()  # it is itself not over; what called it is

    async def outer(credentials):
        passed = credentials["key"].attenuate()
        await world.call(helper, passed, deep, plugin="helper", needs=())
        over.set()
        await asyncio.gather(*left[-1:])
        assert passed.active
        assert await use(passed) == KEY
        await asyncio.gather(*left)

    await world.call(outer)
    assert world.reasons() == [("key", "foreign_handle")] * 2


async def test_narrower_handles_leave_nothing_behind(world: World) -> None:
    from apex_creds.leases.broker import _OPEN

    async def plugin(credentials):
        handle = credentials["key"]
        parent = _OPEN[handle.id][0]
        for _ in range(50):
            narrower = handle.attenuate(ttl=1)
            world.clock.now += 1
            assert not narrower.active
            world.clock.now -= 1
        assert not parent.children
        assert len(parent.invocation.leases) == 1

    await world.call(plugin)


async def test_open_leases_are_those_that_could_be_used(world: World) -> None:
    async def plugin(credentials):
        broker = world.middleware.broker
        assert broker.open_leases == 2
        credentials["key"].attenuate(ttl=1)
        assert broker.open_leases == 3
        world.clock.now += 1
        assert broker.open_leases == 2
        world.clock.now += 1000
        assert broker.open_leases == 0

    await world.call(plugin, needs=("key", "token"))


# -- audit before release --------------------------------------------------------------


async def test_the_event_is_written_before_anything_is_decrypted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    decrypt, append = vault_module.open_record, world.vault.audit.append_encoded

    def spy_open(*args, **kwargs):
        order.append("decrypted")
        return decrypt(*args, **kwargs)

    def spy_append(body, *, flush=True):
        number = append(body, flush=flush)
        if b'"redeem"' in body or b'"expose"' in body:
            order.append("written" if flush and number else "queued")
        return number

    monkeypatch.setattr(vault_module, "open_record", spy_open)
    monkeypatch.setattr(world.vault.audit, "append_encoded", spy_append)

    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            assert order == ["written", "decrypted"]
            secret.expose_bytes()
            assert order == ["written", "decrypted", "written"]

    await world.call(plugin)


@pytest.mark.parametrize("how", ["refuses", "is gone"])
async def test_without_a_log_nothing_is_decrypted(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    decrypted = []
    decrypt = vault_module.open_record
    monkeypatch.setattr(
        vault_module, "open_record", lambda *a, **k: decrypted.append(1) or decrypt(*a, **k)
    )
    log = next((world.where / "home/security/audit").glob("*.jsonl"))

    def refuse(*args, **kwargs):
        raise AuditUnavailableError("No space left.")

    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            decrypted.clear()
            if how == "refuses":
                monkeypatch.setattr(Segment, "append", refuse)
            else:
                log.rename(log.with_suffix(".taken"))
                log.mkdir()
                await asyncio.sleep(0.01)
            with pytest.raises(REFUSED):
                await use(credentials["token"])
            with pytest.raises(REFUSED):
                async with credentials["token"].client() as http:
                    await http.get("https://api.example.com/")
            with pytest.raises(REFUSED):
                secret.expose_str()
        assert decrypted == []
        return "done"

    before = arena().open_slots
    assert await world.call(plugin, needs=("key", "token")) == "done"
    assert arena().open_slots <= before
    assert world.middleware.broker.open_leases == 0
    if how == "refuses":
        monkeypatch.undo()
    else:
        log.rmdir()
        log.with_suffix(".taken").rename(log)

"""One vault, many event loops and threads: over files, SQLite, PostgreSQL and memory."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from apex_creds import ApiKey, CredentialMiddleware, Vault, parse_manifest
from apex_creds.concurrency import Event
from apex_creds.documents.cached import Document
from apex_creds.errors import EventLoopError, StorageError, VaultSealedError
from apex_creds.fs.home import make_folders
from apex_creds.scheduler.rotation_state import OperatorRequest
from apex_creds.scheduler.schedule import Level
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.storage.base import Storage
from apex_creds.storage.memory_storage import MemoryStorage
from apex_creds.storage.portal import StoragePortal
from apex_creds.storage.sql_storage import SqlStorage
from tests.support.loops import KINDS, WITHIN, Make, Running, nested, running, threads
from tests.support.postgres import Postgres

pytestmark = pytest.mark.filterwarnings(
    # A loop that is closed as it is leaves its tasks behind: that is what is tried here.
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:coroutine:RuntimeWarning",
)

KEY = "sk-loops-0123456789"
MANIFEST = parse_manifest(
    {"id": "demo", "version": "1", "credentials": [{"name": "key", "access": "reveal"}]}
)
Where = Callable[[], "Storage | str | None"]


@pytest.fixture(
    params=["files", "memory", "sqlite", pytest.param("postgres", marks=pytest.mark.e2e)]
)
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    match request.param:
        case "files":
            return lambda: None
        case "memory":
            make_folders(tmp_path / "home")
            return MemoryStorage
        case "sqlite":
            return lambda: f"sqlite:///{tmp_path}/vault.db"
    server: Postgres = request.getfixturevalue("server")
    return lambda: server.url(space=secrets.token_hex(8))


async def made(tmp_path: Path, where: Where) -> Vault:
    vault = await Vault.create(
        tmp_path / "home", master=f"file:{tmp_path}/master.key", storage=where()
    )
    await vault.put("key", ApiKey(KEY))
    await vault.grant("demo", "key", reveal=True)
    return vault


async def use(credentials: object) -> int:
    async with credentials["key"].reveal() as secret:
        await asyncio.sleep(0)
        return len(secret)


def use_sync(credentials: object) -> int:
    with credentials["key"].reveal() as secret:
        return len(secret)


async def names(vault: Vault) -> list[str]:
    return [info.name for info in await vault.list()]


# -- loops in a row, and at once -----------------------------------------------------


@pytest.mark.parametrize("make", KINDS)
def test_a_loop_for_each_call_as_flask_and_apexagent_have_it(
    tmp_path: Path, where: Where, make: Make
) -> None:
    """Opened in a loop that has ended; then a loop for each request, in several threads."""
    vault = asyncio.run(made(tmp_path, where))
    middleware = CredentialMiddleware(vault)

    async def request(who: int, number: int) -> None:
        await vault.put(f"{who}-{number % 2}", ApiKey(KEY))
        assert await middleware.invoke(MANIFEST, use) == len(KEY)
        assert await middleware.invoke(MANIFEST, use_sync) == len(KEY)
        assert middleware.invoke_sync(MANIFEST, "sync", use_sync) == len(KEY)

    def thread(who: int) -> None:
        for number in range(4):
            with asyncio.Runner(loop_factory=make) as runner:
                runner.run(request(who, number))

    threads(*(functools.partial(thread, who) for who in range(3)))
    assert middleware.broker.open_leases == 0
    assert len(asyncio.run(names(vault))) == 1 + 3 * 2
    asyncio.run(middleware.close())
    asyncio.run(vault.close())


def test_loops_that_run_at_once_lose_no_update(tmp_path: Path, where: Where) -> None:
    vault = asyncio.run(made(tmp_path, where))
    document = Document(vault.store, name="migration", empty=())

    async def add(who: int) -> None:
        await asyncio.gather(*(document.change(lambda found: (*found, who)) for _ in range(3)))
        await vault.put("same", ApiKey(KEY))
        await vault.grant(f"plugin-{who}", "key")

    with running(asyncio.new_event_loop, asyncio.new_event_loop) as loops:
        adding = [loops[who % 2].begin(add(who)) for who in range(4)]
        for each in adding:
            each.result(WITHIN)

    async def look() -> None:
        assert sorted(await document.read()) == [who for who in range(4) for _ in range(3)]
        assert (await vault.get("same")).version == 4
        plugins = {grant.plugin for grant in await vault.grants()}
        assert plugins == {"demo", *(f"plugin-{who}" for who in range(4))}
        await vault.close()

    asyncio.run(look())


def test_it_is_closed_from_another_loop_than_its_openers(tmp_path: Path, where: Where) -> None:
    """While that one stands still, with a write that it has begun; twice at once."""
    opener = Running()
    vault = opener.do(made(tmp_path, where))
    middleware = CredentialMiddleware(vault)
    opener.begin(vault.put("begun", ApiKey(KEY)))
    opener.stop()

    async def close() -> None:
        await middleware.close()
        await vault.close()

    threads(*[lambda: asyncio.run(close())] * 2)
    opener.end()
    with pytest.raises((VaultSealedError, StorageError)):
        asyncio.run(vault.list())
    assert not [t for t in threading.enumerate() if t.name == "apex-creds-storage"]


def test_a_loop_inside_a_loop_uses_it_too(tmp_path: Path, where: Where) -> None:
    async def main() -> None:
        vault = await made(tmp_path, where)
        middleware = CredentialMiddleware(vault)
        begun = [asyncio.create_task(vault.put(f"n{i}", ApiKey(KEY))) for i in range(3)]
        for _ in range(3):
            await asyncio.sleep(0)
            nested(vault.put("inner", ApiKey(KEY)))
            assert nested(middleware.invoke(MANIFEST, use)) == len(KEY)
        await asyncio.gather(*begun)
        assert (await vault.get("inner")).version == 3
        await middleware.close()
        await vault.close()

    asyncio.run(main())


def test_code_that_blocks_its_loop_does_not_wait_for_what_that_loop_has_begun(
    tmp_path: Path, where: Where
) -> None:
    async def main() -> None:
        vault = await made(tmp_path, where)
        middleware = CredentialMiddleware(vault)
        begun = [asyncio.create_task(vault.put(f"n{i}", ApiKey(KEY))) for i in range(3)]
        for _ in range(3):
            await asyncio.sleep(0)
            vault.store.sections.forget("api_keys")  # so that it has to be read
            assert middleware.invoke_sync(MANIFEST, "sync", use_sync) == len(KEY)
        await asyncio.gather(*begun)
        await middleware.close()
        await vault.close()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_loop_that_is_gone_in_the_middle_of_a_commit_keeps_nobody_back(
    tmp_path: Path, where: Where, how: str
) -> None:
    vault = asyncio.run(made(tmp_path, where))
    gone, holds = Running(), threading.Event()

    async def in_the_middle() -> None:
        async with vault.store.writing.held():
            holds.set()
            await Event().wait()

    gone.begin(in_the_middle())
    assert holds.wait(WITHIN)
    getattr(gone, how)()

    async def after() -> None:
        await vault.put("after", ApiKey(KEY))
        assert await names(vault) == ["after", "key"]
        await vault.close()

    asyncio.run(asyncio.wait_for(after(), WITHIN))
    gone.end()


def test_a_wait_for_a_commit_is_cancelled_from_another_loop(
    tmp_path: Path, where: Where
) -> None:
    vault = asyncio.run(made(tmp_path, where))
    holds, let_go = threading.Event(), Event()

    async def commit() -> None:
        async with vault.store.writing.held():
            holds.set()
            await let_go.wait()

    with running(asyncio.new_event_loop, asyncio.new_event_loop) as (one, two):
        holding = one.begin(commit())
        assert holds.wait(WITHIN)
        waiting = two.begin(vault.put("never", ApiKey(KEY)))
        while not vault.store.writing._queue:
            two.turn()
        waiting.cancel()
        two.turn()
        let_go.set()
        holding.result(WITHIN)
        two.do(vault.put("after", ApiKey(KEY)))
        assert two.do(names(vault)) == ["after", "key"]
        two.do(vault.close())


# -- keys that go while other threads use them ---------------------------------------


@pytest.mark.slow
def test_keys_are_destroyed_in_one_thread_and_credentials_used_in_others(
    tmp_path: Path, where: Where
) -> None:
    vault = asyncio.run(made(tmp_path, where))
    middleware, over = CredentialMiddleware(vault), threading.Event()
    worker = RotationWorker(vault)

    async def rotate() -> None:
        for number in range(12):
            level = (Level.DEK, Level.DEK, Level.KEK)[number % 3]
            await worker.emit(OperatorRequest(level=level, source=f"test {number}"))
            await worker.run_once()
            await vault.put("gone", ApiKey(KEY), service="key")
            await vault.delete("gone")  # destroys the key that it shares with "key"

    def rotating() -> None:
        try:
            asyncio.run(rotate())
        finally:
            over.set()

    async def opened() -> None:
        async with vault.open("key") as it:
            assert bytes(it.view()) == KEY.encode()

    def using() -> int:
        count = 0
        while not over.is_set():
            assert asyncio.run(middleware.invoke(MANIFEST, use)) == len(KEY)
            asyncio.run(opened())
            count += 1
        return count

    _, *counts = threads(rotating, using, using)
    assert all(counts)
    asyncio.run(middleware.close())
    asyncio.run(vault.close())


# -- what has one loop says so -------------------------------------------------------


def test_a_database_without_a_thread_of_its_own_refuses_a_second_loop(tmp_path: Path) -> None:
    storage = SqlStorage(f"sqlite:///{tmp_path}/vault.db")

    async def second() -> None:
        with pytest.raises(EventLoopError, match="used it first"):
            await storage.read("a")

    async def first() -> None:
        await storage.prepare()
        await asyncio.to_thread(asyncio.run, second())
        await storage.close()

    asyncio.run(first())


@pytest.mark.parametrize("how", ["stop", "close"])
def test_what_a_loop_leads_is_left_when_the_loop_is_gone(how: str) -> None:
    inner = MemoryStorage(shards=4)
    storage, peer = StoragePortal(inner), inner.peer()
    gone, has = Running(), threading.Event()

    async def lead() -> None:
        async with storage.leader("rotation") as leads:
            assert leads
            has.set()
            await Event().wait()

    gone.begin(lead())
    assert has.wait(WITHIN)
    getattr(gone, how)()

    async def next_one() -> None:
        while True:
            async with peer.leader("rotation") as leads:
                if leads:
                    return

    asyncio.run(asyncio.wait_for(next_one(), WITHIN))
    gone.end()
    asyncio.run(storage.close())


def test_the_end_of_a_leadership_is_heard_in_another_loop() -> None:
    async def ended(leads: object) -> bool:
        await leads.ended()
        return bool(leads)

    inner = MemoryStorage(shards=4)
    storage = StoragePortal(inner)

    @contextlib.asynccontextmanager
    async def leading() -> AsyncIterator[object]:
        async with storage.leader("rotation") as leads:
            yield leads

    async def main(other: Running) -> None:
        async with leading() as leads:
            waiting = other.begin(ended(leads))
            other.turn()
            inner.reachable = False
            with contextlib.suppress(Exception):
                await storage.read("a")
            assert await asyncio.to_thread(waiting.result, WITHIN) is False
        inner.reachable = True
        await storage.close()

    with running(asyncio.new_event_loop) as (other,):
        asyncio.run(main(other))


@pytest.fixture(autouse=True)
def no_task_is_left_in_the_background() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("apex-creds-"):
            thread.join(WITHIN)  # one that was closed may be about to end
            assert not thread.is_alive(), thread.name

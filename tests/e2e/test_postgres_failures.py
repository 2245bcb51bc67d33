"""What happens to the SQL storage when its PostgreSQL server does not do what it should."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from apex_creds.errors import (
    ConflictError,
    StorageBusyError,
    StorageError,
    StorageLockedError,
    StorageReadOnlyError,
    StorageStaleError,
    StorageTimeoutError,
    StorageUncertainError,
    StorageUnreachableError,
)
from apex_creds.storage.base import Write
from apex_creds.storage.postgresql import connect
from apex_creds.storage.sql_storage import SqlStorage
from tests.support.loops import WITHIN
from tests.support.pgproxy import proxy
from tests.support.postgres import Postgres, postgres

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

_SPACES = (f"{number:016x}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """These tests restart it; each leaves it running."""
    with postgres() as running:
        yield running


@pytest.fixture
def space() -> str:
    return next(_SPACES)


@contextlib.asynccontextmanager
async def opened(url: str, **options: float) -> AsyncIterator[SqlStorage]:
    storage = SqlStorage(url, **options)  # type: ignore[arg-type]
    try:
        await storage.prepare()
        yield storage
    finally:
        await storage.close()


async def in_thread(call: object, *arguments: object) -> object:
    return await anyio.to_thread.run_sync(lambda: call(*arguments))  # type: ignore[operator]


def kick(server: Postgres) -> None:
    """Ends every session but psql's own."""
    server.sql(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND application_name = 'apex-creds'"
    )


# -- sessions and servers that end -------------------------------------------------------


async def test_sessions_that_the_server_ended_are_made_again(
    server: Postgres, space: str
) -> None:
    async with opened(server.url(space=space)) as one, opened(server.url(space=space)) as other:
        token = (await one.write("a", b"1", expected=None)).token
        await other.refresh()
        for number in range(3):
            await in_thread(kick, server)
            token = (await one.write("a", b"%d" % number, expected=token)).token
            await other.refresh()
            assert other.change_token("a") == token
            stored = await other.read("a")
            assert stored is not None
            assert stored.data == b"%d" % number


@pytest.mark.parametrize("crash", [False, True])
async def test_work_goes_on_over_restarts(server: Postgres, space: str, crash: bool) -> None:
    async with opened(server.url(space=space)) as one, opened(server.url(space=space)) as other:
        await one.write("a", b"0", expected=None)
        counts = {"done": 0, "unknown": 0}
        async with anyio.create_task_group() as group:
            for storage in (one, other):
                group.start_soon(_count_for_a_while, storage, counts, 60)
            for _ in range(2):
                await in_thread(lambda: server.restart(crash=crash))
        stored = await one.read("a")
        assert stored is not None
        assert counts["done"] >= 60
        assert counts["done"] <= int(stored.data) <= counts["done"] + counts["unknown"]


async def _count_for_a_while(storage: SqlStorage, counts: dict[str, int], times: int) -> None:
    for _ in range(times):
        try:
            stored = await storage.read("a")
            assert stored is not None
            await storage.write("a", b"%d" % (int(stored.data) + 1), expected=stored.token)
        except ConflictError:
            await anyio.lowlevel.checkpoint()
        except StorageUncertainError:
            counts["unknown"] += 1
        else:
            counts["done"] += 1


async def test_a_write_whose_answer_was_lost_is_settled(server: Postgres, space: str) -> None:
    async with proxy(server) as between, opened(between.url(space=space)) as storage:
        token = (await storage.write("a", b"1", expected=None)).token
        between.drop(b"UPDATE apex_documents SET")
        after = (await storage.write("a", b"2", expected=token)).token
        assert between.dropped == 1
        between.drop(b"WITH wanted AS")
        [b, held] = await storage.write_many([Write("b", b"1", None), Write("a", None, after)])
        assert between.dropped == 2
        assert held.token == after
        between.drop(b"UPDATE apex_documents SET")
        await storage.delete("b", expected=b.token)
        between.drop(b"INSERT INTO apex_documents")
        await storage.write("c", b"1", expected=None)
        between.drop(b"INSERT INTO apex_lines")
        await storage.append_lines("node", [b"x", b"y"], first=0)
        assert between.dropped == 5
        assert await storage.read_lines("node", limit=9) == [b"x", b"y"]
        assert await storage.names() == ["a", "c"]


async def test_a_write_that_can_not_be_settled_says_so(server: Postgres, space: str) -> None:
    async with proxy(server) as between, opened(between.url(space=space), patience=0.5) as one:
        token = (await one.write("a", b"1", expected=None)).token
        between.drop(b"apex_documents", times=1_000_000)
        with pytest.raises(StorageUncertainError):
            await one.write("a", b"2", expected=token)
        with pytest.raises(StorageUnreachableError):
            await one.read("a")
        between.drop_times = 0
        stored = await one.read("a")
        assert stored is not None
        assert stored.data == b"2"


# -- staleness ---------------------------------------------------------------------------


async def test_memory_is_relied_on_for_a_while(server: Postgres, space: str) -> None:
    async with opened(server.url(space=space), staleness=3600.0) as storage:
        await storage.write("a", b"1", expected=None)
        await storage.refresh()
        await in_thread(server.stop)
        try:
            await storage.refresh()
            assert storage.stale_for() > 0.0
            assert storage.change_token("a") is not None
            storage.staleness = 0.0
            with pytest.raises(StorageStaleError):
                await storage.refresh()
        finally:
            await in_thread(server.start)
        await _until(storage, lambda: storage.stale_for() == 0.0)


async def test_a_server_that_is_silent_does_not_stop_a_redeem(
    server: Postgres, space: str
) -> None:
    async with (
        proxy(server) as between,
        opened(between.url(space=space), staleness=3600.0) as storage,
        opened(server.url(space=space)) as other,
    ):
        token = (await storage.write("a", b"1", expected=None)).token
        between.silent = True
        with anyio.fail_after(60):  # far below what the network would take to notice
            await storage.refresh()
        assert storage.stale_for() > 0.0
        after = (await other.write("a", b"2", expected=token)).token
        between.silent = False
        await _until(storage, lambda: storage.change_token("a") == after)


async def _until(storage: SqlStorage, true: object) -> None:
    """Waits for what the storage itself will notice."""
    with anyio.fail_after(WITHIN):
        while not true():  # type: ignore[operator]
            await anyio.sleep(0.02)
            with contextlib.suppress(StorageError):
                await storage.refresh()


async def test_others_hear_of_a_write(server: Postgres, space: str) -> None:
    async with opened(server.url(space=space)) as one, opened(server.url(space=space)) as other:
        heard = anyio.Event()
        other.subscribe(heard.set)
        token = (await one.write("a", b"1", expected=None)).token
        with anyio.fail_after(WITHIN):
            await heard.wait()
        assert other.change_token("a") == token


async def test_a_key_store_whose_row_is_passed_off_as_unchanged_is_seen(
    server: Postgres, space: str
) -> None:
    async with opened(server.url(space=space)) as storage:
        old = (await storage.write("keystore", b"1", expected=None)).token
        await storage.refresh()
        await storage.refresh()
        server.sql(
            f"UPDATE apex_documents SET version = 7, changed = 0 WHERE space = '{space}'"
        )
        await storage.refresh()
        assert storage.change_token("keystore") not in (old, None)


# -- failover ----------------------------------------------------------------------------


async def test_a_promoted_standby_is_found(space: str) -> None:
    with postgres() as primary:
        primary.sql("SELECT pg_create_physical_replication_slot('standby')")
        async with opened(primary.url(space=space)) as storage:  # makes the tables
            token = (await storage.write("a", b"1", expected=None)).token
        standby = await in_thread(primary.standby)
        assert isinstance(standby, Postgres)
        try:
            await _over_to(primary, standby, space, token)
        finally:
            standby.remove()


async def _over_to(primary: Postgres, standby: Postgres, space: str, token: object) -> None:
    url = f"{primary.url(space=space)}&host={standby.place}"
    async with opened(url) as one, opened(url) as other, one.leader("work") as lead:
        assert lead
        await other.refresh()
        token = (await one.write("a", b"2", expected=token)).token  # type: ignore[arg-type]
        await in_thread(_wait_for_replay, primary, standby)
        await in_thread(lambda: primary.stop(crash=True))
        await in_thread(standby.promote)
        with anyio.fail_after(WITHIN):
            await lead.ended()
        stored = await one.read("a")
        assert stored is not None
        assert (stored.data, stored.token) == (b"2", token)
        after = (await one.write("a", b"3", expected=token)).token  # type: ignore[arg-type]
        await _until(other, lambda: other.change_token("a") == after)
        async with other.leader("work") as another:
            assert another


def _wait_for_replay(primary: Postgres, standby: Postgres) -> None:
    there = primary.sql("SELECT pg_current_wal_flush_lsn()")
    while standby.sql(f"SELECT pg_last_wal_replay_lsn() >= '{there}'::pg_lsn") != "t":
        pass


async def test_a_standby_alone_is_no_place_to_write(server: Postgres, space: str) -> None:
    async with opened(server.url(space=space)):
        pass
    standby = await in_thread(server.standby)
    assert isinstance(standby, Postgres)
    try:
        storage = SqlStorage(standby.url(space=space), patience=0.3)
        with pytest.raises(StorageReadOnlyError):
            await storage.write("a", b"1", expected=None)
        await storage.close()
    finally:
        standby.remove()


# -- refusals ----------------------------------------------------------------------------


async def test_a_server_that_was_made_read_only(server: Postgres, space: str) -> None:
    async with opened(server.url(space=space), patience=0.3) as storage:
        token = (await storage.write("a", b"1", expected=None)).token
        server.sql("ALTER ROLE apex SET default_transaction_read_only = on")
        try:
            await in_thread(kick, server)
            with pytest.raises(StorageReadOnlyError):
                await storage.read("a")  # a write on a session that ended would be uncertain
            with pytest.raises(StorageReadOnlyError):
                await storage.write("a", b"2", expected=token)
        finally:
            server.sql(
                "BEGIN READ WRITE;ALTER ROLE apex RESET default_transaction_read_only; COMMIT"
            )
        token = (await storage.write("a", b"3", expected=token)).token


async def test_no_connection_to_be_had(server: Postgres, space: str) -> None:
    async with opened(server.url(space=space)):
        pass
    server.sql("CREATE ROLE few LOGIN CONNECTION LIMIT 0")
    server.sql("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO few")
    storage = SqlStorage(server.url(user="few", space=space), patience=0.3)
    with pytest.raises(StorageBusyError):
        await storage.read("a")
    server.sql("ALTER ROLE few CONNECTION LIMIT 20")
    assert await storage.read("a") is None
    await storage.close()


async def test_who_waits_too_long_for_a_connection_is_told(
    server: Postgres, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apex_creds.storage.postgresql._POOL_SECONDS", 0.05)
    async with opened(server.url(space=space, pool="1"), patience=0.0) as storage:
        pool = storage._dialect._pool  # type: ignore[attr-defined]
        async with pool.connection():
            with pytest.raises(StorageBusyError, match="became free"):
                await storage.read("a")
        assert await storage.read("a") is None


async def test_of_connections_that_broke_together_one_fails(
    server: Postgres, space: str
) -> None:
    async with opened(server.url(space=space), patience=0.0) as storage:
        pool = storage._dialect._pool  # type: ignore[attr-defined]
        async with contextlib.AsyncExitStack() as held:
            for _ in range(4):
                await held.enter_async_context(pool.connection())
        await in_thread(kick, server)
        with pytest.raises(StorageUnreachableError):
            await storage.read("a")
        for _ in range(4):
            assert await storage.read("a") is None


async def test_why_no_connection_can_be_made_is_told_to_all_who_wait(
    server: Postgres, space: str
) -> None:
    async with opened(server.url(space=space)):
        pass
    url = server.url(user="nobody_there", space=space, pool="2")
    storage = SqlStorage(url, patience=0.0)
    said = await asyncio.gather(*(storage.read("a") for _ in range(6)), return_exceptions=True)
    assert all(type(each) is StorageError and "login" in str(each) for each in said), said
    await storage.close()


async def test_more_callers_than_connections(server: Postgres, space: str) -> None:
    async with opened(server.url(space=space, pool="2")) as storage:
        names = [f"n_{number}" for number in range(40)]
        async with anyio.create_task_group() as group:
            for name in names:
                group.start_soon(_make, storage, name)
        assert await storage.names() == sorted(names)


async def _make(storage: SqlStorage, name: str) -> None:
    await storage.write(name, name.encode(), expected=None)


async def test_a_statement_that_takes_too_long(server: Postgres, space: str) -> None:
    async with opened(server.url(space=space, statement_timeout="400")) as storage:
        token = (await storage.write("a", b"1", expected=None)).token
        server.sql(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(20); RETURN NEW; END $$;"
            "CREATE TRIGGER slow BEFORE UPDATE ON apex_documents"
            f" FOR EACH ROW WHEN (NEW.space = '{space}') EXECUTE FUNCTION slow()"
        )
        try:
            with pytest.raises(StorageTimeoutError):
                await storage.write("a", b"2", expected=token)
        finally:
            server.sql("DROP TRIGGER slow ON apex_documents; DROP FUNCTION slow")
        await storage.write("a", b"3", expected=token)


async def test_a_lock_that_is_not_let_go(server: Postgres, space: str) -> None:
    url = server.url(space=space, statement_timeout="400")
    async with opened(url, patience=0.5) as storage:
        token = (await storage.write("a", b"1", expected=None)).token
        holder = await connect(storage.target)
        await holder.execute("BEGIN")
        await holder.execute(
            "SELECT 1 FROM apex_documents WHERE space = %s FOR UPDATE", [space]
        )
        with pytest.raises(StorageLockedError):
            await storage.write("a", b"2", expected=token)
        await holder.close()
        await storage.write("a", b"3", expected=token)


async def test_writers_in_each_others_way(server: Postgres, space: str) -> None:
    """Deadlocks and serialization failures are the storage's business."""
    async with opened(server.url(space=space)) as one, opened(server.url(space=space)) as other:
        await one.write_many([Write(name, b"0", None) for name in "abcdef"])
        async with anyio.create_task_group() as group:
            group.start_soon(_all_up, one, "abcdef")
            group.start_soon(_all_up, other, "fedcba")
            group.start_soon(_all_up, one, "bdface")
        found = await one.read_many("abcdef")
        assert {stored.data for stored in found.values()} == {b"30"}


async def _all_up(storage: SqlStorage, names: str) -> None:
    done = 0
    while done < 10:
        found = await storage.read_many(names)
        writes = [Write(n, b"%d" % (int(found[n].data) + 1), found[n].token) for n in names]
        with contextlib.suppress(ConflictError):
            await storage.write_many(writes)
            done += 1

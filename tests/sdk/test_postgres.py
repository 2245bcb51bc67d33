"""``sdk.postgres``: drivers log in with a password that they never see, to a real server."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import asyncpg
import psycopg
import psycopg_pool
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

from apex_creds.errors import InvalidInputError
from apex_creds.leases import current_credentials
from apex_creds.model import ApiKey, BasicAuth
from apex_creds.sdk import postgres as sdk
from apex_creds.sdk import postgres_broker
from tests.support.canaries import holders
from tests.support.certificates import certificate
from tests.support.postgres import Postgres, as_server_user, postgres
from tests.support.worlds import World, world_in

PASSWORD = "pg-canary-7f3a91-Zq"
ROLE = "app"
_WHO = "SELECT current_user, current_database()"
_HBA = """
local all apex trust
local all old md5
local all plain password
local all all scram-sha-256
hostssl all strict 127.0.0.1/32 scram-sha-256
hostnossl all strict 127.0.0.1/32 reject
host all plain 127.0.0.1/32 password
host all all 127.0.0.1/32 scram-sha-256
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def server(files: tuple[Path, Path]) -> Iterator[Postgres]:
    with postgres(listen_addresses="127.0.0.1") as made:
        made.sql(
            f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'; "
            f"CREATE ROLE other LOGIN PASSWORD 'x-{PASSWORD}'; "
            f"CREATE ROLE plain LOGIN PASSWORD '{PASSWORD}'; "
            f"CREATE ROLE strict LOGIN PASSWORD '{PASSWORD}'; "
            f"SET password_encryption = 'md5'; CREATE ROLE old LOGIN PASSWORD '{PASSWORD}'"
        )
        for name in ("shop", ROLE):
            made.sql(f"CREATE DATABASE {name}")
        (made.data / "pg_hba.conf").write_text(_HBA)
        for path, name in zip(files, ("server.crt", "server.key"), strict=True):
            copy = made.data / name
            copy.write_bytes(path.read_bytes())
            copy.chmod(0o600)
            as_server_user(copy)
        made.restart(ssl="on")
        yield made


@pytest.fixture
async def world(tmp_path: Path, anyio_backend: str, server: Postgres) -> AsyncIterator[World]:
    async with world_in(tmp_path) as made:
        tcp = f"postgresql://127.0.0.1:{server.port}"
        unix = f"postgresql://{quote(str(server.folder), safe='')}:{server.port}"
        for name, role, origin in [
            ("db", ROLE, tcp),
            ("socket", ROLE, unix),
            ("wrong", "other", tcp),
            ("old", "old", unix),
            ("strict", "strict", tcp),
            ("plain", "plain", tcp),
        ]:
            await made.vault.put(name, BasicAuth(role, PASSWORD), origins=[origin])
            for plugin in ("demo", "inner"):
                await made.vault.grant(plugin, name)
        yield made


def need(name: str = "db", **more: object) -> dict[str, object]:
    return {"name": name, **more}


def test_a_login_is_checked_when_it_is_made() -> None:
    for origin in ("https://db.example.com", "nonsense"):
        with pytest.raises(InvalidInputError):
            sdk.login("db", origin=origin)
    with pytest.raises(InvalidInputError):
        sdk.login("db", allow=["plain"])


@pytest.mark.parametrize("name", ["db", "socket"])
async def test_psycopg_and_asyncpg_log_in_over_tcp_and_a_unix_socket(
    world: World, name: str
) -> None:
    db = sdk.login(name, database="shop")

    async def plugin() -> list[object]:
        async with await psycopg.AsyncConnection.connect(db.dsn()) as one:
            row = await (await one.execute(_WHO)).fetchone()
        two = await asyncpg.connect(db.dsn())
        found = await two.fetchrow(_WHO)
        await two.close()
        three = await asyncio.to_thread(_in_a_thread, db)
        return [tuple(row), tuple(found), three]

    expected = ("app", "shop")
    assert await world.call(plugin, needs=(need(name),)) == [expected] * 3
    redeems = world.events("redeem")
    assert [event.method for event in redeems] == ["LOGIN"] * 3
    assert {event.origin.partition("://")[0] for event in redeems} == {"postgresql"}


def _in_a_thread(db: sdk.Login) -> tuple[object, ...]:
    with psycopg.connect(db.dsn()) as connection:
        found = connection.execute(_WHO).fetchone()
        assert found is not None
        return found


async def test_role_and_database_are_those_of_the_login(world: World) -> None:
    db = sdk.login("db", database="shop")

    async def plugin() -> object:
        ticket = db.dsn().partition("//")[2].partition("@")[0]
        options = {"dbname": "postgres", "application_name": "mine", "host": _folder(db)}
        async with await psycopg.AsyncConnection.connect(user=ticket, **options) as one:
            ask = "SELECT current_user, current_database(), current_setting('application_name')"
            return await (await one.execute(ask)).fetchone()

    assert await world.call(plugin, needs=(need(),)) == ("app", "shop", "mine")


def _folder(db: sdk.Login) -> str:
    from urllib.parse import parse_qs, urlsplit

    return parse_qs(urlsplit(db.dsn()).query)["host"][0]


async def test_a_database_that_the_manifest_does_not_name_is_refused(world: World) -> None:
    shop, other = sdk.login("db", database="shop"), sdk.login("db", database="postgres")

    async def plugin() -> None:
        async with await psycopg.AsyncConnection.connect(shop.dsn()):
            pass
        with pytest.raises(psycopg.OperationalError, match="outside what the credential"):
            await psycopg.AsyncConnection.connect(other.dsn())

    await world.call(plugin, needs=(need(paths=["/shop"], methods=["LOGIN"]),))
    assert world.reasons() == [("db", "request_not_allowed")]


async def test_outside_of_an_invocation_and_without_a_grant_it_is_refused(world: World) -> None:
    db = sdk.login("db")
    with pytest.raises(psycopg.OperationalError, match="no invocation has it here"):
        await psycopg.AsyncConnection.connect(db.dsn())
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await asyncpg.connect(db.dsn())

    async def undeclared() -> None:
        with pytest.raises(psycopg.OperationalError):
            await psycopg.AsyncConnection.connect(db.dsn())

    await world.call(undeclared)  # has another
    assert ("db", "undeclared") in world.reasons()
    assert world.events("redeem") == []


async def test_a_connection_ends_with_its_lease_and_what_runs_in_it_too(
    world: World, server: Postgres
) -> None:
    db = sdk.login("db")
    kept: list[object] = []

    async def plugin() -> None:
        connection = await psycopg.AsyncConnection.connect(db.dsn(), autocommit=True)
        begun = asyncio.create_task(connection.execute("SELECT pg_sleep(600)"))
        while not _sleeping(server):
            await asyncio.sleep(0)
        kept.extend((connection, begun, db.dsn()))

    await world.call(plugin, needs=(need(),))
    connection, begun, dsn = kept
    assert isinstance(connection, psycopg.AsyncConnection)
    assert isinstance(begun, asyncio.Task)
    with pytest.raises(psycopg.OperationalError):
        await begun
    while _sleeping(server):
        await asyncio.sleep(0)
    with pytest.raises(psycopg.OperationalError):
        await connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        await psycopg.AsyncConnection.connect(dsn)


def _sleeping(server: Postgres) -> bool:
    ask = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' "
    return server.sql(ask + "AND state = 'active'") != "0"


async def test_a_revocation_ends_it(world: World) -> None:
    db = sdk.login("db")

    async def plugin() -> None:
        connection = await psycopg.AsyncConnection.connect(db.dsn())
        await world.vault.revoke(plugin="demo")
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("SELECT pg_sleep(600)")
        await connection.close()

    await world.call(plugin, needs=(need(),))


async def test_cancel_and_copy(world: World, server: Postgres) -> None:
    db = sdk.login("db")

    async def plugin() -> list[object]:
        async with await psycopg.AsyncConnection.connect(db.dsn()) as one:
            await one.execute("CREATE TEMPORARY TABLE t (a int, b text)")
            async with one.cursor().copy("COPY t FROM STDIN") as into:
                for number in range(20_000):
                    await into.write_row((number, "x" * 40))
            total = await (await one.execute("SELECT count(*) FROM t")).fetchone()
            out = b""
            async with one.cursor().copy("COPY t TO STDOUT") as copied:
                async for chunk in copied:
                    out += chunk
            await one.commit()
            query = asyncio.create_task(one.execute("SELECT pg_sleep(600)"))
            while not _sleeping(server):  # a server ignores a cancel that comes first
                await asyncio.sleep(0)
            await one.cancel_safe()
            with pytest.raises(psycopg.errors.QueryCanceled):
                await query
            return [total, out.count(b"\n")]

    assert await world.call(plugin, needs=(need(),)) == [(20_000,), 20_000]


# -- pools ---------------------------------------------------------------------------


async def test_a_pool_of_psycopg_made_before_hands_on_to_the_same_invocation_only(
    world: World,
) -> None:
    db = sdk.login("db")
    pool = psycopg_pool.AsyncConnectionPool(
        **db.psycopg_async(), min_size=2, max_size=4, open=False
    )
    await pool.open(wait=True)  # by its workers, outside of any invocation
    ask = "SELECT pg_backend_pid()"

    async def twice() -> set[object]:
        seen = set()
        for _ in range(4):
            async with pool.connection() as one:
                seen.add((await (await one.execute(ask)).fetchone())[0])
        return seen

    try:
        first = await world.call(twice, needs=(need(),))
        second = await world.call(twice, needs=(need(),), plugin="inner")
        assert first
        assert second
        assert not first & second
        with pytest.raises(psycopg.OperationalError, match="outside of any invocation"):
            async with pool.connection() as one:
                await one.execute(ask)
        count = len(world.events("redeem"))
        assert count == len(first) + len(second)
    finally:
        await pool.close()


async def test_of_two_at_once_none_gets_the_other_s_connection(world: World) -> None:
    db = sdk.login("db")
    pool = psycopg_pool.AsyncConnectionPool(
        **db.psycopg_async(), min_size=1, max_size=1, open=False
    )
    await pool.open(wait=True)
    released, done = asyncio.Event(), asyncio.Event()
    ask = "SELECT pg_backend_pid()"

    async def first() -> object:
        async with pool.connection() as one:
            found = await (await one.execute(ask)).fetchone()
        released.set()
        await done.wait()  # its lease is still alive
        return found

    async def second() -> object:
        await released.wait()
        try:
            async with pool.connection() as one:
                return await (await one.execute(ask)).fetchone()
        finally:
            done.set()

    try:
        calls = (
            world.call(first, needs=(need(),)),
            world.call(second, needs=(need(),), plugin="inner"),
        )
        one, two = await asyncio.gather(*calls)
        assert one != two
        assert [event.plugin for event in world.events("redeem")] == ["demo", "inner"]
    finally:
        await pool.close()


async def test_a_connection_of_another_invocation_is_refused_where_no_pool_checks(
    world: World,
) -> None:
    cls = sdk.login("db").psycopg_async()["connection_class"]
    kept: list[psycopg.AsyncConnection[object]] = []
    go, end = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        kept.append(await cls.connect())
        await kept[0].execute("SELECT 1")
        go.set()
        await end.wait()

    async def second() -> None:
        await go.wait()
        try:
            with pytest.raises(psycopg.OperationalError, match="another invocation"):
                await kept[0].execute("SELECT 1")
        finally:
            end.set()
            await kept[0].close()

    await asyncio.gather(
        world.call(first, needs=(need(),)), world.call(second, needs=(need(),), plugin="inner")
    )


async def test_a_blocking_pool_in_threads(world: World) -> None:
    with psycopg_pool.ConnectionPool(**sdk.login("db").psycopg(), min_size=1) as pool:
        pool.wait()

        def work() -> object:
            with pool.connection() as one:
                return one.execute("SELECT current_user").fetchone()

        async def plugin() -> object:
            return await asyncio.to_thread(work)

        for name in ("demo", "inner", "demo"):
            assert await world.call(plugin, needs=(need(),), plugin=name) == ("app",)


async def test_a_pool_of_asyncpg_made_before(world: World) -> None:
    pool = await asyncpg.create_pool(**sdk.login("db").asyncpg(), max_size=2)

    async def plugin() -> object:
        async with pool.acquire() as one:
            found = await one.fetchval("SELECT pg_backend_pid()")
        async with pool.acquire() as one:
            assert await one.fetchval("SELECT current_user") == "app"
        return found

    seen = [
        await world.call(plugin, needs=(need(),), plugin=name) for name in ("demo", "inner")
    ]
    assert len(set(seen)) == 2
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await pool.fetchval("SELECT 1")
    await pool.close()


async def test_an_engine_of_sqlalchemy_made_before(world: World) -> None:
    engine = sqlalchemy.create_engine("postgresql+psycopg://", pool_size=1)
    sdk.login("db", database="shop").sqlalchemy(engine)
    ask = sqlalchemy.text("SELECT pg_backend_pid(), current_user, current_database()")

    def work() -> list[object]:
        found = []
        for _ in range(2):
            with engine.connect() as one:
                found.append(tuple(one.execute(ask).one()))
        return found

    async def plugin() -> object:
        return await asyncio.to_thread(work)

    first = await world.call(plugin, needs=(need(),))
    second = await world.call(plugin, needs=(need(),), plugin="inner")
    assert first[0] == first[1]
    assert first[0][1:] == ("app", "shop")
    assert first[0][0] != second[0][0]
    with pytest.raises(sqlalchemy.exc.OperationalError, match="refused"):
        engine.connect()
    assert len(world.events("redeem")) == 2
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_an_asynchronous_engine_of_two_at_once(world: World, driver: str) -> None:
    engine = create_async_engine(f"postgresql+{driver}://", pool_size=1, max_overflow=0)
    sdk.login("db").sqlalchemy(engine)
    ask = sqlalchemy.text("SELECT pg_backend_pid()")
    released, done = asyncio.Event(), asyncio.Event()

    async def first() -> object:
        async with engine.connect() as one:
            found = (await one.execute(ask)).scalar_one()
        released.set()
        await done.wait()
        return found

    async def second() -> object:
        await released.wait()
        try:
            async with engine.connect() as one:
                return (await one.execute(ask)).scalar_one()
        finally:
            done.set()

    one, two = await asyncio.gather(
        world.call(first, needs=(need(),)), world.call(second, needs=(need(),), plugin="inner")
    )
    assert one != two
    await engine.dispose()


async def test_the_first_connection_of_a_process_is_let_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker begins with it, as after a fork."""
    monkeypatch.setattr(postgres_broker.BROKER, "_pid", 0)
    engine = sqlalchemy.create_engine("postgresql+psycopg://")
    sdk.login("db").sqlalchemy(engine)

    def plugin() -> object:
        with engine.connect() as one:
            return one.execute(sqlalchemy.text("SELECT 1")).scalar_one()

    assert await world.call(plugin, needs=(need(),)) == 1
    engine.dispose()


# -- the login -----------------------------------------------------------------------


async def test_what_the_server_says_of_a_login_is_passed_on(world: World) -> None:
    async def plugin() -> None:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            await psycopg.AsyncConnection.connect(sdk.login("wrong").dsn())
        with pytest.raises(asyncpg.InvalidCatalogNameError):
            await asyncpg.connect(sdk.login("db", database="nowhere").dsn())

    await world.call(plugin, needs=(need(), need("wrong")))


@pytest.mark.parametrize(("name", "kind"), [("old", "md5"), ("plain", "cleartext")])
async def test_the_old_ways_are_refused_unless_allowed(
    world: World, name: str, kind: str
) -> None:
    async def plugin() -> object:
        with pytest.raises(psycopg.OperationalError, match="not allowed"):
            await psycopg.AsyncConnection.connect(sdk.login(name, database="shop").dsn())
        db = sdk.login(name, database="shop", allow=[kind])
        async with await psycopg.AsyncConnection.connect(db.dsn()) as one:
            return await (await one.execute("SELECT current_user")).fetchone()

    assert await world.call(plugin, needs=(need(name),)) == (name,)


async def test_a_credential_without_a_user_takes_the_one_of_the_login(
    world: World, server: Postgres
) -> None:
    origin = f"postgresql://127.0.0.1:{server.port}"
    await world.vault.put("bare", ApiKey(PASSWORD), origins=[origin])
    await world.vault.grant("demo", "bare")

    async def plugin() -> object:
        with pytest.raises(psycopg.OperationalError, match="no user name"):
            await psycopg.AsyncConnection.connect(sdk.login("bare").dsn())
        db = sdk.login("bare", user="app", database="shop")
        async with await psycopg.AsyncConnection.connect(db.dsn()) as one:
            return await (await one.execute("SELECT current_user")).fetchone()

    assert await world.call(plugin, needs=(need("bare"),)) == ("app",)


async def test_another_server_than_the_credential_s_is_refused(world: World) -> None:
    db = sdk.login("db", origin="postgresql://127.0.0.1:1")

    async def plugin() -> None:
        with pytest.raises(psycopg.OperationalError, match="may not be sent to"):
            await psycopg.AsyncConnection.connect(db.dsn())

    await world.call(plugin, needs=(need(),))
    assert world.reasons() == [("db", "request_not_allowed")]


async def test_a_password_is_not_sent_elsewhere_in_the_clear(world: World) -> None:
    await world.vault.put(
        "far", BasicAuth("app", PASSWORD), origins=["postgresql://db.example.com"]
    )
    await world.vault.grant("demo", "far")

    async def plugin() -> None:
        with pytest.raises(psycopg.OperationalError, match="without TLS"):
            await psycopg.AsyncConnection.connect(sdk.login("far", tls=False).dsn())

    await world.call(plugin, needs=(need("far"),))
    assert world.events("redeem") == []


async def test_by_tls_with_a_certificate_that_is_trusted_only(
    world: World,
    server: Postgres,
    files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    db = sdk.login("strict", database="shop", tls=True)

    async def plugin() -> object:
        with pytest.raises(psycopg.OperationalError, match="can't be reached"):
            await psycopg.AsyncConnection.connect(db.dsn())
        monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
        async with await psycopg.AsyncConnection.connect(db.dsn()) as one:
            ask = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            assert await (await one.execute(ask)).fetchone() == (True,)
            big = await (await one.execute("SELECT repeat('x', 3000000)")).fetchone()
            assert big == ("x" * 3_000_000,)
            query = asyncio.create_task(one.execute("SELECT pg_sleep(600)"))
            while not _sleeping(server):  # a server ignores a cancel that comes first
                await asyncio.sleep(0)
            await one.cancel_safe()
            with pytest.raises(psycopg.errors.QueryCanceled):
                await query

    await world.call(plugin, needs=(need("strict"),))


async def test_the_secret_is_in_none_of_the_drivers_objects(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    db = sdk.login("db")

    async def plugin() -> None:
        one = await psycopg.AsyncConnection.connect(db.dsn())
        two = await asyncpg.connect(db.dsn())
        await one.execute("SELECT 1")
        await two.execute("SELECT 1")
        async with (
            psycopg_pool.AsyncConnectionPool(**db.psycopg_async(), open=False) as pool,
            asyncpg.create_pool(**db.asyncpg()) as other,
        ):
            engine = create_async_engine("postgresql+psycopg://")
            db.sqlalchemy(engine)
            async with (
                pool.connection() as three,
                other.acquire() as four,
                engine.connect() as five,
            ):
                await five.execute(sqlalchemy.text("SELECT 1"))
                made = (db, one, two, pool, other, engine, three, four, five)
                assert holders(PASSWORD, *made, *map(repr, made)) == []
            await engine.dispose()
        assert one.info.password == ""
        assert one.info.get_parameters().get("password", "") == ""
        await one.close()
        await two.close()

    await world.call(plugin, needs=(need(),))
    assert PASSWORD not in caplog.text


async def test_the_socket_is_private_and_of_this_process_only(world: World) -> None:
    db = sdk.login("db")

    async def plugin() -> None:
        folder = Path(_folder(db))
        assert folder.stat().st_mode & 0o777 == 0o700
        outsider = await asyncio.create_subprocess_exec(
            "psql", db.dsn(), "-c", "SELECT 1", stdout=-1, stderr=-1,
            env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert await outsider.wait() != 0

    await world.call(plugin, needs=(need(),))
    assert world.events("redeem") == []


async def test_nothing_is_left_of_many_connections(world: World) -> None:
    from apex_creds.sdk import postgres_broker

    db = sdk.login("db")

    async def plugin() -> None:
        for _ in range(5):
            async with await psycopg.AsyncConnection.connect(db.dsn()):
                pass
        assert current_credentials()["db"].active

    threads = threading.active_count()
    for _ in range(3):
        with world.nothing_left():
            await world.call(plugin, needs=(need(),))
    assert not postgres_broker._SEATS
    assert not postgres_broker._BY_LEASE
    assert threading.active_count() <= threads + 8

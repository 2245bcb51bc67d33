"""PostgreSQL behind the wall: no password there; role and database are forced."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator

import pytest

from apex_creds.isolation.programs import run_program
from apex_creds.isolation.sandbox import Wall
from apex_creds.model import BasicAuth
from tests.isolation.programs import output_of
from tests.isolation.test_sdks_behind_the_wall import check_row
from tests.support.postgres import Postgres, postgres
from tests.support.worlds import World, manifest_for

PASSWORD = "pg-canary-7f3a91-Zq"
_HBA = "local all apex trust\nhost all all 127.0.0.1/32 scram-sha-256\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres(listen_addresses="127.0.0.1") as made:
        made.sql(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
        made.sql("CREATE DATABASE shop")
        made.sql("CREATE DATABASE app")
        (made.data / "pg_hba.conf").write_text(_HBA)
        made.restart()
        yield made


async def allow(world: World, server: Postgres, password: str = PASSWORD) -> None:
    origin = f"postgresql://127.0.0.1:{server.port}"
    await world.vault.put("db", BasicAuth("app", password), origins=[origin])
    await world.vault.grant("demo", "db")


def need(**more: object) -> dict[str, object]:
    return {"name": "db", **more}


async def test_psycopg_and_others_as_they_are(world: World, server: Postgres) -> None:
    await allow(world, server)
    script = """
import json, os, psycopg, asyncio, asyncpg
who = "SELECT current_user, current_database()"
found = []
with psycopg.connect() as one:
    found.append(one.execute(who).fetchone())
    with one.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE t (n int)")
        with cursor.copy("COPY t FROM STDIN") as copy:
            for n in range(1000):
                copy.write_row((n,))
        found.append(cursor.execute("SELECT sum(n) FROM t").fetchone())
with psycopg.connect(user="postgres", dbname="postgres", password="x") as one:
    found.append(one.execute(who).fetchone())
async def main():
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    found.append(list(await connection.fetchrow(who)))
    await connection.close()
asyncio.run(main())
print(json.dumps([found, dict(os.environ)]))
"""
    said = await output_of(world, sys.executable, "-c", script, needs=(need(paths=["/shop"]),))
    found, environment = json.loads(said)
    assert found == [["app", "shop"], [499500], ["app", "shop"], ["app", "shop"]]
    assert PASSWORD not in str(environment)
    assert len(world.events("redeem")) == 3
    check_row("psycopg, asyncpg", "works, by a Unix socket", "–")


async def test_what_the_server_or_the_grant_refuses_is_the_driver_s_own_error(
    world: World, server: Postgres
) -> None:
    await allow(world, server, "wrong")
    script = """
import psycopg
try:
    psycopg.connect()
except psycopg.OperationalError as error:
    print(error)
"""
    said = await output_of(world, sys.executable, "-c", script, needs=(need(),))
    assert "password authentication failed" in said
    said = await output_of(world, sys.executable, "-c", script, needs=(need(methods=["GET"]),))
    assert "outside what the credential may be sent with" in said


async def test_a_query_is_cancelled_and_ends_with_the_program(
    world: World, server: Postgres
) -> None:
    await allow(world, server)
    script = """
import psycopg, threading
with psycopg.connect() as one:
    done = threading.Event()
    def cancel():
        while not done.is_set():
            one.cancel_safe()
    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        one.execute("SELECT pg_sleep(600)")
    except psycopg.errors.QueryCanceled:
        pass
    done.set()
    thread.join()
    one.rollback()
    one.execute("SELECT pg_sleep(599)")
"""
    began = asyncio.Event()
    task = asyncio.create_task(
        run_program(
            world.middleware,
            manifest_for(need()),
            Wall(command=[sys.executable, "-c", script]),
            began=lambda _: began.set(),
        )
    )
    await began.wait()

    def running() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(599)'"
        return server.sql(f"{query} AND usename = 'app'").strip() != "0"

    while not await asyncio.to_thread(running):
        assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while await asyncio.to_thread(running):
        pass


_TRICKS = r"""
import json, os, socket, struct
place = f"{os.environ['PGHOST']}/.s.PGSQL.{os.environ['PGPORT']}"
WHO = "SELECT current_user, session_user, current_database()"

def startup(*pairs, code=196608):
    body = b"".join(each.encode() + bytes(1) for each in pairs) + bytes(1)
    return struct.pack("!II", len(body) + 8, code) + body

def answers(there):
    found = {}
    while True:
        head = there.recv(5, socket.MSG_WAITALL)
        if len(head) < 5:
            return found
        length = struct.unpack("!I", head[1:])[0] - 4
        body = there.recv(length, socket.MSG_WAITALL) if length else b""
        found.setdefault(head[:1].decode(), body)
        if head[:1] in b"ZE":
            return found

def asked(there, sql):
    body = sql.encode() + bytes(1)
    there.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)
    found = answers(there)
    if "E" in found:
        answers(there)
        return "refused"
    return found["D"][2:].replace(bytes(3), b" ").decode("latin-1")

def tried(said, *queries):
    with socket.socket(socket.AF_UNIX) as there:
        there.connect(place)
        there.sendall(said)
        if said[4:8] == struct.pack("!I", 80877103):
            assert there.recv(2, socket.MSG_WAITALL) == b"NN"
        found = answers(there)
        return [asked(there, each) for each in queries] if "Z" in found else "refused"

encryption = struct.pack("!IIII", 8, 80877103, 8, 80877104)
admin = ("user", "postgres", "database", "postgres")
print(json.dumps({
    "as": tried(startup(*admin), WHO),
    "twice": tried(startup("user", "app", "database", "app", *admin), WHO),
    "after TLS": tried(encryption + startup(*admin), WHO),
    "replication": tried(startup(*admin, "replication", "database"), "IDENTIFY_SYSTEM", WHO),
    "by option": tried(startup(*admin, "options", "-c role=apex")),
    "by role": tried(startup(*admin, "role", "apex")),
    "by session": tried(startup(*admin, "session_authorization", "apex")),
    "too short": tried(struct.pack("!II", 4, 196608)),
    "too long": tried(struct.pack("!II", 0x7FFFFFFF, 196608)),
    "older": tried(startup(*admin, code=2 << 16), WHO),
    "cancel": tried(struct.pack("!IIII", 16, 80877102, 1, 2)),
    "sql": tried(
        startup(*admin),
        "SET ROLE apex",
        "SET SESSION AUTHORIZATION apex",
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT rolpassword FROM pg_authid",
    ),
}))
"""


async def test_no_trick_of_the_protocol_is_another_login(
    world: World, server: Postgres
) -> None:
    await allow(world, server)
    said = await output_of(world, sys.executable, "-c", _TRICKS, needs=(need(paths=["/shop"]),))
    found = json.loads(said)
    ways = ("as", "twice", "after TLS", "replication", "older")
    same = {found[each][-1] for each in ways}
    assert len(same) == 1
    assert "shop" in str(same)
    assert "apex" not in str(same)
    assert found["replication"][0] == "refused"
    refused = ("by option", "by role", "by session", "too short", "too long", "cancel")
    assert [found[each] for each in refused] == ["refused"] * len(refused)
    assert found["sql"] == ["refused"] * 5

"""Passwords of real PostgreSQL roles are replaced: two that take turns, and one."""

from __future__ import annotations

import psycopg
import pytest

from apex_creds.errors import InvalidInputError, RotatorRefusedError
from apex_creds.model import BasicAuth, RotationStage
from apex_creds.rotators import Rotations, configure, rotator_from_uri
from tests.support.rotators import ADMIN, FIRST, parts_of, put_role

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


async def test_two_roles_take_turns(vault, server):
    await put_role(vault, server, server.two, grace=3600.0)
    rotations = Rotations(vault)
    await rotations.ask("db", by_hand=True)
    info = await rotations.advance("db")
    parts = await parts_of(vault, "db")
    assert info.rotation.stage is RotationStage.FINISH
    assert (parts["user"], parts["previous_user"]) == ("app_b", "app_a")
    assert server.lets_in("app_b", parts["password"])
    assert server.lets_in("app_a", FIRST)  # leases that are in use go on


async def test_the_old_password_ends_with_its_grace(vault, server):
    await put_role(vault, server, server.two)
    rotations = Rotations(vault)
    await rotations.ask("db", by_hand=True)
    info = await rotations.advance("db")
    parts = await parts_of(vault, "db")
    assert info.rotation.stage is RotationStage.IDLE
    assert set(parts) == {"user", "password"}
    assert server.lets_in("app_b", parts["password"])
    assert not server.lets_in("app_a", FIRST)
    await rotations.ask("db", by_hand=True)  # and back, with a new password
    await rotations.advance("db")
    again = await parts_of(vault, "db")
    assert again["user"] == "app_a"
    assert server.lets_in("app_a", again["password"])
    assert not server.lets_in("app_a", FIRST)
    assert not server.lets_in("app_b", parts["password"])


async def test_what_is_lost_has_no_grace_and_its_sessions_end(vault, server):
    await put_role(vault, server, server.two, grace=3600.0)
    where = f"host={server.server.folder} port={server.server.port} dbname=postgres"
    with psycopg.connect(where, user="app_a", password=FIRST, autocommit=True) as session:
        rotations = Rotations(vault)
        await rotations.ask("db", lost=True)
        info = await rotations.advance("db")
        assert info.rotation.stage is RotationStage.IDLE
        assert not server.lets_in("app_a", FIRST)
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")


@pytest.mark.parametrize("by_itself", [False, True])
async def test_one_role(vault, server, by_itself):
    uri = server.one.partition("?")[0] if by_itself else server.one
    await put_role(vault, server, uri)
    rotations = Rotations(vault)
    await rotations.ask("db", by_hand=True)
    info = await rotations.advance("db")
    parts = await parts_of(vault, "db")
    assert info.rotation.stage is RotationStage.IDLE
    assert set(parts) == {"user", "password"}
    assert server.lets_in("app_a", parts["password"])
    assert not server.lets_in("app_a", FIRST)


async def test_a_role_that_may_not_log_in_is_refused_and_stays_as_it_was(vault, server):
    await put_role(vault, server, server.two)
    server.server.sql("ALTER ROLE app_b NOLOGIN")
    try:
        rotations = Rotations(vault)
        await rotations.ask("db", by_hand=True)
        with pytest.raises(RotatorRefusedError):
            await rotations.advance("db")
        info = await vault.get("db")
        assert (info.rotation.stage, info.rotation.refusals) == (RotationStage.IDLE, 1)
        assert await parts_of(vault, "db") == {"user": "app_a", "password": FIRST}
        assert server.lets_in("app_a", FIRST)
    finally:
        server.server.sql("ALTER ROLE app_b LOGIN")


async def test_an_admin_that_may_not_be_sent_there_is_not(vault, server):
    await put_role(vault, server, server.two)
    await vault.edit("db-admin", origins=["postgresql://db.example.com"])
    rotations = Rotations(vault)
    await rotations.ask("db", by_hand=True)
    with pytest.raises(RotatorRefusedError, match="may not be sent"):
        await rotations.advance("db")


async def test_no_password_is_in_a_log(vault, server, caplog, tmp_path):
    server.server.sql("ALTER SYSTEM SET log_statement = 'all'")
    server.server.sql("SELECT pg_reload_conf()")
    try:
        await put_role(vault, server, server.two)
        rotations = Rotations(vault)
        await rotations.ask("db", by_hand=True)
        await rotations.advance("db")
    finally:
        server.server.sql("ALTER SYSTEM RESET log_statement")
        server.server.sql("SELECT pg_reload_conf()")
    parts = await parts_of(vault, "db")
    vault.audit.sync()
    logs = [(server.server.folder / "log").read_bytes(), caplog.text.encode()]
    logs += [
        p.read_bytes() for p in (tmp_path / "home/security/audit").rglob("*") if p.is_file()
    ]
    for secret in (parts["password"], FIRST, ADMIN):
        assert all(secret.encode() not in log for log in logs)
    assert b"ALTER ROLE" in logs[0]
    assert b"SCRAM-SHA-256$" in logs[0]


@pytest.mark.parametrize(
    "name", ['a"; DROP ROLE admin; --', "a'b", "a\\b", "%s{}", "x" * 63, "роль"]
)
async def test_a_name_of_a_role_is_a_name(vault, server, name):
    quoted = name.replace('"', '""')
    server.server.sql(f"CREATE ROLE \"{quoted}\" LOGIN PASSWORD '{FIRST}'")
    try:
        await vault.put("db-admin", BasicAuth("admin", ADMIN), origins=[server.origin])
        await vault.put("odd", BasicAuth(name, FIRST), origins=[server.origin])
        await configure(vault, "odd", uri=server.one)
        rotations = Rotations(vault)
        await rotations.ask("odd", by_hand=True)
        await rotations.advance("odd")
        parts = await parts_of(vault, "odd")
        assert server.lets_in(name, parts["password"])
        assert server.lets_in("admin", ADMIN)
    finally:
        server.server.sql(f'DROP ROLE "{quoted}"')


@pytest.mark.parametrize(
    "uri",
    [
        "postgres-role:",
        "postgres-role:postgresql://host",
        "postgres-role:postgresql://host/db?roles=a&admin=x",
        "postgres-role:postgresql://host/db?roles=a,a&admin=x",
        "postgres-role:postgresql://host/db?roles=a,b",
        "postgres-role:postgresql://user:hunter2@host/db",
        "postgres-role:postgresql://host/db?admin=x&admin=y",
        "postgres-role:postgresql://host/db?password=hunter2",
        "postgres-role:http://host/db",
        "postgres-roll:postgresql://host/db",
    ],
)
def test_a_uri_that_is_not_understood_is_not_repeated(uri):
    with pytest.raises(InvalidInputError) as caught:
        rotator_from_uri(uri)
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"
    assert caught.value.hint

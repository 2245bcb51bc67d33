"""The tables: made once, upgraded under a lock, refused when a newer program made them."""

from __future__ import annotations

import re
import sqlite3
import stat
import subprocess
from pathlib import Path
from typing import Final

import anyio
import pytest

from apex_creds.errors import (
    ConflictError,
    InvalidInputError,
    StorageError,
    StorageReadOnlyError,
    StorageSchemaError,
    UnsafePathError,
    UnsafePermissionsError,
    VaultNotFoundError,
)
from apex_creds.storage.sql_schema import UPGRADES, VERSION_TABLE
from apex_creds.storage.sql_storage import SqlStorage
from tests.support.postgres import Postgres, binary

pytestmark = pytest.mark.anyio
ROLES = Path(__file__).parents[2] / "deploy" / "postgres" / "roles.sql"
MADE: Final = Path(__file__).parent / "made_by_alembic"
"""Databases of version 0001 as Alembic made them, which the program used at first."""
SPACE: Final = "00112233"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path, server: Postgres) -> str:
    """An empty database."""
    if request.param == "sqlite":
        tmp_path.chmod(0o700)
        return f"sqlite:///{tmp_path}/vault.db"
    return server.url(database=fresh(server, tmp_path))


def fresh(server: Postgres, where: Path) -> str:
    name = re.sub(r"[^a-z0-9]", "_", where.name.lower())[-60:]
    server.sql(f"CREATE DATABASE {name}")
    return name


def execute(server: Postgres, url: str, script: str) -> None:
    """Statements on the database itself."""
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///").partition("?")[0])
        path.touch(mode=0o600)
        with sqlite3.connect(path) as connection:
            connection.executescript(script)
        connection.close()
    else:
        server.sql(script, database=database_of(url))


def database_of(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]


def tables(server: Postgres, url: str) -> list[str]:
    """What defines the tables of the database, in the database's own words."""
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            found = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
            said = [" ".join(text.split()) for (text,) in found]
        connection.close()
        return sorted(text.replace("( ", "(").replace(" )", ")") for text in said)
    dump = server._run("pg_dump", "-s", "-U", "apex", database_of(url)).stdout.decode()
    return [line for line in dump.splitlines() if not line.startswith(("--", "\\"))]


def made_by_alembic(server: Postgres, url: str) -> str:
    """A database with a document, one that was deleted, and lines; the URL of its vault."""
    kind = "sqlite" if url.startswith("sqlite") else "postgresql"
    execute(server, url, (MADE / f"{kind}.sql").read_text(encoding="utf-8"))
    return f"{url}{'&' if '?' in url else '?'}space={SPACE}"


# -- versions ----------------------------------------------------------------------------


async def test_the_tables_are_as_alembic_made_them(
    url: str, server: Postgres, tmp_path: Path
) -> None:
    if url.startswith("sqlite"):
        other = f"sqlite:///{tmp_path}/other.db"
    else:
        other = server.url(database=fresh(server, tmp_path / "other"))
    made_by_alembic(server, other)
    storage = SqlStorage(url)
    await storage.upgrade()
    await storage.close()
    assert tables(server, url) == tables(server, other)
    assert len(tables(server, url)) > 5


async def test_a_database_that_alembic_made_is_used_as_it_is(
    url: str, server: Postgres
) -> None:
    url = made_by_alembic(server, url)
    storage = SqlStorage(url)
    assert (await storage.schema()).state == "current"
    assert (await storage.upgrade()).current == "0001"
    await storage.prepare()
    assert await storage.names() == ["a", "keystore"]
    stored = await storage.read("a")
    assert stored is not None
    assert stored.data == b"second"
    assert await storage.read("gone") is None
    token = (await storage.write("a", b"third", expected=stored.token)).token
    with pytest.raises(ConflictError):
        await storage.write("a", b"lost", expected=stored.token)
    await storage.write("gone", b"again", expected=None)
    assert await storage.read_lines("node", limit=9) == [b"one", b"two"]
    await storage.append_lines("node", [b"three"], first=2)
    await storage.close()
    again = SqlStorage(url)
    await again.refresh()
    assert again.change_token("a") == token
    assert await again.names() == ["a", "gone", "keystore"]
    assert await again.streams() == {"node": 3}
    await again.close()


LATER: Final = (
    "CREATE TABLE apex_later (space VARCHAR(64) NOT NULL, data {bytes})",
    "ALTER TABLE apex_documents ADD COLUMN later {bytes}",
)


async def test_an_older_database_is_upgraded_when_asked_and_not_before(
    url: str, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = made_by_alembic(server, url)
    with monkeypatch.context() as later:
        later.setitem(UPGRADES, "0002", LATER)
        storages = [SqlStorage(url) for _ in range(3)]
        assert (await storages[0].schema()).state == "older"
        for refused in (storages[0].prepare, lambda: storages[0].read("a")):
            with pytest.raises(StorageSchemaError, match="0002 is needed"):
                await refused()
        found: list[str | None] = []

        async def upgrade(storage: SqlStorage) -> None:
            found.append((await storage.upgrade()).current)

        async with anyio.create_task_group() as group:
            for storage in storages:
                group.start_soon(upgrade, storage)
        assert sorted(found, key=str) == ["0001", "0002", "0002"]
        await storages[0].prepare()
        stored = await storages[0].read("a")
        assert stored is not None
        assert stored.data == b"second"
        for storage in storages:
            await storage.close()
    old = SqlStorage(url)
    assert (await old.schema()).state == "newer"
    await old.close()


async def test_an_upgrade_that_fails_leaves_nothing(
    url: str, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = made_by_alembic(server, url)
    monkeypatch.setitem(UPGRADES, "0002", (*LATER, "ALTER TABLE apex_nothing RENAME TO x"))
    storage = SqlStorage(url)
    with pytest.raises(StorageError):
        await storage.upgrade()
    assert (await storage.schema()).current == "0001"
    monkeypatch.setitem(UPGRADES, "0002", LATER)
    assert (await storage.upgrade()).current == "0001"
    assert (await storage.schema()).is_current
    await storage.close()


async def test_an_empty_database_is_said_to_be_empty(url: str) -> None:
    storage = SqlStorage(url)
    if url.startswith("postgresql"):
        assert (await storage.schema()).state == "none"
        with pytest.raises(StorageSchemaError, match="no tables"):
            await storage.read("keystore")
    else:
        with pytest.raises(StorageError):
            await storage.read("keystore")
    await storage.close()


async def test_many_upgrade_at_once(url: str) -> None:
    storages = [SqlStorage(url) for _ in range(4)]
    found: list[str | None] = []

    async def upgrade(storage: SqlStorage) -> None:
        found.append((await storage.upgrade()).current)

    async with anyio.create_task_group() as group:
        for storage in storages:
            group.start_soon(upgrade, storage)
    assert sorted(found, key=str) == [*[list(UPGRADES)[-1]] * 3, None]
    for storage in storages:
        await storage.close()


async def test_a_newer_programs_tables_are_left_alone(url: str, server: Postgres) -> None:
    first = SqlStorage(url)
    await first.prepare()
    await first.close()
    execute(server, url, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    storage = SqlStorage(url)
    assert (await storage.schema()).state == "newer"
    for refused in (
        storage.upgrade,
        storage.prepare,
        lambda: storage.read("a"),
        storage.refresh,
    ):
        with pytest.raises(StorageError, match="newer"):
            await refused()
    assert (await storage.schema()).current == "9999"
    await storage.close()


async def test_vaults_in_one_database_are_told_apart(url: str) -> None:
    one = SqlStorage(url)
    await one.prepare()
    await one.write("keystore", b"1", expected=None)
    same = SqlStorage(url)
    assert await same.read("keystore") is not None
    assert same.space == one.space
    joint = "&" if "?" in url else "?"
    other = SqlStorage(f"{url}{joint}space=new")
    await other.prepare()
    assert await other.read("keystore") is None
    assert other.space not in (one.space, None)
    assert await other.spaces() == [one.space, other.space]
    unsure = SqlStorage(url)
    with pytest.raises(InvalidInputError, match="2 vaults"):
        await unsure.read("keystore")
    for storage in (one, same, other, unsure):
        await storage.close()


async def test_a_database_without_a_vault_has_none(url: str) -> None:
    storage = SqlStorage(url)
    await storage.upgrade()
    with pytest.raises(VaultNotFoundError):
        await storage.read("keystore")
    await storage.close()


async def test_a_storage_that_was_closed_says_so(url: str) -> None:
    storage = SqlStorage(url)
    await storage.prepare()
    await storage.close()
    with pytest.raises(StorageError, match="closed"):
        await storage.read("a")


# -- SQLite's file -----------------------------------------------------------------------


async def test_the_file_is_closed_to_others(tmp_path: Path) -> None:
    storage = SqlStorage(f"sqlite:///{tmp_path}/new/vault.db")
    await storage.prepare()
    await storage.write("a", b"1", expected=None)
    for path in (tmp_path / "new").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    await storage.close()
    (tmp_path / "new" / "vault.db").chmod(0o644)
    again = SqlStorage(f"sqlite:///{tmp_path}/new/vault.db")
    with pytest.raises(UnsafePermissionsError):
        await again.read("a")
    await again.close()


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "vault.db").symlink_to(tmp_path / "elsewhere.db")
    storage = SqlStorage(f"sqlite:///{tmp_path}/vault.db")
    with pytest.raises(UnsafePathError):
        await storage.prepare()
    assert not (tmp_path / "elsewhere.db").exists()
    await storage.close()


async def test_what_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    file = tmp_path / "vault.db"
    file.write_bytes(b"something else entirely, of some length" * 200)
    file.chmod(0o600)
    storage = SqlStorage(f"sqlite:///{file}")
    with pytest.raises(StorageError, match="no SQLite database"):
        await storage.prepare()
    await storage.close()


async def test_deleted_bytes_are_overwritten_in_the_file(tmp_path: Path) -> None:
    storage = SqlStorage(f"sqlite:///{tmp_path}/new/vault.db")
    await storage.prepare()
    token = (await storage.write("a", b"canary-bytes" * 2000, expected=None)).token
    token = (await storage.write("a", b"x", expected=token)).token
    await storage.close()
    assert b"canary-bytes" not in (tmp_path / "new" / "vault.db").read_bytes()


# -- PostgreSQL --------------------------------------------------------------------------


async def test_a_dump_of_another_server_is_made_at_home(
    server: Postgres, tmp_path: Path
) -> None:
    database = fresh(server, tmp_path)
    storage = SqlStorage(server.url(database=database))
    await storage.prepare()
    token = (await storage.write("a", b"1", expected=None)).token
    far = 10**15
    server.sql(f"UPDATE apex_documents SET changed = {far}", database=database)
    await storage.upgrade()
    assert int(server.sql("SELECT max(changed) FROM apex_documents", database=database)) < far
    await storage.refresh()
    assert storage.change_token("a") == token
    await storage.close()


# -- PostgreSQL's roles ------------------------------------------------------------------


def give_roles(server: Postgres, database: str) -> None:
    done = subprocess.run(
        [
            *(binary("psql"), "-X", "-q", "-h", str(server.folder), "-p", str(server.port)),
            *("-U", "apex", "-d", database, "-f", "-"),
        ],
        input=ROLES.read_bytes(),
        capture_output=True,
        timeout=480,
        check=False,
    )
    assert done.returncode == 0, done.stderr


async def test_the_programs_role_has_the_rights_it_needs_and_no_more(
    server: Postgres, tmp_path: Path
) -> None:
    database = fresh(server, tmp_path)
    give_roles(server, database)
    owner = SqlStorage(server.url(user="apex_owner", database=database))
    assert (await owner.upgrade()).current is None
    give_roles(server, database)
    app = SqlStorage(server.url(user="apex_app", database=database))
    await app.prepare()
    token = (await app.write("a", b"1", expected=None)).token
    token = (await app.write("a", b"2", expected=token)).token
    await app.delete("a", expected=token)
    await app.append_lines("node", [b"1"], first=0)
    async with app.leader("work") as lead, app.claim(["a", "b"], limit=5) as ours:
        assert lead
        assert len(ours) == 2
    for statement in (
        "DELETE FROM apex_documents",
        "DELETE FROM apex_lines",
        "UPDATE apex_lines SET line = ''",
        "TRUNCATE apex_lines",
        "DROP TABLE apex_claims",
        "CREATE TABLE mine (x int)",
        "UPDATE apex_schema SET version_num = '0'",
        "DELETE FROM apex_spaces",
    ):
        with pytest.raises(RuntimeError, match=r"permission denied|must be owner"):
            server.sql(statement, user="apex_app", database=database)
    await app.close()
    await owner.close()


async def test_a_role_without_rights_is_told_of_the_script(
    server: Postgres, tmp_path: Path
) -> None:
    database = fresh(server, tmp_path)
    owner = SqlStorage(server.url(database=database))
    await owner.prepare()
    server.sql("DROP ROLE IF EXISTS nobody_much; CREATE ROLE nobody_much LOGIN")
    storage = SqlStorage(server.url(user="nobody_much", database=database))
    with pytest.raises(StorageReadOnlyError, match=r"roles\.sql"):
        await storage.read("a")
    await storage.close()
    await owner.close()

"""DESIGN rule 1 for the file storage: killed anywhere, a document is old or new, whole."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import anyio
import pytest

from apex_creds.errors import StorageError
from apex_creds.storage import FileStorage
from tests.faults.scenarios.storage import AFTER, NAME, NEW, OLD, OTHER, TOGETHER
from tests.support.killer import Scenario, order

STORAGE = Path(__file__).parent / "scenarios" / "storage.py"
FOLDERS = ("", "security", "security/audit", "credentials")

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("function", ["replace", "replace_and_shred"])
def test_a_replaced_document_is_old_or_new(tmp_path: Path, function: str) -> None:
    homes = prepared(tmp_path, {NAME: OLD, OTHER: b"untouched"})
    with Scenario(STORAGE, function) as scenario:
        seen = set()
        for point in scenario.points(next(homes)):
            home = next(homes)
            run = scenario.run(home, at=point)
            assert run.killed, point
            seen.add(anyio.run(whole, home, OLD, bool(run.acknowledged), str(point)))
        assert seen == {OLD, NEW}


def test_a_first_version_is_absent_or_whole(tmp_path: Path) -> None:
    homes = prepared(tmp_path, {OTHER: b"untouched"})
    with Scenario(STORAGE, "create") as scenario:
        seen = set()
        for point in scenario.points(next(homes)):
            home = next(homes)
            run = scenario.run(home, at=point)
            assert run.killed, point
            seen.add(anyio.run(whole, home, None, bool(run.acknowledged), str(point)))
        assert seen == {None, NEW}


def test_a_removed_document_is_whole_or_gone(tmp_path: Path) -> None:
    homes = prepared(tmp_path, {NAME: OLD, OTHER: b"untouched"})
    with Scenario(STORAGE, "remove") as scenario:
        seen = set()
        for point in scenario.points(next(homes)):
            home = next(homes)
            run = scenario.run(home, at=point)
            assert run.killed, point
            data = anyio.run(read, home, NAME)
            assert data in (OLD, None), point
            assert data is None or not run.acknowledged, point
            seen.add(data)
        assert seen == {OLD, None}


def test_what_is_written_together_is_all_old_or_all_new(tmp_path: Path) -> None:
    homes = prepared(tmp_path, TOGETHER)
    with Scenario(STORAGE, "together") as scenario:
        seen = set()
        for point in scenario.points(next(homes)):
            home = next(homes)
            run = scenario.run(home, at=point)
            assert run.killed, point
            found = anyio.run(all_of, home, str(point))
            assert found in (TOGETHER, AFTER), point
            assert found == AFTER or not run.acknowledged, point
            seen.add(found == AFTER)
        assert seen == {True, False}


def test_a_journal_and_what_it_names_are_durable_before_it_is_followed(
    tmp_path: Path,
) -> None:
    (home,) = itertools.islice(prepared(tmp_path, TOGETHER), 1)
    with Scenario(STORAGE, "together") as scenario:
        calls = order(scenario.run(home))
    journal = calls.index("replace .commit")
    first = calls.index("replace api_keys_00.enc")
    # Of the new versions, too: a journal without them is void, and nobody knows of it yet.
    assert {"fsync security", "fsync credentials"} <= set(calls[journal + 1 : first])
    assert journal < first < calls.index("replace keystore.enc")
    assert calls.index("replace keystore.enc") < calls.index("unlink api_keys.enc")
    before = calls[:journal]
    assert sum(call.startswith("fsync .") for call in before) == len(AFTER) + 1
    assert calls.index("unlink api_keys.enc") < calls.index("unlink .commit")


def test_preparing_can_be_taken_up_again(tmp_path: Path) -> None:
    fresh = (tmp_path / str(n) / "deep" / "home" for n in itertools.count())
    with Scenario(STORAGE, "prepare") as scenario:
        for point in scenario.points(next(fresh)):
            home = next(fresh)
            assert scenario.run(home, at=point).killed, point
            anyio.run(store, home, {NAME: NEW})
            for name in FOLDERS:
                assert (home / name).stat().st_mode & 0o777 == 0o700
            assert anyio.run(read, home, NAME) == NEW


def test_bytes_are_durable_before_the_name_and_the_name_before_the_answer(
    tmp_path: Path,
) -> None:
    (home,) = itertools.islice(prepared(tmp_path, {NAME: OLD}), 1)
    with Scenario(STORAGE, "replace_and_shred") as scenario:
        calls = order(scenario.run(home))
    rename = calls.index("replace api_keys.enc")
    flushed = [c.startswith("fsync .api_keys.enc.") for c in calls].index(True)
    named = calls.index("fsync credentials")
    zeroed = max(i for i, c in enumerate(calls) if c.startswith("write "))
    assert flushed < rename < named < zeroed
    last_write = max(i for i in range(rename) if calls[i].startswith("write "))
    assert last_write < flushed


def test_a_dead_writers_lock_is_free(tmp_path: Path) -> None:
    dry, home = itertools.islice(prepared(tmp_path, {NAME: OLD}), 2)
    with Scenario(STORAGE, "replace") as scenario:
        rename = next(point for point in scenario.points(dry) if point.call == "replace")
        assert scenario.run(home, at=rename).killed
    storage = FileStorage(home, lock_timeout=0.5)
    assert [p for p in (home / "credentials").iterdir() if p.name.endswith(".tmp")]

    async def write() -> None:
        token = storage.change_token(NAME)
        await storage.write(NAME, b"next", expected=token)
        await storage.close()

    anyio.run(write)
    assert os.listdir(home / "credentials") == ["api_keys.enc"]


# -- helpers -------------------------------------------------------------------------


def prepared(where: Path, documents: dict[str, bytes]):
    """Homes with these documents, without end."""
    for number in itertools.count():
        home = where / f"home{number}"
        anyio.run(store, home, documents)
        yield home


async def all_of(home: Path, point: str) -> dict[str, bytes]:
    """What a reader finds who begins with the key store; then nothing else is left."""
    storage = FileStorage(home)
    await storage.read("keystore")
    found = {
        name: stored.data
        for name, stored in (await storage.read_many(await storage.names())).items()
    }
    await storage.write("config", b"next", expected=None)
    await storage.write("basic_auth", b"next", expected=None)
    await storage.close()
    left = [
        path.name for path in home.rglob("*") if path.suffix in (".next", ".tmp", ".commit")
    ]
    assert not left, point
    return found


async def store(home: Path, documents: dict[str, bytes]) -> None:
    storage = FileStorage(home)
    await storage.prepare()
    for name, data in documents.items():
        await storage.write(name, data, expected=None)
    await storage.close()


async def read(home: Path, name: str) -> bytes | None:
    storage = FileStorage(home)
    try:
        stored = await storage.read(name)
    finally:
        await storage.close()
    return None if stored is None else stored.data


async def whole(home: Path, old: bytes | None, acknowledged: bool, point: str) -> bytes | None:
    """What is read after the kill; and the storage goes on, and cleans up."""
    data = await read(home, NAME)
    assert data == NEW or (data == old and not acknowledged), point
    assert await read(home, OTHER) == b"untouched"
    storage = FileStorage(home)
    try:
        await storage.write(NAME, b"next", expected=storage.change_token(NAME))
    except StorageError as error:
        raise AssertionError(point) from error
    finally:
        await storage.close()
    assert os.listdir(home / "credentials") == [f"{NAME}.enc"]
    return data

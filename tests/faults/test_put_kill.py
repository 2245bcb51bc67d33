"""DESIGN rule 1 for the vault: killed at any write boundary, all that was told is there.

After each kill another process (this one) unseals the vault: every acknowledged value
decrypts, one that was not acknowledged is old or new, and the vault goes on working.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from apex_creds.audit.verify import verify
from apex_creds.documents import grant_set, sections
from apex_creds.documents.document import VERSION
from apex_creds.documents.keystore import shard_names
from apex_creds.errors import CredentialNotFoundError, VaultNotFoundError
from apex_creds.keys.keyset import KeyState
from apex_creds.model import ApiKey, new_id
from apex_creds.policy.grants import Grant
from apex_creds.storage import file_storage
from apex_creds.vault import Vault
from apex_creds.vault.config import AuditConfig, Config, write_config
from tests.faults.anchored import copies
from tests.faults.scenarios.vault import STORED
from tests.support.killer import Run, Scenario
from tests.support.vaults import copy_vault, home_in, master_in, value_of, values
from tests.vectors.make_vault import MADE, VAULTS

UNHURRIED = AuditConfig(durable_ms=60_000, checkpoint_seconds=60)
"""The log's own thread writes nothing while boundaries are counted."""
FILE = Path(__file__).parent / "scenarios" / "vault.py"

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.slow]


@pytest.fixture
async def homes(tmp_path: Path) -> Iterator[Path]:
    """Copies of one vault, without end; they share its master key."""
    original = tmp_path / "original"
    original.mkdir()
    async with await Vault.create(home_in(original), master=master_in(tmp_path)) as vault:
        for name, value in STORED.items():
            await vault.put(name, ApiKey(value.decode()), service="shared")
        await write_config(vault.store.storage, Config(audit=UNHURRIED))
    return copies(home_in(original), tmp_path)


@pytest.mark.parametrize("function", ["put_new", "put_again", "put_in_service"])
async def test_put(homes: Iterator[Path], function: str) -> None:
    name, new = (
        ("first", b"changed value") if function == "put_again" else ("new", b"new value")
    )
    seen = set()
    for home, run, point in killed_everywhere(function, homes):
        found = await after(home, point)
        value = found.pop(name, None)
        assert value == new or (not run.acknowledged and value == STORED.get(name)), point
        assert {**found, "first": b""} == {**STORED, "first": b""}, point
        seen.add(value)
    assert seen == {STORED.get(name), new}


async def test_a_section_is_divided_whole_or_not_at_all(homes: Iterator[Path]) -> None:
    seen = set()
    for home, run, point in killed_everywhere("divide", homes):
        async with await Vault.unseal(home) as vault:
            count = (await vault.store.keystore()).body.shards.get("api_keys", 0)
        found = await after(home, point)
        value = found.pop("new", None)
        assert found == STORED, point
        assert value == b"new value" or (value is None and not run.acknowledged), point
        files = {path.stem for path in (home / "credentials").iterdir()}
        assert files == set(shard_names("api_keys", count)), point
        seen.add(count)
    assert seen == {0, 3}


async def test_several_shards_are_written_or_none(
    homes: Iterator[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "LARGE", 1)
    monkeypatch.setattr(file_storage, "DIVISION", 3)
    original = next(homes).rename(tmp_path / "divided")
    async with await Vault.unseal(original) as vault:
        await vault.put("first", ApiKey(STORED["first"].decode()))
        assert len((await vault.store.sections.read("api_keys")).shards) == 3
    seen = set()
    for home, run, point in killed_everywhere("put_divided", copies(original, tmp_path)):
        found = await after(home, point)
        new = found.keys() - STORED.keys()
        assert len(new) in (0, 4), point
        assert new or not run.acknowledged, point
        seen.add(bool(new))
    assert seen == {True, False}


async def test_delete(homes: Iterator[Path]) -> None:
    seen = set()
    for home, run, point in killed_everywhere("delete", homes):
        found = await after(home, point)
        assert found.pop("second") == STORED["second"], point
        assert found in ({}, {"first": STORED["first"]}), point
        assert not (found and run.acknowledged), point
        seen.add(bool(found))
        await old_keys_are_destroyed_in_the_end(home, point)
    assert seen == {True, False}


async def old_keys_are_destroyed_in_the_end(home: Path, point: str) -> None:
    """A second deletion finishes what the killed one began."""
    async with await Vault.unseal(home) as vault:
        with suppress(CredentialNotFoundError):  # the first had destroyed it
            assert (await vault.delete("first")).shredded, point
        keystore = await vault._store.keystore()
        states = [v.state for v in keystore.by_label["api_keys/shared"].versions]
        assert set(states) == {KeyState.PRIMARY, KeyState.DESTROYED}, point


async def test_grant(homes: Iterator[Path]) -> None:
    seen = set()
    for home, run, point in killed_everywhere("grant", homes):
        async with await Vault.unseal(home) as vault:
            found = (await vault.grants()).find("plugin", "first")
        assert found is None or found.reveal, point
        assert found is not None or not run.acknowledged, point
        assert await after(home, point) == STORED, point
        seen.add(found is None)
    assert seen == {True, False}


async def test_grants_of_an_older_vault_are_moved_whole_or_not_at_all(
    homes: Iterator[Path], tmp_path: Path
) -> None:
    """They are in the key store, and are divided in the same commit."""
    original = next(homes).rename(tmp_path / "older")
    many = tuple(
        Grant(id=new_id(), plugin=f"plugin{n}", credential="first", created=1.0)
        for n in range(3)
    )
    async with await Vault.unseal(original) as vault:
        await vault.store.commit_keystore(
            lambda body: msgspec.structs.replace(body, grants=many)
        )
    seen = set()
    for home, run, point in killed_everywhere("grant_among_many", copies(original, tmp_path)):
        async with await Vault.unseal(home) as vault:
            grants = await vault.grants()
            assert all(grants.find(each.plugin, "first") == each for each in many), point
            found = grants.find("plugin", "first")
            moved = not (await vault.store.keystore()).body.grants
        assert moved == (found is not None), point
        assert found is not None or not run.acknowledged, point
        async with await Vault.unseal(home) as vault:
            await vault.grant("further", "first")
            assert len(await vault.grants()) == len(grants) + 1
        assert await after(home, point) == STORED, point
        seen.add(moved)
    assert seen == {True, False}


async def test_a_revocation_is_whole_or_not_at_all(
    homes: Iterator[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grant_set, "MANY", 1)
    original = next(homes).rename(tmp_path / "granted")
    async with await Vault.unseal(original) as vault:
        for number in range(3):
            await vault.grant(f"plugin{number}", "first")
    seen = set()
    for home, run, point in killed_everywhere("revoke", copies(original, tmp_path)):
        async with await Vault.unseal(home) as vault:
            grants = await vault.grants()
        gone = grants.find("plugin0", "first") is None
        assert (len(grants), grants.mark) == ((2, 1) if gone else (3, 0)), point
        assert gone or not run.acknowledged, point
        assert await after(home, point) == STORED, point
        seen.add(gone)
    assert seen == {True, False}


async def test_create(tmp_path: Path) -> None:
    seen = set()
    fresh = (tmp_path / str(number) / "home" for number in itertools.count())
    made = (made_parent(home) for home in fresh)
    for home, run, point in killed_everywhere("create", made):
        try:
            vault = await Vault.unseal(home)
        except VaultNotFoundError:
            assert not run.acknowledged, point
            key = home.parent / "master.key"  # left by the killed one, or not
            there = key.exists()
            vault = await Vault.create(home, master=f"file:{key}", use_existing_key=there)
            seen.add("none")
        else:
            seen.add("whole")
        async with vault:
            await vault.put("a", ApiKey("works"))
        assert await after(home, point) == {"a": b"works"}, point
    assert seen == {"none", "whole"}


def made_parent(home: Path) -> Path:
    home.parent.mkdir()
    return home


def killed_everywhere(function: str, homes: Iterator[Path]) -> Iterator[tuple[Path, Run, str]]:
    """Each home with what was left in it, by a run that died at the next point."""
    with Scenario(FILE, function) as scenario:
        points = scenario.points(next(homes))
        kills = 0
        for point in points:
            home = next(homes)
            run = scenario.run(home, at=point)
            # The log is made durable by a thread, which may not have come to its turn.
            assert run.killed or run.acknowledged, point
            kills += run.killed
            yield home, run, str(point)
            shutil.rmtree(home)
        assert kills > len(points) * 0.5


async def after(home: Path, point: str) -> dict[str, bytes]:
    """What another process reads; the vault goes on, its log verifies, nothing is left."""
    async with await Vault.unseal(home) as vault:
        found = await values(vault)
        await vault.put("further", ApiKey("further value"), service="shared")
        assert await value_of(vault, "further") == b"further value", point
        await vault.delete("further")
        assert await values(vault) == found, point
        vault_id = vault.vault_id
    assert verify(home / "security/audit", vault_id=vault_id).count, point
    left = [p for p in home.rglob(".*") if p.suffix in (".tmp", ".next") or p.name == ".commit"]
    assert not left, point
    return found


OLDER = [place for place in sorted(VAULTS.iterdir()) if place.name not in MADE]


@pytest.mark.parametrize("older", OLDER, ids=lambda place: place.name)
async def test_a_vault_of_an_older_version_is_never_between_two(
    tmp_path: Path, older: Path
) -> None:
    """What it had is all there after each kill, and the next write moves it forward."""
    wanted = set(json.loads((older / "expected.json").read_text())["credentials"])

    def copies() -> Iterator[Path]:
        for number in itertools.count():
            place = tmp_path / str(number)
            copy_vault(older, place)
            yield place

    places, seen = copies(), set()
    with Scenario(FILE, "put_in_older") as scenario:
        dry = next(places)
        for point in scenario.points(dry / "home", f"file:{dry}/master.key"):
            place = next(places)
            master = f"file:{place}/master.key"
            scenario.run(place / "home", master, at=point)
            for turn in range(2):
                async with await Vault.unseal(place / "home", master=master) as vault:
                    found = set(await values(vault))
                    assert found - {"new", "later"} == wanted, point
                    seen.add("new" in found)
                    if not turn:
                        await vault.put("later", ApiKey("later value"))
                        keystore = await vault.store.keystore()
                        assert keystore.header.version == VERSION, point
            shutil.rmtree(place)
    assert seen == {True, False}

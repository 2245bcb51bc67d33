"""Grants as stored: what one costs, that none is lost or comes back, and where they were."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from apex_creds.admin.backup import backup
from apex_creds.admin.transfer import transfer
from apex_creds.compat import vault_session
from apex_creds.documents import grant_set
from apex_creds.documents.cached import recommit
from apex_creds.documents.grant_set import GRANTS, MANY, SHARDS
from apex_creds.documents.keystore import DOCUMENTS_LABEL, KeystoreBody
from apex_creds.errors import CorruptDocumentError, LockedDownError, RollbackDetectedError
from apex_creds.keys import provider_from_uri
from apex_creds.model import ApiKey, new_id
from apex_creds.policy.grants import Grant, GrantDecision, SeenManifest
from apex_creds.policy.manifest import Manifest, Need
from apex_creds.scheduler import kek_rotation
from apex_creds.scheduler.schedule import Level
from apex_creds.storage import FileStorage, MemoryStorage
from apex_creds.vault import Vault
from benchmarks.growth import measured
from tests.support.vaults import create, home_in, master_in, unseal

pytestmark = pytest.mark.anyio
Pairs = set[tuple[str, str]]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grants are many early, and in few shards."""
    monkeypatch.setattr(grant_set, "MANY", 4)
    monkeypatch.setattr(grant_set, "SHARDS", 3)


async def pairs(vault: Vault) -> Pairs:
    return {(grant.plugin, grant.credential) for grant in await vault.grants()}


async def granted(vault: Vault, count: int) -> Pairs:
    for number in range(count):
        await vault.grant(f"plugin{number}", "key")
    return {(f"plugin{number}", "key") for number in range(count)}


def files_of(where: Path) -> set[str]:
    return {path.stem for path in (home_in(where) / "security").glob("grants*.enc")}


def manifest(plugin: str, digest: str = "") -> Manifest:
    return Manifest(plugin=plugin, needs=(Need(name="key"),), checksum=digest)


def grant(plugin: str, **options: object) -> Grant:
    return Grant(id=new_id(), plugin=plugin, credential="key", created=1.0, **options)  # type: ignore[arg-type]


# -- what it costs -----------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel counts bytes there")
async def test_a_grant_moves_at_most_twice_the_bytes_of_one_beside_ten(tmp_path: Path) -> None:
    """All that the process reads and writes for it; and never the key store."""
    costs = []
    for size in (10, 10_000):
        (tmp_path / f"{size}").mkdir()
        async with await create(tmp_path / f"{size}") as vault:
            many = [grant(f"plugin{number}") for number in range(size)]
            given = grant_set.by_plugin(many, ())
            await vault.store.grants.commit(lambda _, ks, given=given: (given, ks.body))
            assert len(await vault.grants()) == size
            generation = (await vault.store.keystore()).header.generation
            figure = await measured(
                "grant", size, lambda number, v=vault: v.grant(f"another{number}", "key")
            )
            costs.append(figure.read + figure.written)
            assert (await vault.store.keystore()).header.generation == generation
    assert costs[1] <= 2 * costs[0]


async def test_few_are_one_document_and_many_no_file_for_each(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        many = [grant(f"plugin{number}") for number in range(MANY)]
        given = grant_set.by_plugin(many, ())
        await vault.store.grants.commit(lambda _, ks: (given, ks.body))
        assert files_of(tmp_path) == {GRANTS}
        await vault.grant("another", "key")
        assert 1 < len(files_of(tmp_path)) <= MANY + 2
        more = grant_set.by_plugin([grant(f"more{number}") for number in range(5_000)], ())
        await vault.store.grants.commit(lambda _, ks: (more, ks.body))
        assert len(files_of(tmp_path)) <= SHARDS + 1
        assert len(await vault.grants()) == MANY + 1 + 5_000
    async with await unseal(tmp_path) as vault:
        assert len(await vault.grants()) == MANY + 1 + 5_000


# -- none is lost ------------------------------------------------------------------------


async def test_grants_are_found_replaced_bound_and_taken_back(
    small: None, tmp_path: Path
) -> None:
    async with await create(tmp_path) as vault:
        expected = await granted(vault, 9)
        assert await pairs(vault) == expected
        assert len(files_of(tmp_path)) > 1
        await vault.grant("plugin3", "key", reveal=True)
        bound = manifest("plugin3")
        await vault.pin(bound)
        await vault.grant("plugin3", "other")
        assert {g.credential for g in await vault.revoke(plugin="plugin4")} == {"key"}
        await vault.revoke(credential="other")
    async with await unseal(tmp_path) as vault:
        grants = await vault.grants()
        found = grants.find("plugin3", "key")
        assert found is not None
        assert (found.reveal, found.manifest) == (True, bound.digest)
        assert grants.seen(bound.digest) == bound.needs
        assert await pairs(vault) == expected - {("plugin4", "key")}
        assert grants.mark == 2
        await vault.revoke(plugin="plugin3")
        assert (await vault.grants()).seen(bound.digest) is None


@pytest.mark.parametrize("count", [2, 9])
async def test_what_one_process_changes_the_others_next_look_sees(
    small: None, tmp_path: Path, count: int
) -> None:
    async with await create(tmp_path) as one, await unseal(tmp_path) as other:
        await one.put("key", ApiKey("x"))
        await granted(one, count)
        facts = await other.facts("key")
        assert facts.grants.find("plugin1", "key") is not None
        assert other.facts_now("key") == facts
        await one.grant("late", "key")
        assert other.facts_now("key") is None
        assert (await other.facts("key")).grants.find("late", "key") is not None
        await other.revoke(plugin="late")
        assert (await one.facts("key")).grants.find("late", "key") is None


async def test_both_grant_at_once(small: None, tmp_path: Path) -> None:
    async with await create(tmp_path) as one, await unseal(tmp_path) as other:
        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(one.grant, f"one{number}", "key")
                group.start_soon(other.grant, f"other{number}", "key")
        expected = {(f"{who}{n}", "key") for who in ("one", "other") for n in range(6)}
        assert await pairs(one) == await pairs(other) == expected


# -- none comes back ---------------------------------------------------------------------


async def test_a_lockdown_writes_the_key_store_alone_and_ends_what_was_allowed(
    small: None, tmp_path: Path
) -> None:
    async with await create(tmp_path) as vault:
        await granted(vault, 9)
        await vault.grant("plugin5", "key", decision=GrantDecision.DENY)
        before = {name: stored_of(tmp_path, name) for name in files_of(tmp_path)}
        await vault.lockdown()
        assert before == {name: stored_of(tmp_path, name) for name in files_of(tmp_path)}
        with pytest.raises(LockedDownError):
            await vault.grant("late", "key")
        await vault.unlock()
        assert await pairs(vault) == {("plugin5", "key")}
    async with await unseal(tmp_path) as vault:
        assert await pairs(vault) == {("plugin5", "key")}
        await vault.grant("plugin1", "key")
        assert not (await vault.store.keystore()).body.grants_void
    async with await unseal(tmp_path) as vault:
        assert await pairs(vault) == {("plugin1", "key"), ("plugin5", "key")}


async def test_a_lockdown_can_keep_grants(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        expected = await granted(vault, 2)
        await vault.lockdown(keep_grants=True)
        await vault.unlock()
        assert await pairs(vault) == expected


async def test_a_lockdown_needs_no_document_of_grants(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        await granted(vault, 2)
    (home_in(tmp_path) / "security/grants.enc").write_bytes(b"damaged")
    async with await unseal(tmp_path) as vault:
        assert (await vault.lockdown(reason="now")).reason == "now"


def stored_of(where: Path, name: str) -> bytes:
    return (home_in(where) / f"security/{name}.enc").read_bytes()


@pytest.mark.parametrize("what", ["first", "shard"])
@pytest.mark.parametrize("how", ["older", "missing", "damaged"])
async def test_a_document_that_is_not_the_newest_is_an_error(
    small: None, tmp_path: Path, what: str, how: str
) -> None:
    async with await create(tmp_path) as vault:
        await granted(vault, 9)
        name = GRANTS if what == "first" else shard_of(vault, "plugin1")
        old = stored_of(tmp_path, name)
        await vault.revoke(plugin="plugin1")
    path = home_in(tmp_path) / f"security/{name}.enc"
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(old if how == "older" else b"{}")
    error = RollbackDetectedError if how == "older" else CorruptDocumentError
    with pytest.raises(error):
        async with await unseal(tmp_path) as vault:
            await vault.grants()


def shard_of(vault: Vault, plugin: str) -> str:
    return vault.store.sections.names.of(GRANTS, plugin, grant_set.SHARDS)


# -- where they were before --------------------------------------------------------------


@asynccontextmanager
async def older(where: Path, count: int) -> AsyncIterator[Vault]:
    """A vault whose grants an older program has put into the key store."""
    bound = manifest("plugin0")
    seen = SeenManifest(digest=bound.digest, needs=bound.needs)

    def change(body: KeystoreBody) -> KeystoreBody:
        grants = [grant(f"plugin{number}") for number in range(1, count)]
        grants.append(grant("plugin0", manifest=bound.digest))
        grants.append(grant("denied", decision=GrantDecision.DENY))
        return msgspec.structs.replace(body, grants=tuple(grants), manifests=(seen,))

    async with await create(where) as vault:
        await vault.store.commit_keystore(change)
    async with await unseal(where) as vault:
        yield vault


@pytest.mark.parametrize("count", [2, 9])
async def test_an_older_vaults_grants_are_read_and_moved_by_the_next_commit(
    small: None, tmp_path: Path, count: int
) -> None:
    expected = {(f"plugin{number}", "key") for number in range(count)} | {("denied", "key")}
    async with older(tmp_path, count) as vault:
        assert await pairs(vault) == expected
        assert files_of(tmp_path) == set()
        await vault.grant("new", "key")
        assert await pairs(vault) == expected | {("new", "key")}
        body = (await vault.store.keystore()).body
        assert (body.grants, body.manifests) == ((), ())
        assert GRANTS in body.sections
    async with await unseal(tmp_path) as vault:
        grants = await vault.grants()
        assert await pairs(vault) == expected | {("new", "key")}
        bound = manifest("plugin0")
        assert grants.seen(bound.digest) == bound.needs
        denied = grants.find("denied", "key")
        assert denied is not None
        assert denied.decision is GrantDecision.DENY


async def test_an_older_vaults_grants_end_with_a_lockdown(tmp_path: Path) -> None:
    async with older(tmp_path, 3) as vault:
        await vault.lockdown()
        await vault.unlock()
        assert await pairs(vault) == {("denied", "key")}
        await vault.grant("new", "key")
        assert await pairs(vault) == {("denied", "key"), ("new", "key")}


async def test_an_older_vaults_grant_is_taken_back(tmp_path: Path) -> None:
    async with older(tmp_path, 3) as vault:
        assert [g.plugin for g in await vault.revoke(plugin="plugin1")] == ["plugin1"]
        assert await pairs(vault) == {(n, "key") for n in ("denied", "plugin0", "plugin2")}


# -- what knows of them ------------------------------------------------------------------


async def test_a_shard_that_lost_all_its_grants_gets_the_new_key_too(
    small: None, tmp_path: Path
) -> None:
    """Else a rotation of the documents' key would never come to an end."""
    async with await create(tmp_path) as vault:
        await vault.put("key", ApiKey("x"))
        await granted(vault, 9)
        emptied = shard_of(vault, "plugin0")
        for each in await vault.grants():
            if shard_of(vault, each.plugin) == emptied:
                await vault.revoke(plugin=each.plugin)
        await vault_session.rotate_levels(vault, (Level.DEK,))
        keys = await vault.store.grants.keys()
        primary = (await vault.store.keystore()).by_label[DOCUMENTS_LABEL].primary.version
        assert {version for _, version in keys.values()} == {primary}
        assert emptied in keys


async def test_a_scan_finds_every_shard_and_a_recommit_writes_it(
    small: None, tmp_path: Path
) -> None:
    async with await create(tmp_path) as vault:
        expected = await granted(vault, 9)
        found = (await kek_rotation.scan(vault.store)).documents
        assert files_of(tmp_path) <= found.keys()
        before = {name: stored_of(tmp_path, name) for name in files_of(tmp_path)}
        await recommit(vault.store, shard_of(vault, "plugin1"))
        assert all(stored_of(tmp_path, name) != data for name, data in before.items())
        assert await pairs(vault) == expected
    async with await unseal(tmp_path) as vault:
        assert await pairs(vault) == expected


@pytest.mark.parametrize("count", [2, 9])
async def test_a_backup_and_a_copy_have_them(small: None, tmp_path: Path, count: int) -> None:
    async with await create(tmp_path) as vault:
        expected = await granted(vault, count)
        provider = provider_from_uri(master_in(tmp_path))
        made = await backup(vault, tmp_path / "copy", provider=provider)
        assert files_of(tmp_path) <= made.contents.documents.keys()
        database = MemoryStorage(shards=2)
        await transfer(vault, database)
        assert files_of(tmp_path) <= set(await database.names())
        files = FileStorage(tmp_path / "again/home")
        (tmp_path / "again").mkdir()
        await transfer(vault, files)
        await files.close()
    async with await Vault.unseal(
        tmp_path / "again/home", master=master_in(tmp_path), accept_rollback="a copy"
    ) as vault:
        assert await pairs(vault) == expected
        await vault.grant("new", "key")
        assert await pairs(vault) == expected | {("new", "key")}


async def test_grants_can_be_asked_for_while_a_lockdown_wipes_the_keys(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await create(tmp_path) as vault, await unseal(tmp_path) as other:
        await granted(vault, 9)
        load = other.store.load

        async def locked_down_meanwhile(names, open_one):
            if GRANTS in names:
                await vault.lockdown()
                await other.store.keystore()  # wipes its keys
            return await load(names, open_one)

        monkeypatch.setattr(other.store, "load", locked_down_meanwhile)
        assert (await other.grants()).lockdown is not None

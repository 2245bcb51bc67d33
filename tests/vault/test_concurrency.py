"""Processes and tasks at work on one vault: no update lost, everything readable (rule 3)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from pathlib import Path

import pytest

from apex_creds.audit.verify import verify
from apex_creds.documents import key_versions
from apex_creds.errors import (
    ApexCredsError,
    ConflictError,
    CredentialExistsError,
    CredentialNotFoundError,
)
from apex_creds.keys.keyset import KeyState
from apex_creds.model import ApiKey, BasicAuth
from apex_creds.scheduler.reencryption import reencrypt
from apex_creds.storage.base import Stored
from apex_creds.vault import Vault
from tests.support.vaults import (
    create,
    home_in,
    section_file,
    start,
    together,
    unseal,
    value_of,
    values,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def home(tmp_path: Path) -> Path:
    async with await create(tmp_path):
        pass
    return home_in(tmp_path)


# -- processes -----------------------------------------------------------------------


@pytest.mark.slow
async def test_processes_put_and_delete_while_keys_are_renewed(home: Path) -> None:
    writers = [
        start("put_and_delete", str(home), who, service, 12)
        for who, service in (("one", "shared"), ("two", "shared"), ("three", "other"))
    ]
    renewer = start("renew", str(home), "api_keys", "shared", 12)
    *kept, _ = await together(*writers, renewer)
    expected = {name: text.encode() for one in kept for name, text in one.items()}
    async with await Vault.unseal(home) as vault:
        assert await values(vault) == expected
        await no_old_key_is_left(vault, "api_keys/shared")
    assert verify(home / "security/audit", vault_id=vault.vault_id).count


@pytest.mark.slow
async def test_processes_put_the_same_names(home: Path) -> None:
    names = ["a", "b", "c"]
    writers = [start("put_many_times", str(home), who, names, 12) for who in ("x", "y", "z")]
    acknowledged = await together(*writers)
    async with await Vault.unseal(home) as vault:
        for name in names:
            last = {one[name].encode() for one in acknowledged}
            assert await value_of(vault, name) in last
            assert (await vault.get(name)).version == 36  # not one put was lost


@pytest.mark.slow
async def test_processes_contend_for_one_name(home: Path) -> None:
    """Put, moved to another service and deleted, each in the middle of the other's."""
    workers = [
        start("contend", str(home), who, "name", 20, seed) for seed, who in enumerate("pqr")
    ]
    outcomes = await together(*workers)
    assert {"put", "deleted"} <= {outcome for one in outcomes for outcome in one}
    async with await Vault.unseal(home) as vault:
        await vault.put("name", ApiKey("in the end"))
        assert await values(vault) == {"name": b"in the end"}
        assert (await vault.delete("name")).shredded
        assert await vault.list() == []


@pytest.mark.slow
async def test_processes_give_names_to_two_kinds(home: Path) -> None:
    names = [f"name-{number}" for number in range(25)]
    kinds = ["api_key", "basic", "generic"]
    acknowledged = await together(*(start("kinds", str(home), kind, names) for kind in kinds))
    told = [name for one in acknowledged for name in one]
    assert len(told) == len(set(told))
    async with await Vault.unseal(home) as vault:
        found = {info.name: info.kind.value for info in await vault.list()}
        assert len(await vault.list()) == len(found)
    for kind, one in zip(kinds, acknowledged, strict=True):
        assert {found[name] for name in one} <= {kind}


async def test_a_write_of_another_process_is_seen_by_the_next_read(home: Path) -> None:
    async with await Vault.unseal(home) as mine, await Vault.unseal(home) as other:
        for number in range(20):
            await other.put("a", ApiKey(f"value {number}"), service=f"service {number % 3}")
            assert await value_of(mine, "a") == f"value {number}".encode()
            await mine.grant("plugin", "a", scopes=[str(number)])
            grant = (await other.grants()).find("plugin", "a")
            assert grant is not None
            assert grant.scopes == (str(number),)
        await other.delete("a")
        with pytest.raises(CredentialNotFoundError):
            await mine.get("a")


# -- two vault objects in one process: every interleaving that can be chosen -----------


async def test_a_record_under_a_key_that_is_newer_than_the_key_store_in_memory_opens(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await Vault.unseal(home) as one, await Vault.unseal(home) as other:
        await one.put("openai", ApiKey("sk-1"))
        read_many = one.store.storage.read_many

        async def renewed_before(names: Collection[str]) -> dict[str, Stored]:
            monkeypatch.undo()
            await key_versions.renew(other.store, "api_keys/openai", now=1.0)
            async for _ in reencrypt(other.store, "api_keys"):
                pass
            return await read_many(names)

        one.store.sections.forget("api_keys")
        monkeypatch.setattr(one.store.storage, "read_many", renewed_before)
        record = await one.find("openai")
        assert one.store.keystore_now() is None, "the key store in memory is of before"
        with one.release(record, event()) as opened:
            assert bytes(opened.view()) == b"sk-1"


async def test_a_deletion_that_another_overtakes_still_shreds(home: Path) -> None:
    """The other one re-encrypts what is to be deleted, under the key that stays."""
    async with await Vault.unseal(home) as mine, await Vault.unseal(home) as other:
        for name in "abc":
            await mine.put(name, ApiKey(name * 8), service="s")
        await key_versions.renew(
            mine._store, "api_keys/s", now=1.0
        )  # mine has begun to delete b
        record = (await mine._store.sections.read("api_keys")).records["b"]
        await other.delete("a")  # moves b to the present key
        moved = (await other._store.sections.read("api_keys")).records["b"]
        assert moved.key != record.key
        with pytest.raises(ConflictError):
            await key_versions.move_records(mine._store, "api_keys", "api_keys/s", without="b")
        assert (await mine.delete("b")).shredded
        with pytest.raises(ApexCredsError):
            mine.release(moved, event())
        assert await values(mine) == {"c": b"c" * 8}


async def test_a_name_given_to_two_kinds_in_the_same_moment(home: Path) -> None:
    async with await Vault.unseal(home) as one, await Vault.unseal(home) as two:
        for number in range(20):
            name = f"name {number}"
            results = await asyncio.gather(
                one.put(name, ApiKey("one")),
                two.put(name, BasicAuth("user", "two")),
                return_exceptions=True,
            )
            refused = [r for r in results if isinstance(r, BaseException)]
            assert refused
            assert all(isinstance(r, CredentialExistsError) for r in refused)
        names = [info.name for info in await one.list()]
        assert len(names) == len(set(names))


async def test_a_put_whose_credential_loses_its_service_meanwhile(home: Path) -> None:
    async with await Vault.unseal(home) as mine, await Vault.unseal(home) as other:
        await mine.put("a", ApiKey("first"), service="s")
        ensure = key_versions.ensure

        async def overtaken(*args: object, **kwargs: object) -> None:
            await ensure(*args, **kwargs)
            key_versions.ensure = ensure
            await other.delete("a")

        key_versions.ensure = overtaken
        try:
            info = await mine.put("a", ApiKey("second"))
        finally:
            key_versions.ensure = ensure
        assert (info.service, info.version) == ("a", 1)
        assert await value_of(other, "a") == b"second"


# -- tasks ---------------------------------------------------------------------------


async def test_tasks_put_read_delete_and_renew_at_once(home: Path) -> None:
    expected: dict[str, bytes] = {}
    async with await Vault.unseal(home) as vault, await Vault.unseal(home) as other:

        async def writes(mine: Vault, who: int) -> None:
            for number in range(6):
                name = f"{who} {number}"
                await mine.put(name, ApiKey(name * 2), service=f"s{who % 2}")
                assert await value_of(mine, name) == (name * 2).encode()
                expected[name] = (name * 2).encode()
                if number % 3 == 2:
                    await mine.delete(name)
                    del expected[name]

        async def reads(mine: Vault) -> None:
            for _ in range(30):
                for info in await mine.list():
                    try:
                        assert await value_of(mine, info.name) == (info.name * 2).encode()
                    except CredentialNotFoundError:
                        continue

        await asyncio.gather(
            *(writes(vault if who < 3 else other, who) for who in range(6)),
            reads(vault),
            reads(other),
        )
        assert await values(vault) == expected
        assert await values(other) == expected
        await no_old_key_is_left(vault, "api_keys/s0")
        await no_old_key_is_left(vault, "api_keys/s1")


async def test_a_put_that_is_cancelled_leaves_the_vault_whole(home: Path) -> None:
    async with await Vault.unseal(home) as vault:
        await vault.put("a", ApiKey("value 0"))
        for number in range(1, 40):
            task = asyncio.create_task(vault.put("a", ApiKey(f"value {number}")))
            for _ in range(number):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            found = await value_of(vault, "a")
            if not task.cancelled():
                assert found == f"value {number}".encode()
        await vault.put("a", ApiKey("in the end"))
        assert await value_of(vault, "a") == b"in the end"


async def test_a_first_read_beside_a_first_write_is_no_rollback(home: Path) -> None:
    async with await Vault.unseal(home) as vault:
        await vault.put("a", ApiKey("value"))
    for _ in range(10):
        async with await Vault.unseal(home) as vault:
            results = await asyncio.gather(
                *(vault.list() for _ in range(5)),
                *(vault.put("a", ApiKey("value")) for _ in range(5)),
                *(vault.list() for _ in range(5)),
            )
            assert results


async def test_closing_while_others_work(home: Path) -> None:
    vault = await Vault.unseal(home)
    await vault.put("a", ApiKey("value"))
    tasks = [asyncio.create_task(vault.put(f"b{n}", ApiKey("value"))) for n in range(4)]
    tasks += [asyncio.create_task(value_of(vault, "a")) for _ in range(4)]
    await asyncio.sleep(0)
    await vault.close()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert not isinstance(result, BaseException) or isinstance(result, ApexCredsError)
    async with await Vault.unseal(home) as vault:
        assert await value_of(vault, "a") == b"value"


# -- helpers -------------------------------------------------------------------------


async def no_old_key_is_left(vault: Vault, label: str) -> None:
    """All that is stored is under the primary, and at the end nothing else can decrypt."""
    store = vault._store
    section = label.partition("/")[0]
    await key_versions.renew(store, label, now=1.0)
    await key_versions.move_records(store, section, label)
    assert await key_versions.destroy_unused(store, section, label, now=1.0)
    keyset = (await store.keystore()).by_label[label]
    assert {v.state for v in keyset.versions} <= {KeyState.PRIMARY, KeyState.DESTROYED}


def event() -> bytes:
    from apex_creds.audit import line
    from apex_creds.audit.events import AuditEvent, EventKind

    return line.encode(AuditEvent(time=1.0, kind=EventKind.EXPOSE))


def test_documents_name_the_keys_that_they_use(tmp_path: Path) -> None:
    async def run() -> None:
        async with await create(tmp_path) as vault:
            await vault.put("a", ApiKey("value"))
            keyset = (await vault._store.keystore()).by_label["api_keys/a"]
            header = json.loads(section_file(tmp_path).read_bytes())
            assert header["keys_used"] == [[keyset.id, 1]]
            assert "value" not in section_file(tmp_path).read_text()
        async with await unseal(tmp_path) as vault:
            assert await values(vault) == {"a": b"value"}

    asyncio.run(run())

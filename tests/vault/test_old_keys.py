"""Who has a key that was replaced can't make anything newer with it: no document under a
retired document key or KEK, no key store under a KEK or master key before the present one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents import key_versions
from apex_creds.documents.cached import recommit
from apex_creds.documents.document import pack, parse, unpack
from apex_creds.documents.keystore import DOCUMENTS_LABEL, Keystore, seal_keystore
from apex_creds.errors import RetiredKeyError, RollbackDetectedError
from apex_creds.keys.hierarchy import DocumentKeys
from apex_creds.keys.key_file import FileProvider
from apex_creds.model import ApiKey
from apex_creds.scheduler import kek_rotation, master_rotation
from apex_creds.scheduler.kek_rotation import rekeyed as _rekeyed
from apex_creds.scheduler.rotation_state import DOCUMENT, rotation_document
from apex_creds.vault import Vault
from tests.support.vaults import (
    create,
    home_in,
    keystore_file,
    master_in,
    section_file,
    unseal,
    value_of,
    write_version_1,
)

pytestmark = pytest.mark.anyio

AHEAD = 1000


class Thief:
    """Has the KEK and the document key of some time, and can write the vault's files."""

    def __init__(self, keystore: Keystore, *, version_1: bool) -> None:
        keks, keyset = keystore.root_header.keks, keystore.by_label[DOCUMENTS_LABEL]
        kept = []
        for name in _NAMES:
            kek = version_1 or name == "keystore"
            chosen = keks if kek else keyset
            made = keystore.hierarchy.document_keys(
                name, chosen.primary.version, keyset=None if kek else chosen
            )
            kept.append((name, made))
        self._keys = {
            name: DocumentKeys(*map(SecretBytes.copy_of, keys)) for name, keys in kept
        }

    def forge(self, path: Path, name: str, old: bytes) -> None:
        """An older document as a newer one."""
        packed = parse(old, section=name, vault_id=None)
        body = bytes(unpack(packed, self._keys[name]))
        header = msgspec.structs.replace(
            packed.header, generation=packed.header.generation + AHEAD
        )
        path.write_bytes(bytes(pack(header, body, self._keys[name])))

    def close(self) -> None:
        for pair in self._keys.values():
            for key in pair:
                key.close()


_NAMES = ("api_keys", "keystore", DOCUMENT)


def state_file(where: Path) -> Path:
    return home_in(where) / "security" / f"{DOCUMENT}.enc"


@contextlib.contextmanager
def thief(keystore: Keystore, *, version_1: bool = False) -> Iterator[Thief]:
    made = Thief(keystore, version_1=version_1)
    try:
        yield made
    finally:
        made.close()


async def filled(where: Path) -> Vault:
    vault = await create(where)
    await vault.put("a", ApiKey("old"))
    await rotation_document(vault.store).change(
        lambda state: msgspec.structs.replace(state, debounce=1.0)
    )
    return vault


async def renew(vault: Vault, *, retired: bool = True) -> None:
    """Whole rotations of KEK and document key, as far as the retirement of the old ones."""
    now = vault.clock.time()
    await kek_rotation.rotate_kek(vault.store, replaces=1, now=now)
    await key_versions.renew(vault.store, DOCUMENTS_LABEL, now=now)
    await recommit(vault.store, *(await kek_rotation.scan(vault.store)).stale)
    if retired:
        assert await kek_rotation.retire_keks(vault.store, now=now) == {1}
        await kek_rotation.step_unused(vault.store, partial(key_versions.retire, now=now))


@pytest.mark.parametrize("version_1", [False, True])
async def test_a_section_under_a_retired_key_is_refused(
    tmp_path: Path, version_1: bool
) -> None:
    async with await filled(tmp_path) as vault:
        if version_1:
            await write_version_1(vault.store, "api_keys", DOCUMENT)
        old = section_file(tmp_path).read_bytes()
        with thief(await vault.store.keystore(), version_1=version_1) as forger:
            await renew(vault)
            await vault.put("a", ApiKey("new"))
            genuine = section_file(tmp_path).read_bytes()
            forger.forge(section_file(tmp_path), "api_keys", old)
            with pytest.raises(RetiredKeyError, match="accept-rollback"):
                await vault.store.sections.reread("api_keys")
            with pytest.raises(RetiredKeyError):
                await kek_rotation.scan(vault.store)
            section_file(tmp_path).write_bytes(genuine)
            assert "a" in (await vault.store.sections.reread("api_keys")).records
            forger.forge(section_file(tmp_path), "api_keys", old)
    async with await unseal(tmp_path) as vault:
        with pytest.raises(RetiredKeyError):
            await vault.list()
        with pytest.raises(RetiredKeyError):
            await vault.put("b", ApiKey("x"))
    section_file(tmp_path).write_bytes(genuine)
    async with await unseal(tmp_path) as vault:
        assert await value_of(vault, "a") == b"new"


async def test_a_state_document_under_a_retired_key_is_refused(tmp_path: Path) -> None:
    async with await filled(tmp_path) as vault:
        old = state_file(tmp_path).read_bytes()
        with thief(await vault.store.keystore()) as forger:
            await renew(vault)
            forger.forge(state_file(tmp_path), DOCUMENT, old)
        with pytest.raises(RetiredKeyError):
            await rotation_document(vault.store).read()


async def test_a_kek_that_is_still_in_use_opens_what_it_sealed(tmp_path: Path) -> None:
    async with await filled(tmp_path) as vault:
        await write_version_1(vault.store, "api_keys")
        await kek_rotation.rotate_kek(vault.store, replaces=1, now=vault.clock.time())
    async with await unseal(tmp_path) as vault:
        assert await value_of(vault, "a") == b"old"


async def test_an_older_document_is_taken_over_on_purpose(tmp_path: Path) -> None:
    async with await filled(tmp_path) as vault:
        old = section_file(tmp_path).read_bytes()
        await renew(vault)
        await vault.put("a", ApiKey("new"))
    section_file(tmp_path).write_bytes(old)
    with pytest.raises(RollbackDetectedError):
        await unseal(tmp_path)
    master = master_in(tmp_path)
    async with await Vault.unseal(home_in(tmp_path), master=master, accept_rollback="restored"):
        pass
    async with await unseal(tmp_path) as vault:
        assert await value_of(vault, "a") == b"old"
        assert not (await kek_rotation.scan(vault.store)).stale


@pytest.mark.parametrize("retired", [True, False])
async def test_a_key_store_under_a_kek_that_was_replaced_is_refused(
    tmp_path: Path, retired: bool
) -> None:
    async with await filled(tmp_path) as vault:
        old = keystore_file(tmp_path).read_bytes()
        with thief(await vault.store.keystore()) as forger:
            await renew(vault, retired=retired)
            genuine = keystore_file(tmp_path).read_bytes()
            forger.forge(keystore_file(tmp_path), "keystore", old)
            with pytest.raises(RollbackDetectedError, match="under KEK version 1; 2 was seen"):
                await vault.store.stored_keystore()
            keystore_file(tmp_path).write_bytes(genuine)
            await vault.store.stored_keystore()
            forger.forge(keystore_file(tmp_path), "keystore", old)
    with pytest.raises(RollbackDetectedError, match="under KEK version 1; 2 was anchored"):
        await unseal(tmp_path)
    keystore_file(tmp_path).write_bytes(genuine)
    async with await unseal(tmp_path) as vault:
        assert await value_of(vault, "a") == b"old"


async def test_a_key_store_under_a_master_key_that_was_replaced_is_refused(
    tmp_path: Path,
) -> None:
    provider = FileProvider(tmp_path / "master.key")
    async with await filled(tmp_path) as vault:
        before = await vault.store.keystore()
        record = before.root_header.master
        with await provider.load(vault_id=vault.vault_id, version=1, params={}) as master:
            made = _rekeyed(before, master, record, now=0.0)
            again = msgspec.structs.replace(before.header, root=made.root)
            once = Keystore(
                token=None,
                header=again,
                mac="",
                body=made.body,
                hierarchy=made.hierarchy,
                grants=before.grants,
                by_label={},
                by_id={},
            )
            twice = _rekeyed(once, master, record, now=0.0)
        header = msgspec.structs.replace(
            before.header,
            root=twice.root,
            key_version=3,
            generation=before.header.generation + AHEAD,
        )
        forged = bytes(seal_keystore(header, twice.body, hierarchy=twice.hierarchy))
        made.hierarchy.close()
        twice.hierarchy.close()
        await master_rotation.rotate_master(vault.store, replaces=1, now=vault.clock.time())
        keystore_file(tmp_path).write_bytes(forged)
        with pytest.raises(RollbackDetectedError, match="under master key version 1; 2 was"):
            await vault.store.stored_keystore()
    with pytest.raises(RollbackDetectedError, match="under master key version 1; 2 was"):
        await unseal(tmp_path)

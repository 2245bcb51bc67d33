"""A record that was opened once is opened again with less work, and no less strictly."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.records import Messages, Record, open_record
from apex_creds.errors import IntegrityError, UnknownKeyError
from apex_creds.model import ApiKey
from apex_creds.vault import Vault

pytestmark = pytest.mark.anyio


async def test_only_the_very_same_record_is_known(tmp_path: Path) -> None:
    async with await Vault.create(tmp_path / "home", master=f"file:{tmp_path}/key") as vault:
        await vault.put("openai", ApiKey("sk-secret"))
        await _check(vault, await vault.find("openai"))


async def _check(vault: Vault, record: Record) -> None:
    known = Messages()
    keystore, vault_id = vault.store.unsealed(), bytes.fromhex(vault.vault_id)

    def opened(which: Record) -> SecretBytes:
        return open_record(which, vault_id=vault_id, find_key=keystore.dek, known=known)

    first, again = opened(record), opened(record)
    assert first.equals(again)
    assert len(known) == 1
    end = record.sealed[-1] ^ 1
    altered = msgspec.structs.replace(record, sealed=record.sealed[:-1] + bytes([end]))
    moved_on = msgspec.structs.replace(record.info, version=record.info.version + 1)
    for wrong in (altered, msgspec.structs.replace(record, info=moved_on)):
        for _ in range(2):
            with pytest.raises(IntegrityError):
                opened(wrong)

    def gone(key_id: bytes, version: int) -> SecretBytes:
        raise UnknownKeyError("It was destroyed.")

    with pytest.raises(UnknownKeyError):
        open_record(record, vault_id=vault_id, find_key=gone, known=known)

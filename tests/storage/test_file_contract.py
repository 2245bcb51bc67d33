"""The file storage keeps the contract, with plain and with hashed names."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from apex_creds.storage import FileStorage
from apex_creds.testing.storage import DOCUMENTS, StorageContract

if TYPE_CHECKING:
    from pathlib import Path


class TestFileStorage(StorageContract):
    async def open_storage(self, where: Path) -> FileStorage:
        return FileStorage(where / "home")


class TestFileStorageWithHashedNames(StorageContract):
    async def open_storage(self, where: Path) -> FileStorage:
        storage = FileStorage(where / "home")
        storage.map_names(hashed, candidates=DOCUMENTS)
        return storage


def hashed(name: str) -> str:
    return hashlib.blake2b(name.encode(), key=b"k" * 32, digest_size=32).hexdigest()

"""The memory storage keeps the contract; it is not shared and not durable."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from apex_creds.storage import MemoryStorage
from apex_creds.testing.storage import StorageContract

if TYPE_CHECKING:
    from pathlib import Path


class TestMemoryStorage(StorageContract):
    shared: ClassVar[bool] = False

    async def open_storage(self, where: Path) -> MemoryStorage:
        return MemoryStorage()

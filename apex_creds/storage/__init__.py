"""Where documents live: named opaque bytes behind compare-and-set.

Guarantee: a backend is not trusted with anything but availability. It holds bytes that
the layer above has encrypted and authenticated, and it never reads them.
"""

from __future__ import annotations

from apex_creds.storage.base import (
    SharedStorage,
    Shredded,
    Storage,
    Stored,
    Token,
    Write,
    WriteResult,
    shared,
)
from apex_creds.storage.file_storage import FileStorage
from apex_creds.storage.memory_storage import MemoryStorage

__all__ = [
    "FileStorage",
    "MemoryStorage",
    "SharedStorage",
    "Shredded",
    "Storage",
    "Stored",
    "Token",
    "Write",
    "WriteResult",
    "shared",
]

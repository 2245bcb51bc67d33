"""One migration at a time in a vault.

Guarantee: whoever dies lets go; nobody waits for longer than was said, nor keeps the event
loop while it waits.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
from filelock import FileLock, Timeout

from apex_creds.errors import StorageLockedError
from apex_creds.fs.home import SECURITY
from apex_creds.fs.lock import lock_at, release
from apex_creds.fs.oserrors import translated

LOCK_NAME: Final = ".migration.lock"
_POLL: Final = 0.05


@asynccontextmanager
async def exclusive(home: Path, *, wait: float = 0.0) -> AsyncIterator[None]:
    """Holds the vault's migration lock for the block.

    Raises:
        StorageLockedError: Another process (or task) is migrating.
    """
    path = home / SECURITY / LOCK_NAME
    with translated(path, writing=True):
        lock = lock_at(path)
    for _ in range(int(wait / _POLL)):
        if _acquired(lock, path):
            break
        await anyio.sleep(_POLL)
    if not lock.is_locked and not _acquired(lock, path):
        raise StorageLockedError(
            "Another process is migrating into this vault.", hint="Wait for it to finish."
        )
    try:
        yield
    finally:
        release(lock)


def _acquired(lock: FileLock, path: Path) -> bool:
    with translated(path, writing=True):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
    return True

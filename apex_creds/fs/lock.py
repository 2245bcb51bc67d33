"""One writer at a time, over threads and processes.

Guarantee: while ``held()`` is entered no other cooperating writer of the same vault is
inside it; a writer that dies lets go, because the kernel releases its lock.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Final

from filelock import BaseFileLock, FileLock, Timeout

from apex_creds.errors import StorageLockedError
from apex_creds.fs.private_files import Folder, check, touch, translated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_NAME: Final = ".lock"
_POLL: Final = 0.005


def lock_at(path: Path) -> FileLock:
    """The lock of a file that is made, 0600, where there is none; not taken yet.

    Raises:
        OSError: It can't be made.
    """
    touch(path)
    return FileLock(path, mode=0o600, timeout=0, thread_local=False, fallback_to_soft=False)


def take_lock(path: Path) -> BaseFileLock | None:
    """Takes the lock of a file, which is made where there is none; None: another one has it.

    Raises:
        StorageError: It can't be made or locked.
    """
    with translated(path, writing=True):
        lock = lock_at(path)
        try:
            lock.acquire()
        except Timeout:
            return None
    return lock


def release(lock: BaseFileLock) -> None:
    """Lets go of it; the kernel does, also where it reports a failure."""
    with contextlib.suppress(OSError):
        lock.release()


class WriteLock:
    """The lock file of a storage, plus a lock for the threads of this process.

    Args:
        timeout: Seconds that a writer waits for the others.
        name: The file's; the one of a storage's writers by default.
    """

    def __init__(self, *, timeout: float, name: str = LOCK_NAME) -> None:
        self._timeout = timeout
        self._name = name
        self._threads = threading.Lock()

    @contextlib.contextmanager
    def held(self, folder: Folder) -> Iterator[None]:
        """Holds the lock file in ``folder`` for the block.

        Raises:
            StorageLockedError: Another writer held it for longer than the timeout.
            UnsafePathError: The lock file is a link or somebody else's.
            UnsafePermissionsError: The lock file is open to others.
        """
        deadline = time.monotonic() + self._timeout
        path = folder.path / self._name
        if not self._threads.acquire(timeout=self._timeout):
            raise _locked(path)
        try:
            lock = lock_file(folder, self._name, timeout=max(0.0, deadline - time.monotonic()))
            if lock is None:
                raise _locked(path)
            with contextlib.closing(lock):
                yield
        finally:
            self._threads.release()


class HeldLock:
    """A lock file that is held until ``close``, or the end of the process."""

    def __init__(self, lock: BaseFileLock) -> None:
        self._lock = lock

    def close(self) -> None:
        """Lets go of it; idempotent."""
        release(self._lock)


def lock_file(folder: Folder, name: str, *, timeout: float = 0.0) -> HeldLock | None:
    """Takes the kernel's lock of a file; None if another one has it for all that time.

    Raises:
        UnsafePathError: The lock file is a link or somebody else's.
        UnsafePermissionsError: The lock file is open to others.
    """
    path = folder.path / name
    with contextlib.suppress(FileNotFoundError):
        check(path, folder.status(name))
    lock = lock_at(path)
    try:
        lock.acquire(timeout=timeout, poll_interval=_POLL)
    except Timeout:
        return None
    held = HeldLock(lock)
    try:
        check(path, folder.status(name))
    except BaseException:
        held.close()
        raise
    return held


def _locked(path: Path) -> StorageLockedError:
    return StorageLockedError(
        f"Another process holds {path}.",
        hint="Wait for it to finish, or end it, and retry.",
    )

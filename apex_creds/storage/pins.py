"""Descriptors held open so that an inode number can't come back as another version.

Guarantee: while a version's descriptor is pinned its inode is not freed, so no later
version of the document can have the same device and inode (no ABA in tokens).
"""

from __future__ import annotations

import os
import sys
import threading

_USABLE = sys.platform != "win32"  # there, an open file can't be replaced


class Pins:
    """One descriptor for each document name; safe to use from several threads."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()
        self._closed = False

    def hold(self, name: str, fd: int) -> None:
        """Takes ownership of ``fd``, and lets go of the one held for ``name`` before."""
        with self._lock:
            if self._closed or not _USABLE:
                old: int | None = fd
            else:
                old = self._held.get(name)
                self._held[name] = fd
        if old is not None:
            os.close(old)

    def release(self, name: str) -> None:
        """Lets go of what is held for ``name``."""
        with self._lock:
            old = self._held.pop(name, None)
        if old is not None:
            os.close(old)

    def close(self) -> None:
        """Lets go of everything, now and from now on; idempotent."""
        with self._lock:
            self._closed = True
            held, self._held = self._held, {}
        for fd in held.values():
            os.close(fd)

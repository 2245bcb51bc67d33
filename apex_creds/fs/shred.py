"""Overwriting replaced bytes, and saying honestly what that achieved.

Guarantee: ``overwritten`` is said only when zeros were written over the very blocks, made
durable and read back, on a file system that overwrites in place. Everything else is
``unverifiable``. What the drive itself keeps (wear levelling) nobody above it can see.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final, Literal

from apex_creds.fs.private_files import sync_file

_IN_PLACE: Final = frozenset({"ext2", "ext3", "ext4", "xfs"})
_CHUNK: Final = bytes(1 << 20)


def overwrite(fd: int) -> Literal["overwritten", "unverifiable"]:
    """Overwrites an unlinked file with zeros; ``fd`` must be open for reading and writing.

    Never raises for a failing file system: its caller's new version is durable already,
    so the answer is then ``unverifiable``. A file that still has a name (a hard link,
    which may be somebody's backup) is left alone.
    """
    try:
        status = os.fstat(fd)
        if status.st_nlink != 0:
            return "unverifiable"
        _zero(fd, status.st_size)
        sync_file(fd)
        sure = _is_zero(fd, status.st_size) and overwrites_in_place(status.st_dev)
    except OSError:
        return "unverifiable"
    return "overwritten" if sure else "unverifiable"


def _zero(fd: int, size: int) -> None:
    os.lseek(fd, 0, os.SEEK_SET)
    left = size
    while left:
        left -= os.write(fd, memoryview(_CHUNK)[: min(left, len(_CHUNK))])


def _is_zero(fd: int, size: int) -> bool:
    os.lseek(fd, 0, os.SEEK_SET)
    left = size
    while left:
        chunk = os.read(fd, min(left, len(_CHUNK)))
        if not chunk or chunk.strip(b"\0"):
            return False
        left -= len(chunk)
    return True


def overwrites_in_place(device: int, *, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether the file system on ``device`` is known to write data over data.

    Copy-on-write, log-structured, compressing and stacked file systems are not; neither
    is ext3/ext4 with ``data=journal``, which keeps a copy in the journal. Unknown is no.
    """
    if sys.platform == "win32":
        return False
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    found = [line for line in lines if line.split(" ", 3)[2:3] == [number]]
    return bool(found) and all(_in_place(line) for line in found)


def _in_place(line: str) -> bool:
    tail = line.partition(" - ")[2].split(" ")  # proc(5): fs type, source, super options
    if len(tail) < 3 or tail[0] not in _IN_PLACE:
        return False
    return "data=journal" not in tail[2].split(",")

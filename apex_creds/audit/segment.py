"""The segments of a log: one is written to, sealed ones are compressed and read-only.

Guarantee: ``append`` adds all of its bytes or, as far as the disk obeys, none; bytes are
removed only after they are safe beside the segment. A segment's bytes are in one of its two
files whole, at every instant, through any crash. A compressed one has one acceptable form,
so that no byte of it can change unnoticed, and any ``zcat`` can read it (RFC 1952: a header
of 52 bytes, of which an extra field ``AX`` holds the SHA-256 of all that follows; one deflate
stream; CRC and length).
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import time
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from apex_creds.audit import log_files
from apex_creds.audit.line import MAX_LINE, first_in, parse_header
from apex_creds.audit.log_files import (
    TRY_LOCK,
    create_whole,
    exists,
    flock,
    open_to_read,
    read_between,
    split_lines,
    stable_size,
    sync_directory,
    unavailable,
)
from apex_creds.audit.tree import Frontier
from apex_creds.errors import AuditTamperedError
from apex_creds.model import Closes

__all__ = [
    "MAX_SEGMENT",
    "Segment",
    "SegmentReader",
    "compress",
    "edge_before",
    "file_name",
    "find_segment",
    "is_compressed",
    "number_of_file",
    "pack",
    "read_segment",
    "segments",
    "unpack",
]

_CHECK_EVERY: Final = 0.001
# Bound once: they are on the path of every append.
_monotonic: Final = time.monotonic
_lseek: Final = os.lseek
_SEEK_END: Final = os.SEEK_END


class Segment:
    """One open segment.

    Args:
        directory: The log's.
        number: Which segment; it is there already.

    Raises:
        UnsafePathError: See ``log_files.check``, as for UnsafePermissionsError.
        AuditTamperedError: It is not there.
        AuditUnavailableError: It can't be opened for another reason.
    """

    __slots__ = ("_check_again", "_inode", "directory", "fd", "number", "path")

    def __init__(self, directory: Path, number: int) -> None:
        self.fd = -1
        self._check_again = 0.0
        self.directory = directory
        self.number = number
        self.path = directory / file_name(number)
        self.fd = log_files.open_private(self.path, create=False)
        status = log_files.status_of(self.fd)
        self._inode = (status.st_dev, status.st_ino)

    def begin(self) -> int:
        """Takes the lock like ``lock``; returns the length, -1 if the file was taken away.

        Whether the path still leads here is asked at most once a millisecond, because it
        costs as much as the write; so a file taken away is noticed within that time.

        Raises:
            AuditUnavailableError: Another process keeps the lock.
            OSError: The file can't be examined.
        """
        try:
            flock(self.fd, TRY_LOCK)
        except OSError:
            self.lock()
        now = _monotonic()
        if now > self._check_again:
            if not self.in_place():
                return -1
            self._check_again = now + _CHECK_EVERY
        return _lseek(self.fd, 0, _SEEK_END)

    def lock(self) -> None:
        """Takes the lock that all writers take; waits at most 250 ms.

        Raises:
            AuditUnavailableError: Another process keeps it.
        """
        log_files.lock(self.fd, self.path)

    def unlock(self) -> None:
        """Gives the lock back; harmless when it is not held."""
        log_files.unlock(self.fd)

    def size(self) -> int:
        """Returns the length in bytes."""
        return log_files.status_of(self.fd).st_size

    def in_place(self) -> bool:
        """Whether the path still leads to this file."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._inode

    def append(self, data: bytes, *, end: int) -> None:
        """Adds ``data`` at ``end``, the file's length; takes back what was added if it fails.

        Raises:
            AuditUnavailableError: Not all of it could be written.
        """
        try:
            done = os.write(self.fd, data)
            while done < len(data):
                done += os.write(self.fd, data[done:])
        except OSError as error:
            # If even this fails, the next writer finds a torn line and sets it aside.
            with suppress(OSError):
                os.ftruncate(self.fd, end)
            raise unavailable("written", error) from None

    def sync(self) -> None:
        """Makes what was written durable.

        Raises:
            OSError: The disk did not take it.
        """
        os.fsync(self.fd)

    def set_aside(self, start: int, *, seq: int, now: float) -> str:
        """Moves the bytes from ``start`` on to a new file; returns its name and hash.

        Raises:
            AuditUnavailableError: They could not be saved; then they stay where they are.
        """
        try:
            data = log_files.read_between(self.fd, start, self.size())
            stem = f"torn-{seq}-{int(now * 1000)}"
            name = log_files.save_new(self.directory, stem, data)
            os.ftruncate(self.fd, start)
        except OSError as error:
            raise unavailable("repaired", error) from None
        digest = hashlib.sha256(data).hexdigest()
        return f"{len(data)} bytes set aside in {name}, SHA-256 {digest}"

    def close(self) -> None:
        """Closes the file; again does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


MAX_SEGMENT: Final = 256 << 20
"""Bytes that a segment may have; a compressed one that claims more is not ours."""

_NAME: Final = re.compile(r"([0-9]{6,18})\.jsonl(\.gz)?")
# Flag 4: an extra field. No time and no name; "unknown" as the system.
_HEAD: Final = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H2sH", 36, b"AX", 32)
_TRAILER: Final = struct.Struct("<II")
_LEVEL: Final = 6
_FIRST: Final = (1 << 10, 16 << 10)
"""Bytes of a segment's file that mostly, and always, are enough for its first line."""
_PROBE: Final = 4 << 10
_NEAR: Final = 64 << 10
_LARGE: Final = 1 << 20
"""Bytes that are read at a time: to find a line, of the first lines, and of many."""


def file_name(number: int) -> str:
    """Returns the name of a segment that is written to."""
    return f"{number:06d}.jsonl"


def number_of_file(path: Path) -> int:
    """Returns the number in the name of a segment's file."""
    return int(path.name.partition(".")[0])


def segments(directory: Path) -> dict[int, Path]:
    """Returns the files of all segments, in order; the plain one where there are two.

    Raises:
        AuditTamperedError: One is missing between, or before, those that are there.
        AuditUnavailableError: The directory can't be read.
    """
    found: dict[int, Path] = {}
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise unavailable("read", error) from None
    for name in names:
        match = _NAME.fullmatch(name)
        if match and int(match[1]) and name.startswith(file_name(int(match[1]))):
            found.setdefault(int(match[1]), directory / name)
    for expected in range(1, len(found) + 1):
        if expected not in found:
            raise AuditTamperedError(
                f"Segment {file_name(expected)} of the audit log is missing.",
                hint="Restore it from a backup.",
            )
    return dict(sorted(found.items()))


class SegmentReader(Closes):
    """A segment's bytes, read where they are asked for; a compressed one is read whole.

    Args:
        path: Its file; it may have been compressed since its folder was listed.

    Attributes:
        path: The file that was found.
        size: Bytes that it has, decompressed, at a moment when no line was half written.

    Raises:
        AuditTamperedError: It is not there, or not what was compressed.
        AuditUnavailableError: It can't be read.
        UnsafePathError: It is a symbolic link or not a regular file.
    """

    __slots__ = ("_data", "_fd", "path", "size")

    def __init__(self, path: Path) -> None:
        self._fd = -1
        self._data: bytes | None = None
        self.path, self._fd = _open_either(path)
        packed = self.path.suffix == ".gz"
        try:
            self.size = stable_size(self._fd)
            if packed and self.size <= MAX_SEGMENT:
                self._data = unpack(read_between(self._fd, 0, self.size))
        except OSError as error:
            raise unavailable("read", error) from None
        if self.size > MAX_SEGMENT or (packed and self._data is None):
            raise _not_sealed(self.path)
        if self._data is not None:
            self.size = len(self._data)
            self.close()

    def read(self, start: int, end: int) -> bytes:
        """Returns the bytes between two offsets."""
        if self._data is not None:
            return self._data[start:end]
        return read_between(self._fd, start, min(end, self.size))

    def offset_of(self, seq: int) -> int:
        """Returns where a line begins that stands at or shortly before that of event ``seq``.

        It is the first line, or one that says it has at most that number; nothing is checked.
        """
        low, high = 0, self.size
        while high - low > _NEAR:
            middle = (low + high) // 2
            begins, number = first_in(self.read(middle, middle + _PROBE))
            if begins >= 0 and number <= seq:
                low = middle + begins
            else:
                high = middle
        return low

    def lines(self, start: int = 0) -> Iterator[bytes]:
        """Yields the lines from an offset on; as ``log_files.lines``."""

        def chunks(start: int, count: int) -> Iterator[bytes]:
            while start < self.size:
                yield self.read(start, start + count)
                start, count = start + count, min(2 * count, _LARGE)

        return split_lines(chunks(start, _NEAR))

    def lines_backwards(self) -> Iterator[bytes]:
        """Yields the lines, the last first; one that is too long ends it, cut."""
        end, count, rest = self.size, _NEAR, b""
        while end > 0 and len(rest) < MAX_LINE:
            start = max(0, end - count)
            data = self.read(start, end) + rest
            cut = data.find(b"\n") + 1 if start else 0
            rest = data[:cut] if cut or not start else data
            if cut or not start:
                yield from reversed(data[cut:].splitlines(keepends=True))
            end, count = start, min(2 * count, _LARGE)
        if rest:
            yield rest

    def close(self) -> None:
        """Closes the file; again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def is_compressed(path: Path) -> bool:
    """Whether a segment is there in its compressed form.

    Args:
        path: Where it was written to.

    Raises:
        AuditUnavailableError: It can't be seen.
    """
    return exists(_packed(path))


def _packed(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _open_either(path: Path) -> tuple[Path, int]:
    """Opens a segment's file, or what a process that uses the log made of it meanwhile."""
    try:
        return path, open_to_read(path)
    except AuditTamperedError:
        if exists(path) or not is_compressed(path):
            raise
        return _packed(path), open_to_read(_packed(path))


def read_segment(path: Path) -> bytes:
    """Returns a segment's bytes, decompressed; raises as ``SegmentReader``."""
    with SegmentReader(path) as segment:
        return segment.read(0, segment.size)


def find_segment(
    paths: Mapping[int, Path], *, vault_id: str, after: int, known: dict[int, Frontier]
) -> tuple[int, Frontier]:
    """Returns the segment of the event after ``after``, and the tree's edge before it.

    Only the first lines of a few segments are read. They are not proven: reading on finds
    that the lines do not fit to a wrong one.

    Args:
        paths: Of all segments.
        vault_id: Whose.
        after: The number of an event.
        known: Edges that were read before; those that are read now are added.

    Raises:
        AuditTamperedError: The first line of a segment is not right.
        AuditUnavailableError, UnsafePathError: As ``read_segment``.
    """

    def size_before(number: int) -> int:
        return edge_before(paths, number, vault_id=vault_id, known=known).size

    number = max(1, bisect_right(range(1, len(paths) + 1), after, key=size_before))
    return number, edge_before(paths, number, vault_id=vault_id, known=known)


def edge_before(
    paths: Mapping[int, Path], number: int, *, vault_id: str, known: dict[int, Frontier]
) -> Frontier:
    """Returns the tree's edge before a segment; arguments and errors as ``find_segment``."""
    if number not in known:
        edge = parse_header(_first_line(paths[number]), segment=number, vault_id=vault_id)
        if edge is None:
            raise _not_sealed(paths[number])
        known[number] = edge
    return known[number]


def _first_line(path: Path) -> bytes:
    """A segment's first line; empty where it has none."""
    path, fd = _open_either(path)
    try:
        for count in _FIRST:
            plain = read_between(fd, 0, count)
            if path.suffix == ".gz":
                inflate = zlib.decompressobj(-zlib.MAX_WBITS)
                plain = inflate.decompress(plain[len(_HEAD) + 32 :], MAX_LINE)
            if end := plain.find(b"\n") + 1:
                return plain[:end]
    except zlib.error:
        return b""
    finally:
        os.close(fd)
    return b""


def _not_sealed(path: Path) -> AuditTamperedError:
    return AuditTamperedError(
        f"{path.name} of the audit log is not what was sealed, or is too long.",
        hint="Keep a copy, find out who did it, and restore the file.",
    )


def pack(data: bytes) -> bytes:
    """Returns ``data`` as gzip."""
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    trailer = _TRAILER.pack(zlib.crc32(data), len(data) & 0xFFFFFFFF)
    rest = b"".join((deflate.compress(data), deflate.flush(), trailer))
    return b"".join((_HEAD, sha256(rest).digest(), rest))


def unpack(data: bytes) -> bytes | None:
    """Returns what ``pack`` was given; None for anything that it did not make."""
    start = len(_HEAD) + 32
    rest = data[start:]
    if not data.startswith(_HEAD) or sha256(rest).digest() != data[len(_HEAD) : start]:
        return None
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflate.decompress(rest, MAX_SEGMENT)
    except zlib.error:
        return None
    expected = _TRAILER.pack(zlib.crc32(plain), len(plain) & 0xFFFFFFFF)
    return plain if inflate.eof and inflate.unused_data == expected else None


def compress(plain: Path) -> None:
    """Puts the compressed form of a sealed segment in its place; again does nothing.

    Several processes may do it at once: what they make is the same.

    Raises:
        AuditUnavailableError: It could not be done; the plain file is still there.
    """
    if not exists(plain):
        return  # another process was quicker
    data = read_segment(plain)
    create_whole(_packed(plain), pack(data), replace=True, mode=0o400)
    try:
        plain.unlink(missing_ok=True)
        sync_directory(plain.parent)
    except OSError as error:
        raise unavailable("compressed", error) from None

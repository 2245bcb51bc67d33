"""Which segments a log has, and how sealed ones are kept: compressed and read-only.

Guarantee: a segment's bytes are in one of its two files whole, at every instant, through
any crash; a compressed one has one acceptable form, so that no byte of it can change
unnoticed, and any ``zcat`` can read it (RFC 1952: a header of 52 bytes, of which an extra
field ``AX`` holds the SHA-256 of all that follows; one deflate stream; CRC and length).
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

from apex_creds.audit.files import (
    create_whole,
    exists,
    open_to_read,
    read_between,
    settled_size,
    sync_directory,
    unavailable,
)
from apex_creds.audit.line import MAX_LINE, parse_header
from apex_creds.audit.tree import Frontier
from apex_creds.errors import AuditTamperedError

__all__ = [
    "MAX_SEGMENT",
    "compress",
    "file_name",
    "find_segment",
    "pack",
    "read_either",
    "read_segment",
    "segments",
    "unpack",
]

MAX_SEGMENT: Final = 256 << 20
"""Bytes that a segment may have; a compressed one that claims more is not ours."""

_NAME: Final = re.compile(r"([0-9]{6,18})\.jsonl(\.gz)?")
# Flag 4: an extra field. No time and no name; "unknown" as the system.
_HEAD: Final = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H2sH", 36, b"AX", 32)
_TRAILER: Final = struct.Struct("<II")
_LEVEL: Final = 6
_FIRST: Final = (1 << 10, 16 << 10)
"""Bytes of a segment's file that mostly, and always, are enough for its first line."""


def file_name(number: int) -> str:
    """Returns the name of a segment that is written to."""
    return f"{number:06d}.jsonl"


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


def read_segment(path: Path) -> bytes:
    """Returns a segment's bytes, decompressed.

    Raises:
        AuditTamperedError: It is not there, or not what was compressed.
        AuditUnavailableError: It can't be read.
        UnsafePathError: It is a symbolic link or not a regular file.
    """
    fd = open_to_read(path)
    try:
        size = settled_size(fd)
        data = read_between(fd, 0, size) if size <= MAX_SEGMENT else None
    except OSError as error:
        raise unavailable("read", error) from None
    finally:
        os.close(fd)
    plain = unpack(data) if data is not None and path.suffix == ".gz" else data
    if plain is None:
        raise _not_sealed(path)
    return plain


def read_either(path: Path) -> bytes:
    """As ``read_segment``, also where it was compressed since its folder was listed."""
    return _either(path, read_segment)


def find_segment(
    paths: Mapping[int, Path], *, vault_id: str, after: int, known: dict[int, Frontier]
) -> tuple[int, Frontier]:
    """Returns the segment of the event after ``after``, and the tree's edge before it.

    Only the first lines of a few segments are read. They are not proven: who reads on finds
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

    def edge_of(number: int) -> Frontier:
        if number not in known:
            first = _either(paths[number], _read_first)
            edge = parse_header(first, segment=number, vault_id=vault_id)
            if edge is None:
                raise _not_sealed(paths[number])
            known[number] = edge
        return known[number]

    number = bisect_right(range(1, len(paths) + 1), after, key=lambda n: edge_of(n).size)
    return max(number, 1), edge_of(max(number, 1))


def _read_first(path: Path) -> bytes:
    """A segment's first line; empty where it has none."""
    fd = open_to_read(path)
    try:
        for count in _FIRST:
            data = read_between(fd, 0, count)
            plain = _inflated(data) if path.suffix == ".gz" else data
            if end := plain.find(b"\n") + 1:
                return plain[:end]
    finally:
        os.close(fd)
    return b""


def _inflated(data: bytes) -> bytes:
    """What the beginning of a compressed segment begins with."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        return inflate.decompress(data[len(_HEAD) + 32 :], MAX_LINE)
    except zlib.error:
        return b""


def _either(path: Path, read: Callable[[Path], bytes]) -> bytes:
    try:
        return read(path)
    except AuditTamperedError:
        # Compressed meanwhile, by a process that uses the log.
        packed = path.with_name(f"{path.name}.gz")
        if exists(path) or not exists(packed):
            raise
    return read(packed)


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
    try:
        data = read_segment(plain)
    except AuditTamperedError:
        return  # another process was quicker
    create_whole(plain.with_name(f"{plain.name}.gz"), pack(data), replace=True, mode=0o400)
    try:
        plain.unlink(missing_ok=True)
        sync_directory(plain.parent)
    except OSError as error:
        raise unavailable("compressed", error) from None

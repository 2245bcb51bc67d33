"""Roots of a log's subtrees, without reading the whole log.

Guarantee: nothing here is trusted, so nothing is checked but against mistakes: a proof that
is made of these hashes is compared with a signed root. Beside each sealed segment is a file
of the large subtrees that end in it (and a note, see ``summary``), and one is of the segment
that is written to; one that is missing, damaged or not long enough is made from the segment,
whose first line has the tree's edge before it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeVar

from apex_creds.audit.crash_recovery import Content, parse, tampered
from apex_creds.audit.line import fault, header, leaf_of, number_of
from apex_creds.audit.log_files import create_whole, open_to_read, read_between, status_of
from apex_creds.audit.segment import (
    MAX_SEGMENT,
    SegmentReader,
    find_segment,
    number_of_file,
    segments,
)
from apex_creds.audit.tree import HASH_BYTES, SPAN, Frontier
from apex_creds.errors import ApexCredsError, IntegrityError

__all__ = ["Subtrees", "count_until", "has_nodes", "keep_nodes", "keep_open_nodes", "note_of"]

OPEN: Final = "open.nodes"
_OLD: Final = b"APXN\x01"
_MAGIC: Final = b"APXN\x02"
_DIGEST: Final = slice(len(_MAGIC), len(_MAGIC) + 32)
_LENGTH: Final = struct.Struct(">H")
_HEIGHT: Final = SPAN.bit_length() - 1
_SEGMENTS: Final = 4
_FILES: Final = 64
"""As many segments, and files of nodes, are held in memory at once."""
_LONGEST: Final = MAX_SEGMENT // 100
_MOSTLY: Final = 2048
_ALL: Final = 1 << 63
_T = TypeVar("_T")


def has_nodes(segment: Path) -> bool:
    """Whether there is a file of nodes beside a segment; it may be damaged."""
    return os.path.lexists(_beside(segment))


def keep_nodes(
    segment: Path, *, vault_id: str, note: bytes = b"", content: Content | None = None
) -> None:
    """Writes the nodes that end in a sealed segment; without them proofs only read more.

    Several processes may do it at once: what they write is the same.

    Args:
        segment: Its file.
        vault_id: Whose log it is.
        note: A signed summary of it, which is kept with them; see ``summary``.
        content: What is in it, where that was read before.
    """
    number = number_of_file(segment)
    with suppress(ApexCredsError):
        if content is None:
            with SegmentReader(segment) as reader:
                content = _parsed(reader, number, vault_id)
        head = header(segment=number, vault_id=vault_id, edge=content.edge)
        data = _pack(head, _made(content), note)
        create_whole(_beside(segment), data, replace=True)


def keep_open_nodes(directory: Path, *, head: bytes, nodes: Sequence[bytes]) -> None:
    """Writes those of the segment that is written to, as far as it has come.

    Args:
        directory: The log's.
        head: The segment's first line.
        nodes: As a ``Frontier`` keeps them from the segment's first event on.
    """
    with suppress(ApexCredsError):
        data = _pack(head, b"".join(nodes))
        create_whole(directory / OPEN, data, replace=True, durable=False)


def note_of(segment: Path) -> bytes:
    """Returns the note that is kept beside a segment, not checked; empty where none is.

    Raises:
        AuditTamperedError, AuditUnavailableError, UnsafePathError: It can't be read.
    """
    path = _beside(segment)
    if not os.path.lexists(path):
        return b""
    fd = open_to_read(path)
    try:
        start = _DIGEST.stop + _LENGTH.size
        data = read_between(fd, 0, start + _MOSTLY)
        if not data.startswith(_MAGIC) or len(data) < start:
            return b""
        (length,) = _LENGTH.unpack(data[_DIGEST.stop : start])
        end = start + length
        return data[start:end] if end <= len(data) else read_between(fd, start, end)
    finally:
        os.close(fd)


class Subtrees:
    """The subtrees of a log as its files are now.

    Args:
        directory: The log's.
        vault_id: Whose log it is.
    """

    def __init__(self, directory: Path, *, vault_id: str) -> None:
        self._directory = directory
        self._paths = segments(directory)
        self._vault_id = vault_id
        self._edges: dict[int, Frontier] = {}
        self._readers: dict[int, SegmentReader] = {}
        self._nodes: dict[int, bytes] = {}
        self._unfit: set[Path] = set()
        self._used: set[Path] = set()

    def root(self, start: int, end: int) -> bytes:
        """Returns the root (32 bytes) over the leaves from ``start`` up to, without, ``end``.

        Raises:
            IntegrityError: The log has no such leaves.
            AuditTamperedError: A file is not what was written.
            AuditUnavailableError: One can't be read.
            UnsafePathError: One is a symbolic link or not a regular file.
        """
        count, parts = end - start, []
        for height in reversed(range(count.bit_length())):
            if count >> height & 1:
                parts.append(self._perfect(start, start + (1 << height)))
                start += 1 << height
        return Frontier(count, parts).root()

    def line(self, seq: int) -> bytes:
        """Returns the line of an event, checked by itself; empty where there is none.

        Raises:
            AuditTamperedError, AuditUnavailableError, UnsafePathError: As ``root``.
        """
        number, _ = self._find(seq - 1)
        for text in self._lines(number, seq):
            if wrong := fault(seq, text):
                raise tampered(seq, wrong)
            return text
        return b""

    def discard(self, *, used: bool = False) -> None:
        """Removes damaged files of nodes, and ``used`` ones; unsealing makes them anew."""
        for path in self._unfit | (self._used if used else set()):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _perfect(self, start: int, end: int) -> bytes:
        if end - start < SPAN:
            leaves: list[bytes] = []
            while start < end:  # what the lines of the events say
                number, _ = self._find(start)
                before = start
                for text in self._lines(number, start + 1):
                    if number_of(text) != start + 1 or start == end:
                        break
                    with suppress(ValueError):
                        leaves.append(leaf_of(text))
                        start += 1
                if start == before:
                    raise _absent(end)
            edge = Frontier()
            edge.extend(leaves)
            return edge.root()
        number, first = self._find(end - 1)
        height = (end - start).bit_length() - 1 - _HEIGHT
        at = (count_until(end - 1) - count_until(first) + height) * HASH_BYTES
        made = lambda n: _made(_parsed(self._reader(n), n, self._vault_id))  # noqa: E731
        for nodes in (self._kept, made):
            stored = _remembered(self._nodes, number, nodes, most=_FILES)
            found = stored[at : at + HASH_BYTES]
            if len(found) == HASH_BYTES:
                return found
            del self._nodes[number]
        raise _absent(end)

    def _find(self, leaf: int) -> tuple[int, int]:
        """The segment that has a leaf, and the number of its first."""
        number, edge = find_segment(
            self._paths, vault_id=self._vault_id, after=leaf, known=self._edges
        )
        return number, edge.size

    def _lines(self, number: int, seq: int) -> Iterator[bytes]:
        """The lines of a segment from that of an event on."""
        reader = self._reader(number)
        for text in reader.lines(reader.offset_of(seq)):
            if number_of(text) >= seq:
                yield text

    def _kept(self, number: int) -> bytes:
        """What the file of nodes has; empty where there is none that is whole, or no node."""
        sealed = number + 1 in self._paths
        path = _beside(self._paths[number]) if sealed else self._directory / OPEN
        if not os.path.lexists(path):
            return b""
        edge = self._edges[number]
        nodes = _unpack(header(segment=number, vault_id=self._vault_id, edge=edge), path)
        if nodes is None:
            if sealed:
                self._unfit.add(path)
            return b""
        self._used.add(path)
        return nodes

    def _reader(self, number: int) -> SegmentReader:
        return _remembered(self._readers, number, lambda n: SegmentReader(self._paths[n]))


def _remembered(
    known: dict[int, _T], number: int, make: Callable[[int], _T], *, most: int = _SEGMENTS
) -> _T:
    if number not in known:
        if len(known) == most:
            del known[next(iter(known))]
        known[number] = make(number)
    return known[number]


def _parsed(reader: SegmentReader, number: int, vault_id: str) -> Content:
    data = reader.read(0, reader.size)
    return parse(data, number=number, vault_id=vault_id, trusted=_ALL)


def _made(content: Content) -> bytes:
    """The roots of the subtrees that end in a segment, in the order of their ends."""
    return b"".join(content.edge_at(content.last).nodes or ())


def count_until(end: int) -> int:
    """Returns how many subtrees that are kept end at or before ``end``."""
    spans = end >> _HEIGHT
    return 2 * spans - spans.bit_count()


# -- files -------------------------------------------------------------------------------


def _beside(segment: Path) -> Path:
    return segment.with_name(f"{segment.name.partition('.')[0]}.nodes")


def _pack(head: bytes, nodes: bytes, note: bytes = b"") -> bytes:
    rest = b"".join((_LENGTH.pack(len(note)), note, nodes))
    return b"".join((_MAGIC, sha256(head + rest).digest(), rest))


def _unpack(head: bytes, path: Path) -> bytes | None:
    """The nodes of a file; None where it is not one for the segment that begins so."""
    try:
        fd = open_to_read(path)
    except ApexCredsError:
        return None
    try:
        size = status_of(fd).st_size
        data = read_between(fd, 0, size) if size <= _LONGEST else b""
    except ApexCredsError:
        return None
    finally:
        os.close(fd)
    rest = data[_DIGEST.stop :]
    if data[_DIGEST] != sha256(head + rest).digest():
        return None
    if data.startswith(_OLD):
        return rest
    if not data.startswith(_MAGIC) or len(rest) < _LENGTH.size:
        return None
    return rest[_LENGTH.size + _LENGTH.unpack_from(rest)[0] :]


def _absent(end: int) -> IntegrityError:
    return IntegrityError(f"The log has no {end} events.", hint="Run: apex-creds audit verify.")

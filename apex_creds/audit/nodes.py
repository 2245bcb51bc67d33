"""Roots of a log's subtrees, without reading the whole log.

Guarantee: nothing here is trusted, so nothing is checked but against mistakes: whoever makes
a proof of these hashes compares it with a signed root. Beside each sealed segment is a file
of the large subtrees that end in it; one that is missing or damaged is made from the
segment, whose first line has the tree's edge before it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from apex_creds.audit.crash_recovery import Content, parse
from apex_creds.audit.line import header
from apex_creds.audit.log_files import create_whole, open_to_read, read_between, status_of
from apex_creds.audit.segment import MAX_SEGMENT, find_segment, read_either, segments
from apex_creds.audit.tree import HASH_BYTES, Frontier, node_hash
from apex_creds.errors import ApexCredsError, IntegrityError

__all__ = ["Subtrees", "has_nodes", "keep_nodes"]

_MAGIC: Final = b"APXN\x01"
_HEIGHT: Final = 8
_SPAN: Final = 1 << _HEIGHT
"""Leaves of the smallest subtree whose root is kept; smaller ones are in one segment or two."""
_SEGMENTS: Final = 4
"""As many are held in memory at once."""
_LONGEST: Final = MAX_SEGMENT // 100
_ALL: Final = 1 << 63


def has_nodes(segment: Path) -> bool:
    """Tells whether there is a file of nodes beside a segment; it may be damaged."""
    return os.path.lexists(_beside(segment))


def keep_nodes(segment: Path, *, vault_id: str) -> None:
    """Writes the nodes that end in a sealed segment; without them proofs only read more.

    Several processes may do it at once: what they write is the same.
    """
    number = _number(segment)
    with suppress(ApexCredsError):
        content = _read(segment, vault_id)
        head = header(segment=number, vault_id=vault_id, edge=content.edge)
        create_whole(_beside(segment), _pack(head, _made(content)), replace=True)


class Subtrees:
    """The subtrees of a log as its files are now.

    Args:
        directory: The log's.
        vault_id: Whose log it is.
    """

    def __init__(self, directory: Path, *, vault_id: str) -> None:
        self._paths = segments(directory)
        self._vault_id = vault_id
        self._edges: dict[int, Frontier] = {}
        self._contents: dict[int, Content] = {}
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

    def discard(self, *, used: bool = False) -> None:
        """Removes damaged files of nodes, and ``used`` ones; unsealing makes them anew."""
        for path in self._unfit | (self._used if used else set()):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _perfect(self, start: int, end: int) -> bytes:
        if end - start < _SPAN:
            edge = Frontier()
            edge.extend(self._leaves(start, end))
            return edge.root()
        number, first = self._find(end - 1)
        height = (end - start).bit_length() - 1 - _HEIGHT
        at = (_count(end - 1) - _count(first) + height) * HASH_BYTES
        found = self._nodes_of(number)[at : at + HASH_BYTES]
        if len(found) != HASH_BYTES:
            raise _absent(end)
        return found

    def _leaves(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            number, first = self._find(start)
            leaves = self._content(number).leaves[start - first : end - first]
            if not leaves:
                raise _absent(end)
            yield from leaves
            start += len(leaves)

    def _find(self, leaf: int) -> tuple[int, int]:
        """The segment that has a leaf, and the number of its first."""
        number, edge = find_segment(
            self._paths, vault_id=self._vault_id, after=leaf, known=self._edges
        )
        return number, edge.size

    def _nodes_of(self, number: int) -> bytes:
        if number not in self._nodes:
            self._nodes[number] = self._kept(number) or _made(self._content(number))
        return self._nodes[number]

    def _kept(self, number: int) -> bytes:
        """What the file of nodes has; empty where there is none that is whole, or no node."""
        path = _beside(self._paths[number])
        if number + 1 not in self._paths or not os.path.lexists(path):
            return b""
        edge = self._edges[number]
        nodes = _unpack(header(segment=number, vault_id=self._vault_id, edge=edge), path)
        if nodes is None:
            self._unfit.add(path)
            return b""
        self._used.add(path)
        return nodes

    def _content(self, number: int) -> Content:
        if number not in self._contents:
            if len(self._contents) == _SEGMENTS:
                del self._contents[next(iter(self._contents))]
            self._contents[number] = _read(self._paths[number], self._vault_id)
        return self._contents[number]


def _read(path: Path, vault_id: str) -> Content:
    return parse(read_either(path), number=_number(path), vault_id=vault_id, trusted=_ALL)


def _made(content: Content) -> bytes:
    """The roots of the subtrees that end in a segment, in the order of their ends."""
    size, known = content.edge.size, content.edge.hashes
    large = (size >> _HEIGHT).bit_count()
    upper, lower = list(known[:large]), Frontier(size % _SPAN, known[large:])
    found: list[bytes] = []
    taken = 0
    while taken + _SPAN - lower.size <= len(content.leaves):
        until = taken + _SPAN - lower.size
        lower.extend(content.leaves[taken:until])
        taken = until
        found.append(lower.root())
        place = (size + taken) >> _HEIGHT
        while not place & 1:
            found.append(node_hash(upper.pop(), found[-1]))
            place >>= 1
        upper.append(found[-1])
        lower = Frontier()
    return b"".join(found)


def _count(end: int) -> int:
    """How many subtrees that are kept end at or before ``end``."""
    spans = end >> _HEIGHT
    return 2 * spans - spans.bit_count()


# -- files -------------------------------------------------------------------------------


def _number(segment: Path) -> int:
    return int(segment.name.partition(".")[0])


def _beside(segment: Path) -> Path:
    return segment.with_name(f"{segment.name.partition('.')[0]}.nodes")


def _pack(head: bytes, nodes: bytes) -> bytes:
    return b"".join((_MAGIC, sha256(head + nodes).digest(), nodes))


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
    nodes = data[len(_MAGIC) + 32 :]
    return nodes if data == _pack(head, nodes) else None


def _absent(end: int) -> IntegrityError:
    return IntegrityError(f"The log has no {end} events.", hint="Run: apex-creds audit verify.")

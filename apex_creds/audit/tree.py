"""The Merkle tree of RFC 6962 and RFC 9162 (section 2.1) over SHA-256: pure, no files.

Guarantee: hashes and proofs are those of the RFCs, byte for byte; a proof that verifies
shows that an entry is in a tree, or that a tree is the beginning of another one, if the
roots and SHA-256 can be trusted. A ``Frontier`` grows by one leaf with one node hash amortised
and holds at most 64 hashes, however large the tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Final

from apex_creds.errors import IntegrityError, InvalidInputError

__all__ = [
    "EMPTY_ROOT",
    "HASH_BYTES",
    "SPAN",
    "Frontier",
    "consistency_ranges",
    "hashes_of",
    "inclusion_ranges",
    "join",
    "leaf_hash",
    "node_hash",
    "verify_consistency",
    "verify_inclusion",
]

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = sha256(b"").digest()
"""Root of the tree without leaves."""

SPAN: Final = 256
"""Leaves of the smallest subtrees whose roots a frontier keeps as ``nodes``."""

Range = tuple[int, int]
"""Leaves from the first number up to, and without, the second; from 0."""


def leaf_hash(entry: bytes) -> bytes:
    """Returns the hash (32 bytes) of a leaf that holds ``entry``."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Returns the hash (32 bytes) of a node over its two children."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a tree: the roots of its perfect subtrees, largest first.

    Args:
        size: Number of leaves.
        hashes: One root for each bit of ``size`` that is set, highest first.

    Attributes:
        nodes: Where to keep the roots of the perfect subtrees of ``SPAN`` leaves or more
            that are completed, in the order of their ends, the smaller first; or None.

    Raises:
        InvalidInputError: The hashes are not as many as the bits, or not 32 bytes long.
    """

    __slots__ = ("_hashes", "nodes", "size")

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        self._hashes = list(hashes)
        self.size = size
        self.nodes: list[bytes] | None = None
        fit = size >= 0 and len(self._hashes) == size.bit_count()
        if not fit or any(len(each) != HASH_BYTES for each in self._hashes):
            raise InvalidInputError("A tree's edge does not fit its size.")

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """The roots, largest subtree first."""
        return tuple(self._hashes)

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Adds leaves, given by their hashes."""
        todo = list(leaves)
        taken = 0
        while taken < len(todo):
            left = min(len(todo) - taken, SPAN)
            # The largest perfect subtree that begins here and is there whole.
            count = min(1 << left.bit_length() - 1, (self.size & -self.size) or left)
            count = 1 << count.bit_length() - 1
            level = todo[taken : taken + count]
            while len(level) > 1:
                pairs = zip(level[::2], level[1::2], strict=True)
                level = [sha256(b"\x01" + left + right).digest() for left, right in pairs]
            head = level[0]
            taken += count
            self.size += count
            while True:
                if self.nodes is not None and count >= SPAN:
                    self.nodes.append(head)
                if self.size & count:
                    break
                head = sha256(b"\x01" + self._hashes.pop() + head).digest()
                count <<= 1
            self._hashes.append(head)

    def root(self) -> bytes:
        """Returns the root (32 bytes) of the tree as it is now."""
        if not self._hashes:
            return EMPTY_ROOT
        root = self._hashes[-1]
        for left in self._hashes[-2::-1]:
            root = node_hash(left, root)
        return root

    def copy(self) -> Frontier:
        """Returns one that grows by itself."""
        return Frontier(self.size, self._hashes)


# -- making proofs -----------------------------------------------------------------------


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """Returns whose roots prove that leaf ``index`` is in the tree of ``size`` leaves.

    ``hashes_of`` gives the roots; the order is the proof's (RFC 9162, 2.1.3.1).

    Raises:
        InvalidInputError: There is no such leaf.
    """
    if not 0 <= index < size:
        raise InvalidInputError(f"A tree of {size} leaves has no leaf {index}.")
    start, end = 0, size
    ranges: list[Range] = []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    return ranges[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """Returns whose roots prove that the tree of ``old`` leaves begins that of ``new``.

    The order is the proof's (RFC 9162, 2.1.4.1).

    Raises:
        InvalidInputError: ``old`` is not in 1..``new``.
    """
    if not 1 <= old <= new:
        raise InvalidInputError(f"No proof leads from {old} leaves to {new}.")
    start, end, whole = 0, new, True
    ranges: list[Range] = []
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start, whole = middle, False
    if not whole:
        ranges.append((start, end))
    return ranges[::-1]


def hashes_of(ranges: Sequence[Range], leaves: Iterable[bytes]) -> list[bytes]:
    """Returns the root of each range, from one pass over the hashes of all leaves.

    The ranges must not overlap; those of one proof don't.

    Raises:
        InvalidInputError: There are fewer leaves than the ranges name.
    """
    roots: dict[Range, bytes] = {}
    todo = sorted(ranges)
    edge, at = Frontier(), 0
    for number, leaf in enumerate(leaves):
        if at == len(todo):
            break
        start, end = todo[at]
        if number < start:
            continue
        edge.extend((leaf,))
        if number == end - 1:
            roots[todo[at]] = edge.root()
            edge, at = Frontier(), at + 1
    if at != len(todo):
        raise InvalidInputError("The log has fewer events than the proof names.")
    return [roots[each] for each in ranges]


def join(parts: Mapping[Range, bytes], size: int) -> bytes:
    """Returns the root of a tree of ``size`` leaves from those of ranges that make it up.

    Raises:
        IntegrityError: They don't.
    """

    def root(start: int, end: int) -> bytes:
        if (start, end) in parts:
            return parts[start, end]
        if end - start < 2:
            raise _unproved("event")
        middle = start + _split(end - start)
        return node_hash(root(start, middle), root(middle, end))

    return root(0, size)


def _split(count: int) -> int:
    """The largest power of two below ``count``, which is at least 2."""
    return 1 << (count - 1).bit_length() - 1


# -- checking proofs ----------------------------------------------------------------------


def verify_inclusion(
    leaf: bytes, *, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Returns if ``proof`` shows the leaf (its hash) at ``index`` (RFC 9162, 2.1.3.2).

    Raises:
        IntegrityError: It does not.
    """
    if not 0 <= index < size or any(len(each) != HASH_BYTES for each in proof):
        raise _unproved("event")
    roots = _climb(index, size - 1, leaf, proof)
    if roots is None or roots[1] != root:
        raise _unproved("event")


def verify_consistency(
    *, old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> None:
    """Returns if ``proof`` shows that the old tree begins the new one (9162, 2.1.4.2).

    Raises:
        IntegrityError: It does not.
    """
    if not 1 <= old <= new or any(len(each) != HASH_BYTES for each in proof):
        raise _unproved("earlier log")
    if old == new:
        if proof or old_root != new_root:
            raise _unproved("earlier log")
        return
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    if not path or _climb(position, last, path[0], path[1:]) != (old_root, new_root):
        raise _unproved("earlier log")


def _climb(
    position: int, last: int, start: bytes, path: Sequence[bytes]
) -> tuple[bytes, bytes] | None:
    """The roots that a path leads to; None where it has the wrong length.

    Args:
        position: Of the node to start at, among those of its height.
        last: Of the last node of that height, in the whole tree.
        start: That node.
        path: Its siblings, on the way up.

    Returns:
        The root of the tree that ends with the node, and that of the whole.
    """
    first = second = start
    for each in path:
        if last == 0:
            return None
        if position & 1 or position == last:
            first, second = node_hash(each, first), node_hash(each, second)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            second = node_hash(second, each)
        position, last = position >> 1, last >> 1
    return (first, second) if last == 0 else None


def _unproved(what: str) -> IntegrityError:
    return IntegrityError(
        f"The proof does not show that the {what} is in the log.",
        hint="The log, the proof or the checkpoint was altered.",
    )

"""Covers the secrets in a stream of bytes, with marks of the same length, while it comes.

Guarantee: every byte of every occurrence of a needle is covered, also where occurrences overlap
and where one lies across pieces; nothing else changes, and no length does. A piece goes on at
once, but for an end of it that could begin an occurrence. An occurrence is one as well where
any of its bytes are escaped, in whatever ways. The needles lie in locked memory; what is
searched for is read from there. No I/O.

Spellings of one secret have long runs in common. Each run is searched for once, and where it
is found, the spellings that have it are compared: half of the work of searching for each.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final, NamedTuple

from apex_creds.redaction import escapes
from apex_creds.redaction.escapes import Unescaped
from apex_creds.redaction.matcher import SHORTEST, Needles

COVER: Final = b"*"
"""Takes the place of each byte: printable, and allowed in names of headers and in URLs."""
_PRIME: Final = (1 << 61) - 1
_RUN: Final = 8
"""Bytes of a run at least; shorter ones are found everywhere."""
_MUCH: Final = 16384
"""Bytes of needles from which on no runs are searched for, which would take milliseconds."""
_RARE: Final = b"\\%\0"
"""Without one of them, which is found out in no time, a text has no escapes, or no UTF-16."""
_TRIES: Final = 64
"""A run that was found so often, with nothing around it, is not searched for any more."""

Span = tuple[int, int]
_Member = tuple[memoryview, int]


class _Run(NamedTuple):
    """What some needles have in common, and where in each of them."""

    run: memoryview
    members: list[_Member]


class _Level(NamedTuple):
    """A text without some levels of escapes; called, it says where a byte of it was."""

    text: bytes
    steps: tuple[Unescaped, ...]

    def __call__(self, at: int) -> int:
        for step in reversed(self.steps):
            at = step.where(at)
        return at


class Mask:
    """The spellings of one credential's secret, to be searched for in many texts.

    Args:
        name: The credential's.
        parts: The secret parts of it, which are copied.

    A search with one that is closed, perhaps right now by another thread, gets a
    ``ValueError``, as of a view that was released; never the text as it was.

    Attributes:
        ends: The bytes that a beginning of a spelling can end with.
        longest: Bytes of the longest spelling; 0: nothing is searched for.
    """

    __slots__ = (
        "_closed",
        "_is_marked",
        "_needles",
        "_rare",
        "_runs",
        "_starts",
        "_tails",
        "_usual",
        "ends",
        "longest",
        "name",
    )

    def __init__(self, name: str, parts: Iterable[memoryview]) -> None:
        self.name = name
        self._closed = False
        self._needles = Needles()
        held: set[int] = set()
        for part in parts:
            self._needles.add(name, part)
            held.update(part)
        self._is_marked = escapes.Marks(held)
        views = [needle.view() for needle in self._needles.secrets]
        self.longest = max(map(len, views), default=0)
        self._runs = list(_runs(views))
        self._rare = [(byte, [r for r, _ in self._runs if byte in r]) for byte in _RARE]
        self._usual = [r for r, _ in self._runs if not any(byte in r for byte in _RARE)]
        self._starts = _distinct(view[:SHORTEST] for view in views)
        self._tails = [
            tuple(_distinct(view[:size] for view in views))
            for size in range(SHORTEST - 1, 0, -1)
        ]
        within = chain.from_iterable(view[:-1] for view in views)
        self.ends = frozenset(within) | escapes.ENDS if views else frozenset()

    def spans(self, data: bytes) -> Sequence[Span]:
        """Where occurrences are; they may overlap."""
        if self.has_none(data):
            return ()
        spans = list(self._as_written(data))
        for level in self._levels(data):
            spans += [(level(a), level(b)) for a, b in self._as_written(level.text)]
        self.check_whole()
        return spans

    def has_none(self, data: bytes) -> bool:
        """Whether what its spellings have in common is not in ``data``, escaped or not."""
        for run in self._usual:
            if data.find(run) >= 0:
                return False
        escaped = data.find(b"&") >= 0
        for byte, runs in self._rare:
            if data.find(byte) >= 0:
                escaped = True
                for run in runs:
                    if data.find(run) >= 0:
                        return False
        if escaped and any(
            True for level in self._levels(data) for _ in self._as_written(level.text)
        ):
            return False
        if self._closed:  # as ``check_whole``, without a call
            raise ValueError("wiped")
        return True

    def _as_written(self, data: bytes) -> Iterator[Span]:
        return chain.from_iterable(_around(data, each) for each in self._runs)

    def _levels(self, data: bytes) -> Iterator[_Level]:
        """``data`` without escapes, and without those that were within them."""
        steps: tuple[Unescaped, ...] = ()
        while len(steps) < escapes.DEPTH and self._is_marked(data):
            found = escapes.unescaped(data)
            if found is None:
                return
            steps, data = (*steps, found), found.text
            yield _Level(data, steps)

    def pending(self, data: bytes, *, least: int = 1, escapes_too: bool = True) -> int:
        """Where the longest end of ``data`` that could begin a needle starts.

        Args:
            data: What there is so far.
            least: Ends of fewer bytes don't count.
            escapes_too: Whether some of it may be escaped.
        """
        found = end = len(data)
        if not data or data[-1] not in self.ends:
            return end
        tail = max(end - self.longest + 1, 0)
        for start in self._starts:
            if data.find(start, tail) >= 0:
                found = self._needles.pending(data, least=least)
                break
        else:
            for short in self._tails:
                if data.endswith(short):
                    size = len(short[0])
                    found = end - size if size >= least else end
                    break
        if not escapes_too:
            return found
        begin = max(end - escapes.LONGEST * self.longest, 0)
        for lead in escapes.LEADS:
            if data.find(lead, begin) >= 0:
                return min(found, begin + self._pending_escaped(data[begin:], least))
        return found

    def _pending_escaped(self, text: bytes, least: int) -> int:
        found = len(text)
        steps: tuple[Unescaped, ...] = ()
        for _ in range(escapes.DEPTH + 1):
            text = text[: escapes.begun(text)]  # the rest may be the beginning of an escape
            place = self.pending(text, least=least, escapes_too=False)
            found = min(found, _Level(text, steps)(place))
            step = escapes.unescaped(text) if self._is_marked(text) else None
            if step is None:
                break
            steps, text = (*steps, step), step.text
        return found

    def check_whole(self) -> None:
        """Returns if what was searched for till here was all of it.

        Raises:
            ValueError: It is closed.
        """
        if self._closed:
            raise ValueError("wiped")

    def cut_off(self, data: bytes) -> int:
        """How many bytes ``data`` begins with that may be the end, or the middle, of a needle.

        Fewer than ``SHORTEST`` don't count, unless they are all there is.
        """
        first = re.compile(b"(?=%b)" % re.escape(data[:SHORTEST]))
        found = 0
        for needle in self._needles.secrets if data else ():
            view = needle.view()
            for match in first.finditer(view):
                with view[match.start() : match.start() + len(data)] as rest:
                    if data.startswith(rest):
                        found = max(found, len(rest))
        return found

    def close(self) -> None:
        """Wipes the needles."""
        self._closed = True
        runs = (run for run, _ in self._runs)
        for held in (*runs, *self._starts, *chain.from_iterable(self._tails)):
            held.release()
        for view, _ in chain.from_iterable(members for _, members in self._runs):
            view.release()
        for kept in (self._runs, self._usual, self._rare, self._starts, self._tails):
            kept.clear()
        self._needles.close()
        self.longest = 0


def _distinct(views: Iterable[memoryview]) -> list[memoryview]:
    found: list[memoryview] = []
    for view in views:
        if view not in found:
            found.append(view)
    return found


def _runs(views: list[memoryview]) -> Iterator[_Run]:
    """Runs, one of which each needle has, that are searched for in the least time."""
    shared = _shared(views) if sum(map(len, views)) <= _MUCH else []
    left = dict(enumerate(views))
    while shared:
        gains = [  # a search takes the longer, the shorter what is searched for
            sum(1 / len(views[at]) for at in owners.keys() & left.keys()) - 1 / len(run)
            for owners, run in shared
        ]
        gain = max(gains)
        if gain <= 0:
            break
        owners, run = shared.pop(gains.index(gain))
        yield _Run(run, [(left.pop(at), offset) for at, offset in owners.items() if at in left])
    for view in left.values():
        yield _Run(view[:], [(view, 0)])


def _shared(views: list[memoryview]) -> list[tuple[dict[int, int], memoryview]]:
    """What several needles have in common: in which ones it is, where, and it.

    Runs are distinguished by hashes, under a key that nobody keeps.
    """
    factor, mask = secrets.randbits(60) | 1, (1 << 8 * _RUN) - 1
    found: dict[int, dict[int, int]] = {}
    for number, view in enumerate(views):
        window = 0
        for at, byte in enumerate(view):
            window = (window << 8 | byte) & mask
            if at >= _RUN - 1:
                owners = found.setdefault(window * factor % _PRIME, {})
                owners.setdefault(number, at - _RUN + 1)
    wide: list[tuple[dict[int, int], memoryview]] = []
    ends: dict[tuple[Span, ...], int] = {}  # of the last run of needles side by side like this
    for owners in found.values():
        begin = min(owners.values())
        beside = tuple((number, at - begin) for number, at in owners.items())
        if len(owners) < 2 or begin < ends.get(beside, 0):
            continue
        run = _widened(views, owners)
        if run is not None:
            ends[beside] = min(owners.values()) + len(run)
            wide.append((owners, run))
    return wide


def _widened(views: list[memoryview], owners: dict[int, int]) -> memoryview | None:
    """What the needles have in common around there; ``owners`` says then where it begins.

    None: they have nothing in common, but for a hash.
    """
    (number, begin), *others = owners.items()
    first, end = views[number], begin + _RUN
    pairs = [(views[number], offset - begin) for number, offset in others]
    if any(view[begin + off : end + off] != first[begin:end] for view, off in pairs):
        return None
    least = max(0, *(-off for _, off in pairs))
    while begin > least and all(
        view[begin - 1 + off] == first[begin - 1] for view, off in pairs
    ):
        begin -= 1
    most = min(len(first), *(len(view) - off for view, off in pairs))
    while end < most and all(view[end + off] == first[end] for view, off in pairs):
        end += 1
    before = owners[number] - begin
    for owner in owners:
        owners[owner] -= before
    return first[begin:end]


def _around(data: bytes, run: _Run) -> Iterator[Span]:
    """Where needles that have the run are."""
    missed, at = 0, data.find(run.run)
    while at >= 0:
        if missed == _TRIES:
            for view, offset in run.members:
                start = max(at - offset, 0)
                while (start := data.find(view, start)) >= 0:
                    yield start, start + len(view)
                    start += 1
            return
        missed += 1
        for view, offset in run.members:
            start = at - offset
            if start >= 0 and data.startswith(view, start):
                yield start, start + len(view)
                missed = 0
        at = data.find(run.run, at + 1)


def cover(data: bytes, spans: Iterable[Span]) -> bytes:
    """``data`` with these places covered."""
    covered = bytearray(data)
    for start, end in spans:
        first, last = max(start, 0), min(end, len(data))
        covered[first:last] = COVER * (last - first)
    return bytes(covered)


class MaskedStream:
    """Covers what some masks find in one stream.

    Args:
        masks: What to search for.
        found: Gets the names of the credentials whose secret was found, before it goes on.
        piece: Whether the stream is a piece of a longer text, as of a range of bytes: then
            what it begins and ends with may be a part of a secret, and is covered as well.

    Attributes:
        held: What could begin a secret, and has not gone on.
    """

    __slots__ = ("_begun", "_covered", "_found", "_masks", "_piece", "held")

    def __init__(self, masks: Sequence[Mask], found: set[str], *, piece: bool = False) -> None:
        self._masks = masks
        self._found = found
        self._piece = piece
        self._begun = not piece
        self.held = b""
        self._covered = 0  # of what is held, by occurrences that began before it

    def feed(self, data: bytes) -> bytes:
        """What can go on; the same object, if there is nothing to cover or to hold."""
        if self.held:
            data = self.held + data
        elif not data:
            return data
        elif self._begun:
            for mask in self._masks:
                if not mask.has_none(data) or (
                    data[-1] in mask.ends and mask.pending(data) < len(data)
                ):
                    break
            else:
                return data
        if not self._begun and len(data) < max(mask.longest for mask in self._masks):
            self.held = data
            return b""
        cut, spans = len(data), self._spans(data)
        for mask in self._masks:
            cut = min(cut, mask.pending(data))
            mask.check_whole()
        return self._passed(data, cut, spans)

    def finish(self) -> bytes:
        """What was held, at the stream's end."""
        data = self.held
        if not data:
            return data
        spans = self._spans(data)
        if self._piece:
            spans += [(mask.pending(data, least=SHORTEST), len(data)) for mask in self._masks]
        return self._passed(data, len(data), spans)

    def _spans(self, data: bytes) -> list[Span]:
        # It began before what is held: also where nothing of that goes on.
        spans: list[Span] = [(-1, self._covered)] if self._covered else []
        for mask in self._masks:
            if found := mask.spans(data):
                spans += found
                self._found.add(mask.name)
            if not self._begun and (cut_off := mask.cut_off(data)):
                spans.append((0, cut_off))
                self._found.add(mask.name)
        self._begun = True
        return spans

    def _passed(self, data: bytes, cut: int, spans: list[Span]) -> bytes:
        self.held = data[cut:]
        if not spans:
            return data[:cut]
        across = [end for start, end in spans if start < cut]
        self._covered = max(max(across, default=0) - cut, 0)
        return cover(data[:cut], [span for span in spans if span[0] < cut])


def masked(data: bytes, masks: Sequence[Mask], found: set[str]) -> bytes:
    """A whole text with all occurrences covered; the same object, if there is none."""
    spans: list[Span] = []
    for mask in masks:
        if there := mask.spans(data):
            spans += there
            found.add(mask.name)
    return cover(data, spans) if spans else data

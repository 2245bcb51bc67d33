"""Searches the log: one invocation's trace, earlier events, a text.

Guarantee: what is given out is checked, line by line, and a line that is not what was written
is counted and shown as that; a search passes over none of either. One step is bounded: in the
lines that it reads, in those that it takes apart, and in what it gives. It blocks: call it in
a thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import takewhile
from operator import itemgetter
from pathlib import Path
from typing import Final

import msgspec

from apex_creds.audit import line as lines
from apex_creds.audit.events import Recorded
from apex_creds.audit.segment import (
    SegmentReader,
    edge_before,
    find_segment,
    read_segment,
    segments,
)
from apex_creds.audit.tree import Frontier
from apex_creds.dashboard.event_words import Sieve
from apex_creds.errors import AuditTamperedError, InvalidInputError

# -- traces ---------------------------------------------------------------------------------


MAX_EVENTS: Final = 1000
_ROUNDS: Final = 6
_ID: Final = re.compile(r"[0-9a-f]{32}")
_NUMBER: Final = re.compile(rb'\{"v":\d{1,9},"seq":(\d{1,18}),')


def trace(directory: Path, *, vault_id: str, invocation: str) -> tuple[list[Recorded], bool]:
    """The events of an invocation and related ones, oldest first; and whether that is all.

    Raises:
        InvalidInputError: That is no id, or the log has no such invocation.
        AuditTamperedError: One of these lines is not what was written.
        AuditUnavailableError: The log can't be read.
    """
    if _ID.fullmatch(invocation) is None:
        raise InvalidInputError("That is not the id of an invocation or lease.")
    ids, found, whole = {invocation}, dict[int, Recorded](), False
    for _ in range(_ROUNDS):
        found = _mentioning(directory, vault_id, ids)
        kin = {i for event in found.values() for i in (event.invocation, event.lease) if i}
        whole = kin <= ids and len(found) <= MAX_EVENTS
        if kin <= ids or len(found) > MAX_EVENTS:
            break
        ids |= kin
    if not found:
        raise InvalidInputError("The audit log has no such invocation.")
    return [found[seq] for seq in sorted(found)][:MAX_EVENTS], whole


def _mentioning(directory: Path, vault_id: str, ids: set[str]) -> dict[int, Recorded]:
    wanted = re.compile(b"|".join(sorted(i.encode() for i in ids)))
    found: dict[int, Recorded] = {}
    for number, path in segments(directory).items():
        data = read_segment(path)
        head = data[: data.find(b"\n") + 1]
        if lines.parse_header(head, segment=number, vault_id=vault_id) is None:
            raise _altered(path.name)
        for text in _lines_with(wanted, data, len(head)):
            if not _written(text):
                raise _altered(path.name)
            event = lines.decode(text)
            if ids & {event.invocation, event.lease, event.parent}:
                found[event.seq] = event
        if len(found) > MAX_EVENTS:
            break
    return found


def _lines_with(wanted: re.Pattern[bytes], data: bytes, start: int) -> Iterator[bytes]:
    """The lines in which something is found, each once; nothing else is read."""
    while match := wanted.search(data, start):
        begin = data.rfind(b"\n", 0, match.start()) + 1
        start = data.find(b"\n", match.end()) + 1
        if not start:
            return  # its end is being written
        yield data[begin:start]


def _written(text: bytes) -> int:
    """The number that a line gives itself, where that is what was written; else 0."""
    found = _NUMBER.match(text)
    number = int(found[1]) if found else 0
    return 0 if not number or lines.fault(number, text) else number


def placed(expected: int, text: bytes) -> tuple[int, str]:
    """The number of a line (0: it is no event that was written), and what is wrong with it."""
    wrong = lines.fault(expected, text)
    return _written(text) if wrong else expected, wrong


def _altered(segment: str) -> AuditTamperedError:
    return AuditTamperedError(
        f"A line of {segment} is not what was written.", hint="Run: apex-creds audit verify"
    )


# -- step by step back ----------------------------------------------------------------------


Shown = dict[str, object]
PAGE: Final = 200
"""How many earlier events are given at once."""
LOOKED_AT: Final = 20_000
"""How many lines a step takes apart."""
READ: Final = 50_000
"""How many lines a step reads."""
_NEAR: Final = 2_500
"""After so many lines a step is over that has found something: what is near comes soon."""
_WINDOW: Final = 20_000

_Item = tuple[int, bytes, str]
"""Number and line of an event, or b"" and what is wrong with it."""


class Earlier(msgspec.Struct, frozen=True):
    """A step back in the log.

    Attributes:
        events: Oldest first.
        reached: From which number on that is all.
        faults: How many lines are not what was written; the step went on behind them.
    """

    events: list[Shown]
    reached: int
    faults: int


def earlier(
    directory: Path,
    *,
    vault_id: str,
    before: int,
    shown: Callable[[Recorded], Shown],
    fault: Callable[[int, str], Shown],
    wanted: Callable[[Shown], bool] | None = None,
    sieve: Sieve | None = None,
) -> Earlier:
    """The events before a number.

    Args:
        directory: The log's.
        vault_id: Whose.
        before: Where to begin.
        shown: How the page gets an event.
        fault: How it gets a line that is not what was written.
        wanted: Of those, which; None: all.
        sieve: Knows lines that can't be wanted; None: any may be.

    Raises:
        AuditTamperedError: A segment is missing.
        AuditUnavailableError: The log can't be read.
    """
    log = _Log(directory, vault_id, sieve)
    reached = before = log.clip(before)
    found: list[tuple[int, Shown]] = []  # newest first
    least = max(1, before - (PAGE if wanted is None else READ))
    size, looked, faults = _NEAR, 0, 0
    while reached > least and len(found) <= PAGE and looked < LOOKED_AT:
        if found and before - reached >= _NEAR:
            break
        first, items = log.window(max(least, reached - size), reached)
        size = min(2 * size, _WINDOW)
        for seq, text, wrong in items:
            if len(found) > PAGE or (looked >= LOOKED_AT and seq < reached):
                break
            reached = seq
            looked, faults = looked + 1, faults + bool(wrong)
            event = fault(seq, wrong) if wrong else shown(lines.decode(text))
            if wanted is None or wanted(event):
                found.append((seq, event))
        else:
            reached = first
    if len(found) > PAGE:
        reached = found[-1][0] + 1
    return Earlier([event for seq, event in reversed(found) if seq >= reached], reached, faults)


class _Log:
    """The log during one step, in windows that are each of one segment."""

    def __init__(self, directory: Path, vault_id: str, sieve: Sieve | None) -> None:
        self._paths = segments(directory)
        self._vault_id = vault_id
        self._sieve = sieve
        self._edges: dict[int, Frontier] = {}
        self._open: tuple[int, SegmentReader] | None = None

    def clip(self, before: int) -> int:
        """``before``, or the number after the last event's."""
        if not self._paths:
            return 1
        try:
            for text in self._reader(len(self._paths)).lines_backwards():
                if number := lines.number_of(text):
                    return max(1, min(before, number + 1))
        except AuditTamperedError:
            pass
        return max(1, before)

    def window(self, first: int, before: int) -> tuple[int, list[_Item]]:
        """The events from ``first`` on, or from a later one on, before another; newest first.

        Those that the sieve holds back are left out where every line is as it was written.
        """
        number, begins = self._segment_of(before - 1)
        first = max(first, begins)
        try:
            body = self._whole(number, first, before)
        except AuditTamperedError as error:  # the file as a whole
            return begins, [(begins, b"", error.message)]
        if body is None:
            window = self._from(number, first)
            items = sorted(takewhile(lambda item: item[0] < before, window), key=itemgetter(0))
        elif self._sieve is not None:
            items = [(lines.number_of(text), text, "") for text in self._sieve.lines(body)]
        else:
            items = [(n, text, "") for n, text in enumerate(body.splitlines(True), first)]
        return first, items[::-1]

    def _segment_of(self, seq: int) -> tuple[int, int]:
        """The segment of an event, and the number of its first one."""
        paths, vault_id, known = self._paths, self._vault_id, self._edges
        with suppress(AuditTamperedError):
            number, edge = find_segment(paths, vault_id=vault_id, after=seq - 1, known=known)
            return number, edge.size + 1
        for number in reversed(paths):  # the last one that says that it begins before it
            with suppress(AuditTamperedError):
                edge = edge_before(paths, number, vault_id=vault_id, known=known)
                if edge.size < seq:
                    return number, edge.size + 1
        return 1, 1

    def _reader(self, number: int) -> SegmentReader:
        if self._open is None or self._open[0] != number:
            self._open = None  # first: a compressed one is in memory
            self._open = number, SegmentReader(self._paths[number])
        return self._open[1]

    def _whole(self, number: int, first: int, before: int) -> bytes | None:
        """The lines from ``first`` on, before another; None: not all are as written.

        Raises:
            AuditTamperedError: The segment can't be read.
        """
        segment = self._reader(number)
        start, end = _place(segment, first), _place(segment, before)
        if start < 0:
            return None
        body = segment.read(start, segment.size if end < 0 else end)
        if end < 0:  # the segment ends before it
            body = body[: body.rfind(b"\n") + 1]
            last = body.rfind(b"\n", 0, -1) + 1
            if lines.parse_seal(body[last:], segment=number) == before - 1:
                body = body[:last]
        leaves, wrong = lines.leaves_of(body, first)
        return None if wrong or len(leaves) != before - first else body

    def _from(self, number: int, first: int) -> Iterator[_Item]:
        """Every line from event ``first`` on, and what is wrong where one is no such event."""
        last = first - 1
        for each in range(number, len(self._paths) + 1):
            try:
                with SegmentReader(self._paths[each]) as segment:
                    for found in _lines_of(segment, each, self._vault_id, first, last + 1):
                        last = found[0]
                        if last >= first:
                            yield found
            except AuditTamperedError as error:  # the file as a whole
                yield last + 1, b"", error.message


def _place(segment: SegmentReader, seq: int) -> int:
    """Where an event's line begins; negative: it is not there."""
    place = segment.offset_of(seq)
    for text in segment.lines(place):
        if (number := lines.number_of(text)) >= seq:
            return place if number == seq else -1
        place += len(text)
    return -1


def _lines_of(
    segment: SegmentReader, number: int, vault_id: str, first: int, seq: int
) -> Iterator[tuple[int, bytes, str]]:
    start = segment.offset_of(first)
    for place, text in enumerate(segment.lines(start)):
        if place == 0:
            edge = lines.parse_header(text, segment=number, vault_id=vault_id)
            seq = lines.number_of(text) or seq if edge is None else edge.size + 1
            if edge is not None:
                continue
            if not start:
                yield seq, b"", "is not in a segment of this vault"
                continue
        if not text.endswith(b"\n") or text == lines.seal(segment=number, last=seq - 1):
            return
        stated, wrong = placed(seq, text)
        if wrong:
            yield seq, b"", wrong
        if stated:
            yield stated, text, ""
        seq = (stated or seq) + 1

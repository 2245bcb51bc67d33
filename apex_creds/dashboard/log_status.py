"""The log as the page shows it: whether it verifies, what plugins did, one invocation's trace.

Guarantee: ``ok`` is only said of what was checked against the vault's signed checkpoints;
what an incremental check does not read again, the next full one does. Each event of a trace
is checked. What plugins did is bounded, however many names there are. What reads
the log blocks: call it in a thread.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from apex_creds.audit import line as lines
from apex_creds.audit.checkpoint import Checkpoint, CheckpointFile
from apex_creds.audit.events import EventKind, Recorded
from apex_creds.audit.segment import SegmentReader, find_segment, read_segment, segments
from apex_creds.audit.verify import Progress, Report, check_now
from apex_creds.errors import ApexCredsError, AuditTamperedError, InvalidInputError

# -- verification ---------------------------------------------------------------------------


FULL_SECONDS: Final = 900.0
"""How old a check of everything may get."""


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """How the log is.

    Attributes:
        state: ``checking``, ``ok``, ``bad``, or ``unknown``: it could not be read.
        count: Events that verify; ``signed`` of them by a checkpoint.
        what: What is wrong, or why it is not known.
        at: When that was found, Unix seconds; ``full`` is when all was last read.
        took: Seconds.
    """

    state: str = "checking"
    count: int = 0
    signed: int = 0
    checkpoints: int = 0
    head: str = ""
    bad: int = 0
    what: str = ""
    at: float = 0.0
    full: float = 0.0
    took: float = 0.0


class Verifier:
    """Checks one vault's log again and again."""

    def __init__(self, directory: Path, *, vault_id: str) -> None:
        self._directory = directory
        self._vault_id = vault_id
        self._known: Checkpoint | None = None
        self._full = 0.0
        self.last = Verified()

    def check(self, *, full: bool = False, progress: Progress | None = None) -> Verified:
        """Checks what is new, or everything where that is due or asked for."""
        began, now = time.perf_counter(), time.time()
        full = full or self._known is None or now - self._full > FULL_SECONDS
        try:
            newest = CheckpointFile(self._directory, vault_id=self._vault_id).last()
            report = check_now(
                self._directory,
                vault_id=self._vault_id,
                since=None if full else self._known,
                progress=progress,
            )
        except AuditTamperedError as error:
            found = Verified(state="bad", what=error.message, at=now, full=self._full)
        except ApexCredsError as error:
            found = Verified(state="unknown", what=error.message, at=now, full=self._full)
        else:
            found = self._judge(report, newest, now, full=full)
        took = time.perf_counter() - began
        self.last = msgspec.structs.replace(found, took=took)
        return self.last

    def _judge(
        self, report: Report, newest: Checkpoint | None, now: float, *, full: bool
    ) -> Verified:
        if report.ok:
            self._full = now if full else self._full
            if newest is not None and newest.size <= report.signed:
                self._known = newest
        else:
            self._known = None
        where = f"Event {report.bad_line} ({report.segment}) {report.how}."
        return Verified(
            state="ok" if report.ok else "bad",
            count=report.count,
            signed=report.signed,
            checkpoints=report.checkpoints,
            head=report.head,
            bad=report.bad_line,
            what="" if report.ok else where,
            at=now,
            full=self._full,
        )


# -- activity -------------------------------------------------------------------------------


MAX_PAIRS: Final = 20_000
_ASKED: Final = "consent_"


class Use(msgspec.Struct):
    """One plugin and one credential.

    Attributes:
        used: When it was last redeemed; ``denied`` likewise; 0: never.
        why: The reason of the last denial.
        answer: What a person last answered, and when.
    """

    redeems: int = 0
    used: float = 0.0
    denials: int = 0
    denied: float = 0.0
    why: str = ""
    answer: str = ""
    answered: float = 0.0


class Activity:
    """Takes events in their order; knows what was done."""

    def __init__(self) -> None:
        self.pairs: dict[tuple[str, str], Use] = {}
        self.changes = 0

    def take(self, event: Recorded) -> None:
        """One more event."""
        if not event.plugin or not event.credential:
            return
        if event.kind is EventKind.REDEEM:
            use = self._pair(event)
            use.redeems, use.used = use.redeems + 1, event.time
        elif event.kind is EventKind.DENIAL:
            use = self._pair(event)
            use.denials, use.denied, use.why = use.denials + 1, event.time, event.reason
        elif event.kind is EventKind.GRANT and event.reason.startswith(_ASKED):
            use = self._pair(event)
            use.answer, use.answered = event.reason.removeprefix(_ASKED), event.time

    def _pair(self, event: Recorded) -> Use:
        self.changes += 1
        key = (event.plugin, event.credential)
        found = self.pairs.get(key)
        if found is None:
            if len(self.pairs) >= MAX_PAIRS:
                self.pairs.pop(next(iter(self.pairs)))
            found = self.pairs[key] = Use()
        return found


# -- traces ---------------------------------------------------------------------------------


MAX_EVENTS: Final = 1000
_ROUNDS: Final = 6
_ID: Final = re.compile(r"[0-9a-f]{32}")
_NUMBER: Final = re.compile(rb'\{"v":\d{1,9},"seq":(\d{1,18}),')


def trace(directory: Path, *, vault_id: str, invocation: str) -> tuple[list[Recorded], bool]:
    """The events of an invocation and its kin, oldest first; and whether that is all.

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
            if not number_of(text):
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


def number_of(text: bytes) -> int:
    """The number that a line gives itself, where that is what was written; else 0."""
    found = _NUMBER.match(text)
    number = int(found[1]) if found else 0
    return 0 if not number or lines.fault(number, text) else number


def placed(expected: int, text: bytes) -> tuple[int, str]:
    """The number of a line (0: it is no event that was written), and what is wrong with it."""
    wrong = lines.fault(expected, text)
    return number_of(text) if wrong else expected, wrong


def _altered(segment: str) -> AuditTamperedError:
    return AuditTamperedError(
        f"A line of {segment} is not what was written.", hint="Run: apex-creds audit verify"
    )


Shown = dict[str, object]
PAGE: Final = 200
"""How many earlier events are given at once."""
LOOKED_AT: Final = 20_000
"""In how many a search looks at once."""


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
) -> Earlier:
    """The events before a number.

    Args:
        directory: The log's.
        vault_id: Whose.
        before: Where to begin.
        shown: How the page gets an event.
        fault: How it gets a line that is not what was written.
        wanted: Of those, which; None: all.

    Raises:
        AuditTamperedError: A segment is missing.
        AuditUnavailableError: The log can't be read.
    """
    first = max(1, before - (PAGE if wanted is None else LOOKED_AT))
    found: deque[tuple[int, Shown]] = deque(maxlen=PAGE + 1)
    faults = 0
    for seq, text, wrong in _readable(directory, vault_id, first):
        if seq >= before:
            break
        faults += bool(wrong)
        event = fault(seq, wrong) if wrong else shown(lines.decode(text))
        if wanted is None or wanted(event):
            found.append((seq, event))
    if len(found) > PAGE:
        first = found[0][0] + 1
    return Earlier([event for seq, event in found if seq >= first], first, faults)


def _readable(directory: Path, vault_id: str, first: int) -> Iterator[tuple[int, bytes, str]]:
    """Number and line of each event from ``first`` on, and what is wrong with it."""
    paths = segments(directory)
    try:
        number = find_segment(paths, vault_id=vault_id, after=first - 1, known={})[0]
    except AuditTamperedError:
        number = 1
    last = first - 1
    for each in range(number, len(paths) + 1):
        try:
            with SegmentReader(paths[each]) as segment:
                for found in _lines_of(segment, each, vault_id, first, last + 1):
                    last = found[0]
                    if last >= first:
                        yield found
        except AuditTamperedError as error:  # the file as a whole
            yield last + 1, b"", error.message


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

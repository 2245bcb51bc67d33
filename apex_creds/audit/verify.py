"""Reading the log and proving that nobody changed it; needs no vault, and no secret key.

Guarantee: any change of any byte of a segment or checkpoint, and any line removed, added,
repeated or moved, is found; it is located to the line where the line's own hash was not
altered with it, else to the events between two checkpoints. What is after the newest
checkpoint is not signed yet, and counted as such; that the newest itself is missing shows
against the vault's anchor or a copy kept elsewhere (``since``). How much may be unsigned
while a process has the log open is built in: no file can raise it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from apex_creds.audit import line as lines
from apex_creds.audit.checkpoint import (
    COSIGNED,
    Checkpoint,
    CheckpointFile,
    check_signatures,
    read_keys,
)
from apex_creds.audit.crash_recovery import parse
from apex_creds.audit.events import Recorded
from apex_creds.audit.line import leaves_of
from apex_creds.audit.log_files import missing, open_directory, try_lock
from apex_creds.audit.note import VerifierKey
from apex_creds.audit.segment import (
    SegmentReader,
    file_name,
    find_segment,
    read_segment,
    segments,
)
from apex_creds.audit.summary import Summaries
from apex_creds.audit.tree import Frontier
from apex_creds.errors import ApexCredsError, AuditTamperedError, IntegrityError

__all__ = [
    "MAX_UNSIGNED",
    "MAX_UNSIGNED_SECONDS",
    "Progress",
    "Report",
    "check",
    "check_newest",
    "check_now",
    "entries",
    "in_use",
    "judged",
    "latest",
    "read",
    "verify",
]

Progress = Callable[[int, int], None]
"""Called with how many bytes of how many are done."""

MAX_UNSIGNED: Final = 100_000
MAX_UNSIGNED_SECONDS: Final = 300.0
"""No process that works leaves more events unsigned, nor one for longer (``Cadence``)."""

_NEWEST: Final = 1 << 20
"""Bytes of the newest segment that ``check_newest`` reads."""

_KILLED: Final = "their writer was killed, or not ours"
_HINT: Final = "Keep a copy, find out who did it, and restore the file."


class Report(msgspec.Struct, frozen=True):
    """What a check of the log found.

    Attributes:
        count: Events that verify, from the first on.
        head: Root of the tree of these (64 hexadecimal digits).
        bad_line: The first event that does not verify; 0 when all do.
        how: What is wrong with it, as the end of a sentence.
        segment: The file that it is in, or should be.
        signed: Events that the newest checkpoint covers.
        checkpoints: Checkpoints that verify.
    """

    count: int
    head: str
    bad_line: int = 0
    how: str = ""
    segment: str = ""
    signed: int = 0
    checkpoints: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything verifies."""
        return not self.bad_line

    @property
    def wrong(self) -> str:
        """The first event that does not verify, as a sentence."""
        return _wrong(self.bad_line, self.how, self.segment)

    @property
    def unsigned(self) -> int:
        """Events after the newest checkpoint: of a log in use, or of a killed process."""
        return self.count - self.signed


class _BadError(Exception):
    """Ends a check: where, and how it is bad."""

    def __init__(self, seq: int, how: str, segment: str) -> None:
        super().__init__(how)
        self.seq, self.how, self.segment = seq, how, segment


def check(
    directory: Path,
    *,
    vault_id: str,
    keys: Sequence[VerifierKey] = (),
    since: Checkpoint | None = None,
    complete: bool = False,
    now: float | None = None,
    progress: Progress | None = None,
) -> Report:
    """Checks the log and its checkpoints, and says what it found.

    Args:
        directory: The log's.
        vault_id: Whose log it must be.
        keys: The log's verifier key, then its witnesses'; by default those that the
            directory itself names, which are as trustworthy as the directory.
        since: A checkpoint that was verified before: segments before it are not read again.
        complete: Events that no checkpoint covers are bad: nobody has the log open, so
            they are of a process that was killed, or of someone else.
        now: The time, Unix seconds: a process has the log open, which signs soon. So a log
            with events and no checkpoint is bad, as are more than ``MAX_UNSIGNED`` events
            that are not signed, and one that waits for ``MAX_UNSIGNED_SECONDS``.
        progress: See there.

    Raises:
        AuditTamperedError: There is no log at all.
        AuditUnavailableError: It can't be read.
        UnsafePathError: A file is a symbolic link or not a regular file.
    """
    found = _Check(Path(directory), vault_id, tuple(keys), since).run(progress)
    if not found.ok or not found.unsigned:
        return found
    if complete:
        return _unsigned(directory, found, vault_id, _KILLED)
    first = next(read(directory, vault_id=vault_id, after=found.signed), None)
    if now is None or first is None:
        return found
    return judged(directory, found, vault_id=vault_id, waits=abs(now - first.time))


def judged(directory: Path, found: Report, *, vault_id: str, waits: float) -> Report:
    """What ``check`` says where a process has the log open, which signs soon.

    Args:
        directory: The log's.
        found: What ``check`` found without the time.
        vault_id: Whose log it is.
        waits: Seconds for which the first event that is not signed has been there.
    """
    if not found.ok or not found.unsigned:
        return found
    if not found.signed:
        why = "there is no checkpoint, and each process signs as soon as it opens the log"
    elif found.unsigned > MAX_UNSIGNED:
        why = f"a process signs {MAX_UNSIGNED} at the latest"
    elif waits > MAX_UNSIGNED_SECONDS:
        why = f"a process signs each after {MAX_UNSIGNED_SECONDS:.0f} seconds at the latest"
    else:
        return found
    return _unsigned(directory, found, vault_id, why)


def _unsigned(directory: Path, found: Report, vault_id: str, why: str) -> Report:
    paths = _found(Path(directory))
    return msgspec.structs.replace(
        found,
        bad_line=found.signed + 1,
        how=f"and {found.unsigned - 1} more are not signed: {why}",
        segment=paths[_segment_of(paths, vault_id, found.signed)].name,
    )


def check_now(
    directory: Path,
    *,
    vault_id: str,
    keys: Sequence[VerifierKey] = (),
    since: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Report:
    """Checks as ``check`` does, with what may be unsigned at this moment."""
    complete = not in_use(directory)
    return check(
        directory,
        vault_id=vault_id,
        keys=keys,
        since=since,
        complete=complete,
        now=None if complete else time.time(),
        progress=progress,
    )


def check_newest(directory: Path, *, vault_id: str) -> range:
    """Checks the end of the newest segment: as quick however long the log is.

    Returns:
        The numbers of the events that verify; those before them were not read. Where that
        is all of the segment, they are what the newest checkpoint states, too.

    Raises:
        AuditTamperedError: One does not, or they are not what the newest checkpoint states.
        AuditUnavailableError: The log can't be read.
        UnsafePathError: A file is a symbolic link or not a regular file.
    """
    number, path = list(_found(directory).items())[-1]
    with SegmentReader(path) as segment:
        data = segment.read(max(0, segment.size - _NEWEST), segment.size)
        whole = len(data) == segment.size
    if not whole:  # the whole lines in its last bytes, each by itself and its number
        begin, first = lines.first_in(data)
        data = data[begin : data.rfind(b"\n") + 1] if begin >= 0 else b""
        start = data.rfind(b"\n", 0, -1) + 1
        seal = lines.seal(segment=number, last=first + data.count(b"\n") - 2)
        leaves, wrong = lines.leaves_of(data[:start] if data[start:] == seal else data, first)
        if wrong or not leaves:
            how = wrong or "and related ones are missing"
            raise _tampered(first + len(leaves), how, path.name)
        return range(first, first + len(leaves))
    found = parse(data, number=number, vault_id=vault_id)
    newest = CheckpointFile(directory, vault_id=vault_id).last()
    covered = newest is not None and found.edge.size <= newest.size <= found.last
    if newest is not None and covered and found.edge_at(newest.size).root() != newest.root:
        raise _tampered(newest.size, "or one before it is not as it was signed", path.name)
    return range(found.edge.size + 1, found.last + 1)


def in_use(directory: Path) -> bool:
    """Whether a process has the log open."""
    try:
        presence = open_directory(Path(directory))
    except ApexCredsError:
        return True  # not ours: nobody can tell
    if presence < 0:  # pragma: no cover - Windows
        return True
    try:
        return not try_lock(presence)
    finally:
        os.close(presence)


def verify(
    directory: Path,
    *,
    vault_id: str,
    keys: Sequence[VerifierKey] = (),
    since: Checkpoint | None = None,
) -> Report:
    """Checks the log like ``check``, and raises if anything does not verify.

    Raises:
        AuditTamperedError: Names the first bad event and how it is bad.
        AuditUnavailableError: It can't be read.
        UnsafePathError: A file is a symbolic link or not a regular file.
    """
    report = check(directory, vault_id=vault_id, keys=keys, since=since)
    if not report.ok:
        raise _tampered(report.bad_line, report.how, report.segment)
    return report


class _Check:
    """One pass over the log."""

    def __init__(
        self,
        directory: Path,
        vault_id: str,
        keys: tuple[VerifierKey, ...],
        since: Checkpoint | None,
    ) -> None:
        self._directory = directory
        self._vault_id = vault_id
        self._keys = keys
        self._since = since
        self._edge = Frontier()
        self._good = 0
        self._verified = 0
        self._marks: list[Checkpoint] = []
        self._segment = ""

    def run(self, progress: Progress | None) -> Report:
        bad: _BadError | None = None
        try:
            self._walk(progress)
        except _BadError as error:
            bad = error
        except AuditTamperedError as error:
            if not self._segment:
                raise
            bad = _BadError(self._edge.size + 1, error.message.rstrip("."), self._segment)
        report = Report(
            self._edge.size,
            self._edge.root().hex(),
            signed=self._good,
            checkpoints=self._verified,
        )
        if bad is None:
            return report
        place = {"bad_line": bad.seq, "how": bad.how, "segment": bad.segment}
        return msgspec.structs.replace(report, **place)

    def _walk(self, progress: Progress | None) -> None:
        paths = _found(self._directory)
        self._segment = paths[1].name
        self._marks = self._checkpoints()
        total = sum(map(_size, paths.values()))
        done, first = 0, 1
        if self._since is not None:  # those before the checkpoint known before are not read
            with suppress(AuditTamperedError):
                first, self._edge = find_segment(
                    paths, vault_id=self._vault_id, after=self._since.size, known={}
                )
        for number, path in paths.items():
            if number < first:
                continue
            self._segment = path.name
            self._read_one(number, path, last=number == len(paths))
            done += _size(path)
            if progress is not None:
                progress(done, total)
        if self._marks:
            stated = self._marks[-1].size
            gone = stated - self._edge.size
            raise self._bad(
                self._edge.size + 1,
                f"is missing: a checkpoint states {stated} events, {gone} more than there are",
            )

    # -- checkpoints -----------------------------------------------------------------

    def _checkpoints(self) -> list[Checkpoint]:
        """All checkpoints, in the order of their sizes, their signatures checked."""
        keys = self._keys or read_keys(self._directory)
        found: list[Checkpoint] = []
        for name in ("checkpoints", COSIGNED):
            self._segment = name
            file = CheckpointFile(self._directory, vault_id=self._vault_id, name=name)
            for number, each in enumerate(file.all(), start=1):
                why = "" if keys else "there is no verifier key"
                try:
                    if keys:
                        check_signatures(each, keys, witnessed=name == COSIGNED)
                except IntegrityError as error:
                    why = error.message.rstrip(".")
                if why:
                    how = f"is where checkpoint {number} does not verify: {why}"
                    raise self._bad(max(each.size, 1), how)
                if name == "checkpoints" and found and each.size <= found[-1].size:
                    raise self._bad(each.size, f"is where checkpoint {number} is out of order")
                found.append(each)
        self._verified = len(found)
        known = [] if self._since is None else [self._since]
        start = self._since.size if self._since is not None else 0
        return sorted([*known, *(c for c in found if c.size >= start)], key=lambda c: c.size)

    # -- segments --------------------------------------------------------------------

    def _read_one(self, number: int, path: Path, *, last: bool) -> None:
        data = read_segment(path)
        head, _, body = data.partition(b"\n")
        edge = lines.parse_header(head + b"\n", segment=number, vault_id=self._vault_id)
        if edge is None or (edge.size, edge.hashes) != (self._edge.size, self._edge.hashes):
            raise self._bad(
                self._edge.size + 1,
                "begins a segment whose first line is not right: it was altered, lines before "
                "it were, or it is another vault's",
            )
        start, end = self._edge.size + 1, body.rfind(b"\n", 0, -1) + 1
        seal = lines.seal(segment=number, last=self._edge.size + body.count(b"\n") - 1)
        if body[end:] == seal:
            body = body[:end]
        elif not last:
            self._take(body, start)
            raise self._bad(self._edge.size + 1, "is not there, nor the end of its segment")
        self._take(body, start)

    def _take(self, body: bytes, first: int) -> None:
        """Takes lines into the tree, comparing its root with each checkpoint on the way."""
        signed = self._marks[-1].size if self._marks else 0
        leaves, wrong = leaves_of(body, first, signed)
        taken = 0
        while self._marks and self._marks[0].size <= self._edge.size + len(leaves) - taken:
            mark = self._marks.pop(0)
            upto = taken + mark.size - self._edge.size
            self._edge.extend(leaves[taken:upto])
            taken = upto
            if self._edge.root() != mark.root:
                how = f"(or a later one, up to {mark.size}) is not what was signed"
                raise self._bad(self._good + 1, how)
            self._good = mark.size
        self._edge.extend(leaves[taken:])
        if wrong:
            raise self._bad(first + len(leaves), wrong)

    def _bad(self, seq: int, how: str) -> _BadError:
        return _BadError(seq, how, self._segment)


# -- reading -----------------------------------------------------------------------------


def entries(
    directory: Path,
    *,
    vault_id: str,
    after: int = 0,
    unless: Callable[[int], bool] = lambda _: False,
) -> Iterator[tuple[int, bytes]]:
    """Yields number and line of the events above ``after``, each checked by itself.

    What is before them is not read, but for some lines.

    Args:
        directory: The log's.
        vault_id: Whose log it is.
        after: The number of an event.
        unless: Asked before a segment is read; one for which it is true is left out.

    Raises:
        AuditTamperedError: At the first bad line that is read.
        AuditUnavailableError: The log can't be read.
        UnsafePathError: A file is a symbolic link or not a regular file.
    """
    paths = _found(Path(directory))
    number = _segment_of(paths, vault_id, after)
    for each in range(number, len(paths) + 1):
        if unless(each):
            continue
        for seq, text in _entries_of(paths[each], each, vault_id, after):
            if seq > after:
                yield seq, text


def _entries_of(
    path: Path, number: int, vault_id: str, after: int = 0
) -> Iterator[tuple[int, bytes]]:
    with SegmentReader(path) as segment:
        start = segment.offset_of(after)
        texts = segment.lines(start)
        text = next(texts, b"")
        if start:
            seq = lines.number_of(text)
        else:
            edge = lines.parse_header(text, segment=number, vault_id=vault_id)
            if edge is None:
                raise _tampered(1, "is not in a segment of this vault", path.name)
            seq, text = edge.size + 1, next(texts, b"")
        while text and text != lines.seal(segment=number, last=seq - 1):
            if wrong := lines.fault(seq, text):
                raise _tampered(seq, wrong, path.name)
            yield seq, text
            seq, text = seq + 1, next(texts, b"")


def read(
    directory: Path, *, vault_id: str, after: int = 0, since: float = 0.0
) -> Iterator[Recorded]:
    """Yields the events with numbers above ``after`` and times from ``since`` on, Unix seconds.

    A sealed segment of which the log's key signed that all of it is older is not read.

    Raises as ``entries``.
    """
    key = next(iter(read_keys(Path(directory))), None) if since else None
    summaries = Summaries(Path(directory), vault_id=vault_id, key=key)

    def older(number: int) -> bool:
        found = summaries.of(number)
        return found is not None and found.latest < since

    for _, text in entries(directory, vault_id=vault_id, after=after, unless=older):
        event = lines.decode(text)
        if event.time >= since:
            yield event


def latest(directory: Path, *, vault_id: str) -> Iterator[Recorded]:
    """Yields the events, newest first; what is before the last that is taken is not read.

    Raises as ``entries``, before any event that is older than a bad line.
    """
    seq: int | None = None
    for number, path in reversed(_found(Path(directory)).items()):
        with SegmentReader(path) as segment:
            edge = None
            for place, text in enumerate(segment.lines_backwards()):
                if stated := lines.number_of(text):
                    seq = stated if seq is None else seq
                    if lines.fault(seq, text):
                        raise _first_bad(path, number, vault_id, seq)
                    yield lines.decode(text)
                    seq -= 1
                    continue
                last = lines.parse_seal(text, segment=number) if place == 0 else None
                edge = lines.parse_header(text, segment=number, vault_id=vault_id)
                before = last if edge is None else edge.size
                if before is None or seq not in (None, before):
                    raise _first_bad(path, number, vault_id, seq or 1)
                seq = before
            if edge is None:
                raise _first_bad(path, number, vault_id, seq or 1)


def _first_bad(path: Path, number: int, vault_id: str, seq: int) -> AuditTamperedError:
    """What is wrong with the first bad line of a segment, one of which is event ``seq``."""
    try:
        for _ in _entries_of(path, number, vault_id):
            pass
    except AuditTamperedError as error:
        return error
    return _tampered(seq, "is not the event of that number", path.name)


def _segment_of(paths: dict[int, Path], vault_id: str, after: int) -> int:
    """The newest segment that begins at or before the event after ``after``."""
    try:
        return find_segment(paths, vault_id=vault_id, after=after, known={})[0] if after else 1
    except AuditTamperedError:
        return 1  # reading on from there finds what is wrong, and where


def _found(directory: Path) -> dict[int, Path]:
    paths = segments(directory)
    if not paths:
        raise missing(directory / file_name(1))
    return paths


def _size(path: Path) -> int:
    """For the progress only: one that was compressed meanwhile has none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _tampered(seq: int, how: str, segment: str) -> AuditTamperedError:
    return AuditTamperedError(_wrong(seq, how, segment), hint=_HINT)


def _wrong(seq: int, how: str, segment: str) -> str:
    where = f" ({segment})" if segment else ""
    return f"Event {seq} of the audit log{where} {how}."

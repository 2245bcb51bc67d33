"""Finding the end of a log, and that it is the log it was.

Guarantee: what is opened is a log of this vault whose open segment was read whole: its tree
has the roots that the newest checkpoint and every anchor state, and each event after the
last signed one has its own hash. Older segments are read only where an anchor needs them;
``verify`` reads everything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from apex_creds.audit import line, log_files
from apex_creds.audit.checkpoint import (
    Checkpoint,
    CheckpointFile,
    LogKey,
    altered,
    ensure_keys,
)
from apex_creds.audit.log_files import unavailable
from apex_creds.audit.segment import Segment, file_name, is_compressed, read_segment, segments
from apex_creds.audit.tree import Frontier
from apex_creds.errors import (
    ApexCredsError,
    AuditTamperedError,
    AuditUnavailableError,
    IntegrityError,
    RollbackDetectedError,
)

__all__ = ["HINT", "Content", "End", "add_segment", "find_end", "parse", "tampered"]

HINT: Final = "Keep a copy, run `apex-creds audit verify`, and restore the file."
_MAKING: Final = 30.0
"""Seconds to wait for another process that makes the log."""
_RESTORE: Final = (
    "Put the newest copy back. After a restore on purpose: "
    "apex-creds audit accept-rollback --reason …"
)


def tampered(seq: int, wrong: str) -> AuditTamperedError:
    """Returns the error for an event of the log."""
    return AuditTamperedError(f"Event {seq} of the audit log {wrong}.", hint=HINT)


@dataclass(slots=True)
class Content:
    """What a segment holds: the tree before it, its leaves, and where its lines end."""

    edge: Frontier
    leaves: list[bytes]
    end: int
    sealed: bool

    @property
    def last(self) -> int:
        """The number of its last event."""
        return self.edge.size + len(self.leaves)

    def edge_at(self, size: int) -> Frontier:
        """The tree at a size within the segment; with the nodes that end in it."""
        edge = self.edge.copy()
        edge.nodes = []
        edge.extend(self.leaves[: size - edge.size])
        return edge


def parse(data: bytes, *, number: int, vault_id: str, trusted: int = 0) -> Content:
    """Reads a segment's bytes; a torn last line is left out.

    Args:
        data: All of them.
        number: Which segment it is.
        vault_id: Whose.
        trusted: Up to this event, lines are only asked for their leaves.

    Raises:
        AuditTamperedError: The first line is not that of the segment, or an event is bad.
    """
    end = data.rfind(b"\n") + 1
    head, *events = data[:end].splitlines(keepends=True) or [b""]
    edge = line.parse_header(head, segment=number, vault_id=vault_id)
    if edge is None:
        raise AuditTamperedError(
            f"{file_name(number)} does not begin as a segment of this vault's audit log.",
            hint="It was altered, or is another vault's: restore it.",
        )
    last = edge.size + len(events)
    sealed = bool(events) and events[-1] == line.seal(segment=number, last=last - 1)
    if sealed:
        events.pop()
    count = max(0, trusted - edge.size)
    try:
        leaves = [line.leaf_of(each) for each in events[:count]]
    except ValueError:
        raise AuditTamperedError(
            f"An event before number {trusted} of the audit log has no hash.", hint=HINT
        ) from None
    first = edge.size + len(leaves) + 1
    checked, wrong = line.leaves_of(b"".join(events[count:]), first)
    if wrong:
        raise tampered(first + len(checked), wrong)
    return Content(edge, leaves + checked, end, sealed)


def add_segment(segment: Segment, edge: Frontier, *, vault_id: str) -> None:
    """Makes the segment after a sealed one, whose lock the caller holds.

    Nothing is made where there was one already, which may be compressed by now.

    Raises:
        AuditUnavailableError: It can't be made; then it is not there.
    """
    number = segment.number + 1
    path = segment.directory / file_name(number)
    if log_files.exists(path) or is_compressed(path):
        return
    segment.sync()
    log_files.create_whole(path, line.header(segment=number, vault_id=vault_id, edge=edge))


# -- opening -----------------------------------------------------------------------------


@dataclass(slots=True)
class End:
    """An opened log: its segment, its tree, and which faults were found and accepted.

    Attributes:
        segment: The one to write to; unlocked.
        before: The tree before it.
        edge: The whole tree, with the nodes that end in the segment.
        end: Length of the segment up to its last whole line.
        signed: Size of the newest checkpoint.
        presence: A descriptor whose lock says that the log is in use.
        alone: Nobody else had the log open.
        behind: What was rolled back, where that was accepted.
    """

    segment: Segment
    before: Frontier
    edge: Frontier
    end: int
    signed: int
    presence: int
    alone: bool
    behind: list[str] = field(default_factory=list)

    @property
    def unsigned(self) -> int:
        """How many events a writer that was killed left unsigned, if it signed at all."""
        return self.edge.size - self.signed if self.alone and self.signed else 0


def find_end(
    directory: Path,
    *,
    vault_id: str,
    key: LogKey | None,
    anchors: Sequence[Checkpoint] = (),
    accept: bool = False,
    now: float = 0.0,
) -> End:
    """Opens a log, or makes one where there was none.

    Args:
        directory: The log's; made 0700 when absent.
        vault_id: Whose log it is.
        key: Checks (and will make) its checkpoints.
        anchors: Checkpoints that the log must contain.
        accept: A log that is behind them is taken all the same.
        now: Unix seconds, to name what is set aside.

    Raises:
        RollbackDetectedError: It is behind a checkpoint or an anchor, or differs.
        AuditTamperedError: It is not what was written.
        AuditUnavailableError: It can't be opened or read.
        UnsafePathError: See ``log_files.check``, as for UnsafePermissionsError.
    """
    log_files.make_directory(directory)
    presence = log_files.open_directory(directory)
    try:
        alone = _enter(presence, directory, vault_id, anchors, accept=accept)
        found = _Finder(directory, vault_id, key).find(anchors, accept=accept, now=now)
        if presence >= 0:
            log_files.wait_for_lock(presence, log_files.TRY_SHARED)
    except BaseException:
        if presence >= 0:
            os.close(presence)
        raise
    found.presence, found.alone = presence, alone
    return found


def _enter(
    presence: int,
    directory: Path,
    vault_id: str,
    anchors: Sequence[Checkpoint],
    *,
    accept: bool,
) -> bool:
    """Whether nobody else has the log open; makes the first segment if there is none."""
    alone = presence < 0 or log_files.try_lock(presence)
    if alone:
        with suppress(OSError):
            log_files.remove_unfinished(directory)
    if segments(directory):
        return alone
    anchored = max((each.size for each in anchors), default=0)
    if anchored and not accept:
        raise _rolled_back(_behind(0, anchored, "anchored"))
    if not alone and not _wait_to_make(presence, directory):
        return False
    if not segments(directory):
        head = line.header(segment=1, vault_id=vault_id, edge=Frontier())
        log_files.create_whole(directory / file_name(1), head)
    return True


def _wait_to_make(presence: int, directory: Path) -> bool:
    """Whether it is for this process to make the first segment; waits for one that is at it.

    Who has made it keeps the log open, so its lock alone says nothing.
    """
    deadline = time.monotonic() + _MAKING
    while not segments(directory):
        if log_files.wait_for_lock(presence, log_files.TRY_LOCK):
            return True
        if time.monotonic() > deadline:
            raise AuditUnavailableError(
                "Another process is making the audit log, and does not end.",
                hint=f"See who has {directory} open.",
            )
    return False


class _Finder:
    """Reads the open segment, and what is needed of others."""

    def __init__(self, directory: Path, vault_id: str, key: LogKey | None) -> None:
        self._directory = directory
        self._vault_id = vault_id
        self._key = key
        self._checkpoints = CheckpointFile(directory, vault_id=vault_id)

    def find(self, anchors: Sequence[Checkpoint], *, accept: bool, now: float) -> End:
        signed: Checkpoint | None = None
        if self._key is not None:
            ensure_keys(self._directory, self._key.verifier)
            signed = self._checkpoints.last()
            try:
                if signed is not None:
                    signed.note.check(self._key.verifier)
            except IntegrityError:
                raise altered("the newest is not signed by this vault") from None
        segment, content = self._open_last(signed.size if signed else 0)
        try:
            return self._compared(segment, content, signed, anchors, accept=accept, now=now)
        except BaseException:
            segment.close()
            raise

    def _open_last(self, trusted: int) -> tuple[Segment, Content]:
        """Opens the newest segment; makes the next where a crash left only a sealed one."""
        while True:
            number, path = list(segments(self._directory).items())[-1]
            try:
                segment = Segment(self._directory, number)
            except AuditTamperedError:
                if len(segments(self._directory)) > number:
                    continue  # sealed and compressed by another process meanwhile
                raise log_files.missing(path.with_name(file_name(number + 1))) from None
            try:
                try:
                    segment.lock()
                    data = log_files.read_between(segment.fd, 0, segment.size())
                    content = parse(
                        data, number=number, vault_id=self._vault_id, trusted=trusted
                    )
                    if content.sealed:
                        edge = content.edge_at(content.last)
                        add_segment(segment, edge, vault_id=self._vault_id)
                except OSError as error:
                    raise unavailable("read", error) from None
                finally:
                    segment.unlock()
            except BaseException:
                segment.close()
                raise
            if not content.sealed:
                return segment, content
            segment.close()

    def _compared(
        self,
        segment: Segment,
        content: Content,
        signed: Checkpoint | None,
        anchors: Sequence[Checkpoint],
        *,
        accept: bool,
        now: float,
    ) -> End:
        behind: list[str] = []
        for each, how in ((signed, "signed"), *((each, "anchored") for each in anchors)):
            wrong = self._compare(content, each, how) if each is not None else None
            if wrong is None:
                continue
            if not accept:
                raise wrong
            behind.append(wrong.message.rstrip("."))
            if how == "signed":
                name = self._checkpoints.set_aside(int(now * 1000))
                behind.append(f"its checkpoints are now in {name}")
                signed = None
        anchored = max((each.size for each in anchors), default=0)
        if not behind and self._key is not None and anchored > (signed.size if signed else 0):
            # One is anchored when it is durable, so that it was there.
            lost = altered(f"that of {anchored} events, which was anchored, is not there")
            if not accept:
                raise lost
            behind.append(lost.message.rstrip("."))
        return End(
            segment,
            before=content.edge,
            edge=content.edge_at(content.last),
            end=content.end,
            signed=signed.size if signed else 0,
            presence=-1,
            alone=True,
            behind=list(dict.fromkeys(behind)),
        )

    def _compare(self, content: Content, known: Checkpoint, how: str) -> ApexCredsError | None:
        """What is wrong between the log and a checkpoint that it must contain."""
        if known.size > content.last:
            return _rolled_back(_behind(content.last, known.size, how))
        number = len(segments(self._directory))
        while known.size < content.edge.size:
            number -= 1
            data = read_segment(segments(self._directory)[number])
            content = parse(data, number=number, vault_id=self._vault_id, trusted=known.size)
        if content.edge_at(known.size).root() == known.root:
            return None
        if how == "signed":
            return altered(f"the log's first {known.size} events are not those signed")
        return _rolled_back(f"The audit log's first {known.size} events are not those anchored")


def _behind(count: int, known: int, how: str) -> str:
    return f"The audit log has {count} events; {known} were {how}: {known - count} are missing"


def _rolled_back(what: str) -> RollbackDetectedError:
    return RollbackDetectedError(f"{what}.", hint=_RESTORE)

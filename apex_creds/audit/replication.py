"""A log's files as a stream of pieces, and the files again from the stream.

Guarantee: ``Source`` gives every whole line and every checkpoint of a log once, in order,
from wherever a stream of its pieces ends, also while other processes write and compress;
``restore`` makes files of the stream that verify exactly as the log's own do. No I/O but
the log's directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Final

import msgspec

from apex_creds.audit import log_files
from apex_creds.audit.checkpoint import CHECKPOINTS
from apex_creds.audit.segment import SegmentReader, file_name, segments
from apex_creds.errors import AuditTamperedError, IntegrityError
from apex_creds.fs.private_files import write_all

__all__ = ["Piece", "Source", "differs_at", "restore"]

MOST: Final = 128 * 1024
"""Bytes of one piece, at most, but for one line that is longer."""

_SIGNED: Final = 0
_SIGNATURE: Final = "\n— ".encode()


class Piece(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Whole lines of one file.

    Attributes:
        segment: The number of the segment; 0: the file of checkpoints.
        offset: Where in it they begin.
        data: The lines, each with its end.
    """

    segment: int
    offset: int
    data: bytes

    @property
    def end(self) -> int:
        """Where they end."""
        return self.offset + len(self.data)


class Source:
    """What a log has that a stream does not have yet.

    Args:
        directory: The log's.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._segment, self._offset, self._signed = 1, 0, 0

    def resume(self, sent: Iterable[Piece]) -> None:
        """Goes on after pieces that the stream ends with; the last of each kind will do.

        Raises:
            AuditTamperedError: The log does not have them: it was cut or written anew.
        """
        for piece in sent:
            if piece.segment == _SIGNED:
                self._signed = piece.end
            else:
                self._segment, self._offset = piece.segment, piece.end
            if self._bytes(piece.segment)[piece.offset : piece.end] != piece.data:
                raise AuditTamperedError(
                    "The audit log is not the one of which the database has a copy.",
                    hint="Keep a copy of both, and find out who changed it.",
                )

    def pieces(self) -> Iterator[Piece]:
        """What is new; segments first, so that no checkpoint is ahead of its events."""
        # Checkpoints that are whole: up to the end of the last signature.
        data = _read(self._directory / CHECKPOINTS, self._signed)
        begin = data.rfind(_SIGNATURE, 0, data.rfind(b"\n") + 1)
        signed = data[: data.find(b"\n", begin + 1) + 1] if begin >= 0 else b""
        for number in sorted(segments(self._directory)):
            if number < self._segment:
                continue
            start = self._offset if number == self._segment else 0
            lines = self._bytes(number, start)
            at, end = 0, lines.rfind(b"\n") + 1
            while at < end:
                upto = lines.rfind(b"\n", at, at + MOST) + 1 or lines.find(b"\n", at) + 1
                upto = min(upto, end)
                yield Piece(number, start + at, lines[at:upto])
                at = upto
        if signed:
            yield Piece(_SIGNED, self._signed, signed)

    def sent(self, piece: Piece) -> None:
        """Has the stream got a piece that ``pieces`` gave."""
        if piece.segment == _SIGNED:
            self._signed = piece.end
        else:
            self._segment, self._offset = piece.segment, piece.end

    # -- inside ------------------------------------------------------------------

    def _bytes(self, number: int, start: int = 0) -> bytes:
        if number == _SIGNED:
            return _read(self._directory / CHECKPOINTS, 0)
        path = segments(self._directory).get(number)
        if path is None:
            return b""
        with SegmentReader(path) as segment:
            return segment.read(start, segment.size)


def restore(pieces: Iterable[Piece], target: Path) -> None:
    """Adds pieces to a log's files, in a directory of 0700 that was empty before the first.

    Raises:
        IntegrityError: They do not go on from one another.
    """
    for piece in pieces:
        name = CHECKPOINTS if piece.segment == _SIGNED else file_name(piece.segment)
        fd = log_files.open_private(target / name)
        try:
            if piece.segment < 0 or os.fstat(fd).st_size != piece.offset:
                raise IntegrityError("The copy of an audit log has a gap.")
            write_all(fd, piece.data)
        finally:
            os.close(fd)


def differs_at(copy: Path, log: Path) -> int:
    """The first event in which a log is not the one of which restored files are a copy.

    Returns:
        0: they agree, as far as the copy has come.
    """
    copied, own, event = Source(copy), Source(log), 1
    for number in sorted(segments(copy)):
        data, ours = copied._bytes(number), own._bytes(number)
        if not ours.startswith(data):
            pairs = zip_longest(data.splitlines(keepends=True), ours.splitlines(keepends=True))
            return event + next(n for n, (one, other) in enumerate(pairs) if one != other)
        event += data.count(b"\n")
    signed = own._bytes(_SIGNED).startswith(copied._bytes(_SIGNED))
    return 0 if signed else event - 1


def _read(path: Path, start: int) -> bytes:
    if not log_files.exists(path):
        if path.name == CHECKPOINTS:
            return b""
        raise log_files.missing(path)
    fd = log_files.open_to_read(path)
    try:
        return log_files.read_between(fd, start, log_files.stable_size(fd))
    except OSError as error:
        raise log_files.unavailable("read", error) from None
    finally:
        os.close(fd)

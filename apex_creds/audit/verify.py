"""Reading the log and proving that nobody changed it; needs no key and no vault.

Guarantee: any change of any byte, and any line removed, added, repeated or moved, is found
and located, except these two, which a plain hash chain can't show: lines cut off at the end
of the log, and a log written anew from some line on by someone who can write the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from apex_creds.audit import chain
from apex_creds.audit.events import Recorded
from apex_creds.audit.segment import SEGMENT, lines, open_to_read, settled_size, unavailable
from apex_creds.errors import AuditTamperedError

__all__ = ["Report", "check", "read", "verify"]


class Report(msgspec.Struct, frozen=True):
    """What a check of the log found.

    Attributes:
        count: Events that verify, from the first on.
        head: Hash of the last of them (64 hexadecimal digits); keep it with ``count``
            elsewhere to find later that the log was cut or written anew.
        bad_line: The first line that does not verify; 0 when all do.
        how: What is wrong with that line.
    """

    count: int
    head: str
    bad_line: int = 0
    how: str = ""

    @property
    def ok(self) -> bool:
        """Whether every line verifies."""
        return not self.bad_line


def check(directory: Path, *, vault_id: str) -> Report:
    """Checks the whole log, in bounded memory, and says what it found.

    Raises:
        AuditTamperedError: There is no log at all.
        AuditUnavailableError: It can't be read.
        UnsafePathError: It is a symbolic link or not a regular file.
    """
    head, seq = chain.genesis(vault_id), 0
    for line in _lines(directory):
        how = chain.fault(head, seq + 1, line)
        if how:
            return Report(seq, head.decode(), seq + 1, how)
        seq += 1
        head = chain.head_of(line)
    return Report(seq, head.decode())


def verify(directory: Path, *, vault_id: str) -> Report:
    """Checks the whole log like ``check``, and raises if any line does not verify.

    Raises:
        AuditTamperedError: Names the first bad line and how it is bad.
        AuditUnavailableError: It can't be read.
        UnsafePathError: It is a symbolic link or not a regular file.
    """
    report = check(directory, vault_id=vault_id)
    if not report.ok:
        raise _tampered(report.bad_line, report.how)
    return report


def read(directory: Path, *, vault_id: str, after: int = 0) -> Iterator[Recorded]:
    """Yields the events with numbers above ``after``, each checked before it is yielded.

    Raises:
        AuditTamperedError: At the first bad line, wherever it is.
        AuditUnavailableError: The log can't be read.
        UnsafePathError: It is a symbolic link or not a regular file.
    """
    head = chain.genesis(vault_id)
    for seq, line in enumerate(_lines(directory), start=1):
        how = chain.fault(head, seq, line)
        if how:
            raise _tampered(seq, how)
        head = chain.head_of(line)
        if seq > after:
            yield chain.decode(line)


def _lines(directory: Path) -> Iterator[bytes]:
    fd = open_to_read(Path(directory) / SEGMENT)
    try:
        yield from lines(fd, 0, settled_size(fd))
    except OSError as error:
        raise unavailable("read", error) from None
    finally:
        os.close(fd)


def _tampered(line: int, how: str) -> AuditTamperedError:
    return AuditTamperedError(
        f"Line {line} of the audit log {how}.",
        hint="Keep a copy, find out who did it, and restore the file.",
    )

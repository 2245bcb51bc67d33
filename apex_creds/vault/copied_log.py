"""The audit log in a backup: copied while processes write to it.

Guarantee: the copy is a beginning of the log, at least up to what was in it when the copy
began, and to every checkpoint that is copied. The original is only read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from apex_creds.audit import log_files
from apex_creds.audit.checkpoint import CHECKPOINTS, COSIGNED, VKEYS, LogKey, read_keys
from apex_creds.audit.segment import segments
from apex_creds.audit.verify import check
from apex_creds.errors import AuditTamperedError, ConflictError
from apex_creds.vault.archive import put_file

__all__ = ["copy", "verified"]

_ATTEMPTS: Final = 10
_CHUNK: Final = 1 << 20
_OTHERS: Final = re.compile(r"(torn|rolled-back)-[\w.-]{1,100}", re.ASCII)


def copy(source: Path, target: Path) -> None:
    """Copies a log into an empty directory.

    Checkpoints go first, so that the segments, read later, have what they state; and the
    keys after the signatures that they check.

    Raises:
        AuditUnavailableError: It can't be read.
        StorageError: It can't be written.
        ConflictError: Its segments kept being renamed.
    """
    for name in (CHECKPOINTS, COSIGNED, VKEYS):
        if log_files.exists(source / name):
            put_file(target / name, _lines(source / name))
    _copy_segments(source, target)
    for path in sorted(source.iterdir()):
        if _OTHERS.fullmatch(path.name):
            put_file(target / path.name, _whole(path))


def _copy_segments(source: Path, target: Path) -> None:
    done: set[int] = set()
    for _ in range(_ATTEMPTS):
        try:
            for number, path in segments(source).items():
                if number in done:
                    continue
                read = _whole(path) if path.suffix == ".gz" else _lines(path)
                put_file(target / path.name, read)
                done.add(number)
        except AuditTamperedError:
            continue  # compressed meanwhile, under another name
        return
    raise ConflictError("The audit log keeps changing.", hint="Try again.")


def _lines(path: Path) -> Iterator[bytes]:
    """All whole lines that are there now."""
    fd = log_files.open_to_read(path)
    try:
        end = log_files.end_of_lines(fd, log_files.settled_size(fd))
        yield from _between(fd, end)
    finally:
        os.close(fd)


def _whole(path: Path) -> Iterator[bytes]:
    fd = log_files.open_to_read(path)
    try:
        yield from _between(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def _between(fd: int, end: int) -> Iterator[bytes]:
    for start in range(0, end, _CHUNK):
        yield log_files.read_between(fd, start, min(start + _CHUNK, end))


def verified(directory: Path, *, key: LogKey) -> tuple[int, str]:
    """How many events a log has, and its tree's root; after checking all of it.

    Raises:
        AuditTamperedError: It does not verify with the vault's own key.
    """
    witnesses = read_keys(directory)[1:]
    report = check(directory, vault_id=key.vault_id, keys=(key.verifier, *witnesses))
    if report.ok:
        return report.count, report.head
    raise AuditTamperedError(
        report.wrong,
        hint="The copy was not used.",
    )

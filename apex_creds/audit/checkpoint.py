"""Checkpoints: signed statements of the log's size and root (c2sp.org/tlog-checkpoint).

Guarantee: a checkpoint is in the file whole, after all smaller ones, and never states more
than was durable when it was signed. The files only grow. No two that this vault signed are
inconsistent, unless a rollback was accepted, which the log then says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from apex_creds.audit import note as notes
from apex_creds.audit.log_files import (
    create_whole,
    exists,
    lock,
    open_private,
    open_to_read,
    read_between,
    read_file,
    unavailable,
    unlock,
)
from apex_creds.audit.note import Note, Signer, VerifierKey
from apex_creds.audit.tree import HASH_BYTES
from apex_creds.errors import AuditTamperedError, IntegrityError, InvalidInputError
from apex_creds.fs.private_files import sync_file, write_all

__all__ = [
    "CHECKPOINTS",
    "COSIGNED",
    "VKEYS",
    "Checkpoint",
    "CheckpointFile",
    "LogKey",
    "altered",
    "check_signatures",
    "ensure_keys",
    "origin_of",
    "read_keys",
]

CHECKPOINTS: Final = "checkpoints"
COSIGNED: Final = "cosigned"
"""Some of the checkpoints again, with signatures of witnesses."""
VKEYS: Final = "vkeys"
"""The verifier keys, one a line: the log's own, then its witnesses'."""

_LONGEST: Final = 64 * 1024


def origin_of(vault_id: str) -> str:
    """Returns the log's origin, which is also the name that it signs under."""
    return f"apex-creds.invalid/{vault_id}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree's size and root (32 bytes), and the note that states them."""

    size: int
    root: bytes
    note: Note = field(compare=False)

    @classmethod
    def make(cls, size: int, root: bytes, *, key: LogKey) -> Checkpoint:
        """Returns a signed one."""
        text = f"{key.origin}\n{size}\n{notes.base64_of(root)}\n"
        return cls(size, root, notes.sign(text, name=key.origin, key=key.signer))

    @classmethod
    def parse(cls, data: str | bytes, *, origin: str | None = None) -> Checkpoint:
        """Reads one; no signature is checked.

        Raises:
            IntegrityError: It is none, or of another log than ``origin``.
        """
        note = notes.parse(data)
        lines = note.text.split("\n")
        if len(lines) != 4 or (origin is not None and lines[0] != origin):
            raise _not_one()
        size, root = lines[1], notes.bytes_of(lines[2])
        number = int(size) if size.isascii() and size.isdigit() and len(size) < 20 else -1
        if str(number) != size or len(root) != HASH_BYTES:
            raise _not_one()
        return cls(number, root, note)

    @property
    def origin(self) -> str:
        """Whose log it is."""
        return self.note.text.partition("\n")[0]

    def __str__(self) -> str:
        return str(self.note)


@dataclass(frozen=True, slots=True)
class LogKey:
    """The key that signs a vault's checkpoints."""

    vault_id: str
    signer: Signer

    @property
    def origin(self) -> str:
        """See ``origin_of``."""
        return origin_of(self.vault_id)

    @property
    def verifier(self) -> VerifierKey:
        """What others check its signatures with."""
        return VerifierKey(self.origin, self.signer.public)


class CheckpointFile:
    """A file of a log's checkpoints. It is made with the first one.

    Args:
        directory: The log's.
        vault_id: Whose log it is.
        name: ``CHECKPOINTS``, which are in the order of their sizes, or ``COSIGNED``.
    """

    def __init__(self, directory: Path, *, vault_id: str, name: str = CHECKPOINTS) -> None:
        self.path = directory / name
        self._origin = origin_of(vault_id)
        self._ordered = name == CHECKPOINTS

    def is_there(self) -> bool:
        """Whether there is such a file yet.

        Raises:
            AuditUnavailableError: It can't be seen.
        """
        return exists(self.path)

    def last(self) -> Checkpoint | None:
        """Returns the newest one, not checked; None if there is none.

        Raises:
            AuditTamperedError: The end of the file is not one.
            AuditUnavailableError: It can't be read.
        """
        if not exists(self.path):
            return None
        fd = open_to_read(self.path)
        try:
            return self._last(fd)
        except OSError as error:
            raise unavailable("read", error) from None
        finally:
            os.close(fd)

    def add(self, checkpoint: Checkpoint) -> bool:
        """Adds one and makes it durable, unless one as large is there already.

        What a crash left unfinished at the end is removed: it had not been acknowledged.

        Raises:
            AuditTamperedError: The end of the file is not a checkpoint.
            AuditUnavailableError: It can't be written.
        """
        fd = open_private(self.path)
        try:
            lock(fd, self.path)
            last = self._last(fd)
            size = os.fstat(fd).st_size
            whole = _whole_until(fd, size)
            if whole < size:
                os.ftruncate(fd, whole)
            if last is not None and self._ordered and last.size >= checkpoint.size:
                return False
            try:
                write_all(fd, str(checkpoint).encode())
            except OSError:
                os.ftruncate(fd, whole)
                raise
            sync_file(fd)
        except OSError as error:
            raise unavailable("written", error) from None
        finally:
            unlock(fd)
            os.close(fd)
        return True

    def set_aside(self, stamp: int) -> str:
        """Gives the file another name, after a rollback was accepted; returns the name.

        Raises:
            AuditUnavailableError: It can't be done.
        """
        name = f"rolled-back-{stamp}-{CHECKPOINTS}"
        try:
            self.path.rename(self.path.with_name(name))
        except OSError as error:
            raise unavailable("set aside", error) from None
        return name

    def _last(self, fd: int) -> Checkpoint | None:
        size = os.fstat(fd).st_size
        end = _whole_until(fd, size)
        torn = read_between(fd, end, size).rstrip(b"\0")  # of a disk that lost its power
        begins = f"{self._origin}\n".encode()
        if torn[: len(begins)] != begins[: len(torn)]:
            raise altered("what follows the last one is no beginning of another")
        if not end:
            return None
        *_, last = _split(read_between(fd, max(0, end - _LONGEST), end))
        try:
            return Checkpoint.parse(last, origin=self._origin)
        except IntegrityError:
            raise altered("the last one is none of this log's") from None

    def all(self) -> Iterator[Checkpoint]:
        """Yields all, oldest first; not checked against anything but their form.

        Raises:
            AuditTamperedError: One is malformed, or the end is unfinished.
            AuditUnavailableError: The file can't be read.
        """
        if not exists(self.path):
            return
        for number, text in enumerate(_split(read_file(self.path)), start=1):
            try:
                yield Checkpoint.parse(text, origin=self._origin)
            except IntegrityError:
                raise altered(f"number {number} is none of this log's") from None


def altered(how: str) -> AuditTamperedError:
    """Returns the error for the file of checkpoints."""
    return AuditTamperedError(
        f"The audit log's checkpoints were altered: {how}.",
        hint="Keep a copy, find out who did it, and restore the file.",
    )


def _split(data: bytes) -> Iterator[bytes]:
    """The notes in a file: each ends before a line that is no signature after one that is."""
    note: list[bytes] = []
    signed = False
    for line in data.splitlines(keepends=True):
        is_signature = line.startswith("— ".encode())
        if signed and not is_signature:
            yield b"".join(note)
            note = []
        note.append(line)
        signed = is_signature
    if note:
        yield b"".join(note)


def _whole_until(fd: int, size: int) -> int:
    """The offset after the last signature line that has its end."""
    start = max(0, size - _LONGEST)
    data = read_between(fd, start, size)
    end = len(data)
    while end:
        newline = data.rfind(b"\n", 0, end)
        begin = data.rfind(b"\n", 0, max(newline, 0)) + 1
        if newline < 0:
            return start
        if data.startswith("— ".encode(), begin):
            return start + newline + 1
        end = newline
    return start


# -- verifier keys ------------------------------------------------------------------------


def read_keys(directory: Path) -> tuple[VerifierKey, ...]:
    """Returns the keys that the directory itself names; trust them as far as it.

    Raises:
        AuditTamperedError: The file is malformed.
        AuditUnavailableError: It can't be read.
    """
    path = directory / VKEYS
    if not exists(path):
        return ()
    try:
        text = read_file(path).decode("ascii")
        keys = tuple(VerifierKey.parse(line) for line in text.splitlines())
    except (UnicodeDecodeError, InvalidInputError):
        raise _bad_keys() from None
    if "".join(f"{key}\n" for key in keys) != text:
        raise _bad_keys()
    return keys


def ensure_keys(directory: Path, key: VerifierKey, *witnesses: VerifierKey) -> None:
    """Has the file name the log's key, and witnesses besides.

    Raises:
        AuditTamperedError: It names another key for the log.
        AuditUnavailableError: It can't be written.
    """
    known = read_keys(directory)
    if known and known[0] != key:
        raise _bad_keys()
    wanted = (key, *known[1:], *(w for w in witnesses if w not in known))
    if wanted != known:
        text = "".join(f"{each}\n" for each in wanted)
        create_whole(directory / VKEYS, text.encode(), replace=True)


def _bad_keys() -> AuditTamperedError:
    return AuditTamperedError(
        f"The audit log's {VKEYS} file does not name the key of this vault.",
        hint="It was altered, or belongs to another vault: restore it, or remove it.",
    )


def check_signatures(
    checkpoint: Checkpoint, keys: tuple[VerifierKey, ...], *, witnessed: bool = False
) -> None:
    """Returns if the log's key signed it; those of known witnesses must be right, too.

    Lines of unknown keys are passed over (c2sp.org/signed-note): they prove nothing, since
    anybody who can write the file can add one.

    Args:
        checkpoint: What is signed.
        keys: The log's own, then its witnesses'.
        witnessed: Whether a witness must have signed it.

    Raises:
        IntegrityError: A signature that must be there is missing, or one by a known key is
            wrong.
    """
    known = [k for k in keys[1:] if any(s.is_by(k) for s in checkpoint.note.signatures)]
    for key in (*keys[:1], *known):
        checkpoint.note.check(key)
    if witnessed and not known:
        raise IntegrityError(
            "It is not signed by a known witness.",
            hint="Add a witness with: apex-creds audit cosign --add.",
        )


def _not_one() -> IntegrityError:
    return IntegrityError(
        "That is not a checkpoint of this log.", hint="Give the one that it printed."
    )

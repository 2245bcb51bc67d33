"""Reading a file of master keys, and judging whether it may be trusted.

Guarantee: what is read comes from a regular file, no link, owned by us or root and closed
to everybody else (or a credential that systemd gave to this service alone); it was not being
replaced meanwhile; and it has the one format to the byte. The text is wiped from memory; no
message repeats any of it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import Final

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    ApexCredsError,
    MasterKeyNotFoundError,
    MasterKeyUnavailableError,
    UnsafePathError,
    UnsafePermissionsError,
    WrongMasterKeyError,
)
from apex_creds.fs.private_files import OPEN_FLAGS, closing_hint
from apex_creds.keys.base import decode_key, wipe

__all__ = ["Keys", "close_keys", "pick", "read_keys", "read_or_nothing"]

Keys = dict[int, SecretBytes]
"""The master keys of a file by version."""

_MAX_BYTES: Final = 64 * 1024
_REREADS: Final = 5
_LINE: Final = re.compile(rb"(?:v([1-9][0-9]{0,9}) )?([A-Za-z0-9+/]{43}=)")


def pick(keys: Keys, version: int) -> SecretBytes | None:
    """The key of one version, if it is there; closes the others."""
    found = keys.pop(version, None)
    close_keys(keys)
    return found


def close_keys(keys: Keys) -> None:
    """Wipes all of them."""
    for key in keys.values():
        key.close()


def read_or_nothing(path: Path) -> Keys:
    """As ``read_keys``; no key when there is no file."""
    try:
        return read_keys(path)
    except MasterKeyNotFoundError:
        return {}


def read_keys(path: Path) -> Keys:
    """All keys of the file, 32 bytes each; the caller closes them.

    Raises:
        MasterKeyNotFoundError: There is no file.
        MasterKeyUnavailableError: It can't be read.
        UnsafePathError: A link, a foreign owner, or not a regular file.
        UnsafePermissionsError: Others may read or write it.
        WrongMasterKeyError: It does not have the format.
    """
    for _ in range(_REREADS):
        text = _read_once(path)
        if text is not None:
            try:
                return _parse(path, text)
            finally:
                wipe(text)
    raise MasterKeyUnavailableError(f"{path} keeps changing.", hint="Try again.")


def _read_once(path: Path) -> bytearray | None:
    """The file's bytes; None when it was replaced meanwhile (old versions are shredded)."""
    fd = _open(path)
    text: bytearray | None = None
    try:
        _check(path, os.fstat(fd))
        text = _read_all(path, fd)
        if os.fstat(fd).st_nlink > 0:
            return text
        failure = None
    except OSError as error:
        failure = _cannot_open(path, error)
    finally:
        os.close(fd)
    if text is not None:
        wipe(text)
    if failure is not None:
        raise failure
    return None


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | OPEN_FLAGS)
    except OSError as error:
        failure = _cannot_open(path, error)
    raise failure


def _cannot_open(path: Path, error: OSError) -> ApexCredsError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return MasterKeyNotFoundError(
            f"There is no master key file {path}.",
            hint="Check the path; apex-creds init makes the file, its directory must exist.",
        )
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return UnsafePathError(
            f"{path} is a symbolic link.", hint="Name the file that it points to."
        )
    return MasterKeyUnavailableError(
        f"{path} can't be read ({error.strerror}).", hint="Check its owner and permissions."
    )


def _check(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise UnsafePathError(f"{path} is not a regular file.", hint="Name a regular file.")
    if os.name != "posix":
        return
    if info.st_uid not in (os.geteuid(), 0):
        raise UnsafePathError(
            f"{path} belongs to another user.",
            hint=f"Check it, then chown {os.geteuid()} {path}",
        )
    if info.st_mode & 0o077 and not _is_credential(path, info):
        raise UnsafePermissionsError(
            f"{path} is open to other users (mode {stat.S_IMODE(info.st_mode):04o}).",
            hint=f"{closing_hint(path, info, mode='600')} (If others could log in, rotate the "
            "master key then.)",
        )


def _is_credential(path: Path, info: os.stat_result) -> bool:
    """Whether it is a credential of systemd's, which only this service and root can read.

    It is root's, and the service may read it by an access list, whose mask shows as the
    permission of a group that is root's as well.
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not folder or path.parent != Path(folder) or info.st_mode & 0o037:
        return False
    return info.st_uid == 0 and info.st_gid == 0


def _read_all(path: Path, fd: int) -> bytearray:
    buffer = bytearray(min(os.fstat(fd).st_size, _MAX_BYTES) + 1)
    filled = 0
    try:
        with open(fd, "rb", 0, closefd=False) as raw, memoryview(buffer) as view:
            while count := raw.readinto(view[filled:]):
                filled += count
    except OSError as error:
        failure = _cannot_open(path, error)
        wipe(buffer)
    else:
        text = buffer[:filled]  # a copy: shrinking could leave the old bytes behind
        wipe(buffer)
        return text
    raise failure


def _parse(path: Path, text: bytearray) -> Keys:
    body = text.removesuffix(b"\n")
    lines = body.split(b"\n") if len(text) <= _MAX_BYTES else [bytearray()]
    keys: Keys = {}
    bad = next((n for n, line in enumerate(lines, 1) if not _parse_line(line, keys)), 0)
    for secret in (body, *lines):
        wipe(secret)
    if not bad:
        return keys
    close_keys(keys)
    raise _malformed(path, bad)


def _parse_line(line: bytearray, keys: Keys) -> bool:
    match = _LINE.fullmatch(line)
    version = int(match[1] or 1) if match else 0
    with memoryview(line) as view:
        key = decode_key(view[match.start(2) :]) if match else None
    if key is None:
        return False
    if not max(keys, default=0) < version < 2**32:
        key.close()
        return False
    keys[version] = key
    return True


def _malformed(path: Path, line: int) -> WrongMasterKeyError:
    return WrongMasterKeyError(
        f"Line {line} of {path} is not a master key; the file was left as it is.",
        hint="Each line is 'v<N> <base64 of 32 bytes>', in rising order; restore the backup.",
    )

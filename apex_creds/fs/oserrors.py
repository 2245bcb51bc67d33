"""Operating system errors, told as storage errors.

Guarantee: no ``OSError`` leaves the storage layer; each becomes the ``StorageError`` that
names the path and what to do about it.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Final

from apex_creds.errors import (
    StorageError,
    StorageFullError,
    StorageReadOnlyError,
    StorageUncertainError,
    UnsafePathError,
)
from apex_creds.fs.private_files import NotDurableError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

_FULL: Final = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG})
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NOT_A_FILE: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR})


@contextlib.contextmanager
def translated(path: str | os.PathLike[str], *, writing: bool = False) -> Iterator[None]:
    """Turns an ``OSError`` from the block into a ``StorageError`` about ``path``."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, writing=writing) from error


def storage_error(
    error: OSError, path: str | os.PathLike[str], *, writing: bool = False
) -> StorageError:
    """The ``StorageError`` that says what ``error`` means for ``path``."""
    code = error.errno
    reason = error.strerror or type(error).__name__
    if isinstance(error, NotDurableError):
        return StorageUncertainError(
            f"{path} was changed, but the disk may not keep it ({reason}).",
            hint="Look at it before you try again, and check the disk.",
        )
    if code in _NOT_A_FILE:
        return UnsafePathError(
            f"{path} is a symbolic link or not what belongs there ({reason}).",
            hint="Look who put it there; replace it by the real file or directory.",
        )
    if code in _FULL:
        return StorageFullError(
            f"No space left to write {path} ({reason}).",
            hint="Free some space and retry; the previous version is intact.",
        )
    if writing and code in _REFUSED:
        return StorageReadOnlyError(
            f"{path} can't be written ({reason}).",
            hint="Check the mount and that the directory is yours and writable.",
        )
    return _other(code, reason, path)


def _other(code: int | None, reason: str, path: str | os.PathLike[str]) -> StorageError:
    if code == errno.ENOENT:
        return StorageError(
            f"The directory of {path} is missing.",
            hint="Put it back, from a backup if need be (apex-creds restore). Where no vault "
            "was, make one: apex-creds init.",
        )
    if code in _REFUSED:
        return StorageError(
            f"{path} can't be read ({reason}).", hint="Check that it is yours and readable."
        )
    return StorageError(
        f"The storage failed at {path} ({reason}).", hint="Try apex-creds doctor."
    )

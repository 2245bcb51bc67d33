"""The client's side of challenge-response: an Ed25519 key in a file, and what it signs.

Guarantee: the file is 0600 from its first instant, is never overwritten, and is not read
if it is a link, somebody else's or open to others; the seed stays in locked memory; nothing
is signed but a challenge that the client expects.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self

from apex_creds.crypto import signing
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    ApexCredsError,
    CorruptDocumentError,
    InvalidInputError,
    SecretMisuseError,
    StorageError,
    StorageFullError,
    StorageReadOnlyError,
    UnsafePathError,
)
from apex_creds.fs.oserrors import storage_error
from apex_creds.fs.private_files import OPEN_FLAGS, NotDurableError, check
from apex_creds.fs.replacing import create_exclusive, sweep
from apex_creds.keys.provider import decode_key, encode_key, wipe
from apex_creds.model import Clock, SystemClock
from apex_creds.policy import challenge
from apex_creds.policy.challenge import Allow

_HEADER: Final = b"apex-creds-client-key-v1 "
_SEED_TEXT: Final = 44
_FILE_BYTES: Final = len(_HEADER) + _SEED_TEXT + 1


class ClientKey:
    """A client's key. A context manager that wipes it.

    Args:
        key: Owned by this object from now on.
        clock: Says whether a challenge is over.
    """

    def __init__(self, key: signing.SigningKey, *, clock: Clock | None = None) -> None:
        self._key = key
        self._clock: Clock = clock or SystemClock()

    @classmethod
    def generate(cls, path: str | os.PathLike[str], *, clock: Clock | None = None) -> Self:
        """Makes a key and its file, which must not exist; durable on return.

        Raises:
            StorageError: The file can't be made.
        """
        with SecretBytes.random(signing.SEED_BYTES) as seed:
            _write_new(Path(path), seed)
            return cls(signing.SigningKey.from_seed(seed), clock=clock)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, clock: Clock | None = None) -> Self:
        """Reads a key.

        Raises:
            StorageError: There is no such file, or it can't be trusted.
            CorruptDocumentError: It is not a client's key.
        """
        with _read(Path(path)) as seed:
            return cls(signing.SigningKey.from_seed(seed), clock=clock)

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes: what the operator enrols."""
        return self._key.public

    @property
    def id(self) -> str:
        """The client's id in every vault, 32 hexadecimal digits."""
        return challenge.client_id(self._key.public)

    def answer(self, message: bytes, *, vault_id: str, allow: Allow) -> bytes:
        """Signs a challenge; 96 bytes.

        Args:
            message: What ``Challenger.issue`` returned.
            vault_id: The vault that the client trusts, 32 hexadecimal digits.
            allow: Whether the client wants to sign this; ``challenge.expecting`` makes one.

        Raises:
            ChallengeError: It is not one that this client expects. Nothing was signed.
        """
        now = self._clock.time()
        return challenge.respond(self._key, message, vault_id=vault_id, allow=allow, now=now)

    def close(self) -> None:
        """Wipes the key; idempotent."""
        self._key.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ClientKey(id={self.id!r})"

    def __reduce__(self) -> NoReturn:
        raise SecretMisuseError("A client's key can't be pickled or copied.")


def _write_new(path: Path, seed: SecretBytes) -> None:
    text = encode_key(seed)
    failure: ApexCredsError | None = None
    try:
        create_exclusive(path, [_HEADER, text, b"\n"])
    except OSError as error:
        failure = _cannot(path, error)
    finally:
        wipe(text)
    if failure is not None:
        raise failure


def _read(path: Path) -> SecretBytes:
    buffer = bytearray(_FILE_BYTES + 1)
    failure: ApexCredsError | None = None
    filled = 0
    with contextlib.suppress(OSError):
        sweep(path)  # a key in clear, of a writer that was killed
    try:
        if not hasattr(os, "O_NOFOLLOW"):
            check(path, os.lstat(path))
        fd = os.open(path, os.O_RDONLY | OPEN_FLAGS)
        with open(fd, "rb", 0) as raw, memoryview(buffer) as view:
            check(path, os.fstat(fd))
            while count := raw.readinto(view[filled:]):
                filled += count
    except OSError as error:
        failure = _cannot(path, error)
    seed = None if failure else _parse(buffer, filled)
    wipe(buffer)
    if failure is not None:
        raise failure
    if seed is None:
        raise CorruptDocumentError(
            f"{path} is not a client's key.", hint="Make one: apex-creds client keygen FILE"
        )
    return seed


def _parse(buffer: bytearray, filled: int) -> SecretBytes | None:
    start, end = len(_HEADER), len(_HEADER) + _SEED_TEXT
    if filled != _FILE_BYTES or buffer[:start] != _HEADER or buffer[end:filled] != b"\n":
        return None
    with memoryview(buffer) as view:
        return decode_key(view[start:end])


def _cannot(path: Path, error: OSError) -> ApexCredsError:
    if isinstance(error, NotDurableError):
        return storage_error(error, path)
    if error.errno == errno.EEXIST:
        return InvalidInputError(
            f"{path} is there already; it was not overwritten.", hint="Choose another name."
        )
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return UnsafePathError(
            f"{path} is a symbolic link.", hint="Name the file that it points to."
        )
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return StorageFullError(f"There is no space left for {path}.", hint="Free some space.")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StorageReadOnlyError(f"{path} can't be opened.", hint="Check the permissions.")
    return StorageError(f"{path} can't be opened ({error.strerror}).", hint="Check the path.")

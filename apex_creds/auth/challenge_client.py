"""The client of a challenge: an Ed25519 key in a file, and answers over a byte stream.

Guarantee: the file is 0600 from its first instant, is never overwritten, and is not read
if it is a link, another user's or open to others; the seed stays in locked memory; nothing
is signed but a challenge that the client expects.

Over a stream, a client in one process answers for a runtime in another. The runtime passes the
vault's messages on and takes back what comes, which it does not trust. One question at a time,
each with its length before it; what is longer than a challenge can be ends the stream.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from pathlib import Path
from typing import Final, NoReturn, Self

import anyio
from anyio.abc import ByteStream

from apex_creds.auth import challenge
from apex_creds.auth.challenge import Allow
from apex_creds.crypto import public_key
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    ApexCredsError,
    ChallengeError,
    CorruptDocumentError,
    InvalidInputError,
    SecretMisuseError,
    StorageError,
    StorageFullError,
    StorageReadOnlyError,
    UnsafePathError,
)
from apex_creds.fs.private_files import (
    OPEN_FLAGS,
    NotDurableError,
    check,
    create_exclusive,
    storage_error,
    sweep,
)
from apex_creds.keys.provider import decode_key, encode_key, wipe
from apex_creds.model import Clock, Closes, SystemClock

_HEADER: Final = b"apex-creds-client-key-v1 "
_SEED_TEXT: Final = 44
_FILE_BYTES: Final = len(_HEADER) + _SEED_TEXT + 1


class ClientKey(Closes):
    """A client's key. A context manager that wipes it.

    Args:
        key: Owned by this object from now on.
        clock: Says whether a challenge is over.
    """

    def __init__(self, key: public_key.SigningKey, *, clock: Clock | None = None) -> None:
        self._key = key
        self._clock: Clock = clock or SystemClock()

    @classmethod
    def generate(cls, path: str | os.PathLike[str], *, clock: Clock | None = None) -> Self:
        """Makes a key and its file, which must not exist; durable on return.

        Raises:
            StorageError: The file can't be made.
        """
        with SecretBytes.random(public_key.SEED_BYTES) as seed:
            text, failure = encode_key(seed), None
            try:
                create_exclusive(Path(path), [_HEADER, text, b"\n"])
            except OSError as error:
                failure = _cannot(Path(path), error)
            finally:
                wipe(text)
            if failure is not None:
                raise failure
            return cls(public_key.SigningKey.from_seed(seed), clock=clock)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, clock: Clock | None = None) -> Self:
        """Reads a key.

        Raises:
            StorageError: There is no such file, or it can't be trusted.
            CorruptDocumentError: It is not a client's key.
        """
        path, buffer, filled = Path(path), bytearray(_FILE_BYTES + 1), 0
        failure: ApexCredsError | None = None
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
        seed, end = None, len(_HEADER) + _SEED_TEXT
        whole = failure is None and filled == _FILE_BYTES
        if whole and buffer.startswith(_HEADER) and buffer[end:filled] == b"\n":
            with memoryview(buffer) as view:
                seed = decode_key(view[len(_HEADER) : end])
        wipe(buffer)
        if failure is not None:
            raise failure
        if seed is None:
            raise CorruptDocumentError(
                f"{path} is not a client's key.",
                hint="Make one: apex-creds client keygen FILE",
            )
        with seed:
            return cls(public_key.SigningKey.from_seed(seed), clock=clock)

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
        return challenge.sign_challenge(
            self._key, message, vault_id=vault_id, allow=allow, now=now
        )

    def close(self) -> None:
        """Wipes the key; idempotent."""
        self._key.close()

    def __repr__(self) -> str:
        return f"ClientKey(id={self.id!r})"

    def __reduce__(self) -> NoReturn:
        raise SecretMisuseError("A client's key can't be pickled or copied.")


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


_SIZE: Final = struct.Struct(">I")


class StreamResponder:
    """A client at the other end of a stream; see ``answer_over``.

    Args:
        stream: Leads to it alone: a Unix socket, a pipe, TLS.
        client: Its id or name, as it was enrolled.
    """

    def __init__(self, stream: ByteStream, *, client: str) -> None:
        self._stream = stream
        self._client = client
        self._turn = anyio.Lock()
        self._broken = False

    @property
    def client(self) -> str:
        """See ``Responder``."""
        return self._client

    async def answer(self, message: bytes) -> bytes:
        """See ``Responder``.

        Raises:
            ChallengeError: The stream is broken, or the client signs nothing.
        """
        async with self._turn:
            if self._broken:
                raise ChallengeError("The way to the client is broken.", hint="Connect again.")
            self._broken = True  # until the answer is whole: a late one is not the next's
            await _send(self._stream, message)
            answer = await _receive(self._stream, challenge.ANSWER_BYTES)
            self._broken = False
        if not answer:
            raise ChallengeError("The client does not want to sign this.")
        return answer


async def answer_over(
    stream: ByteStream, key: ClientKey, *, vault_id: str, allow: Allow
) -> None:
    """The client's side: answers what comes until the stream ends.

    Args:
        stream: Leads to the runtime.
        key: The client's.
        vault_id: The vault that it trusts.
        allow: What it wants to sign; it gives an empty answer to everything else.
    """
    while True:
        try:
            message = await _receive(stream, challenge.MAX_MESSAGE)
        except ChallengeError:
            return
        try:
            answer = key.answer(message, vault_id=vault_id, allow=allow)
        except ChallengeError:
            answer = b""
        await _send(stream, answer)


async def _send(stream: ByteStream, data: bytes) -> None:
    try:
        await stream.send(_SIZE.pack(len(data)) + data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        raise _over() from None


async def _receive(stream: ByteStream, most: int) -> bytes:
    (size,) = _SIZE.unpack(await _exactly(stream, _SIZE.size))
    if size > most:
        raise _over()
    return await _exactly(stream, size)


async def _exactly(stream: ByteStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        try:
            data += await stream.receive(size - len(data))
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise _over() from None
    return data


def _over() -> ChallengeError:
    return ChallengeError("The stream of challenges is over.", hint="Connect again.")

"""Challenges over a byte stream: a client in one process answers for a runtime in another.

Guarantee: the runtime passes the vault's messages on and takes back what comes, which it
does not trust; the client signs nothing but what ``allow`` wants. One question at a time,
each with its length before it; what is longer than a challenge can be ends the stream.
"""

from __future__ import annotations

import struct
from typing import Final

import anyio
from anyio.abc import ByteStream

from apex_creds.errors import ChallengeError
from apex_creds.policy import challenge
from apex_creds.policy.challenge import Allow
from apex_creds.vault.client_key import ClientKey

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

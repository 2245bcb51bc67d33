"""An SSH agent, for private keys that OpenSSH, git and their like never have.

Guarantee: the socket lists the keys and signs with them, and does nothing else; it is in a
private folder, of one invocation, and ends with its lease. Each signature is a redeem.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from apex_creds.concurrency import LoopThread
from apex_creds.crypto import ssh_keys
from apex_creds.errors import ApexCredsError
from apex_creds.leases.broker import find_open, keep_open
from apex_creds.leases.lease import AccessRequest
from apex_creds.leases.logins import lease_here, peer_of

_FAILURE: Final = b"\x05"
_LIST: Final = 11
_LISTED: Final = b"\x0c"
_SIGN: Final = 13
_SIGNED: Final = b"\x0e"
_LARGEST: Final = 256 * 1024
_THREAD: Final = LoopThread("apex-creds-ssh-agent")
_ASKED: Final = AccessRequest("SIGN")


@contextlib.contextmanager
def agent(*names: str) -> Iterator[str]:
    """The path of an agent's socket, for ``SSH_AUTH_SOCK``, within an invocation.

    Args:
        names: Of credentials: private keys without a passphrase, stored as ``generic``.

    Raises:
        AccessDeniedError: There is no invocation, or it has none of that name.
    """
    leases = [(name, lease_here(name)) for name in names]
    folder = Path(tempfile.mkdtemp(prefix="apex-creds-ssh-"))
    path, made = folder / "agent", _Agent(leases)
    end = partial(_THREAD.start, made.close)
    try:
        _THREAD.call(partial(made.listen, path))
        for _, lease_id in leases:
            find_open(lease_id)[0].close_at_end(end)
        yield str(path)
    finally:
        for _, lease_id in leases:
            keep_open(lease_id, end)
        end()
        shutil.rmtree(folder, ignore_errors=True)


class _Agent:
    """One socket, and who talks to it."""

    def __init__(self, leases: list[tuple[str, str]]) -> None:
        self._leases = leases
        self._talks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._closed = False

    async def listen(self, path: Path) -> None:
        """Begins; connections run in the context that this runs in: the invocation's."""
        self._server = await asyncio.start_unix_server(self._talk, path)

    async def close(self) -> None:
        """Ends it, and who talks to it; idempotent."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        for task in self._talks:
            task.cancel()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            # One that was accepted just before the end begins after it.
            peer = peer_of(writer.get_extra_info("socket"))
            if not self._closed and (peer is None or peer[1] == os.getuid()):
                await _talk(reader, writer, self._leases)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            self._talks.discard(task)
            writer.close()


async def _talk(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, leases: list[tuple[str, str]]
) -> None:
    while True:
        length = int.from_bytes(await reader.readexactly(4), "big")
        if not 1 <= length <= _LARGEST:
            return
        asked = await reader.readexactly(length)
        try:
            answer = await _answer(asked, leases)
        except ApexCredsError:
            answer = _FAILURE  # the log says why
        writer.write(ssh_keys.string(answer))
        await writer.drain()


async def _answer(asked: bytes, leases: list[tuple[str, str]]) -> bytes:
    if asked[0] == _LIST:
        keys = b""
        for name, lease_id in leases:
            lease, broker = find_open(lease_id)
            _, opened = await broker.redeem(lease, _ASKED)
            with opened, opened.view() as key:
                keys += ssh_keys.string(ssh_keys.public_blob(key))
            keys += ssh_keys.string(name.encode())
        return _LISTED + struct.pack("!I", len(leases)) + keys
    if asked[0] != _SIGN:
        return _FAILURE
    blob, at = ssh_keys.read_string(asked, 1)
    data, at = ssh_keys.read_string(asked, at)
    flags = int.from_bytes(asked[at : at + 4], "big")
    for _, lease_id in leases:
        lease, broker = find_open(lease_id)
        _, opened = await broker.redeem(lease, _ASKED)
        with opened, opened.view() as key:
            if ssh_keys.public_blob(key) == blob:
                signed = ssh_keys.sign(key, data, flags=flags)
                return _SIGNED + ssh_keys.string(signed.signature)
    return _FAILURE

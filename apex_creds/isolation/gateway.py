"""The one way out of an isolated process: HTTP and logins, in which the host puts the secrets.

Guarantee: each request is an ordinary redeem of the invocation that runs behind the listening
socket: checked, audited before anything is decrypted, and its answer searched. Outside of an
invocation, and on a connection of one that has ended, nothing is sent. A database is sent the
role of the credential, and the database that the grant names, whatever the driver asks for.
When the gateway ends, what is behind it has no network at all.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Final

import h11

from apex_creds.concurrency import soon
from apex_creds.crypto.certificates import CertificateAuthority
from apex_creds.errors import ApexCredsError
from apex_creds.isolation.connection import CHUNK, Connection, Limits, Protocol, Setting
from apex_creds.isolation.dialing import Dialer
from apex_creds.isolation.environment import Login
from apex_creds.isolation.invocations import nobody_there
from apex_creds.isolation.placeholders import Placeholders
from apex_creds.leases.broker import find_open, keep_open
from apex_creds.leases.handle import current_credentials
from apex_creds.leases.lease import Invocation
from apex_creds.middleware.call import Inside, WrappedCall
from apex_creds.sdk.postgres_broker import Account, serve_lease
from apex_creds.sdk.postgres_session import refusal

__all__ = ["Gateway", "Limits"]

_log: Final = logging.getLogger(__name__)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[object, object, None]]


class Gateway:
    """Serves what is behind one listening socket.

    Args:
        invocation_of: Who runs there now; None: nobody.
        placeholders: Those in its environment.
        certificates: With which it is a proxy for https; None: it is none.
        dialer: Connects to servers.
        limits: What it takes.
    """

    def __init__(
        self,
        invocation_of: Callable[[], Invocation | None],
        *,
        placeholders: Placeholders,
        certificates: CertificateAuthority | None = None,
        dialer: Dialer | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.setting = Setting(
            invocation_of, placeholders, certificates, dialer or Dialer(), limits or Limits()
        )
        self._servers: list[asyncio.Server] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self, listener: socket.socket) -> None:
        """Serves from now on; the socket is the gateway's."""
        self.setting.authority = "{}:{}".format(*listener.getsockname()[:2])
        await self._listen(
            listener, lambda reader, writer: Connection(self.setting, reader, writer).run()
        )

    async def start_login(self, listener: socket.socket, login: Login) -> None:
        """Logs in to a database for who connects to a Unix socket, from now on."""
        await self._listen(listener, partial(self._serve_login, login))

    @property
    def authority(self) -> str:
        """``HOST:PORT``, as who is behind it sees that."""
        return self.setting.authority

    async def close(self) -> None:
        """Ends its connections: what is behind it has no network any more. Idempotent."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _listen(self, listener: socket.socket, serve: Serve) -> None:
        def protocol() -> Protocol:
            return Protocol(asyncio.StreamReader(limit=CHUNK), partial(self._serve, serve))

        # Also for a Unix socket: it is bound in another file system than this one.
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_server(protocol, sock=listener))

    async def _serve_login(
        self, login: Login, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One connection of a driver, until it or its lease ends, with a query that runs."""
        call, task = self.setting.invocation_of(), asyncio.current_task()
        assert task is not None
        end = partial(soon, asyncio.get_running_loop(), task.cancel)
        account = Account(login.name, None, login.database, "", None, frozenset())
        dial = partial(self.setting.dialer.open, tls=None, limit=CHUNK)
        try:
            if call is None or call.ended:
                raise nobody_there()
            assert isinstance(call, WrappedCall)
            with Inside(call):
                lease_id = current_credentials()[login.name].id
                find_open(lease_id)[0].close_at_end(end)
                try:
                    await serve_lease(account, lease_id, reader, writer, dial=dial)
                finally:
                    keep_open(lease_id, end)
        except ApexCredsError as error:
            writer.write(refusal(error.message, error.hint))
        except struct.error:
            raise EOFError from None

    async def _serve(
        self, serve: Serve, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._serving) >= self.setting.limits.connections:
            writer.transport.abort()
            return
        self._serving.add(task)
        try:
            await serve(reader, writer)
        except asyncio.CancelledError:  # the invocation, the gateway or the client has ended
            return
        except (OSError, EOFError, TimeoutError, h11.ProtocolError):
            writer.transport.abort()
        except Exception as error:  # noqa: BLE001 - of this connection only; it may say too much
            _log.error("A connection of the gateway failed: %s", type(error).__name__)
            writer.transport.abort()
        finally:
            self._serving.discard(task)
            writer.close()

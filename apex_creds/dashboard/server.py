"""Serves a vault's dashboard until it is stopped (SIGINT, SIGTERM).

Guarantee: it listens on 127.0.0.1 unless another address was asked for, and there with TLS
only; the socket is this process's alone. In a lockdown the vault's keys are wiped before
anything is served, once what is shown of them was read. When it ends, every session has ended.

Connections on which no session was shown are bounded in number, and a new one is always taken:
the oldest of them is cut off for it, whatever it waits for (its TLS handshake, the rest of a
request, a reader of an answer). Those with a session are never cut off by others, so opening
many connections neither fills the dashboard up nor ends what somebody sees.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import anyio
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from apex_creds.concurrency import stop_signals
from apex_creds.crypto.memory import harden_process
from apex_creds.dashboard.lease_view import names_of
from apex_creds.dashboard.live_feed import LiveFeed
from apex_creds.dashboard.routes import Dashboard, Site
from apex_creds.dashboard.sessions import WITH_SESSION, SessionGate
from apex_creds.dashboard.watcher import Watcher
from apex_creds.errors import InvalidInputError
from apex_creds.vault import Vault

LOOPBACK: Final = "127.0.0.1"
PORT: Final = 8765
_ANY: Final = ("0.0.0.0", "::")  # noqa: S104 - recognised, to ask for a name


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How it is served.

    Attributes:
        port: 0: any that is free.
        decisions: Whether questions may be answered.
        named: Names for credentials although the log has pseudonyms.
        address: Where to listen.
        certificate: A TLS certificate chain and its key, PEM; with any other address than
            127.0.0.1, they are needed.
        hosts: More names that the page is opened by, ``NAME`` or ``NAME:PORT``.
        harden: Whether to call ``harden_process()``.
    """

    port: int = PORT
    decisions: bool = False
    named: bool = False
    address: str = LOOPBACK
    certificate: tuple[Path, Path] | None = None
    hosts: tuple[str, ...] = ()
    harden: bool = True


Say = Callable[[str], None]


async def serve(vault: Vault, settings: Settings, *, say: Say) -> None:
    """Serves until a signal.

    Args:
        vault: Unsealed.
        settings: How.
        say: Given where it is, and each login link.

    Raises:
        InvalidInputError: The address can't be listened on, or the settings don't go
            together.
    """
    if settings.harden:
        harden_process()
    names = await names_of(vault, named=settings.named)
    if names.hidden and settings.decisions:
        raise InvalidInputError(
            "The log of this vault has pseudonyms; nobody can decide on those.",
            hint="Add --names: the page then shows the names themselves.",
        )
    tls = _tls(settings)
    with _listening(settings) as bound:
        port = bound.getsockname()[1]
        address = f"[{settings.address}]" if ":" in settings.address else settings.address
        hosts = [host if ":" in host else f"{host}:{port}" for host in settings.hosts]
        hosts += [] if settings.address in _ANY else [f"{address}:{port}"]
        scheme = "http" if settings.certificate is None else "https"
        origins = tuple(f"{scheme}://{host}".lower() for host in hosts)
        feed, gate = LiveFeed(), SessionGate()
        watcher = Watcher(vault, feed, names=names)
        await watcher.begin()
        site = Site(origins=origins, decisions=settings.decisions)
        made = Dashboard(vault, site, names=names, gate=gate, feed=feed, watcher=watcher)
        server = _Server(made, tls)

        def link() -> None:
            where = f"{origins[0]}/#login={gate.new_link()}"
            say(f"Open this once, within ten minutes: {where}")

        def stop() -> None:  # the streams first, then the server
            feed.close()
            server.should_exit = True

        with stop_signals(stop), _enter(link):
            async with anyio.create_task_group() as group:
                group.start_soon(watcher.run)
                mode = "takes decisions" if settings.decisions else "only shows"
                more = " Enter: another link." if sys.stdin.isatty() else ""
                say(f"The dashboard {mode}; it ends with Ctrl-C.{more}")
                link()
                await server.serve([bound])
                feed.close()
                group.cancel_scope.cancel()


class _Server(uvicorn.Server):
    """Leaves signals to ``serve``."""

    def __init__(self, made: Dashboard, tls: ssl.SSLContext | None) -> None:
        config = uvicorn.Config(
            made.app(),
            http=partial(Connection, tls=tls),  # type: ignore[arg-type]
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="error",  # not a line for each request that is none
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=16_384,
        )
        super().__init__(config)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.certificate is None:
        return None
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        made.load_cert_chain(*settings.certificate)
    except OSError as error:  # as ssl.SSLError is
        raise InvalidInputError(
            f"The certificate and its key can't be used ({error.strerror or 'not PEM'}).",
            hint="Name two PEM files: the certificate with its chain, and its key.",
        ) from None
    return made


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """A socket that listens, closed afterwards."""
    if settings.address != LOOPBACK and settings.certificate is None:
        raise InvalidInputError(
            "Other machines are only served with TLS: sessions could be read on the way.",
            hint="Give a certificate and its key, or forward the port: "
            f"ssh -L {settings.port}:{LOOPBACK}:{settings.port} HOST",
        )
    if settings.address in _ANY and not settings.hosts:
        raise InvalidInputError(
            "By which name is it reached from elsewhere?", hint="Add --host-name NAME."
        )
    family = socket.AF_INET6 if ":" in settings.address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((settings.address, settings.port))
        made.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        made.close()
        why = error.strerror if isinstance(error, OSError) else "no such port"
        raise InvalidInputError(
            f"Can't listen on port {settings.port} of {settings.address} ({why}).",
            hint="Name another port with --port; 0 takes any that is free.",
        ) from None
    try:
        yield made
    finally:
        made.close()


@contextmanager
def _enter(link: Callable[[], None]) -> Iterator[None]:
    """Enter on the terminal makes another link."""
    if not sys.stdin.isatty() or sys.platform == "win32":
        yield
        return

    def pressed() -> None:
        if not sys.stdin.readline():
            loop.remove_reader(sys.stdin)
            return
        link()

    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, pressed)
    try:
        yield
    finally:
        loop.remove_reader(sys.stdin)


# -- connections -------------------------------------------------------------------------


BACKLOG: Final = 128
MAX_STRANGERS: Final = 2 * BACKLOG
"""More than are taken at once: a new one is read before others can crowd it out."""

HANDSHAKE_SECONDS: Final = 10.0

_order = count()


class Connection(H11Protocol):
    """A connection of a browser, or of anybody else on this machine.

    Args:
        args: As uvicorn has them.
        tls: What it is served with; None: it is not, or the transport does that.
        more: As ``args``.
    """

    def __init__(self, *args: Any, tls: ssl.SSLContext | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.number = next(_order)
        self._tls = tls
        self._handshake: asyncio.Task[None] | None = None
        self._early = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes it, and cuts off the oldest stranger if there are too many."""
        super().connection_made(transport)
        known = [each for each in self.connections if isinstance(each, Connection)]
        strangers = [each for each in known if each.stranger]
        if len(strangers) > MAX_STRANGERS:
            min(strangers, key=lambda each: each.number).transport.abort()
        if self._tls is not None:
            self._handshake = self.loop.create_task(self._begin_tls(transport, self._tls))

    async def _begin_tls(self, raw: asyncio.Transport, tls: ssl.SSLContext) -> None:
        """Here and not in the server, which shows no connection before its handshake."""
        try:
            transport = await self.loop.start_tls(
                raw, self, tls, server_side=True, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except OSError:  # as what TLS refuses and a time that is over are
            transport = None
        if transport is None:  # cut off meanwhile
            raw.abort()
            self.connections.discard(self)
        else:
            self._tls = None
            super().connection_made(transport)
            if self._early:
                self.data_received(self._early)

    def data_received(self, data: bytes) -> None:
        """Takes what came; what came with the end of the handshake waits for its transport."""
        if self._tls is not None:
            self._early += data
        else:
            super().data_received(data)

    @property
    def stranger(self) -> bool:
        """Whether it is open, and its last request (there may be none) showed no session."""
        scope: object = self.scope
        shown = isinstance(scope, dict) and WITH_SESSION in scope
        return not shown and not self.transport.is_closing()

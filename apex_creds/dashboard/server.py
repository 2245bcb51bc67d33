"""Serves a vault's dashboard until it is stopped (SIGINT, SIGTERM).

Guarantee: it listens on 127.0.0.1 unless another address was asked for, and there with TLS
only; the socket is this process's alone. In a lockdown the vault's keys are wiped before
anything is served, once what is shown of them was read. When it ends, every session has ended.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import uvicorn

from apex_creds.crypto.memory import harden_process
from apex_creds.dashboard.connections import BACKLOG, Connection
from apex_creds.dashboard.lease_view import names_of
from apex_creds.dashboard.live_feed import LiveFeed
from apex_creds.dashboard.routes import Dashboard, Site
from apex_creds.dashboard.sessions import SessionGate
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
        origins = _origins(settings, bound.getsockname()[1])
        feed, gate = LiveFeed(), SessionGate()
        watcher = Watcher(vault, feed, names=names)
        await watcher.begin()
        site = Site(origins=origins, decisions=settings.decisions)
        made = Dashboard(vault, site, names=names, gate=gate, feed=feed, watcher=watcher)
        server = _Server(_config(made, tls))

        def link() -> None:
            where = f"{origins[0]}/#login={gate.new_link()}"
            say(f"Open this once, within ten minutes: {where}")

        with _signals(server, feed), _enter(link):
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

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(made: Dashboard, tls: ssl.SSLContext | None) -> uvicorn.Config:
    return uvicorn.Config(
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


def _origins(settings: Settings, port: int) -> tuple[str, ...]:
    scheme = "http" if settings.certificate is None else "https"
    address = f"[{settings.address}]" if ":" in settings.address else settings.address
    named = [host if ":" in host else f"{host}:{port}" for host in settings.hosts]
    own = [] if settings.address in _ANY else [f"{address}:{port}"]
    return tuple(f"{scheme}://{host}".lower() for host in (*named, *own))


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
def _signals(server: uvicorn.Server, feed: LiveFeed) -> Iterator[None]:
    """Signals end the streams, then the server."""
    loop, chosen = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        feed.close()
        server.should_exit = True

    with suppress(NotImplementedError):  # Windows
        for number in chosen:
            loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        with suppress(NotImplementedError):
            for number in chosen:
                loop.remove_signal_handler(number)


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

"""Logs in to a PostgreSQL server (protocol 3.0), with the password in locked memory.

Guarantee: the server is sent the role and the database of the login, whatever the driver asked
for, and no more of the password than SCRAM's proof; cleartext and MD5 only where they were
allowed, and cleartext never over a connection that somebody is on the way of.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import struct
from collections.abc import Awaitable, Callable, Collection
from typing import Final, NamedTuple

from apex_creds.concurrency import run_to_completion
from apex_creds.crypto.scram import MECHANISM, ScramClient
from apex_creds.errors import LoginError
from apex_creds.leases.logins import tls_context
from apex_creds.model import Origin
from apex_creds.vault import Opened

PROTOCOL: Final = 196608
SSL_REQUEST: Final = 80877103
GSS_REQUEST: Final = 80877104
CANCEL_REQUEST: Final = 80877102
LOGGED_IN: Final = b"R" + struct.pack("!II", 8, 0)
READY: Final = b"Z" + struct.pack("!I", 5) + b"I"
_LARGEST: Final = 256 * 1024
_FORCED: Final = frozenset({b"user", b"database", b"replication"})

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Dial = Callable[[str, int], Awaitable[Streams]]
"""Connects to a host and port; raises OSError."""


class Target(NamedTuple):
    """Where, and as what, to log in.

    Attributes:
        tls: Whether the connection is encrypted, and the server's certificate verified.
        allowed: ``cleartext`` and ``md5``, where those are.
        dial: Connects; None: asyncio does.
    """

    origin: Origin
    role: str
    database: str
    tls: bool
    allowed: Collection[str]
    dial: Dial | None = None


class Session(NamedTuple):
    """A connection that is logged in.

    Attributes:
        greeting: What the server said since, for the driver.
        key: What its queries are cancelled by.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    greeting: bytes
    key: bytes


class ServerRefusal(LoginError):  # noqa: N818 - it is one of the server's, passed on
    """The server's own error, of which code and words are known."""

    code: str = "28000"


async def connect(target: Target) -> Streams:
    """A connection to the server.

    Raises:
        LoginError: It can't be reached, or not by TLS.
    """
    origin = target.origin
    try:
        if origin.host.startswith("/"):
            path = f"{origin.host}/.s.PGSQL.{origin.port}"
            return await asyncio.open_unix_connection(path)
        dial = target.dial or asyncio.open_connection
        reader, writer = await dial(origin.host, origin.port)
        if target.tls:
            writer.write(struct.pack("!II", 8, SSL_REQUEST))
            if await reader.readexactly(1) != b"S":
                writer.close()
                raise LoginError(
                    f"The server {origin} does not offer TLS.", hint="Turn it on there: ssl=on."
                )
            await writer.start_tls(tls_context(), server_hostname=origin.host)
        return reader, writer
    except (OSError, asyncio.IncompleteReadError) as error:
        raise LoginError(
            f"The server {origin} can't be reached ({type(error).__name__}).",
            hint="Check that it runs, its address, and its certificate.",
        ) from None


async def log_in(target: Target, parameters: dict[bytes, bytes], opened: Opened) -> Session:
    """Connects and logs in; the caller closes ``opened``.

    Of the driver's parameters those that say who and where are left out.

    Raises:
        LoginError: The server can't be reached, refuses, or is none.
    """
    reader, writer = await connect(target)
    try:
        kept = {key: value for key, value in parameters.items() if key and key not in _FORCED}
        kept[b"user"], kept[b"database"] = target.role.encode(), target.database.encode()
        pairs = b"".join(name + b"\0" + value + b"\0" for name, value in kept.items())
        body = struct.pack("!I", PROTOCOL) + pairs + b"\0"
        writer.write(struct.pack("!I", len(body) + 4) + body)
        await _authenticate(reader, writer, target, opened)
        greeting, key, kind = LOGGED_IN, b"", b""
        while kind != b"Z":
            kind, body = await _read(reader, opened)
            greeting += message(kind, body)
            if kind == b"K":
                key = body
        return Session(reader, writer, greeting, key)
    except (OSError, asyncio.IncompleteReadError, struct.error) as error:
        writer.close()
        raise LoginError(
            f"The server {target.origin} ended the login ({type(error).__name__}).",
            hint="Its log says why.",
        ) from None
    except BaseException:
        writer.close()
        raise


def message(kind: bytes, body: bytes) -> bytes:
    """A message with its length."""
    return kind + struct.pack("!I", len(body) + 4) + body


def refusal(text: str, hint: str = "", code: str = "28000") -> bytes:
    """A FATAL error for the driver."""
    fields = {b"S": "FATAL", b"V": "FATAL", b"C": code, b"M": text, b"H": hint}
    body = b"".join(key + value.encode() + b"\0" for key, value in fields.items() if value)
    return message(b"E", body + b"\0")


def read_pairs(body: bytes) -> dict[bytes, bytes]:
    """The parameters of a startup message."""
    parts = body.split(b"\0")
    return dict(zip(parts[::2], parts[1::2], strict=False)) if len(parts) > 1 else {}


async def cancel(target: Target, key: bytes) -> None:
    """Asks the server to end the query that runs in the session of ``key``.

    Raises:
        LoginError: It can't be reached.
    """
    reader, writer = await connect(target)
    try:
        writer.write(struct.pack("!II", 8 + len(key), CANCEL_REQUEST) + key)
        await reader.read()  # it closes when it has done so
    except OSError:
        return
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, opened: Opened) -> tuple[bytes, bytes]:
    """The server's next message, which is no error.

    Raises:
        LoginError: It is one, or none.
    """
    kind, length = struct.unpack("!cI", await reader.readexactly(5))
    if not 4 <= length <= _LARGEST:
        raise LoginError("The server does not speak PostgreSQL's protocol.")
    body = await reader.readexactly(length - 4)
    if kind == b"E":
        fields = {part[:1]: part[1:].decode("utf-8", "replace") for part in body.split(b"\0")}
        with opened.view() as secret:
            shown = len(secret) > 0 and body.find(secret) < 0
        words = fields.get(b"M", "") if shown else "The server refused the login."
        error = ServerRefusal(words[:500])
        error.code = fields.get(b"C", "28000")[:5]
        raise error
    return kind, body


async def _authenticate(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Target, opened: Opened
) -> None:
    scram = ScramClient(os.urandom(18))
    proven = begun = False
    while True:
        kind, body = await _read(reader, opened)
        if kind != b"R":
            if kind in (b"N", b"v"):
                continue
            raise LoginError("The server does not speak PostgreSQL's protocol.")
        asked, rest = int.from_bytes(body[:4], "big"), body[4:]
        if asked == 0 and (proven or not begun):
            return
        if asked == 10 and MECHANISM in rest.split(b"\0") and not begun:
            begun, first = True, scram.first
            sent = MECHANISM + b"\0" + struct.pack("!I", len(first)) + first
            writer.write(message(b"p", sent))
        elif asked == 11 and begun:
            with opened.view() as password:
                work = asyncio.to_thread(scram.proof, rest, password)
                proof = await run_to_completion(work)
            writer.write(message(b"p", proof))
        elif asked == 12 and begun:
            scram.verify(rest)
            proven = True
        elif asked in (3, 5) and not begun:
            writer.write(_old_way(asked, rest, target, opened))
        else:
            raise LoginError(
                "The server asks for the password in a way that is not supported.",
                hint="Have pg_hba.conf say scram-sha-256 for this role.",
            )


def _old_way(asked: int, salt: bytes, target: Target, opened: Opened) -> bytes:
    name = "cleartext" if asked == 3 else "md5"
    private = target.tls or target.origin.here
    if name not in target.allowed or (asked == 3 and not private):
        raise LoginError(
            f"The server asks for the password in {name}, which is not allowed.",
            hint=f'Have pg_hba.conf say scram-sha-256, or say allow=["{name}"].',
        )
    with opened.view() as password:
        if asked == 3:
            return message(b"p", b"".join((password, b"\0")))
        inner = hashlib.md5(b"".join((password, target.role.encode())), usedforsecurity=False)
        outer = hashlib.md5(inner.hexdigest().encode() + salt, usedforsecurity=False)
        return message(b"p", b"md5" + outer.hexdigest().encode() + b"\0")

"""Events to syslog (RFC 5424) and to systemd's journal.

Guarantee: each event is one message or entry, whatever its fields hold. Of syslog (over a
local socket, UDP by RFC 5426, TCP by RFC 6587, or TLS) the header has printable ASCII only,
parameter values are escaped, and the message is the log's own line; over TCP and TLS
messages are framed by octet counting, so no content can forge another. In the journal's
native protocol values with a newline are sent with their length, so that none can add a
field; an entry too large for a datagram is passed as a sealed memory file.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import ssl
import struct
import sys
from datetime import UTC, datetime
from typing import Final

import msgspec

from apex_creds.audit.sinks.base import Line, severity

__all__ = [
    "DEV_LOG",
    "JOURNAL",
    "JournalSink",
    "SyslogSink",
    "format_entry",
    "format_message",
]

DEV_LOG: Final = "/dev/log"
_FACILITY: Final = 13  # "log audit"
_APP: Final = "apex-creds"
_STRUCTURED_ID: Final = "apex-creds@32473"
"""RFC 5612's number for examples: this project has none."""
_TIMEOUT: Final = 10.0
_BOM: Final = b"\xef\xbb\xbf"
_ESCAPES: Final = str.maketrans({c: f"\\{c}" for c in '\\"]'})
"""Of a parameter's value."""
_PARAMETERS: Final = (
    "seq",
    "plugin",
    "action",
    "credential",
    "decision",
    "reason",
    "outcome",
    "invocation",
    "lease",
    "origin",
    "trace_id",
)


class _SocketSink:
    """What has one connected socket, or none."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def close(self) -> None:
        """Disconnects."""
        connected, self._socket = self._socket, None
        if connected is not None:
            connected.close()


class SyslogSink(_SocketSink):
    """Sends to one syslog server.

    Args:
        address: A socket's path, or host and port.
        transport: ``unix`` (for a path), ``udp``, ``tcp`` or ``tls``.
        tls: For ``tls``; the system's certificates and a check of the name by default.
    """

    def __init__(
        self,
        address: str | tuple[str, int] = DEV_LOG,
        *,
        transport: str = "unix",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__()
        self._address = address
        self._transport = transport
        self._tls = tls
        # A header field is printable ASCII without spaces (section 6).
        self._host = "".join(c for c in socket.gethostname() if "!" <= c <= "~")[:255]

    def open(self) -> None:
        """Connects.

        Raises:
            OSError: It can't be reached.
        """
        self.close()
        if isinstance(self._address, str):
            if sys.platform == "win32":  # pragma: no cover
                raise OSError("There are no such sockets on this system.")
            try:
                self._socket = _connected(socket.AF_UNIX, socket.SOCK_DGRAM, self._address)
            except OSError as error:
                if not isinstance(error, ConnectionError) and error.errno != _WRONG_TYPE:
                    raise
                self._socket = _connected(socket.AF_UNIX, socket.SOCK_STREAM, self._address)
        elif self._transport == "udp":
            found = socket.getaddrinfo(*self._address, type=socket.SOCK_DGRAM)[0]
            self._socket = _connected(found[0], socket.SOCK_DGRAM, found[4])
        else:
            plain = socket.create_connection(self._address, timeout=_TIMEOUT)
            if self._transport == "tls":
                try:
                    context = self._tls or ssl.create_default_context()
                    plain = context.wrap_socket(plain, server_hostname=self._address[0])
                except BaseException:
                    plain.close()
                    raise
            self._socket = plain

    def deliver(self, line: Line) -> None:
        """Sends one message.

        Raises:
            OSError: It was not taken.
        """
        connected = self._socket
        if connected is None:
            raise ConnectionError
        message = format_message(line, host=self._host, process=os.getpid())
        if connected.type == socket.SOCK_STREAM:
            message = b"%d %b" % (len(message), message)
        connected.sendall(message)


def format_message(line: Line, *, host: str, process: int) -> bytes:
    """One event as an RFC 5424 message, without framing.

    Text that is not ASCII is marked as UTF-8 by a byte order mark, as section 6.4 has it.
    """
    event = line.event
    moment = datetime.fromtimestamp(event.time, UTC).isoformat(timespec="microseconds")
    priority = _FACILITY * 8 + severity(event.kind)
    given = ((name, str(getattr(event, name) or "")) for name in _PARAMETERS)
    parameters = "".join(
        f' {name}="{value.translate(_ESCAPES)}"' for name, value in given if value
    )
    header = (
        f"<{priority}>1 {moment.removesuffix('+00:00')}Z {host or '-'} {_APP} {process} "
        f"{event.kind.value} [{_STRUCTURED_ID}{parameters}] "
    )
    mark = b"" if line.data.isascii() else _BOM
    return header.encode() + mark + line.data


def _connected(family: int, kind: int, address: object) -> socket.socket:
    made = socket.socket(family, kind)
    made.settimeout(_TIMEOUT)
    try:
        made.connect(address)  # type: ignore[arg-type]
    except BaseException:
        made.close()
        raise
    return made


_WRONG_TYPE: Final = 91 if sys.platform == "linux" else -1  # EPROTOTYPE


JOURNAL: Final = "/run/systemd/journal/socket"
_MESSAGE_ID: Final = "5b6a1d0c0d7f4d0e9a3e6f1c2b4d8e70"
_TOO_LARGE: Final = (errno.EMSGSIZE, errno.ENOBUFS)
_SEALS: Final = 0x000F  # seal, shrink, grow, write
_ADD_SEALS: Final = 1033


class JournalSink(_SocketSink):
    """Sends to a journal.

    Args:
        path: The journal's socket.
    """

    def __init__(self, path: str = JOURNAL) -> None:
        super().__init__()
        self._path = path

    def open(self) -> None:
        """Connects.

        Raises:
            OSError: There is no journal.
        """
        if sys.platform == "win32":  # pragma: no cover
            raise OSError("There is no journal on this system.")
        self.close()
        self._socket = _connected(socket.AF_UNIX, socket.SOCK_DGRAM, self._path)

    def deliver(self, line: Line) -> None:
        """Sends one entry.

        Raises:
            OSError: It was not taken.
        """
        if self._socket is None:
            raise ConnectionError
        entry = format_entry(line)
        try:
            self._socket.send(entry)
        except OSError as error:
            there = sys.platform == "linux" and hasattr(os, "memfd_create")
            if error.errno not in _TOO_LARGE or not there:
                raise
            import fcntl

            fd = os.memfd_create("apex-creds-entry", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
            try:
                rest = memoryview(entry)
                while rest:
                    rest = rest[os.write(fd, rest) :]
                fcntl.fcntl(fd, _ADD_SEALS, _SEALS)
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
                self._socket.sendmsg([b""], [rights])
            finally:
                os.close(fd)


def format_entry(line: Line) -> bytes:
    """One event as journal fields: ``MESSAGE`` and ``APEX_CREDS_`` with each field's name."""
    event = line.event
    fields: dict[str, bytes] = {
        "MESSAGE": line.data,
        "MESSAGE_ID": _MESSAGE_ID.encode(),
        "PRIORITY": b"%d" % severity(event.kind),
        "SYSLOG_FACILITY": b"%d" % _FACILITY,
        "SYSLOG_IDENTIFIER": b"apex-creds",
    }
    for name, value in msgspec.structs.asdict(event).items():
        if value:
            fields[f"APEX_CREDS_{name.upper()}"] = str(value).encode()
    entry = b""
    for name, value in fields.items():
        if b"\n" in value:
            entry += b"%b\n%b%b\n" % (name.encode(), struct.pack("<Q", len(value)), value)
        else:
            entry += b"%b=%b\n" % (name.encode(), value)
    return entry

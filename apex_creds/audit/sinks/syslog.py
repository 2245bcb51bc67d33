"""Events to syslog: RFC 5424 over a local socket, UDP (RFC 5426), TCP (RFC 6587) or TLS.

Guarantee: each event is one RFC 5424 message, whatever its fields hold: the header has
printable ASCII only, parameter values are escaped, and the message is the log's own line.
Over TCP and TLS messages are framed by octet counting, so no content can forge another.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from datetime import UTC, datetime
from typing import Final

from apex_creds.audit.events import Recorded
from apex_creds.audit.sinks.base import Line
from apex_creds.audit.sinks.levels import severity

__all__ = ["DEV_LOG", "SyslogSink", "format_message"]

DEV_LOG: Final = "/dev/log"
_FACILITY: Final = 13  # "log audit"
_APP: Final = "apex-creds"
_STRUCTURED_ID: Final = "apex-creds@32473"
"""RFC 5612's number for examples: this project has none of its own."""
_TIMEOUT: Final = 10.0
_BOM: Final = b"\xef\xbb\xbf"
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


class SyslogSink:
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
        self._address = address
        self._transport = transport
        self._tls = tls
        self._socket: socket.socket | None = None
        self._host = _header(socket.gethostname(), 255)

    def open(self) -> None:
        """Connects.

        Raises:
            OSError: It can't be reached.
        """
        self.close()
        if isinstance(self._address, str):
            self._socket = _unix(self._address)
        elif self._transport == "udp":
            self._socket = _udp(self._address)
        else:
            self._socket = self._stream(self._address)

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

    def close(self) -> None:
        """Disconnects."""
        connected, self._socket = self._socket, None
        if connected is not None:
            connected.close()

    def _stream(self, address: tuple[str, int]) -> socket.socket:
        plain = socket.create_connection(address, timeout=_TIMEOUT)
        if self._transport != "tls":
            return plain
        try:
            context = self._tls or ssl.create_default_context()
            return context.wrap_socket(plain, server_hostname=address[0])
        except BaseException:
            plain.close()
            raise


def format_message(line: Line, *, host: str, process: int) -> bytes:
    """One event as an RFC 5424 message, without framing.

    Text that is not ASCII is marked as UTF-8 by a byte order mark, as section 6.4 has it.
    """
    event = line.event
    moment = datetime.fromtimestamp(event.time, UTC).isoformat(timespec="microseconds")
    priority = _FACILITY * 8 + severity(event.kind)
    header = (
        f"<{priority}>1 {moment.removesuffix('+00:00')}Z {host or '-'} {_APP} {process} "
        f"{event.kind.value} {_structured(event)} "
    )
    mark = b"" if line.data.isascii() else _BOM
    return header.encode() + mark + line.data


def _structured(event: Recorded) -> str:
    given = ((name, getattr(event, name)) for name in _PARAMETERS)
    parameters = "".join(f' {name}="{_escaped(str(value))}"' for name, value in given if value)
    return f"[{_STRUCTURED_ID}{parameters}]"


def _escaped(value: str) -> str:
    for character in ("\\", '"', "]"):
        value = value.replace(character, "\\" + character)
    return value


def _header(value: str, longest: int) -> str:
    """A header field: printable ASCII without spaces (section 6)."""
    return "".join(c for c in value if "!" <= c <= "~")[:longest]


def _unix(path: str) -> socket.socket:
    if sys.platform == "win32":  # pragma: no cover
        raise OSError("There are no such sockets on this system.")
    try:
        return _connected(socket.AF_UNIX, socket.SOCK_DGRAM, path)
    except OSError as error:
        if not isinstance(error, ConnectionError) and error.errno != _WRONG_TYPE:
            raise
        return _connected(socket.AF_UNIX, socket.SOCK_STREAM, path)


def _udp(address: tuple[str, int]) -> socket.socket:
    family, _, _, _, found = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)[0]
    return _connected(family, socket.SOCK_DGRAM, found)


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

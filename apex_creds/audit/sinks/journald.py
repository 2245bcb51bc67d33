"""Events to systemd's journal in its native protocol, over its socket.

Guarantee: each event is one journal entry; no value can add a field of its own, because
values with a newline are sent with their length. An entry too large for a datagram is
passed as a sealed memory file, as the protocol has it.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import sys
from typing import Final

import msgspec

from apex_creds.audit.sinks.base import Line
from apex_creds.audit.sinks.levels import severity

__all__ = ["JOURNAL", "JournalSink", "format_entry"]

JOURNAL: Final = "/run/systemd/journal/socket"
_MESSAGE_ID: Final = "5b6a1d0c0d7f4d0e9a3e6f1c2b4d8e70"
_FACILITY: Final = 13
_TIMEOUT: Final = 10.0
_TOO_LARGE: Final = (errno.EMSGSIZE, errno.ENOBUFS)
_SEALS: Final = 0x000F  # seal, shrink, grow, write
_ADD_SEALS: Final = 1033


class JournalSink:
    """Sends to a journal.

    Args:
        path: The journal's socket.
    """

    def __init__(self, path: str = JOURNAL) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Connects.

        Raises:
            OSError: There is no journal.
        """
        if sys.platform == "win32":  # pragma: no cover
            raise OSError("There is no journal on this system.")
        self.close()
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.settimeout(_TIMEOUT)
        try:
            made.connect(self._path)
        except BaseException:
            made.close()
            raise
        self._socket = made

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
            if error.errno not in _TOO_LARGE or not hasattr(os, "memfd_create"):
                raise
            _send_file(self._socket, entry)

    def close(self) -> None:
        """Disconnects."""
        connected, self._socket = self._socket, None
        if connected is not None:
            connected.close()


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
    return b"".join(_field(name.encode(), value) for name, value in fields.items())


def _field(name: bytes, value: bytes) -> bytes:
    if b"\n" not in value:
        return b"%b=%b\n" % (name, value)
    return b"%b\n%b%b\n" % (name, struct.pack("<Q", len(value)), value)


def _send_file(connected: socket.socket, entry: bytes) -> None:
    if sys.platform != "linux":  # pragma: no cover
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    import fcntl

    fd = os.memfd_create("apex-creds-entry", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        rest = memoryview(entry)
        while rest:
            rest = rest[os.write(fd, rest) :]
        fcntl.fcntl(fd, _ADD_SEALS, _SEALS)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
        connected.sendmsg([b""], [rights])
    finally:
        os.close(fd)

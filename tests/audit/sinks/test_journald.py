"""The journal's native protocol: what its own documentation says, byte for byte."""

from __future__ import annotations

import array
import os
import socket
import struct
from pathlib import Path

import pytest

from apex_creds.audit import EventKind
from apex_creds.audit.line import decode, encode, link
from apex_creds.audit.sinks import JournalSink, Line
from apex_creds.audit.sinks.system_logs import format_entry
from tests.support.held import event

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no such sockets")


def _line(**fields: object) -> Line:
    body = encode(event(EventKind.DENIAL, **fields))
    data = link(7, body)[0].rstrip(b"\n")
    return Line(data, decode(data))


def fields_of(entry: bytes) -> dict[str, bytes]:
    """Reads an entry as systemd does."""
    found: dict[str, bytes] = {}
    while entry:
        head, _, entry = entry.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", entry[:8])
            value, end, entry = (
                entry[8 : 8 + length],
                entry[8 + length : 9 + length],
                entry[9 + length :],
            )
            assert end == b"\n"
        assert name.decode() not in found
        found[name.decode()] = value
    return found


def test_an_entry_byte_for_byte() -> None:
    line = _line(plugin="weather", reason="undeclared")
    start = (
        b"MESSAGE=" + line.data + b"\nMESSAGE_ID=5b6a1d0c0d7f4d0e9a3e6f1c2b4d8e70\nPRIORITY=4\n"
        b"SYSLOG_FACILITY=13\nSYSLOG_IDENTIFIER=apex-creds\n"
        b"APEX_CREDS_TIME=1700000000.25\nAPEX_CREDS_KIND=denial\nAPEX_CREDS_PLUGIN=weather\n"
        b"APEX_CREDS_REASON=undeclared\n"
    )
    assert format_entry(line).startswith(start)
    assert fields_of(format_entry(line))["APEX_CREDS_SEQ"] == b"7"


def test_no_value_can_add_a_field() -> None:
    fields = fields_of(format_entry(_line(plugin="a\n_UID=0\nPRIORITY=0", credential="ü")))
    assert fields["APEX_CREDS_PLUGIN"] == b"a\n_UID=0\nPRIORITY=0"
    assert fields["APEX_CREDS_CREDENTIAL"] == "ü".encode()
    assert fields["PRIORITY"] == b"4"
    assert "_UID" not in fields


def test_datagrams_and_a_sealed_file_for_what_is_too_large(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        server.settimeout(20)
        sink = JournalSink(path)
        sink.open()
        sink.deliver(_line(detail="small"))
        assert server.recv(1 << 17) == format_entry(_line(detail="small"))
        assert sink._socket is not None
        sink._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        large = Line(b"x" * 60_000, _line().event)
        sink.deliver(large)
        _, ancillary, _, _ = server.recvmsg(16, socket.CMSG_SPACE(4))
        fds = array.array("i", ancillary[0][2])
        os.lseek(fds[0], 0, os.SEEK_SET)
        assert os.read(fds[0], 1 << 17) == format_entry(large)
        with pytest.raises(PermissionError):
            os.write(fds[0], b"more")
        os.close(fds[0])
        sink.close()
        with pytest.raises(ConnectionError):
            sink.deliver(large)


def test_no_journal(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        JournalSink(str(tmp_path / "none")).open()

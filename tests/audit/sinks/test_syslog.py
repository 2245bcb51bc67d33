"""Byte-exact RFC 5424 messages, over each transport, to a server that keeps what it gets."""

from __future__ import annotations

import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from apex_creds.audit import AuditEvent, AuditLog, EventKind
from apex_creds.audit.line import decode, encode, link
from apex_creds.audit.sinks import Destination, Destinations, Line, SyslogSink
from apex_creds.audit.sinks.system_logs import format_message
from tests.support.held import event
from tests.support.loops import WITHIN


def _line(kind: EventKind = EventKind.REDEEM, **fields: object) -> Line:
    body = encode(event(kind, **fields))
    data = link(7, body)[0].rstrip(b"\n")
    return Line(data, decode(data))


def test_a_message_byte_for_byte() -> None:
    line = _line(plugin="weather", action="today", credential="openai", lease="0" * 32)
    assert format_message(line, host="box.example", process=42) == (
        b"<110>1 2023-11-14T22:13:20.250000Z box.example apex-creds 42 redeem "
        b'[apex-creds@32473 seq="7" plugin="weather" action="today" credential="openai" '
        b'lease="' + b"0" * 32 + b'"] ' + line.data
    )


@pytest.mark.parametrize(
    ("kind", "priority"),
    [
        (EventKind.INVOCATION, 13 * 8 + 6),
        (EventKind.PUT, 13 * 8 + 5),
        (EventKind.DENIAL, 13 * 8 + 4),
        (EventKind.LEAK, 13 * 8 + 3),
    ],
)
def test_severities(kind: EventKind, priority: int) -> None:
    message = format_message(_line(kind), host="", process=1)
    assert message.startswith(b"<%d>1 2023-11-14T22:13:20.250000Z - apex-creds 1 " % priority)


def test_values_are_escaped_and_unicode_is_marked() -> None:
    line = _line(plugin='a"]\\ \n<13>1 forged', credential="schlüssel")
    message = format_message(line, host="h", process=1)
    assert b'plugin="a\\"\\]\\\\ \n<13>1 forged"' in message
    assert 'credential="schlüssel"'.encode() in message
    assert message.endswith(b"] \xef\xbb\xbf" + line.data)


Attach = Callable[..., tuple[AuditLog, Destinations]]


class _Server:
    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.changed = threading.Condition()

    def take(self, data: bytes) -> None:
        with self.changed:
            self.got.append(data)
            self.changed.notify_all()

    def wait(self, enough: Callable[[list[bytes]], bool]) -> list[bytes]:
        with self.changed:
            assert self.changed.wait_for(lambda: enough(self.got), WITHIN)
            return list(self.got)


@contextmanager
def _datagrams(family: int, address: object) -> Iterator[tuple[_Server, object]]:
    server = _Server()
    with socket.socket(family, socket.SOCK_DGRAM) as listening:
        listening.bind(address)  # type: ignore[arg-type]

        def run() -> None:
            while data := listening.recv(1 << 17):
                server.take(data)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield server, listening.getsockname()
        finally:
            with socket.socket(family, socket.SOCK_DGRAM) as last:
                last.sendto(b"", listening.getsockname())
            thread.join()


@contextmanager
def _stream() -> Iterator[tuple[_Server, tuple[str, int]]]:
    server = _Server()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(1 << 16):
                server.take(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as tcp:
        thread = threading.Thread(target=tcp.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server, tcp.server_address[:2]  # type: ignore[misc]
        finally:
            tcp.shutdown()
            thread.join()


def _send(attach: Attach, sink: SyslogSink) -> tuple[AuditLog, list[bytes]]:
    """What the server ought to get for two events, without framing."""
    lines: list[Line] = []

    kept = threading.Event()

    class Keep:
        def open(self) -> None: ...
        def close(self) -> None: ...
        def deliver(self, line: Line) -> None:
            lines.append(line)
            if len(lines) == 2:
                kept.set()

    also = Destination(name="kept", sink=Keep())
    log, _ = attach(also, Destination(name="syslog", sink=sink))
    log.append(event(plugin="schlüssel"))
    log.append(event(EventKind.DENIAL, reason="undeclared"))
    assert kept.wait(WITHIN)
    host = "".join(c for c in socket.gethostname() if "!" <= c <= "~")
    return log, [format_message(line, host=host, process=os.getpid()) for line in lines]


def test_a_local_socket(attach: Attach, tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with _datagrams(socket.AF_UNIX, path) as (server, _):
        log, expected = _send(attach, SyslogSink(path))
        assert server.wait(lambda got: len(got) == 2) == expected
        log.close()


def test_udp_has_one_datagram_per_message(attach: Attach) -> None:
    with _datagrams(socket.AF_INET, ("127.0.0.1", 0)) as (server, address):
        log, expected = _send(attach, SyslogSink(address, transport="udp"))  # type: ignore[arg-type]
        assert server.wait(lambda got: len(got) == 2) == expected
        log.close()


def test_tcp_counts_octets(attach: Attach) -> None:
    with _stream() as (server, address):
        log, expected = _send(attach, SyslogSink(address, transport="tcp"))
        framed = b"".join(b"%d %b" % (len(each), each) for each in expected)
        got = server.wait(lambda got: len(b"".join(got)) >= len(framed))
        assert b"".join(got) == framed
        log.close()


def test_a_local_server_that_comes_back(attach: Attach, tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    log, expected = _send(attach, SyslogSink(path))
    with _datagrams(socket.AF_UNIX, path) as (server, _):
        assert server.wait(lambda got: len(got) == 2) == expected
        log.close()


def test_the_schema_has_no_field_for_a_secret() -> None:
    assert not {"secret", "value", "password", "token"} & set(AuditEvent.__struct_fields__)
    assert msgspec.json.decode(_line().data)["kind"] == "redeem"

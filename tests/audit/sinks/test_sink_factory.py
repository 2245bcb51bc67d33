"""Destinations as text, and standard error."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from apex_creds.audit import AuditLog, EventKind
from apex_creds.audit.sinks import (
    Destination,
    Destinations,
    JournalSink,
    Level,
    StreamSink,
    SyslogSink,
    from_environment,
    parse,
)
from apex_creds.errors import InvalidInputError
from tests.support.held import event


def test_all_of_them() -> None:
    listed = (
        "stderr:?level=denials journald: syslog:/run/log?name=local&required=yes\n"
        "syslog+udp://127.0.0.1 syslog+tcp://[::1]:5000?capacity=99 syslog+tls://logs.example"
    )
    found = from_environment({"APEX_CREDS_AUDIT_TO": listed})
    assert [each.name for each in found] == [
        "stderr",
        "journald",
        "local",
        "syslog+udp",
        "syslog+tcp",
        "syslog+tls",
    ]
    assert isinstance(found[0].sink, StreamSink)
    assert isinstance(found[1].sink, JournalSink)
    assert found[0].level is Level.DENIALS
    assert [each.required for each in found] == [False, False, True, False, False, False]
    assert found[4].capacity == 99
    addresses = [each.sink._address for each in found if isinstance(each.sink, SyslogSink)]
    assert addresses == ["/run/log", ("127.0.0.1", 514), ("::1", 5000), ("logs.example", 6514)]
    assert from_environment({}) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "stdout:",
        "stderr:/x",
        "stderr:?level=most",
        "stderr:?required=true",
        "stderr:?capacity=ten",
        "stderr:?capacity=1",
        "stderr:?colour=red",
        "stderr:?level",
        "syslog:relative",
        "syslog://host",
        "syslog+udp:",
        "syslog+udp://host:99999",
        "syslog+tcp://user@host",
        "syslog+tcp://host/path",
        "journald:#x",
    ],
)
def test_what_is_not_understood(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse(text)


def test_a_stream_gets_the_lines_of_its_level(
    attach: Callable[..., tuple[AuditLog, Destinations]],
) -> None:
    reading, writing = os.pipe()
    log, _ = attach(Destination(name="pipe", sink=StreamSink(writing), level=Level.DENIALS))
    log.append(event())
    log.append(event(EventKind.DENIAL, reason="undeclared"))
    log.close()
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        (line,) = stream.read().splitlines()
    assert b'"kind":"denial"' in line
    assert b'"reason":"undeclared"' in line

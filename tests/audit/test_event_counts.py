"""Counts are the log's own, whoever wrote; what is not of a closed set is not told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_creds.audit.event_counts import EXPECTED, EventCounts, EventLabel
from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.audit.log import AuditLog
from apex_creds.errors import AuditTamperedError
from apex_creds.model import SystemClock

VAULT = "ab" * 16
EVENTS = (
    AuditEvent(1.0, EventKind.DENIAL, reason="not_granted"),
    AuditEvent(2.0, EventKind.DENIAL, reason="sk-a-secret-somebody-put-here"),
    AuditEvent(3.0, EventKind.FACTOR, action="verify", decision="deny", reason="wrong"),
    AuditEvent(4.0, EventKind.FACTOR, action="enrol"),
    AuditEvent(5.0, EventKind.ROTATION, action="rotate dek", reason="time"),
    AuditEvent(6.0, EventKind.ROTATION, action="event", reason="compromise_suspected"),
    AuditEvent(7.0, EventKind.REVOKE, decision="lockdown"),
    AuditEvent(8.0, EventKind.REVOKE, plugin="weather"),
    AuditEvent(9.0, EventKind.INVOCATION, reason="a purpose"),
)


def _log(directory: Path) -> AuditLog:
    return AuditLog(directory, vault_id=VAULT, clock=SystemClock(), durable_within=0)


def _seen(counts: EventCounts) -> dict[EventLabel, int]:
    return {what: number for what, number in counts.read().items() if number}


def test_kinds_and_closed_reasons(tmp_path: Path) -> None:
    log = _log(tmp_path / "audit")
    for event in EVENTS:
        log.append(event)
    counts = EventCounts(tmp_path / "audit", vault_id=VAULT)
    counts.update()
    assert _seen(counts) == {
        EventLabel("denial", "not_granted"): 1,
        EventLabel("denial", "_OTHER"): 1,
        EventLabel("factor", "wrong"): 1,
        EventLabel("factor"): 1,
        EventLabel("rotation", "rotate dek"): 1,
        EventLabel("rotation"): 1,
        EventLabel("revoke", "lockdown"): 1,
        EventLabel("revoke"): 1,
        EventLabel("invocation"): 1,
    }
    log.close()


def test_another_process_s_events_and_a_restart(tmp_path: Path) -> None:
    """Two logs share the files as two processes do; one that begins later has the same."""
    directory = tmp_path / "audit"
    first, second = _log(directory), _log(directory)
    counts = EventCounts(directory, vault_id=VAULT)
    counts.update()
    assert counts.seq == 0
    first.append(EVENTS[0])
    counts.update()
    second.append(EVENTS[0])
    counts.update()
    counts.update()
    assert _seen(counts) == {EventLabel("denial", "not_granted"): 2}
    later = EventCounts(directory, vault_id=VAULT)
    later.update()
    assert later.read() == counts.read()
    first.close()
    second.close()


def test_what_may_happen_is_there_before_it_does(tmp_path: Path) -> None:
    counts = EventCounts(tmp_path / "none", vault_id=VAULT)
    assert counts.read() == {}
    counts.update()
    assert counts.read() == dict.fromkeys(EXPECTED, 0)
    assert EventLabel("factor", "wrong") in EXPECTED


def test_altered_lines_are_not_counted(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    with_log = _log(directory)
    for event in EVENTS:
        with_log.append(event)
    with_log.close()
    (segment,) = directory.glob("0*")
    data = segment.read_bytes()
    segment.write_bytes(data.replace(b"not_granted", b"not_grantef"))
    counts = EventCounts(directory, vault_id=VAULT)
    with pytest.raises(AuditTamperedError):
        counts.update()
    assert counts.read() == {}

"""The schema is closed and its values are plain."""

from __future__ import annotations

import msgspec
import pytest

from apex_creds.audit import AuditEvent, EventKind, Recorded, line
from apex_creds.errors import InvalidInputError


def test_only_set_fields_are_encoded() -> None:
    body = line.encode(AuditEvent(1.5, EventKind.PUT, credential="a"))
    assert body == b'{"time":1.5,"kind":"put","credential":"a"}'


def test_unknown_fields_and_kinds_do_not_decode() -> None:
    for text in (
        b'{"seq":1,"hash":"","time":1.0,"kind":"put","secret":"x"}',
        b'{"seq":1,"hash":"","time":1.0,"kind":"nothing"}',
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(text, type=Recorded)


def test_events_are_frozen() -> None:
    with pytest.raises(AttributeError):
        AuditEvent(1.0, EventKind.PUT).detail = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    "event",
    [
        AuditEvent(float("nan"), EventKind.PUT),
        AuditEvent(float("inf"), EventKind.PUT),
        AuditEvent(1.0, "nothing"),  # type: ignore[arg-type]
        AuditEvent(1.0, EventKind.PUT, credential=None),  # type: ignore[arg-type]
        AuditEvent(1.0, EventKind.PUT, duration_us=1.5),  # type: ignore[arg-type]
        AuditEvent(1.0, EventKind.PUT, detail=object()),  # type: ignore[arg-type]
        AuditEvent(1.0, EventKind.PUT, credential="\ud800", detail=3),  # type: ignore[arg-type]
        Recorded(1.0, EventKind.PUT, seq=1, hash=""),
    ],
)
def test_what_would_not_decode_is_refused(event: AuditEvent) -> None:
    with pytest.raises(InvalidInputError):
        line.encode(event)


@pytest.mark.parametrize(
    "text", ["\ud800evil", "x" * 1_000_000, "\x00" * 100_000, "😀" * 50_000]
)
def test_hostile_text_is_recorded_in_bounds(text: str) -> None:
    body = line.encode(AuditEvent(1.0, EventKind.DENIAL, plugin="p", credential=text))
    assert len(body) < line.MAX_LINE // 2
    assert b"\n" not in body
    event = msgspec.json.decode(body, type=AuditEvent)
    assert event.plugin == "p"
    assert event.credential[:4] in ("\\ud8", "xxxx", "\x00" * 4, "😀" * 4)

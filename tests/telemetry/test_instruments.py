"""Rotations and leases find each other; names are those of one module; off costs nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.metrics import _internal as metering

from apex_creds.telemetry import instruments, semconv, tracing
from tests.support.recording import recording

KEY, OTHER = "01" * 16, "02" * 16


def _lease(lease: str, key: str = KEY) -> None:
    tracing.lease_made(lease=lease, parent="", credential="openai", key=(key, 1))


def test_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(metering, "_METER_PROVIDER", None)
    assert not tracing.on()
    instruments.denied("undeclared")
    instruments.leaked("result")
    instruments.redeemed(1.0, "", plugin="p", method="GET")
    with tracing.step(semconv.MIGRATE) as step:
        step.set(semconv.RECORDS, 1)
        assert step.span_context is None
    with recording() as seen:
        assert semconv.REDEEMS not in seen.metrics()
        for name in (semconv.DENIALS, semconv.LEAKS):  # there from the beginning, as 0
            assert set(seen.values(name).values()) == {0}


def test_no_op_providers_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", trace.NoOpTracerProvider())
    monkeypatch.setattr(metering, "_METER_PROVIDER", metering.NoOpMeterProvider())
    assert not tracing.on()


@pytest.mark.parametrize(("spans", "too"), [(True, False), (False, True)])
def test_either_of_the_two_is_enough(spans: bool, too: bool) -> None:
    with recording(spans=spans, metering_too=too) as seen:
        assert tracing.on()
        _lease("a")
        with tracing.rotation(level="dek", keys=[KEY], trigger="manual"):
            pass
        tracing.lease_ended("a", expired=False)
        assert len(seen.spans()) == (2 if spans else 0)
        assert (semconv.ROTATION_DURATION in seen.metrics()) is too
    assert not tracing.OPEN


def test_leases_and_the_rotations_of_their_key_are_linked() -> None:
    with recording() as seen:
        _lease("before")
        _lease("of another key", OTHER)
        with tracing.rotation(level="dek", keys=[KEY], trigger="interval"):
            pass
        _lease("after")
        for lease in ("before", "of another key", "after"):
            tracing.lease_ended(lease, expired=lease == "after")
        rotation = seen.span(semconv.ROTATE)
        linked = {
            (span.attributes or {})[semconv.LEASE_ID]: [
                link.context.span_id for link in span.links
            ]
            for span in seen.spans(semconv.LEASE)
        }
        own = rotation.context.span_id
        assert linked == {"before": [own], "of another key": [], "after": [own]}
        assert dict(rotation.attributes or {}) == {
            semconv.KEY_LEVEL: "dek",
            semconv.TRIGGER: "interval",
        }
        expired = [
            (s.attributes or {}).get(semconv.LEASE_EXPIRED) for s in seen.spans(semconv.LEASE)
        ]
        assert expired == [None, None, True]


def test_a_rotation_that_fails_leaves_its_class_only() -> None:
    with recording() as seen:
        with (
            pytest.raises(ValueError, match="hunter2"),
            tracing.rotation(level="kek", keys=[]),
        ):
            raise ValueError("hunter2")
        rotation = seen.span(semconv.ROTATE)
        assert rotation.status.status_code is trace.StatusCode.ERROR
        assert (rotation.attributes or {})[semconv.ERROR_TYPE] == "ValueError"
        error = (("apex_creds.key.level", "kek"), ("error.type", "ValueError"))
        assert seen.values(semconv.ROTATION_DURATION) == {error: 1}
        assert "hunter2" not in seen.everything()


def test_rotations_that_are_remembered_are_bounded() -> None:
    with recording():
        for number in range(3000):
            with tracing.rotation(level="dek", keys=[f"{number % 1500:032x}"]):
                pass
        assert len(tracing._rotations) <= tracing._KEYS
    tracing._rotations.clear()


def test_a_span_left_in_another_context_is_not_taken_from_it() -> None:
    with recording():
        step = tracing.step(semconv.CONSENT)
        token = step.enter()
        other = tracing.step(semconv.CONSENT)
        inner = other.enter()
        step.leave(token)
        assert tracing.current_ids()[1] == format(other.span_context.span_id, "016x")  # type: ignore[union-attr]
        other.leave(inner)
        step.leave(token)
        assert tracing.current_ids() == tracing.NO_IDS
        step.end()
        step.end("Twice")
        other.end()


def test_names_are_unique_and_ours() -> None:
    own = [
        value
        for name, value in vars(semconv).items()
        if name.isupper() and isinstance(value, str) and "." in value
    ]
    assert len(own) == len(set(own))
    foreign = {name for name in own if not name.startswith("apex_creds.")}
    assert foreign == {semconv.ERROR_TYPE, semconv.GEN_AI_OPERATION, semconv.GEN_AI_TOOL}
    assert set(semconv.SPANS) | set(semconv.METRICS) <= set(own)


def test_every_place_that_secrets_are_redacted_from_is_known() -> None:
    found: set[str] = set()
    package = Path(instruments.__file__).parents[1]
    for path in (*package.glob("middleware/*.py"), *package.glob("redaction/*.py")):
        text = path.read_text()
        found |= set(re.findall(r'where="(\w+)"', text))
        found |= set(re.findall(r'^_(?:WHERE|RAISED)\b.* = "(\w+)"', text, re.MULTILINE))
    assert found == set(semconv.WHERES)

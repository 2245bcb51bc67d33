"""Rotations and leases find each other; names are those of one module; off costs nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.metrics import _internal as metering

from apex_creds.audit import metrics, names, spans, telemetry
from tests.support.recording import recording

KEY, OTHER = "01" * 16, "02" * 16


def _lease(lease: str, key: str = KEY) -> None:
    telemetry.lease_made(lease=lease, parent="", credential="openai", key=(key, 1))


def test_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(metering, "_METER_PROVIDER", None)
    assert not telemetry.on()
    metrics.denied("undeclared")
    metrics.leaked("result")
    metrics.redeemed(1.0, "", plugin="p", method="GET")
    with telemetry.step(names.MIGRATE) as step:
        step.set(names.RECORDS, 1)
        assert step.span_context is None
    with recording() as seen:
        assert names.REDEEMS not in seen.metrics()
        for name in (names.DENIALS, names.LEAKS):  # there from the beginning, as 0
            assert set(seen.values(name).values()) == {0}


def test_no_op_providers_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", trace.NoOpTracerProvider())
    monkeypatch.setattr(metering, "_METER_PROVIDER", metering.NoOpMeterProvider())
    assert not telemetry.on()


@pytest.mark.parametrize(("tracing", "too"), [(True, False), (False, True)])
def test_either_of_the_two_is_enough(tracing: bool, too: bool) -> None:
    with recording(tracing=tracing, metering_too=too) as seen:
        assert telemetry.on()
        _lease("a")
        with telemetry.rotation(level="dek", keys=[KEY], trigger="manual"):
            pass
        telemetry.lease_ended("a", expired=False)
        assert len(seen.spans()) == (2 if tracing else 0)
        assert (names.ROTATION_DURATION in seen.metrics()) is too
    assert not telemetry.OPEN


def test_leases_and_the_rotations_of_their_key_are_linked() -> None:
    with recording() as seen:
        _lease("before")
        _lease("of another key", OTHER)
        with telemetry.rotation(level="dek", keys=[KEY], trigger="interval"):
            pass
        _lease("after")
        for lease in ("before", "of another key", "after"):
            telemetry.lease_ended(lease, expired=lease == "after")
        rotation = seen.span(names.ROTATE)
        linked = {
            (span.attributes or {})[names.LEASE_ID]: [
                link.context.span_id for link in span.links
            ]
            for span in seen.spans(names.LEASE)
        }
        own = rotation.context.span_id
        assert linked == {"before": [own], "of another key": [], "after": [own]}
        assert dict(rotation.attributes or {}) == {
            names.KEY_LEVEL: "dek",
            names.TRIGGER: "interval",
        }
        expired = [
            (s.attributes or {}).get(names.LEASE_EXPIRED) for s in seen.spans(names.LEASE)
        ]
        assert expired == [None, None, True]


def test_a_rotation_that_fails_leaves_its_class_only() -> None:
    with recording() as seen:
        with (
            pytest.raises(ValueError, match="hunter2"),
            telemetry.rotation(level="kek", keys=[]),
        ):
            raise ValueError("hunter2")
        rotation = seen.span(names.ROTATE)
        assert rotation.status.status_code is trace.StatusCode.ERROR
        assert (rotation.attributes or {})[names.ERROR_TYPE] == "ValueError"
        error = (("apex_creds.key.level", "kek"), ("error.type", "ValueError"))
        assert seen.values(names.ROTATION_DURATION) == {error: 1}
        assert "hunter2" not in seen.everything()


def test_rotations_that_are_remembered_are_bounded() -> None:
    with recording():
        for number in range(3000):
            with telemetry.rotation(level="dek", keys=[f"{number % 1500:032x}"]):
                pass
        assert len(telemetry._rotations) <= telemetry._KEYS
    telemetry._rotations.clear()


def test_a_span_left_in_another_context_is_not_taken_from_it() -> None:
    with recording():
        step = telemetry.step(names.CONSENT)
        token = step.enter()
        other = telemetry.step(names.CONSENT)
        inner = other.enter()
        step.leave(token)
        assert spans.current_ids()[1] == format(other.span_context.span_id, "016x")  # type: ignore[union-attr]
        other.leave(inner)
        step.leave(token)
        assert spans.current_ids() == spans.NO_IDS
        step.end()
        step.end("Twice")
        other.end()


def test_names_are_unique_and_ours() -> None:
    own = [
        value
        for name, value in vars(names).items()
        if name.isupper() and isinstance(value, str) and "." in value
    ]
    assert len(own) == len(set(own))
    foreign = {name for name in own if not name.startswith("apex_creds.")}
    assert foreign == {names.ERROR_TYPE, names.GEN_AI_OPERATION, names.GEN_AI_TOOL}
    assert set(names.SPANS) | set(names.METRICS) <= set(own)


def test_every_place_that_secrets_are_redacted_from_is_known() -> None:
    found: set[str] = set()
    for path in (Path(metrics.__file__).parents[1] / "middleware").glob("*.py"):
        text = path.read_text()
        found |= set(re.findall(r'where="(\w+)"', text))
        found |= set(re.findall(r'^_(?:WHERE|RAISED)\b.* = "(\w+)"', text, re.MULTILINE))
    assert found == set(names.WHERES)

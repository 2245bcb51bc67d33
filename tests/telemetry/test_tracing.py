"""Spans are off until a provider is set, and never carry an exception's text."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.metrics import _internal
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from apex_creds.telemetry import tracing


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
def tracing_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)


@pytest.mark.usefixtures("tracing_off")
def test_off_by_default() -> None:
    assert not tracing.tracing_on()
    with tracing.step("apex_creds.invoke", {"apex_creds.plugin": "p"}) as step:
        step.set("apex_creds.x", 1)
        assert step.span_context is None
        assert tracing.current_ids() == ("", "")


def test_a_provider_that_is_set_later_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the questions is asked first."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(_internal, "_METER_PROVIDER", None)
    assert not tracing.on()
    provider = TracerProvider()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    assert tracing.tracing_on()
    assert tracing.on()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    assert not tracing.on()
    provider.shutdown()


def test_a_no_op_provider_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", trace.NoOpTracerProvider())
    assert not tracing.tracing_on()


def test_nesting_attributes_and_ids(exported: InMemorySpanExporter) -> None:
    assert tracing.tracing_on()
    with tracing.step("apex_creds.invoke", {"apex_creds.plugin": "p"}) as outer:
        assert ids(outer) == tracing.current_ids()
        with tracing.step("apex_creds.redeem") as inner:
            inner.set("apex_creds.decision", "allow")
            assert tracing.current_ids() == ids(inner)
            assert ids(inner)[0] == ids(outer)[0]
    assert tracing.current_ids() == ("", "")
    redeem, invoke = exported.get_finished_spans()
    assert redeem.parent is not None
    assert redeem.parent.span_id == int(outer_id(invoke), 16)
    assert dict(redeem.attributes or {}) == {"apex_creds.decision": "allow"}


def ids(step: tracing.Step) -> tuple[str, str]:
    found = step.span_context
    assert found is not None
    return trace.format_trace_id(found.trace_id), trace.format_span_id(found.span_id)


def outer_id(span: object) -> str:
    return format(span.get_span_context().span_id, "016x")  # type: ignore[attr-defined]


def test_an_exception_leaves_its_class_only(exported: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="hunter2"), tracing.step("apex_creds.invoke"):
        raise ValueError("hunter2")
    (span,) = exported.get_finished_spans()
    assert "hunter2" not in span.to_json()
    assert dict(span.attributes or {}) == {"error.type": "ValueError"}
    assert not span.events
    assert span.status.status_code is trace.StatusCode.ERROR


def test_a_span_that_is_not_current(exported: InMemorySpanExporter) -> None:
    span = tracing.step("apex_creds.invoke")
    assert tracing.current_ids() == ("", "")
    span.end()
    span.end()
    assert len(exported.get_finished_spans()) == 1

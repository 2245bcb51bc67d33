"""Spans are off until a provider is set, and never carry an exception's text."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace
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
    with tracing.span("apex_creds.invoke", {"apex_creds.plugin": "p"}) as span:
        span.set("apex_creds.x", 1)
        assert span.ids() == tracing.current_ids() == ("", "")
    assert tracing.span("a") is tracing.span("b")


def test_a_no_op_provider_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", trace.NoOpTracerProvider())
    assert not tracing.tracing_on()


def test_nesting_attributes_and_ids(exported: InMemorySpanExporter) -> None:
    assert tracing.tracing_on()
    with tracing.span("apex_creds.invoke", {"apex_creds.plugin": "p"}) as outer:
        assert outer.ids() == tracing.current_ids()
        with tracing.span("apex_creds.redeem") as inner:
            inner.set("apex_creds.decision", "allow")
            assert tracing.current_ids() == inner.ids()
            assert inner.ids()[0] == outer.ids()[0]
    assert tracing.current_ids() == ("", "")
    redeem, invoke = exported.get_finished_spans()
    assert redeem.parent is not None
    assert redeem.parent.span_id == int(outer_id(invoke), 16)
    assert dict(redeem.attributes or {}) == {"apex_creds.decision": "allow"}


def outer_id(span: object) -> str:
    return format(span.get_span_context().span_id, "016x")  # type: ignore[attr-defined]


def test_an_exception_leaves_its_class_only(exported: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="hunter2"), tracing.span("apex_creds.invoke"):
        raise ValueError("hunter2")
    (span,) = exported.get_finished_spans()
    assert "hunter2" not in span.to_json()
    assert dict(span.attributes or {}) == {"error.type": "ValueError"}
    assert not span.events
    assert span.status.status_code is trace.StatusCode.ERROR


def test_a_span_that_is_not_current(exported: InMemorySpanExporter) -> None:
    span = tracing.span("apex_creds.invoke", current=False)
    assert tracing.current_ids() == ("", "")
    span.end()
    span.end()
    assert len(exported.get_finished_spans()) == 1

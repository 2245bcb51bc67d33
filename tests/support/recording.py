"""Providers that keep what they get, put in place of none for the length of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.metrics import _internal as metering
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from apex_creds.telemetry import instruments, tracing

Point = Any


class Recording:
    """Everything that was recorded while it was in place."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meter_provider = MeterProvider([self._reader])

    def spans(self, name: str = "") -> list[ReadableSpan]:
        found = self._exporter.get_finished_spans()
        return [span for span in found if name in ("", span.name)]

    def span(self, name: str) -> ReadableSpan:
        (only,) = self.spans(name)
        return only

    def metrics(self) -> dict[str, list[Point]]:
        """Data points by the metric's name, collected now."""
        data = self._reader.get_metrics_data()
        found: dict[str, list[Point]] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    found[metric.name] = list(metric.data.data_points)
        return found

    def values(self, name: str) -> dict[tuple[tuple[str, object], ...], float]:
        """Values (of histograms, counts) of a metric by their attributes."""
        return {
            tuple(sorted(point.attributes.items())): (
                point.value if hasattr(point, "value") else point.count
            )
            for point in self.metrics().get(name, ())
        }

    def everything(self) -> str:
        """All of it as text, to look for what must not be in it."""
        return "".join(span.to_json() for span in self.spans()) + repr(self.metrics())


@contextmanager
def recording(*, spans: bool = True, metering_too: bool = True) -> Iterator[Recording]:
    made = Recording()
    before = trace._TRACER_PROVIDER, metering._METER_PROVIDER
    trace._TRACER_PROVIDER = made.tracer_provider if spans else None
    metering._METER_PROVIDER = made.meter_provider if metering_too else None
    for tally in (instruments._redeems, instruments._denials, instruments._leaks):
        tally._counts.clear()
    tracing._rotations.clear()
    instruments._sources.clear()
    assert tracing.on()
    try:
        yield made
    finally:
        trace._TRACER_PROVIDER, metering._METER_PROVIDER = before
        made.tracer_provider.shutdown()
        made.meter_provider.shutdown()

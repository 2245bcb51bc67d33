"""Sets up the OpenTelemetry SDK for the command line and the worker, as OTEL_* says.

Guarantee: nothing happens where the environment asks for nothing, or where the program has
a provider already; nothing is exported that ``OTEL_TRACES_EXPORTER``,
``OTEL_METRICS_EXPORTER`` or an OTLP endpoint did not ask for. A library never calls this.

The exporters are in the extra ``apex-creds[otel]``. What the SDK and the exporters read
themselves works as their documentation says: ``OTEL_SERVICE_NAME``,
``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_TRACES_SAMPLER``, ``OTEL_BSP_*``,
``OTEL_METRIC_EXPORT_INTERVAL``, ``OTEL_METRICS_EXEMPLAR_FILTER``, ``OTEL_EXPORTER_OTLP_*``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn

from apex_creds.errors import InvalidInputError
from apex_creds.telemetry import instruments

if TYPE_CHECKING:
    from typing import TextIO

    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter


_SERVICE: Final = "apex-creds"
_FLUSH_MILLISECONDS: Final = 5000
_DISABLED: Final = "OTEL_SDK_DISABLED"
_TRACES: Final = "OTEL_TRACES_EXPORTER"
_METRICS: Final = "OTEL_METRICS_EXPORTER"
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PROTOCOL: Final = "OTEL_EXPORTER_OTLP_PROTOCOL"
_HTTP: Final = "http/protobuf"
_EXTRA: Final = "Install the exporters: pip install 'apex-creds[otel]'"


class Exporters:
    """The providers that ``configure`` set.

    Args:
        traces: None where spans are not exported.
        metrics: None where metrics are not.
        stop: What else is to be stopped at the end.
    """

    def __init__(
        self,
        traces: TracerProvider | None,
        metrics: MeterProvider | None,
        stop: tuple[Callable[[], None], ...] = (),
    ) -> None:
        self._traces = traces
        self._metrics = metrics
        self._stop = stop

    def shutdown(self) -> None:
        """Exports what is left, for a few seconds at most, and stops; never raises.

        Spans and metrics at once: a collector that does not answer is waited for once.
        """
        traces, self._traces = self._traces, None
        metrics, self._metrics = self._metrics, None
        stop, self._stop = self._stop, ()
        with ThreadPoolExecutor(thread_name_prefix="apex-creds-otel") as pool:
            if traces is not None:
                pool.submit(_end_traces, traces)
            if metrics is not None:
                pool.submit(metrics.shutdown, timeout_millis=_FLUSH_MILLISECONDS)
        for each in stop:
            each()


def _end_traces(traces: TracerProvider) -> None:
    traces.force_flush(_FLUSH_MILLISECONDS)
    traces.shutdown()


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks for any export; costs no import of the SDK."""
    return any(_wanted(environment, kind) for kind in (_TRACES, _METRICS))


def configure(environment: Mapping[str, str] = os.environ) -> Exporters:
    """Sets the providers that the environment asks for.

    Args:
        environment: What chooses the exporters. Their own settings are always read from
            the process's environment, by the SDK.

    Raises:
        InvalidInputError: An exporter that is unknown or not installed, or an address on
            which metrics can't be served.
    """
    from opentelemetry import trace
    from opentelemetry.metrics import _internal

    stop: list[Callable[[], None]] = []
    try:
        # A provider that the program has set up itself stays.
        traced = trace._TRACER_PROVIDER is not None
        metered = _internal._METER_PROVIDER is not None
        to = () if traced else _wanted(environment, _TRACES)
        readers_to = () if metered else _wanted(environment, _METRICS)
        spans_to = [_span_exporter(name, environment) for name in to]
        readers = [_metric_reader(name, environment, stop) for name in readers_to]
        traces, metrics = None, None
        if spans_to:
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            traces = TracerProvider(resource=_resource(), shutdown_on_exit=False)
            for exporter in spans_to:
                traces.add_span_processor(BatchSpanProcessor(exporter))
            trace.set_tracer_provider(traces)
        if readers:
            from opentelemetry.metrics import set_meter_provider
            from opentelemetry.sdk.metrics import MeterProvider

            metrics = MeterProvider(readers, resource=_resource(), shutdown_on_exit=False)
            set_meter_provider(metrics)
            instruments.metering_on()
    except BaseException:
        for each in stop:
            each()
        raise
    return Exporters(traces, metrics, tuple(stop))


@contextmanager
def exporting(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Exports within a block, and what is left at its end.

    Raises:
        InvalidInputError: See ``configure``.
    """
    exporters = configure(environment)
    try:
        yield
    finally:
        exporters.shutdown()


def _wanted(environment: Mapping[str, str], variable: str) -> tuple[str, ...]:
    """The exporters of a kind, by name; OTLP where only its endpoint is given."""
    if environment.get(_DISABLED, "").strip().lower() == "true":
        return ()
    text = environment.get(variable, "").strip()
    specific = f"OTEL_EXPORTER_OTLP_{variable.split('_')[1]}_ENDPOINT"
    if not text and (environment.get(_ENDPOINT) or environment.get(specific)):
        text = "otlp"
    found = (name.strip().lower() for name in text.split(","))
    return tuple(dict.fromkeys(name for name in found if name not in ("", "none")))


def _resource() -> Resource:
    from importlib.metadata import version

    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource

    given = Resource.create({SERVICE_VERSION: version("apex-creds")})
    if str(given.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return given.merge(Resource({SERVICE_NAME: _SERVICE}))
    return given


def _span_exporter(name: str, environment: Mapping[str, str]) -> SpanExporter:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=_stderr())
    if name != "otlp":
        raise _unknown(_TRACES, name, "otlp, console, none")
    _check_protocol(environment)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        _missing("OTLP")
    return OTLPSpanExporter()


def _metric_reader(
    name: str, environment: Mapping[str, str], stop: list[Callable[[], None]]
) -> MetricReader:
    from opentelemetry.sdk.metrics.export import (
        ConsoleMetricExporter,
        PeriodicExportingMetricReader,
    )

    if name == "prometheus":
        return _prometheus(environment, stop)
    if name == "console":
        return PeriodicExportingMetricReader(ConsoleMetricExporter(out=_stderr()))
    if name != "otlp":
        raise _unknown(_METRICS, name, "otlp, prometheus, console, none")
    _check_protocol(environment)
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    except ImportError:
        _missing("OTLP")
    return PeriodicExportingMetricReader(OTLPMetricExporter())


def _prometheus(environment: Mapping[str, str], stop: list[Callable[[], None]]) -> MetricReader:
    """Serves metrics at ``OTEL_EXPORTER_PROMETHEUS_HOST`` and ``_PORT``: localhost:9464."""
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        _missing("Prometheus")
    host = environment.get("OTEL_EXPORTER_PROMETHEUS_HOST") or "localhost"
    port = environment.get("OTEL_EXPORTER_PROMETHEUS_PORT") or "9464"
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(registry=registry)
    try:
        server, thread = start_http_server(int(port), addr=host, registry=registry)
    except (OSError, ValueError, OverflowError):
        raise InvalidInputError(
            f"Metrics can't be served at {host}:{port}.",
            hint="Set OTEL_EXPORTER_PROMETHEUS_HOST and _PORT to an address that is free.",
        ) from None

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    stop.append(close)
    return reader


def _check_protocol(environment: Mapping[str, str]) -> None:
    protocol = environment.get(_PROTOCOL, _HTTP)
    if protocol != _HTTP:
        raise InvalidInputError(
            f"{_PROTOCOL} is {protocol[:50]!r}.", hint=f"Set it to {_HTTP}, or unset it."
        )


def _stderr() -> TextIO:
    import sys

    return sys.stderr


def _unknown(variable: str, name: str, known: str) -> InvalidInputError:
    return InvalidInputError(
        f"{variable} has no exporter {name[:50]!r}.", hint=f"These are known: {known}."
    )


def _missing(what: str) -> NoReturn:
    raise InvalidInputError(f"The exporter for {what} is not installed.", hint=_EXTRA) from None

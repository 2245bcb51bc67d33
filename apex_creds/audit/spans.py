"""Spans through the OpenTelemetry API, nearly free while nothing records them.

Guarantee: a span carries the attributes it is given and, after an exception, the class of
that exception: never its message or traceback, which could hold a secret.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from opentelemetry import context, trace
from opentelemetry.trace import Link, NoOpTracerProvider, Span, Status, StatusCode, Tracer

from apex_creds.audit import names

__all__ = [
    "NO_IDS",
    "ActiveSpan",
    "AttributeValue",
    "current_ids",
    "mark_failed",
    "span",
    "start",
    "tracing_on",
]

AttributeValue = str | int | float | bool | Sequence[str] | Sequence[int]
NO_IDS: Final = ("", "")


class _Seen:
    """The provider that was looked at last, and the tracer it gave, if it records."""

    __slots__ = ("provider", "tracer")

    def __init__(self) -> None:
        self.provider: object = None
        self.tracer: Tracer | None = None


_seen: Final = _Seen()


def _tracer() -> Tracer | None:
    # The API's public getter costs a microsecond while no provider is set.
    provider = trace._TRACER_PROVIDER
    if provider is not _seen.provider:
        off = provider is None or isinstance(provider, NoOpTracerProvider)
        tracer = None if off or provider is None else provider.get_tracer("apex_creds")
        _seen.tracer = None if isinstance(tracer, trace.NoOpTracer) else tracer
        _seen.provider = provider
    return _seen.tracer


def tracing_on() -> bool:
    """Tells whether a tracer provider is configured that may record."""
    return _tracer() is not None


class ActiveSpan:
    """A span as a context manager; without a tracer it does nothing."""

    __slots__ = ("_span", "_token")

    def __init__(self, started: Span | None, *, current: bool) -> None:
        self._span = started
        self._token = (
            context.attach(trace.set_span_in_context(started)) if started and current else None
        )

    def set(self, name: str, value: AttributeValue) -> None:
        """Sets one more attribute."""
        if self._span is not None:
            self._span.set_attribute(name, value)

    def fail(self, error_type: str) -> None:
        """Marks the span as failed with the name of an error's class."""
        if self._span is not None:
            mark_failed(self._span, error_type)

    def ids(self) -> tuple[str, str]:
        """Returns trace id and span id in hexadecimal, or two empty strings."""
        return NO_IDS if self._span is None else _ids(self._span)

    def end(self) -> None:
        """Ends the span; again does nothing."""
        started, self._span = self._span, None
        token, self._token = self._token, None
        if token is not None:
            context.detach(token)
        if started is not None:
            started.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace_back: TracebackType | None,
    ) -> None:
        if kind is not None and kind is not GeneratorExit:
            self.fail(kind.__qualname__)
        self.end()


_OFF: Final = ActiveSpan(None, current=False)


def span(
    name: str, attributes: Mapping[str, AttributeValue] | None = None, *, current: bool = True
) -> ActiveSpan:
    """Starts a span ``name``; use it with ``with``, or call ``end``.

    Args:
        name: Like ``apex_creds.redeem``.
        attributes: Named ``apex_creds.*`` or by a convention; never a secret.
        current: Whether spans started meanwhile are its children. False where it may end
            in another context than it started in (a stream).
    """
    started = start(name, attributes)
    return _OFF if started is None else ActiveSpan(started, current=current)


def start(
    name: str,
    attributes: Mapping[str, AttributeValue] | None = None,
    *,
    links: Sequence[Link] | None = None,
) -> Span | None:
    """Starts a span that the caller ends; None while tracing is off."""
    tracer = _tracer()
    if tracer is None:
        return None
    return tracer.start_span(
        name,
        attributes=attributes,
        links=links,
        record_exception=False,
        set_status_on_exception=False,
    )


def mark_failed(started: Span, error_type: str) -> None:
    """Gives a span the status of an error, with the name of the error's class only."""
    started.set_status(Status(StatusCode.ERROR, error_type))
    started.set_attribute(names.ERROR_TYPE, error_type)


def current_ids() -> tuple[str, str]:
    """Returns trace id (32 hexadecimal digits) and span id (16), or two empty strings."""
    return NO_IDS if _tracer() is None else _ids(trace.get_current_span())


def _ids(started: Span) -> tuple[str, str]:
    found = started.get_span_context()
    if not found.is_valid:
        return NO_IDS
    return trace.format_trace_id(found.trace_id), trace.format_span_id(found.span_id)

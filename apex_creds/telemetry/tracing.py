"""Spans, and spans and metrics together for each thing done, over the OpenTelemetry API.

Guarantee: ``on`` costs two look-ups; while it is false nothing here need be called, and all
of it is nearly free. A span has names, identifiers and counts in it, and the class of an
error: never a secret, an error's text or traceback, or a name that the log does not show.
Nothing here makes a call fail.

A lease and the rotations that touch its key while it lives are linked both ways in time: a
new lease links to the last rotations of its key in this process, and a rotation adds a link
to itself to each open lease of that key.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple, Self

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.metrics import _internal
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    NoOpTracerProvider,
    Span,
    SpanContext,
    Status,
    StatusCode,
    Tracer,
)

from apex_creds.telemetry import instruments, semconv

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
    started.set_attribute(semconv.ERROR_TYPE, error_type)


def current_ids() -> tuple[str, str]:
    """Returns trace id (32 hexadecimal digits) and span id (16), or two empty strings."""
    return NO_IDS if _tracer() is None else _ids(trace.get_current_span())


def _ids(started: Span) -> tuple[str, str]:
    found = started.get_span_context()
    if not found.is_valid:
        return NO_IDS
    return trace.format_trace_id(found.trace_id), trace.format_span_id(found.span_id)


_KEYS: Final = 1024
_ROTATIONS: Final = 8
_perf_counter: Final = time.perf_counter

Record = Callable[[float, str, Context | None], None]


class _Providers:
    """The providers that were looked at last, and whether either records."""

    __slots__ = ("meters", "on", "tracers")

    def __init__(self) -> None:
        self.meters: object = None
        self.tracers: object = None
        self.on = False


_providers: Final = _Providers()


def on() -> bool:
    """Tells whether a tracer or meter provider is configured."""
    meters, tracers = _internal._METER_PROVIDER, trace._TRACER_PROVIDER
    if meters is not _providers.meters or tracers is not _providers.tracers:
        # Not `or`: the look at the meters is what sets up the gauges.
        _providers.on = instruments.metering_on() | tracing_on()
        _providers.meters, _providers.tracers = meters, tracers
    return _providers.on


class _OpenLease(NamedTuple):
    span: Span | None
    key: str


OPEN: Final[dict[str, _OpenLease]] = {}
"""Leases that were made while ``on``; whoever ends a lease looks here first."""

_rotations: Final[OrderedDict[str, deque[SpanContext]]] = OrderedDict()


class Step:
    """Something with a beginning and an end; a context manager.

    Args:
        name: The span's.
        attributes: The span's.
        record: Gets seconds, the error's class or "", and a context with the span.
    """

    __slots__ = ("_context", "_record", "_span", "_started", "_token")

    def __init__(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue],
        *,
        record: Record | None = None,
    ) -> None:
        self._record = record
        self._span = start(name, attributes)
        self._context = None if self._span is None else trace.set_span_in_context(self._span)
        self._token: object = None
        self._started = _perf_counter()

    @property
    def span_context(self) -> SpanContext | None:
        """What others can link to."""
        return None if self._span is None else self._span.get_span_context()

    def set(self, name: str, value: AttributeValue) -> None:
        """Sets an attribute that is known only now."""
        if self._span is not None:
            self._span.set_attribute(name, value)

    def enter(self) -> object:
        """Makes the span current; ``leave`` takes it back. May be done many times."""
        return None if self._context is None else context.attach(self._context)

    def leave(self, token: object) -> None:
        """Takes an ``enter`` back, unless that was in another context."""
        if token is not None and context.get_current() is self._context:
            context.detach(token)  # type: ignore[arg-type]

    def end(self, error: str = "") -> None:
        """Ends it; again does nothing. ``error`` is the name of an error's class."""
        started, self._span = self._span, None
        record, self._record = self._record, None
        if record is not None:
            record(_perf_counter() - self._started, error, self._context)
        if started is not None:
            if error:
                mark_failed(started, error)
            started.end()

    def __enter__(self) -> Self:
        self._token = self.enter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace_back: TracebackType | None,
    ) -> None:
        self.leave(self._token)
        self.end("" if kind is None or kind is GeneratorExit else kind.__qualname__)


class InvokeStep(Step):
    """A plugin's invocation: outlives its block if the plugin returned a stream.

    What is current while the plugin runs is no span but a reference to it: the plugin's own
    spans are its children, and what the plugin sets on the current one goes nowhere.
    """

    __slots__ = ("_within",)

    def __init__(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue],
        *,
        record: Record | None = None,
    ) -> None:
        super().__init__(name, attributes, record=record)
        if self._span is not None:
            reference = NonRecordingSpan(self._span.get_span_context())
            self._context = trace.set_span_in_context(reference)

    def enter(self) -> object:
        """As ``Step.enter``; nothing to do within the step's own block."""
        return None if self._within else super().enter()

    def finish(self, outcome: str) -> None:
        """Ends it with the invocation's outcome: ``ok``, or an error's class."""
        if outcome == "ok":
            self.end()
            return
        self.set(semconv.OUTCOME, outcome)
        self.end("" if outcome == _ABANDONED else outcome)

    def __enter__(self) -> Self:
        self._within = False
        self._token = self.enter()
        self._within = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace_back: TracebackType | None,
    ) -> None:
        self._within = False
        self.leave(self._token)
        if kind is not None:
            self.end(kind.__qualname__)


_ABANDONED: Final = "abandoned"


def step(name: str, attributes: Mapping[str, AttributeValue] | None = None) -> Step:
    """A step without a metric: consent, re-encrypt, unseal, migrate."""
    return Step(name, attributes or {})


def invoke(*, plugin: str, version: str, action: str) -> InvokeStep:
    """An invocation; names as the log shows them."""

    def record(seconds: float, error: str, context: Context | None) -> None:
        instruments.invoked(seconds, error, plugin=plugin, action=action, context=context)

    attributes: dict[str, AttributeValue] = {
        semconv.GEN_AI_OPERATION: semconv.EXECUTE_TOOL,
        semconv.GEN_AI_TOOL: action,
        semconv.PLUGIN: plugin,
        semconv.PLUGIN_VERSION: version,
    }
    return InvokeStep(semconv.INVOKE, attributes, record=record)


def redeem(
    *, plugin: str, credential: str, lease: str, method: str, key: tuple[str, int]
) -> Step:
    """A redeem; names as the log shows them."""

    def record(seconds: float, error: str, context: Context | None) -> None:
        instruments.redeemed(seconds, error, plugin=plugin, method=method, context=context)

    attributes: dict[str, AttributeValue] = {
        semconv.CREDENTIAL: credential,
        semconv.LEASE_ID: lease,
        semconv.METHOD: method,
        semconv.KEY_ID: key[0],
        semconv.KEY_VERSION: key[1],
    }
    return Step(semconv.REDEEM, attributes, record=record)


def rotation(
    *, level: str, keys: Iterable[str], trigger: str = "", attributes: Mapping[str, str] = {}
) -> Step:
    """A rotation.

    Args:
        level: ``dek``, ``kek``, ``master`` or ``credential``.
        keys: Ids of the keysets it touches (32 hexadecimal digits).
        trigger: What it was started by.
        attributes: More of them.
    """

    def record(seconds: float, error: str, context: Context | None) -> None:
        instruments.rotated(seconds, error, level=level, context=context)

    given = {semconv.KEY_LEVEL: level, **attributes}
    if trigger:
        given[semconv.TRIGGER] = trigger
    made = Step(semconv.ROTATE, given, record=record)
    if made.span_context is not None and made.span_context.is_valid:
        _link(frozenset(keys), made.span_context)
    return made


def _link(keys: frozenset[str], rotation: SpanContext) -> None:
    for key in keys:
        _rotations.setdefault(key, deque(maxlen=_ROTATIONS)).append(rotation)
        _rotations.move_to_end(key)
    while len(_rotations) > _KEYS:
        with suppress(KeyError):
            _rotations.popitem(last=False)
    for lease in list(OPEN.values()):
        if lease.span is not None and lease.key in keys:
            lease.span.add_link(rotation)


def lease_made(*, lease: str, parent: str, credential: str, key: tuple[str, int]) -> None:
    """A lease begins, when ``on``; its span ends with it."""
    key_id = key[0]
    attributes: dict[str, AttributeValue] = {
        semconv.LEASE_ID: lease,
        semconv.CREDENTIAL: credential,
        semconv.KEY_ID: key_id,
        semconv.KEY_VERSION: key[1],
    }
    if parent:
        attributes[semconv.PARENT_LEASE] = parent
    known = _rotations.get(key_id)
    links = None if known is None else [Link(context) for context in list(known)]
    OPEN[lease] = _OpenLease(start(semconv.LEASE, attributes, links=links), key_id)
    instruments.lease_made(lease)


def lease_ended(lease: str, *, expired: bool) -> None:
    """A lease ends; nothing if it was made before ``on``."""
    found = OPEN.pop(lease, None)
    if found is None:
        return
    started = found.span
    instruments.lease_ended(lease, started)
    if started is not None:
        if expired:
            started.set_attribute(semconv.LEASE_EXPIRED, expired)
        started.end()

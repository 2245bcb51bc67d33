"""Spans, and spans and metrics together for each thing done, over the OpenTelemetry API.

Guarantee: ``on`` costs two comparisons; while it is false nothing here need be called, and all
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


_TRACERS: Final = instruments.OfProvider[Tracer]()


def _tracer() -> Tracer | None:
    provider = trace._TRACER_PROVIDER
    if provider is not _TRACERS.provider:
        off = provider is None or isinstance(provider, NoOpTracerProvider)
        tracer = None if off or provider is None else provider.get_tracer("apex_creds")
        _TRACERS.value = None if isinstance(tracer, trace.NoOpTracer) else tracer
        _TRACERS.provider = provider
    return _TRACERS.value


def tracing_on() -> bool:
    """Whether a tracer provider is configured that may record."""
    return _tracer() is not None


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
    if _tracer() is None:
        return NO_IDS
    found = trace.get_current_span().get_span_context()
    if not found.is_valid:
        return NO_IDS
    return trace.format_trace_id(found.trace_id), trace.format_span_id(found.span_id)


_KEYS: Final = 1024
_ROTATIONS: Final = 8
_perf_counter: Final = time.perf_counter

Record = Callable[[float, str, Context | None], None]


def on() -> bool:
    """Whether a tracer or meter provider is configured."""
    if _internal._METER_PROVIDER is not instruments.METERS.provider:
        instruments.metering_on()  # sets up the gauges, too
    if trace._TRACER_PROVIDER is not _TRACERS.provider:
        _tracer()
    return instruments.METERS.value is not None or _TRACERS.value is not None


class _OpenLease(NamedTuple):
    span: Span | None
    key: str


OPEN: Final[dict[str, _OpenLease]] = {}
"""Leases that were made while ``on``; the end of a lease is looked up here first."""

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
    rotated = made.span_context
    if rotated is None or not rotated.is_valid:
        return made
    touched = frozenset(keys)
    for key in touched:
        _rotations.setdefault(key, deque(maxlen=_ROTATIONS)).append(rotated)
        _rotations.move_to_end(key)
    while len(_rotations) > _KEYS:
        with suppress(KeyError):
            _rotations.popitem(last=False)
    for lease in list(OPEN.values()):
        if lease.span is not None and lease.key in touched:
            lease.span.add_link(rotated)
    return made


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

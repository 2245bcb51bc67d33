"""What the rest of the package calls: spans and metrics together, for each thing done.

Guarantee: ``on`` costs two look-ups; while it is false nothing here need be called. A span
has names, identifiers and counts in it, and an error's class: never a secret, an error's
text, or a name that the log does not show. Spans and metrics never make a call fail.

A lease and the rotations that touch its key while it lives are linked both ways in time: a
new lease links to the last rotations of its key in this process, and a rotation adds a link
to itself to each open lease of that key.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple, Self

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import _internal
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext

from apex_creds.audit import metrics, names, spans
from apex_creds.audit.spans import AttributeValue

__all__ = [
    "OPEN",
    "InvokeStep",
    "Step",
    "invoke",
    "lease_ended",
    "lease_made",
    "on",
    "redeem",
    "rotation",
    "step",
]

_KEYS: Final = 1024
_ROTATIONS: Final = 8
_perf_counter: Final = time.perf_counter

Record = Callable[[float, str, Context | None], None]


class _Seen:
    """The providers that were looked at last, and whether either records."""

    __slots__ = ("meters", "on", "tracers")

    def __init__(self) -> None:
        self.meters: object = None
        self.tracers: object = None
        self.on = False


_seen: Final = _Seen()


def on() -> bool:
    """Tells whether a tracer or meter provider is configured."""
    meters, tracers = _internal._METER_PROVIDER, trace._TRACER_PROVIDER
    if meters is not _seen.meters or tracers is not _seen.tracers:
        # Not `or`: the look at the meters is what sets up the gauges.
        _seen.on = metrics.metering_on() | spans.tracing_on()
        _seen.meters, _seen.tracers = meters, tracers
    return _seen.on


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
        self._span = spans.start(name, attributes)
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
        return None if self._context is None else contexts.attach(self._context)

    def leave(self, token: object) -> None:
        """Takes an ``enter`` back, unless that was in another context."""
        if token is not None and contexts.get_current() is self._context:
            contexts.detach(token)  # type: ignore[arg-type]

    def end(self, error: str = "") -> None:
        """Ends it; again does nothing. ``error`` is the name of an error's class."""
        started, self._span = self._span, None
        record, self._record = self._record, None
        if record is not None:
            record(_perf_counter() - self._started, error, self._context)
        if started is not None:
            if error:
                spans.mark_failed(started, error)
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
        self.set(names.OUTCOME, outcome)
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
        metrics.invoked(seconds, error, plugin=plugin, action=action, context=context)

    attributes: dict[str, AttributeValue] = {
        names.GEN_AI_OPERATION: names.EXECUTE_TOOL,
        names.GEN_AI_TOOL: action,
        names.PLUGIN: plugin,
        names.PLUGIN_VERSION: version,
    }
    return InvokeStep(names.INVOKE, attributes, record=record)


def redeem(
    *, plugin: str, credential: str, lease: str, method: str, key: tuple[str, int]
) -> Step:
    """A redeem; names as the log shows them."""

    def record(seconds: float, error: str, context: Context | None) -> None:
        metrics.redeemed(seconds, error, plugin=plugin, method=method, context=context)

    attributes: dict[str, AttributeValue] = {
        names.CREDENTIAL: credential,
        names.LEASE_ID: lease,
        names.METHOD: method,
        names.KEY_ID: key[0],
        names.KEY_VERSION: key[1],
    }
    return Step(names.REDEEM, attributes, record=record)


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
        metrics.rotated(seconds, error, level=level, context=context)

    given = {names.KEY_LEVEL: level, **attributes}
    if trigger:
        given[names.TRIGGER] = trigger
    made = Step(names.ROTATE, given, record=record)
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
        names.LEASE_ID: lease,
        names.CREDENTIAL: credential,
        names.KEY_ID: key_id,
        names.KEY_VERSION: key[1],
    }
    if parent:
        attributes[names.PARENT_LEASE] = parent
    known = _rotations.get(key_id)
    links = None if known is None else [Link(context) for context in list(known)]
    OPEN[lease] = _OpenLease(spans.start(names.LEASE, attributes, links=links), key_id)
    metrics.lease_made(lease)


def lease_ended(lease: str, *, expired: bool) -> None:
    """A lease ends; nothing if it was made before ``on``."""
    found = OPEN.pop(lease, None)
    if found is None:
        return
    started = found.span
    metrics.lease_ended(lease, started)
    if started is not None:
        if expired:
            started.set_attribute(names.LEASE_EXPIRED, expired)
        started.end()

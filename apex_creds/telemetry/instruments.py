"""Metrics through the OpenTelemetry API; free while no meter provider is configured.

Guarantee: counting costs a dictionary look-up under a lock, and no count is lost between
threads; what is expected to happen is there from the beginning, as 0. Collecting reads what
is in memory: no document, and no log. Attributes are reasons, states and names from closed
sets, and the names of plugins as the log shows them; never a credential's name, an
identifier, or a secret.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Generic, NamedTuple, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry.context import Context
from opentelemetry.metrics import (
    CallbackOptions,
    Histogram,
    Meter,
    NoOpMeterProvider,
    Observation,
    _internal,
)
from opentelemetry.trace import Span, set_span_in_context

from apex_creds.telemetry import semconv

_T = TypeVar("_T")
_FAST: Final = tuple(
    step * 10.0**power for power in (-6, -5, -4, -3, -2, -1, 0, 1) for step in (1, 2.5, 5)
)
"""Seconds: from a redeem out of memory to a call of a model that takes its time."""
_SLOW: Final = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class KeyAge(NamedTuple):
    """The oldest version of a level in a state.

    Attributes:
        level: ``dek``, ``kek`` or ``master``.
        state: Of the version.
        seconds: Since it was made.
    """

    level: str
    state: str
    seconds: float


class KeySource(Protocol):
    """Who knows keys: a vault."""

    def key_ages(self) -> Iterable[KeyAge]:
        """The oldest key of each level and state; nothing when sealed."""

    def key_versions(self) -> Mapping[tuple[str, str], int]:
        """How many versions there are of each level and state; nothing when sealed."""

    def records_left(self) -> int:
        """How many credentials in memory are not under their primary key version."""


class _Outlet(Protocol):
    @property
    def waiting(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def name(self) -> str: ...


class OutletSource(Protocol):
    """Who has audit destinations."""

    @property
    def outlets(self) -> Iterable[_Outlet]:
        """Each with its name, how many events wait, and how many were dropped."""


class Tally:
    """How often something happened, by kind.

    Args:
        attributes: The names of the values that ``add`` gets.
        expected: Values that are read, as 0, before they were added.
    """

    __slots__ = ("_attributes", "_counts", "_expected", "_lock")

    def __init__(self, *attributes: str, expected: Iterable[tuple[str, ...]] = ()) -> None:
        self._attributes = attributes
        self._expected = dict.fromkeys(expected, 0)
        self._counts: dict[tuple[str, ...], int] = {}
        self._lock = threading.Lock()

    def expect(self, values: Iterable[tuple[str, ...]]) -> None:
        """Has more of them read, as 0, before they were added."""
        with self._lock:
            self._expected.update(dict.fromkeys(values, 0))

    def add(self, *values: str) -> None:
        """One more; an empty value is left out of the attributes."""
        with self._lock:
            self._counts[values] = self._counts.get(values, 0) + 1

    def read(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Each count with its attributes."""
        with self._lock:
            counts = self._expected | self._counts
        for values, count in counts.items():
            named = zip(self._attributes, values, strict=True)
            yield count, {name: value for name, value in named if value}


_redeems: Final = Tally(semconv.PLUGIN, semconv.METHOD, semconv.ERROR_TYPE)
_denials: Final = Tally(semconv.REASON)
_leaks: Final = Tally(semconv.WHERE, expected=((where,) for where in semconv.WHERES))
_leases: Final[dict[str, float]] = {}
_keys: Final[WeakKeyDictionary[object, KeySource]] = WeakKeyDictionary()
_hubs: Final[WeakSet[OutletSource]] = WeakSet()


class _Instruments:
    """What is recorded directly; the rest is observed when it is collected."""

    __slots__ = ("invoke", "lease", "redeem", "rotation")

    def __init__(self, meter: Meter) -> None:
        self.redeem = _seconds(meter, semconv.REDEEM_DURATION, "Handle to secret.", _FAST)
        self.invoke = _seconds(meter, semconv.INVOKE_DURATION, "Plugin invocations.", _FAST)
        self.lease = _seconds(meter, semconv.LEASE_DURATION, "Life of leases.", _SLOW)
        self.rotation = _seconds(meter, semconv.ROTATION_DURATION, "Key rotations.", _SLOW)
        _observe(meter)


def _seconds(meter: Meter, name: str, what: str, boundaries: tuple[float, ...]) -> Histogram:
    return meter.create_histogram(
        name, unit="s", description=what, explicit_bucket_boundaries_advisory=boundaries
    )


class OfProvider(Generic[_T]):
    """What was made of one of the API's providers, until another is set.

    Attributes:
        provider: Which; compared by identity, since the API's public getters cost more, and
            give a proxy while none is set.
        value: What was made; None while it records nothing.
    """

    __slots__ = ("provider", "value")

    def __init__(self) -> None:
        self.provider: object = None
        self.value: _T | None = None


METERS: Final = OfProvider[_Instruments]()


def _found() -> _Instruments | None:
    provider = _internal._METER_PROVIDER
    if provider is not METERS.provider:
        METERS.value = None
        if provider is not None and not isinstance(provider, NoOpMeterProvider):
            METERS.value = _Instruments(provider.get_meter("apex_creds"))
        METERS.provider = provider
    return METERS.value


def metering_on() -> bool:
    """Whether a meter provider is configured."""
    return _found() is not None


# -- what happens --------------------------------------------------------------------


def redeemed(
    seconds: float, error: str, *, plugin: str, method: str, context: Context | None = None
) -> None:
    """A redeem ended; ``error`` is an error's class, or empty."""
    found = _found()
    if found is not None:
        _redeems.add(plugin, method, error)
        found.redeem.record(seconds, _attributes(error, (semconv.METHOD, method)), context)


def invoked(
    seconds: float, error: str, *, plugin: str, action: str, context: Context | None = None
) -> None:
    """An invocation ended."""
    found = _found()
    if found is not None:
        attributes = _attributes(error, (semconv.PLUGIN, plugin), (semconv.GEN_AI_TOOL, action))
        found.invoke.record(seconds, attributes, context)


def rotated(seconds: float, error: str, *, level: str, context: Context | None = None) -> None:
    """A rotation ended."""
    found = _found()
    if found is not None:
        found.rotation.record(seconds, _attributes(error, (semconv.KEY_LEVEL, level)), context)


def lease_made(lease: str) -> None:
    """A lease was made, when metrics are on."""
    _leases[lease] = time.perf_counter()


def lease_ended(lease: str, span: Span | None = None) -> None:
    """A lease ended; nothing if it was made before metrics were on."""
    started = _leases.pop(lease, None)
    found = _found()
    if started is not None and found is not None:
        context = None if span is None else set_span_in_context(span)
        found.lease.record(time.perf_counter() - started, None, context)


def expect_denials(reasons: Iterable[str]) -> None:
    """Has each reason counted from the beginning, as 0."""
    _denials.expect((reason,) for reason in reasons)


def denied(reason: str) -> None:
    """Something was refused; ``reason`` is one of a closed set."""
    if _found() is not None:
        _denials.add(reason)


def leaked(where: str) -> None:
    """A secret was found in a plugin's output."""
    if _found() is not None:
        _leaks.add(where)


def _attributes(error: str, *pairs: tuple[str, str]) -> dict[str, str]:
    found = dict(pairs)
    if error:
        found[semconv.ERROR_TYPE] = error
    return found


# -- what is read when metrics are collected ----------------------------------------


def watch_keys(owner: object, source: KeySource) -> None:
    """Observes the keys of ``owner``, for as long as that is referred to elsewhere."""
    _keys[owner] = source


def watch_outlets(source: OutletSource) -> None:
    """Observes audit destinations, for as long as they are referred to elsewhere."""
    _hubs.add(source)


def _observe(meter: Meter) -> None:
    count, gauge = meter.create_observable_counter, meter.create_observable_gauge
    count(semconv.REDEEMS, [_reader(_redeems)], description="Redeems, also refused ones.")
    count(semconv.DENIALS, [_reader(_denials)], description="Refusals, by reason.")
    count(semconv.LEAKS, [_reader(_leaks)], description="Secrets redacted from output.")
    count(semconv.AUDIT_DROPS, [_drops], description="Events a destination lost.")
    gauge(semconv.AUDIT_QUEUE, [_queues], description="Events that wait for a destination.")
    gauge(semconv.LEASES, [_open_leases], description="Open leases.")
    gauge(semconv.LEASE_AGE, [_oldest_lease], unit="s", description="Age of the oldest lease.")
    gauge(semconv.KEY_AGE, [_key_ages], unit="s", description="Age of the oldest key version.")
    gauge(semconv.KEY_VERSIONS, [_key_versions], description="Key versions.")
    gauge(semconv.RECORDS_LEFT, [_left], description="Credentials left to re-encrypt.")
    _observe_workers(meter)


def _reader(tally: Tally) -> Callable[[CallbackOptions], Iterator[Observation]]:
    def read(_: CallbackOptions) -> Iterator[Observation]:
        return (Observation(count, attributes) for count, attributes in tally.read())

    return read


def _open_leases(_: CallbackOptions) -> Iterator[Observation]:
    yield Observation(len(_leases))


def _oldest_lease(_: CallbackOptions) -> Iterator[Observation]:
    oldest = min(list(_leases.values()), default=None)
    yield Observation(0.0 if oldest is None else time.perf_counter() - oldest)


def _drops(_: CallbackOptions) -> Iterator[Observation]:
    totals = _sum((outlet.name, outlet.dropped) for hub in _hubs for outlet in hub.outlets)
    return (Observation(n, {semconv.DESTINATION: name}) for name, n in totals.items())


def _queues(_: CallbackOptions) -> Iterator[Observation]:
    totals = _sum((outlet.name, outlet.waiting) for hub in _hubs for outlet in hub.outlets)
    return (Observation(n, {semconv.DESTINATION: name}) for name, n in totals.items())


def _sum(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for name, number in pairs:
        totals[name] = totals.get(name, 0) + number
    return totals


def _key_ages(_: CallbackOptions) -> Iterator[Observation]:
    oldest: dict[tuple[str, str], float] = {}
    for source in list(_keys.values()):
        for level, state, seconds in source.key_ages():
            oldest[level, state] = max(seconds, oldest.get((level, state), 0.0))
    for (level, state), seconds in oldest.items():
        yield Observation(seconds, {semconv.KEY_LEVEL: level, semconv.KEY_STATE: state})


def _key_versions(_: CallbackOptions) -> Iterator[Observation]:
    totals: Counter[tuple[str, str]] = Counter()
    for source in list(_keys.values()):
        totals.update(source.key_versions())
    for (level, state), number in totals.items():
        yield Observation(number, {semconv.KEY_LEVEL: level, semconv.KEY_STATE: state})


def _left(_: CallbackOptions) -> Iterator[Observation]:
    yield Observation(sum(source.records_left() for source in list(_keys.values())))


class LogCheck(NamedTuple):
    """The last check of a log.

    Attributes:
        intact: Whether everything verified.
        age: Seconds since it ended.
    """

    intact: bool
    age: float


class WatchSource(Protocol):
    """What reads a vault regularly: a worker."""

    def log_check(self) -> LogCheck | None:
        """The last check of the audit log; None before the first."""

    def log_events(self) -> Iterable[tuple[tuple[str, str], int]]:
        """How many events are in the log, by kind and reason (empty where there is none)."""

    def rotations_due(self) -> Mapping[str, float]:
        """Seconds until the next key of each level is due; negative when it was."""

    def problems(self) -> int:
        """How much is wrong now."""


_sources: Final[WeakSet[WatchSource]] = WeakSet()


def watch_worker(source: WatchSource) -> None:
    """Observes a worker, for as long as it is referred to elsewhere."""
    _sources.add(source)


def _observe_workers(meter: Meter) -> None:
    """Sets up the metrics of all that are watched."""
    gauge = meter.create_observable_gauge
    meter.create_observable_counter(
        semconv.AUDIT_EVENTS,
        [_events],
        description="Events in the audit log, whoever wrote them.",
    )
    gauge(semconv.AUDIT_INTACT, [_intact], description="1: the log verified when last checked.")
    gauge(semconv.AUDIT_CHECK_AGE, [_age], unit="s", description="Since the log was checked.")
    gauge(semconv.ROTATION_DUE, [_due], unit="s", description="Until the next rotation is due.")
    gauge(semconv.WORKER_PROBLEMS, [_problems], description="What is wrong with the worker.")


def _checks() -> Iterable[LogCheck]:
    found = (source.log_check() for source in list(_sources))
    return [check for check in found if check is not None]


def _intact(_: CallbackOptions) -> Iterator[Observation]:
    if checks := _checks():
        yield Observation(int(all(check.intact for check in checks)))


def _age(_: CallbackOptions) -> Iterator[Observation]:
    if checks := _checks():
        yield Observation(max(check.age for check in checks))


def _events(_: CallbackOptions) -> Iterator[Observation]:
    totals: Counter[tuple[str, str]] = Counter()
    for source in list(_sources):
        totals.update(dict(source.log_events()))
    for (kind, reason), number in totals.items():
        reasons = {semconv.REASON: reason} if reason else {}
        yield Observation(number, {semconv.AUDIT_KIND: kind, **reasons})


def _due(_: CallbackOptions) -> Iterator[Observation]:
    nearest: dict[str, float] = {}
    for source in list(_sources):
        for level, seconds in source.rotations_due().items():
            nearest[level] = min(seconds, nearest.get(level, seconds))
    for level, seconds in nearest.items():
        yield Observation(seconds, {semconv.KEY_LEVEL: level})


def _problems(_: CallbackOptions) -> Iterator[Observation]:
    if sources := list(_sources):
        yield Observation(sum(source.problems() for source in sources))

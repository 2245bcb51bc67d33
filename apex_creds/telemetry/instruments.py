"""Metrics through the OpenTelemetry API; free while no meter provider is configured.

Guarantee: counting costs one read of a dictionary under a lock, and no count is lost between
threads; what is expected to happen is there from the beginning, as 0. Collecting reads what
is in memory: no document, and no log. Attributes are reasons, states and names from closed
sets, and the names of plugins as the log shows them; never a credential's name, an
identifier, or a secret.
"""

from __future__ import annotations

import operator
import threading
import time
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
    """A source that knows keys: a vault."""

    def key_ages(self) -> Iterable[KeyAge]:
        """The oldest key of each level and state; nothing when sealed."""

    def key_versions(self) -> Mapping[tuple[str, str], int]:
        """How many versions there are of each level and state; nothing when sealed."""

    def records_left(self) -> int:
        """How many credentials in memory are not under their primary key version."""

    def connections(self) -> Mapping[tuple[str], int]:
        """How many OAuth connections in memory are in each state."""

    def rotations(self) -> Mapping[tuple[str], int]:
        """How many credentials in memory that have a rotator are how."""


class _Outlet(Protocol):
    @property
    def waiting(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def name(self) -> str: ...


class OutletSource(Protocol):
    """A source that has audit destinations."""

    @property
    def outlets(self) -> Iterable[_Outlet]:
        """Each with its name, how many events wait, and how many were dropped."""


class Tally:
    """How often something happened, by kind.

    Args:
        attributes: The names of the values that ``add`` gets.
        expected: Values that are read, as 0, before they were added.
    """

    __slots__ = ("_counts", "_expected", "_lock", "attributes")

    def __init__(self, *attributes: str, expected: Iterable[tuple[str, ...]] = ()) -> None:
        self.attributes = attributes
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

    def read(self) -> dict[tuple[str, ...], int]:
        """Each count, by its values."""
        with self._lock:
            return self._expected | self._counts


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


class LogCheck(NamedTuple):
    """The last check of a log.

    Attributes:
        intact: Whether everything verified.
        age: Seconds since it ended.
    """

    intact: bool
    age: float


class WatchSource(Protocol):
    """A source that reads a vault regularly: a worker."""

    def log_check(self) -> LogCheck | None:
        """The last check of the audit log; None before the first."""

    def log_events(self) -> Iterable[tuple[tuple[str, str], int]]:
        """How many events are in the log, by kind and reason (empty where there is none)."""

    def rotations_due(self) -> Mapping[str, float]:
        """Seconds until the next key of each level, or credential, is due; negative: it was."""

    def problems(self) -> int:
        """How much is wrong now."""


_sources: Final[WeakSet[WatchSource]] = WeakSet()


def watch_worker(source: WatchSource) -> None:
    """Observes a worker, for as long as it is referred to elsewhere."""
    _sources.add(source)


_S = TypeVar("_S")
_Numbers = Mapping[tuple[str, ...], float]
"""Numbers by the values of their attributes."""
_Callback = Callable[[CallbackOptions], Iterator[Observation]]


def _observe(meter: Meter) -> None:
    """Sets up every metric that is read when metrics are collected."""
    count, gauge = meter.create_observable_counter, meter.create_observable_gauge
    for name, tally, description in (
        (semconv.REDEEMS, _redeems, "Redeems, also refused ones."),
        (semconv.DENIALS, _denials, "Refusals, by reason."),
        (semconv.LEAKS, _leaks, "Secrets redacted from output."),
    ):
        count(name, _observed(tally.read, *tally.attributes), description=description)
    outlets = _observed(lambda: _by_outlet("dropped"), semconv.DESTINATION)
    count(semconv.AUDIT_DROPS, outlets, description="Events a destination lost.")
    outlets = _observed(lambda: _by_outlet("waiting"), semconv.DESTINATION)
    gauge(semconv.AUDIT_QUEUE, outlets, description="Events that wait for a destination.")
    leases = _observed(lambda: {(): len(_leases)})
    gauge(semconv.LEASES, leases, description="Open leases.")
    oldest = _observed(
        lambda: {
            (): max((time.perf_counter() - at for at in list(_leases.values())), default=0.0)
        }
    )
    gauge(semconv.LEASE_AGE, oldest, unit="s", description="Age of the oldest lease.")
    kind = semconv.KEY_LEVEL, semconv.KEY_STATE
    old = _of(
        _keys.values,
        lambda source: (((a, b), max(age, 0.0)) for a, b, age in source.key_ages()),
        max,
    )
    ages = _observed(old, *kind)
    gauge(semconv.KEY_AGE, ages, unit="s", description="Age of the oldest key version.")
    versions = _observed(_of(_keys.values, lambda each: each.key_versions().items()), *kind)
    gauge(semconv.KEY_VERSIONS, versions, description="Key versions.")
    left = _observed(
        lambda: {(): sum(source.records_left() for source in list(_keys.values()))}
    )
    gauge(semconv.RECORDS_LEFT, left, description="Credentials left to re-encrypt.")
    states = _of(_keys.values, lambda each: each.connections().items())
    connected = _observed(states, semconv.CONNECTION_STATE)
    gauge(semconv.CONNECTIONS, connected, description="OAuth connections.")
    states = _of(_keys.values, lambda each: each.rotations().items())
    rotated = _observed(states, semconv.ROTATION_STATE)
    gauge(semconv.ROTATIONS, rotated, description="Credentials replaced at their provider.")
    logged = _of(lambda: _sources, lambda each: each.log_events())
    events = _observed(logged, semconv.AUDIT_KIND, semconv.REASON)
    count(
        semconv.AUDIT_EVENTS, events, description="Events in the audit log, by all its writers."
    )
    intact = _observed(lambda: _of_checks(lambda found: int(all(one.intact for one in found))))
    gauge(semconv.AUDIT_INTACT, intact, description="1: the log verified when last checked.")
    age = _observed(lambda: _of_checks(lambda found: max(one.age for one in found)))
    gauge(semconv.AUDIT_CHECK_AGE, age, unit="s", description="Since the log was checked.")
    soonest = _of(
        lambda: _sources,
        lambda source: (((level,), at) for level, at in source.rotations_due().items()),
        min,
    )
    due = _observed(soonest, semconv.KEY_LEVEL)
    gauge(semconv.ROTATION_DUE, due, unit="s", description="Until the next rotation is due.")
    problems = _observed(_of(lambda: _sources, lambda each: [((), each.problems())]))
    gauge(semconv.WORKER_PROBLEMS, problems, description="What is wrong with the worker.")


def _observed(read: Callable[[], _Numbers], *attributes: str) -> list[_Callback]:
    """The callback of a metric: what is read now; an empty value is no attribute."""

    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for values, number in read().items():
            named = zip(attributes, values, strict=True)
            yield Observation(number, {name: value for name, value in named if value})

    return [observe]


def _merged(
    pairs: Iterable[tuple[tuple[str, ...], float]],
    merge: Callable[[float, float], float] = operator.add,
) -> _Numbers:
    """One number for each key: the sum of those it has, or what ``merge`` makes of them."""
    found: dict[tuple[str, ...], float] = {}
    for key, number in pairs:
        found[key] = merge(found[key], number) if key in found else number
    return found


def _of(
    sources: Callable[[], Iterable[_S]],
    read: Callable[[_S], Iterable[tuple[tuple[str, ...], float]]],
    merge: Callable[[float, float], float] = operator.add,
) -> Callable[[], _Numbers]:
    """What all sources have that there are when it is read, merged."""
    return lambda: _merged((pair for each in list(sources()) for pair in read(each)), merge)


def _by_outlet(number: str) -> _Numbers:
    outlets = [outlet for hub in list(_hubs) for outlet in hub.outlets]
    return _merged(((outlet.name,), getattr(outlet, number)) for outlet in outlets)


def _of_checks(number: Callable[[list[LogCheck]], float]) -> _Numbers:
    """What the last checks come to; nothing before the first."""
    found = [check for each in list(_sources) if (check := each.log_check()) is not None]
    return {(): number(found)} if found else {}

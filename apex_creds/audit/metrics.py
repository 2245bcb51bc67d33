"""Metrics through the OpenTelemetry API; free while no meter provider is configured.

Guarantee: attributes are reasons, states and names from closed sets, and the names of
plugins as the log shows them; never a credential's name, an identifier, or a secret.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry.context import Context
from opentelemetry.metrics import (
    CallbackOptions,
    Histogram,
    Meter,
    MeterProvider,
    NoOpMeterProvider,
    Observation,
    _internal,
)
from opentelemetry.trace import Span, set_span_in_context

from apex_creds.audit import names, watched
from apex_creds.audit.tallies import Tally
from apex_creds.policy.decide import REFUSALS

__all__ = [
    "KeyAge",
    "KeySource",
    "OutletSource",
    "denied",
    "invoked",
    "leaked",
    "lease_ended",
    "lease_made",
    "metering_on",
    "redeemed",
    "rotated",
    "watch_keys",
    "watch_outlets",
]

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


_redeems: Final = Tally(names.PLUGIN, names.METHOD, names.ERROR_TYPE)
_denials: Final = Tally(names.REASON, expected=((reason.value,) for reason in REFUSALS))
_leaks: Final = Tally(names.WHERE, expected=((where,) for where in names.WHERES))
_leases: Final[dict[str, float]] = {}
_keys: Final[WeakKeyDictionary[object, KeySource]] = WeakKeyDictionary()
_hubs: Final[WeakSet[OutletSource]] = WeakSet()


class _Instruments:
    """What is recorded directly; the rest is observed when it is collected."""

    __slots__ = ("invoke", "lease", "redeem", "rotation")

    def __init__(self, meter: Meter) -> None:
        self.redeem = _seconds(meter, names.REDEEM_DURATION, "Handle to secret.", _FAST)
        self.invoke = _seconds(meter, names.INVOKE_DURATION, "Plugin invocations.", _FAST)
        self.lease = _seconds(meter, names.LEASE_DURATION, "Life of leases.", _SLOW)
        self.rotation = _seconds(meter, names.ROTATION_DURATION, "Key rotations.", _SLOW)
        _observe(meter)


def _seconds(meter: Meter, name: str, what: str, boundaries: tuple[float, ...]) -> Histogram:
    return meter.create_histogram(
        name, unit="s", description=what, explicit_bucket_boundaries_advisory=boundaries
    )


class _Seen:
    """The provider that was looked at last, and the instruments it gave."""

    __slots__ = ("instruments", "provider")

    def __init__(self) -> None:
        self.provider: MeterProvider | None = None
        self.instruments: _Instruments | None = None


_seen: Final = _Seen()


def _found() -> _Instruments | None:
    # The API's public getter costs more, and gives a proxy while no provider is set.
    provider = _internal._METER_PROVIDER
    if provider is not _seen.provider:
        _seen.instruments = None
        if provider is not None and not isinstance(provider, NoOpMeterProvider):
            _seen.instruments = _Instruments(provider.get_meter("apex_creds"))
        _seen.provider = provider
    return _seen.instruments


def metering_on() -> bool:
    """Tells whether a meter provider is configured."""
    return _found() is not None


# -- what happens --------------------------------------------------------------------


def redeemed(
    seconds: float, error: str, *, plugin: str, method: str, context: Context | None = None
) -> None:
    """A redeem ended; ``error`` is an error's class, or empty."""
    found = _found()
    if found is not None:
        _redeems.add(plugin, method, error)
        found.redeem.record(seconds, _attributes(error, (names.METHOD, method)), context)


def invoked(
    seconds: float, error: str, *, plugin: str, action: str, context: Context | None = None
) -> None:
    """An invocation ended."""
    found = _found()
    if found is not None:
        attributes = _attributes(error, (names.PLUGIN, plugin), (names.GEN_AI_TOOL, action))
        found.invoke.record(seconds, attributes, context)


def rotated(seconds: float, error: str, *, level: str, context: Context | None = None) -> None:
    """A rotation ended."""
    found = _found()
    if found is not None:
        found.rotation.record(seconds, _attributes(error, (names.KEY_LEVEL, level)), context)


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
        found[names.ERROR_TYPE] = error
    return found


# -- what is looked at when metrics are collected ----------------------------------------


def watch_keys(owner: object, source: KeySource) -> None:
    """Observes the keys of ``owner``, for as long as that is referred to elsewhere."""
    _keys[owner] = source


def watch_outlets(source: OutletSource) -> None:
    """Observes audit destinations, for as long as they are referred to elsewhere."""
    _hubs.add(source)


def _observe(meter: Meter) -> None:
    count, gauge = meter.create_observable_counter, meter.create_observable_gauge
    count(names.REDEEMS, [_reader(_redeems)], description="Redeems, also refused ones.")
    count(names.DENIALS, [_reader(_denials)], description="Refusals, by reason.")
    count(names.LEAKS, [_reader(_leaks)], description="Secrets redacted from output.")
    count(names.AUDIT_DROPS, [_drops], description="Events a destination lost.")
    gauge(names.AUDIT_QUEUE, [_queues], description="Events that wait for a destination.")
    gauge(names.LEASES, [_open_leases], description="Open leases.")
    gauge(names.LEASE_AGE, [_oldest_lease], unit="s", description="Age of the oldest lease.")
    gauge(names.KEY_AGE, [_key_ages], unit="s", description="Age of the oldest key version.")
    gauge(names.KEY_VERSIONS, [_key_versions], description="Key versions.")
    gauge(names.RECORDS_LEFT, [_left], description="Credentials left to re-encrypt.")
    watched.observe(meter)


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
    return (Observation(n, {names.DESTINATION: name}) for name, n in totals.items())


def _queues(_: CallbackOptions) -> Iterator[Observation]:
    totals = _sum((outlet.name, outlet.waiting) for hub in _hubs for outlet in hub.outlets)
    return (Observation(n, {names.DESTINATION: name}) for name, n in totals.items())


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
        yield Observation(seconds, {names.KEY_LEVEL: level, names.KEY_STATE: state})


def _key_versions(_: CallbackOptions) -> Iterator[Observation]:
    totals: Counter[tuple[str, str]] = Counter()
    for source in list(_keys.values()):
        totals.update(source.key_versions())
    for (level, state), number in totals.items():
        yield Observation(number, {names.KEY_LEVEL: level, names.KEY_STATE: state})


def _left(_: CallbackOptions) -> Iterator[Observation]:
    yield Observation(sum(source.records_left() for source in list(_keys.values())))

"""Metrics of what a worker found out about its vault when it last looked.

Guarantee: collecting them reads what the worker remembers; no document, and no log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from weakref import WeakSet

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from apex_creds.audit import names

if TYPE_CHECKING:
    from apex_creds.audit.counting import What

__all__ = ["LogCheck", "WatchSource", "observe", "watch"]


class LogCheck(NamedTuple):
    """The last check of a log.

    Attributes:
        intact: Whether everything verified.
        age: Seconds since it ended.
    """

    intact: bool
    age: float


class WatchSource(Protocol):
    """Who looks at a vault regularly: a worker."""

    def log_check(self) -> LogCheck | None:
        """The last check of the audit log; None before the first."""

    def log_events(self) -> Mapping[What, int]:
        """How many events of which kind are in the log."""

    def rotations_due(self) -> Mapping[str, float]:
        """Seconds until the next key of each level is due; negative when it was."""

    def problems(self) -> int:
        """How much is wrong now."""


_sources: Final[WeakSet[WatchSource]] = WeakSet()


def watch(source: WatchSource) -> None:
    """Observes a worker, for as long as it is referred to elsewhere."""
    _sources.add(source)


def observe(meter: Meter) -> None:
    """Sets up the metrics of all that are watched."""
    gauge = meter.create_observable_gauge
    meter.create_observable_counter(
        names.AUDIT_EVENTS,
        [_events],
        description="Events in the audit log, whoever wrote them.",
    )
    gauge(names.AUDIT_INTACT, [_intact], description="1: the log verified when last checked.")
    gauge(names.AUDIT_CHECK_AGE, [_age], unit="s", description="Since the log was checked.")
    gauge(names.ROTATION_DUE, [_due], unit="s", description="Until the next rotation is due.")
    gauge(names.WORKER_PROBLEMS, [_problems], description="What is wrong with the worker.")


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
    totals: Counter[What] = Counter()
    for source in list(_sources):
        totals.update(source.log_events())
    for (kind, reason), number in totals.items():
        reasons = {names.REASON: reason} if reason else {}
        yield Observation(number, {names.AUDIT_KIND: kind, **reasons})


def _due(_: CallbackOptions) -> Iterator[Observation]:
    nearest: dict[str, float] = {}
    for source in list(_sources):
        for level, seconds in source.rotations_due().items():
            nearest[level] = min(seconds, nearest.get(level, seconds))
    for level, seconds in nearest.items():
        yield Observation(seconds, {names.KEY_LEVEL: level})


def _problems(_: CallbackOptions) -> Iterator[Observation]:
    if sources := list(_sources):
        yield Observation(sum(source.problems() for source in sources))

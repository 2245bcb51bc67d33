"""Limits on how often credentials are used, and on how often a plugin is refused.

Guarantee: a use counts for the plugin that asks, for every plugin that its handle came
from, for the credential and for each pair of them, whatever lease or attenuated handle it
is made with; it counts everywhere or, if one limit is reached, nowhere. Sliding windows are
exact: in any stretch of a window's length there are never more entries than its limit. Time
comes from outside. ``Windows`` is not thread-safe: callers hold a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol

import msgspec

from apex_creds.model import key_of, split_key
from apex_creds.policy.patterns import Matcher
from apex_creds.policy.rules import LimitRule

REDEEMS: Final = "redeems"
DENIALS: Final = "denials"


class Breach(NamedTuple):
    """A limit that is reached.

    Attributes:
        rule: The limit's id.
        retry_after: Seconds until there is room again.
        plugin: Whose; empty where the limit is the credential's.
        credential: Which; empty where it is the plugin's.
    """

    rule: str
    retry_after: float
    plugin: str
    credential: str


class DenialsExceeded(NamedTuple):
    """A plugin was refused more often than a limit on denials takes; rotation hears of it.

    Attributes:
        rule: The limit's id.
        per: ``plugin``, ``credential``, ``pair`` or ``principal``.
        plugin: Which one was refused last.
        credential: What it had asked for last.
        amount: The limit, in ``seconds``.
        at: Unix seconds.
    """

    rule: str
    per: str
    plugin: str
    credential: str
    amount: int
    seconds: int
    at: float


class LimitState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The counts that outlive the process: by key, when it is out and its times (Unix)."""

    windows: dict[str, tuple[float, tuple[float, ...]]] = {}


class Persistence(Protocol):
    """Where ``LimitState`` is kept; a ``Document`` is one."""

    async def change(self, change: Callable[[LimitState], LimitState]) -> LimitState:
        """Applies ``change`` by compare-and-set; it may be called again."""


class _Window(NamedTuple):
    rule: LimitRule
    plugin: str
    credential: str

    @property
    def limit(self) -> tuple[str, int, int]:
        """The key of the count (stored: see ``LimitState``), and how many in how long."""
        rule = self.rule
        names = (rule.id, rule.of, self.plugin, self.credential)
        escaped = "/".join(name.replace("%", "%25").replace("/", "%2F") for name in names)
        key = f"LIMITER/{escaped}/{rule.amount}/{rule.seconds}/second"
        return key, rule.amount, rule.seconds


DEFAULT: Final = LimitRule(
    id="default-denials", per="plugin", of=DENIALS, amount=100, seconds=60
)
"""In force where the operator's policy says nothing of denials, or there is none."""


def with_default(limits: Iterable[LimitRule]) -> tuple[LimitRule, ...]:
    """A policy's limits, and the default one if none of them is on denials."""
    found = tuple(limits)
    return found if any(rule.of == DENIALS for rule in found) else (*found, DEFAULT)


class RateLimits:
    """Some limits of a policy, those that are persisted or those that are not."""

    __slots__ = ("_credential", "_plugin", "_principal", "rules")

    def __init__(self, rules: Iterable[LimitRule]) -> None:
        self.rules = tuple(rules)
        self._plugin = Matcher([rule.plugin for rule in self.rules])
        self._credential = Matcher([rule.credential for rule in self.rules])
        self._principal = Matcher([rule.principal for rule in self.rules])

    def admit(
        self, windows: Windows, plugins: Iterable[str], credential: str, principal: str = ""
    ) -> Breach | None:
        """Counts a use if no limit is reached; else nothing, and says which one is.

        A limit on the denials of a plugin or pair that is reached refuses its uses too.
        """
        asked = list(self._windows(plugins, credential, principal))
        counted = [window for window in asked if window.rule.of == REDEEMS]
        blocking = [w for w in asked if w.rule.of == DENIALS and w.rule.per != "credential"]
        reached = [
            Breach(window.rule.id, left, window.plugin, window.credential)
            for window in (*blocking, *counted)
            if (left := windows.wait(*window.limit)) is not None
        ]
        if reached:
            return max(reached, key=lambda breach: breach.retry_after)
        for window in counted:
            windows.add(*window.limit)
        return None

    def deny(
        self, windows: Windows, plugins: Iterable[str], credential: str, principal: str = ""
    ) -> list[tuple[LimitRule, Breach]]:
        """Counts a denial; the limits that have no room for it."""
        return [
            (rule, Breach(rule.id, windows.wait(*window.limit) or 0.0, *window[1:]))
            for window in self._windows(plugins, credential, principal)
            if (rule := window.rule).of == DENIALS and not windows.add(*window.limit)
        ]

    def _windows(
        self, plugins: Iterable[str], credential: str, principal: str
    ) -> Iterator[_Window]:
        """The windows that an event of these plugins on that credential falls into.

        A principal's is counted apart from the others of that name. What counts for each
        principal has the principal in the place of the plugin, in a form that no id has.
        """
        by_credential = self._credential.name(split_key(credential)[0])
        by_credential &= self._principal.name(principal)
        seen: set[tuple[str, str, str]] = set()
        for plugin in plugins:
            found = self._plugin.name(plugin) & by_credential
            for number, rule in enumerate(self.rules):
                if rule.per == "principal":
                    whose, which = key_of("", principal), ""
                    if not principal:
                        continue
                else:
                    whose = "" if rule.per == "credential" else plugin
                    which = "" if rule.per == "plugin" else credential
                if found >> number & 1 and (rule.id, whose, which) not in seen:
                    seen.add((rule.id, whose, which))
                    yield _Window(rule, whose, which)


MAX_WINDOWS: Final = 50_000
"""More kinds of events than that at once: those that were quiet longest are forgotten, and
of them the counts of denials first: names that don't exist make as many as one likes."""


class Windows:
    """Times of events by key.

    Args:
        clock: Seconds; of one kind for all of the object's life.
        times: What to begin with.
        most: How many keys are kept.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        times: Mapping[str, tuple[float, tuple[float, ...]]] | None = None,
        *,
        most: int = MAX_WINDOWS,
    ) -> None:
        self._most = most
        self._clock = clock
        self._times: dict[str, tuple[float, list[float]]] = {
            key: (ends, list(found)) for key, (ends, found) in (times or {}).items()
        }

    def export(self) -> dict[str, tuple[float, tuple[float, ...]]]:
        """For each key the time when its last entry is out, and its entries."""
        self._forget_old()
        return {key: (ends, tuple(found)) for key, (ends, found) in self._times.items()}

    def wait(self, key: str, amount: int, seconds: int) -> float | None:
        """Seconds until there is room for one more entry; None if there is."""
        now = self._clock()
        inside = self._inside(key, seconds, now)
        return max(inside[-amount] + seconds - now, 0.0) if len(inside) >= amount else None

    def add(self, key: str, amount: int, seconds: int) -> bool:
        """Adds an entry if there is room for it."""
        now = self._clock()
        inside = self._inside(key, seconds, now)
        if len(inside) >= amount:
            return False
        self._times.pop(key, None)  # to the end: what was touched last
        if len(self._times) >= self._most:
            self._forget_old()
        if len(self._times) >= self._most:
            # Stable: the quietest of each first; many at once, so that it is rare.
            by_worth = sorted(self._times, key=lambda k: k.split("/", 3)[2:3] != [DENIALS])
            for each in by_worth[: max(self._most // 10, 1)]:
                del self._times[each]
        self._times[key] = (now + seconds, [*inside, now])
        return True

    def _inside(self, key: str, seconds: int, now: float) -> list[float]:
        _, times = self._times.get(key, (0.0, []))
        if times and times[-1] > now:
            # The clock was set back: what is from the future counts from now on, not for years.
            times = [min(time, now) for time in times]
            self._times[key] = (now + seconds, times)
        if times and times[0] <= now - seconds:
            times = [time for time in times if time > now - seconds]
        return times

    def _forget_old(self) -> None:
        now = self._clock()
        self._times = {k: found for k, found in self._times.items() if found[0] > now}

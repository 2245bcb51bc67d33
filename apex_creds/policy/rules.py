"""The operator's rules, compiled: which of them decides on a use, found without a scan.

Guarantee: pure and total. Of the rules that match, the most specific one decides; where
several are equally specific, ``deny`` wins over ``ask`` and ``ask`` over ``allow``, then
the first in the file. Where none matches, the credential's level decides. A use of several
scopes or origins is decided for each of them; the strictest answer stands.

The rules are numbered from the one that wins over all others; each dimension (plugin,
action, credential, scope, origin, time) yields the set of rules that it lets through, as
the bits of an integer, and the lowest bit that is in all of them is the answer.

A time window is about what the clocks on the wall of its zone show, to the minute: an hour that
they skip in spring never comes, and one that they repeat in autumn comes twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import reduce
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from apex_creds.concurrency import BoundedCache
from apex_creds.errors import InvalidInputError
from apex_creds.model import Origin, Sensitivity
from apex_creds.policy.patterns import ANYTHING, Matcher, Pattern, Specificity

EACH_LEASE: Final = 0.0
NEVER: Final = math.inf
"""What ``second_factor`` may say besides seconds: for each lease anew, or not at all."""
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_DAY: Final = 24 * 60


class Verdict(StrEnum):
    """What a rule or a level says."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


_SEVERITY: Final = {Verdict.ALLOW: 0, Verdict.ASK: 1, Verdict.DENY: 2}
_MINUTE: Final = 60.0
_MANY: Final = 1024
"""So many rulings are remembered: uses that no rule with a time is about."""


@dataclass(frozen=True, slots=True)
class Window:
    """From one minute of the day to before another, on some days.

    Where ``start`` is not before ``end`` it goes over midnight, and belongs to the day on
    which it begins.

    Attributes:
        days: 0 for Monday to 6 for Sunday.
        start: Minutes from midnight, 0 to 1439.
        end: The same; 1440 is the end of the day.
    """

    days: frozenset[int]
    start: int
    end: int
    zone: ZoneInfo

    def holds(self, now: float) -> bool:
        """Whether ``now`` (Unix seconds) is in it.

        Raises:
            ValueError, OverflowError, OSError: It is no time that a calendar knows.
        """
        local = datetime.fromtimestamp(now, self.zone)
        minute, day = local.hour * 60 + local.minute, local.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        if minute >= self.start:
            return day in self.days
        return minute < self.end and (day - 1) % 7 in self.days


def window(
    *, days: list[str] | None = None, start: str = "", end: str = "", zone: str
) -> Window:
    """Reads a window; without days it is every day, without times the whole day.

    Raises:
        InvalidInputError: A day, a time or the zone is none, or the times are the same.
    """
    for name in days or ():
        if name not in DAYS:
            hint = f"Use {', '.join(DAYS)}."
            raise InvalidInputError(f"{name[:20]!r} is not a day.", hint=hint)
    chosen = frozenset(map(DAYS.index, DAYS if days is None else days))
    if not chosen:
        raise InvalidInputError("There is no day in the list.", hint="Leave it out for all.")
    first, last = _minute(start, 0), _minute(end, _DAY)
    if first in (last, _DAY):
        raise InvalidInputError("It begins when it ends.", hint="Leave both out for all day.")
    try:
        return Window(chosen, first, last, ZoneInfo(zone))
    except (ValueError, OSError, KeyError):
        raise InvalidInputError(
            f"{zone[:40]!r} is not a time zone that this machine knows.",
            hint='Write it like "Europe/Berlin" or "UTC".',
        ) from None


def _minute(text: str, default: int) -> int:
    if not text:
        return default
    if text == "24:00":
        return _DAY
    found = _TIME.fullmatch(text)
    if found is None:
        raise InvalidInputError(
            f"{text[:20]!r} is not a time of day.", hint='Write it like "08:30".'
        )
    return int(found[1]) * 60 + int(found[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule of the file. An empty dimension matches everything.

    Attributes:
        id: Its name in the log and in ``policy explain``.
        line: Of the file, from 1.
        reveal: Whether, if it allows, the secret may be read where the manifest asks for it.
        echoes: Whether, if it allows, services may send it back to the plugin, likewise.
        second_factor: Seconds for which one is good, ``EACH_LEASE`` or ``NEVER``; None: as
            the level says.
        sign: Whether it may make signatures, likewise; ``reveal`` includes that.
        principal: Who is called for; nobody has no name that a pattern would match.
        shared: Whether a call for a principal who has no credential of that name may use the
            shared one.
    """

    id: str
    decision: Verdict
    line: int = 0
    plugin: tuple[Pattern, ...] = ()
    action: tuple[Pattern, ...] = ()
    credential: tuple[Pattern, ...] = ()
    scope: tuple[Pattern, ...] = ()
    origin: tuple[Pattern, ...] = ()
    time: Window | None = None
    reveal: bool = False
    echoes: bool = False
    second_factor: float | None = None
    sign: bool = False
    principal: tuple[Pattern, ...] = ()
    shared: bool = False

    @property
    def weight(self) -> tuple[Specificity, bool, int]:
        """What the rules are ordered by; the greatest wins."""
        dimensions = (
            self.plugin,
            self.action,
            self.credential,
            self.scope,
            self.origin,
            self.principal,
        )
        # Of several patterns the least specific one counts.
        narrowness = (
            min((pattern.specificity for pattern in alternatives), default=ANYTHING)
            for alternatives in dimensions
        )
        total = reduce(Specificity.plus, narrowness)
        return total, self.time is not None, _SEVERITY[self.decision]


@dataclass(frozen=True, slots=True)
class Level:
    """What is decided on a credential of a level where no rule matches."""

    decision: Verdict = Verdict.ASK
    second_factor: float = NEVER
    line: int = 0


DEFAULT_LEVELS: Final = {
    Sensitivity.NORMAL: Level(),
    Sensitivity.SENSITIVE: Level(),
    Sensitivity.CRITICAL: Level(second_factor=EACH_LEASE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRule:
    """One limit of the file; see ``policy.rate_limits``.

    Attributes:
        per: ``plugin``, ``credential``, ``pair`` or ``principal``.
        of: ``redeems`` or ``denials``.
        amount: How many in ``seconds``.
        persist: Whether the count is kept in the vault, for all processes and restarts.
    """

    id: str
    per: str
    of: str
    amount: int
    seconds: int
    line: int = 0
    plugin: tuple[Pattern, ...] = ()
    credential: tuple[Pattern, ...] = ()
    persist: bool = False
    principal: tuple[Pattern, ...] = ()


class Ruling(NamedTuple):
    """What policy says on a use, before grants are weighed.

    Attributes:
        rule: Id of the rule, or ``levels.NAME``.
        line: Of the file; 0: nothing in the file says it.
        second_factor: Seconds for which one is good, ``EACH_LEASE`` or ``NEVER``.
        timed: Whether it may be another at another time of day.
    """

    decision: Verdict
    rule: str
    line: int
    second_factor: float
    reveal: bool
    echoes: bool
    timed: bool
    sign: bool = False
    shared: bool = False


@dataclass(frozen=True, slots=True)
class _Clockwork:
    """The rules that hold at some times only: by window, and the set of all of them."""

    windows: tuple[tuple[Window, int], ...]
    rules: int
    unknown: int
    known: list[tuple[float, int]] = field(default_factory=lambda: [(math.nan, 0)])

    def asleep(self, now: float) -> int:
        """The timed rules that do not hold at ``now``; remembered for its minute."""
        if not self.windows:
            return 0
        minute = now // _MINUTE
        known_minute, asleep = self.known[0]
        if minute != known_minute:
            try:
                awake = sum(bits for window, bits in self.windows if window.holds(now))
                asleep = self.rules & ~awake
            except (ValueError, OverflowError, OSError):
                # No time that a calendar knows: what refuses holds, what allows does not.
                asleep = self.unknown
            self.known[0] = (minute, asleep)
        return asleep


class Policy:
    """A compiled policy; immutable but for a cache of its answers.

    Args:
        rules: In the order of the file; ids are unique.
        levels: What decides where no rule matches.
        limits: The limits of rates.
        keep_grants: Whether a new version of a plugin that asks for nothing new keeps its
            grants.
        isolated: The plugins that run isolated, or not at all; empty: all; None: none is
            named.
    """

    __slots__ = (
        "_action",
        "_clockwork",
        "_credential",
        "_known",
        "_origin",
        "_plugin",
        "_principal",
        "_scope",
        "isolated",
        "isolating",
        "keep_grants",
        "levels",
        "limits",
        "rules",
    )

    def __init__(
        self,
        rules: Iterable[Rule] = (),
        *,
        levels: dict[Sensitivity, Level] | None = None,
        limits: Iterable[LimitRule] = (),
        keep_grants: bool = True,
        isolated: tuple[Pattern, ...] | None = None,
    ) -> None:
        ordered = sorted(rules, key=lambda rule: rule.weight, reverse=True)
        self.rules = tuple(ordered)
        self.levels = {**DEFAULT_LEVELS, **(levels or {})}
        self.limits = tuple(limits)
        self.keep_grants = keep_grants
        self.isolated = None if isolated is None else Matcher([isolated])
        self.isolating = isolated is not None
        self._plugin = Matcher([rule.plugin for rule in ordered])
        self._action = Matcher([rule.action for rule in ordered])
        self._credential = Matcher([rule.credential for rule in ordered])
        self._scope = Matcher([rule.scope for rule in ordered])
        self._origin = Matcher([rule.origin for rule in ordered])
        self._principal = Matcher([rule.principal for rule in ordered])
        self._clockwork = _clockwork(ordered)
        self._known: BoundedCache[tuple[object, ...], Ruling] = BoundedCache(_MANY)

    def isolates(self, plugin: str) -> bool:
        """Whether a plugin is to run isolated, and is not run otherwise."""
        return self.isolated is not None and self.isolated.name(plugin) != 0

    def rule_on(
        self,
        *,
        plugin: str,
        action: str,
        credential: str,
        level: Sensitivity,
        scopes: Collection[str] = (),
        origins: Collection[Origin] = (),
        now: float,
        principal: str = "",
    ) -> Ruling:
        """What policy says on a use.

        Args:
            plugin: Its id.
            action: What it does; may be empty.
            credential: The credential's name.
            level: The credential's.
            scopes: All that are asked for; none: a use without scope.
            origins: All that the secret may be sent to.
            now: Unix seconds.
            principal: Who is called for; empty: nobody.
        """
        if not self.rules:
            return self._by_level(level, timed=False)
        # The level's plain text: an enumeration's hash is computed in Python.
        places = () if self._origin.trivial else tuple(origins)
        whom = "" if self._principal.trivial else principal
        key = (plugin, action, credential, level._value_, tuple(scopes), places, whom)
        found = self._known.get(key)
        if found is None:
            among = self._among(plugin, action, credential, whom)
            asleep = self._clockwork.asleep(now)
            found = reduce(
                _stricter,
                (
                    self._first(cell & ~asleep, level, bool(cell & self._clockwork.rules))
                    for cell in self._cells(among, scopes, origins)
                ),
            )
            if not found.timed:
                self._known.remember(key, found)
        return found

    def _among(self, plugin: str, action: str, credential: str, principal: str) -> int:
        return (
            self._principal.name(principal)
            & self._plugin.name(plugin)
            & self._action.name(action)
            & self._credential.name(credential)
        )

    def matching(
        self,
        *,
        plugin: str,
        action: str,
        credential: str,
        scopes: Iterable[str] = (),
        origins: Iterable[Origin] = (),
        now: float,
        principal: str = "",
    ) -> list[Rule]:
        """Every rule that has a say in ``rule_on``, the one that wins first."""
        among = self._among(plugin, action, credential, principal)
        found = reduce(int.__or__, self._cells(among, scopes, origins), 0)
        found &= ~self._clockwork.asleep(now)
        return [rule for number, rule in enumerate(self.rules) if found >> number & 1]

    def _cells(
        self, among: int, scopes: Iterable[str], origins: Iterable[Origin]
    ) -> Iterator[int]:
        """The rules for each combination of a scope and an origin; at least one."""
        by_scope = [among]
        if not self._scope.trivial:
            by_scope = [self._scope.name(s) & among for s in list(scopes) or [""]]
        if self._origin.trivial:
            yield from by_scope
            return
        by_origin = [self._origin.origin(o) for o in origins] or [self._origin.origin(None)]
        for one in by_scope:
            for other in by_origin:
                yield one & other

    def _first(self, found: int, level: Sensitivity, timed: bool) -> Ruling:
        if not found:
            return self._by_level(level, timed=timed)
        rule = self.rules[(found & -found).bit_length() - 1]
        second = rule.second_factor
        return Ruling(
            rule.decision,
            rule.id,
            rule.line,
            self.levels[level].second_factor if second is None else second,
            rule.reveal,
            rule.echoes,
            timed,
            rule.sign,
            rule.shared,
        )

    def _by_level(self, level: Sensitivity, *, timed: bool) -> Ruling:
        chosen = self.levels[level]
        name = f"levels.{level.value}"
        return Ruling(
            chosen.decision, name, chosen.line, chosen.second_factor, False, False, timed
        )


def _stricter(one: Ruling, other: Ruling) -> Ruling:
    """The first of the strictest, and of everything else the narrower."""
    worst = one if _SEVERITY[one.decision] >= _SEVERITY[other.decision] else other
    return worst._replace(
        second_factor=min(one.second_factor, other.second_factor),
        reveal=one.reveal and other.reveal,
        echoes=one.echoes and other.echoes,
        timed=one.timed or other.timed,
        sign=(one.sign or one.reveal) and (other.sign or other.reveal),
        shared=one.shared and other.shared,
    )


def _clockwork(ordered: list[Rule]) -> _Clockwork:
    by_window: dict[Window, int] = {}
    allowing = 0
    for number, rule in enumerate(ordered):
        if rule.time is None:
            continue
        by_window[rule.time] = by_window.get(rule.time, 0) | 1 << number
        allowing |= (rule.decision is Verdict.ALLOW) << number
    everything = reduce(int.__or__, by_window.values(), 0)
    return _Clockwork(tuple(by_window.items()), everything, allowing)


NO_POLICY: Final = Policy()
"""Where there is no file: a person decides on everything."""

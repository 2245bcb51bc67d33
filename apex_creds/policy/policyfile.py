"""``security/policy.toml``: what the operator writes, read strictly. No I/O.

Guarantee: a text is a valid policy, or an ``InvalidPolicyError`` that names the line; an
unknown field, a wrong type, a duplicate or an oversized file is an error, never ignored.
The schema is in docs/POLICY.md.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from apex_creds.errors import InvalidInputError, InvalidPolicyError
from apex_creds.model import Sensitivity, check_name
from apex_creds.policy import hours
from apex_creds.policy.patterns import Pattern, name_pattern, origin_pattern
from apex_creds.policy.rules import (
    DEFAULT_LEVELS,
    EACH_LEASE,
    NEVER,
    Level,
    LimitRule,
    Policy,
    Rule,
    Verdict,
)
from apex_creds.policy.toml_lines import Path, line_for, lines_of

POLICY_NAME: Final = "policy.toml"
MAX_BYTES: Final = 4 << 20
MAX_LINE: Final = 4096
MAX_RULES: Final = 20_000
MAX_LIMITS: Final = 100
MAX_PATTERNS: Final = 64
"""In one list."""
MAX_WINDOWS: Final = 500
MAX_AMOUNT: Final = 100_000
MAX_SECONDS: Final = 31 * 86_400
_UNITS: Final = {
    "second": 1,
    "minute": 60,
    "hour": 3_600,
    "day": 86_400,
    "month": 30 * 86_400,
    "year": 360 * 86_400,
}
_RATE: Final = re.compile(
    rf"\s*(?P<amount>[0-9]{{1,9}})\s*(/|per)\s*(?P<many>[0-9]{{1,9}})?"
    rf"\s*(?P<unit>{'|'.join(_UNITS)})s?\s*",
    re.IGNORECASE | re.ASCII,
)
"""``10/minute``, ``10 per minute``, ``10/15 minutes``."""

_AT: Final = re.compile(r"(.*?)(?: - at (?:key in )?`\$(.*)`)?", re.DOTALL)
_STEP: Final = re.compile(r"\.([A-Za-z0-9_-]+)|\[([0-9]+|\.\.\.)\]")

T = TypeVar("T")
Patterns = str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_PATTERNS)]
Minutes = Annotated[float, msgspec.Meta(gt=0, le=MAX_SECONDS / 60)]
SecondFactor = Literal["each_lease", "never"] | Minutes


class _Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of the tables."""


class _RawLevel(_Strict):
    decision: Verdict = Verdict.ASK
    second_factor: SecondFactor | None = None


class _RawLevels(_Strict):
    normal: _RawLevel | None = None
    sensitive: _RawLevel | None = None
    critical: _RawLevel | None = None

    def given(self) -> dict[Sensitivity, _RawLevel]:
        found = {level: getattr(self, level.value) for level in Sensitivity}
        return {level: raw for level, raw in found.items() if raw is not None}


class _RawTime(_Strict):
    zone: str
    days: Annotated[list[str], msgspec.Meta(max_length=7)] | None = None
    start: str = msgspec.field(name="from", default="")
    end: str = msgspec.field(name="to", default="")


class _RawRule(_Strict):
    decision: Verdict
    id: str = ""
    plugin: Patterns | None = None
    action: Patterns | None = None
    credential: Patterns | None = None
    scope: Patterns | None = None
    origin: Patterns | None = None
    time: _RawTime | None = None
    reveal: bool = False
    second_factor: SecondFactor | None = None
    reason: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class _RawLimit(_Strict):
    per: Literal["plugin", "credential", "pair"]
    of: Literal["redeems", "denials"]
    limit: str
    id: str = ""
    plugin: Patterns | None = None
    credential: Patterns | None = None
    persist: bool = False


class _RawGrants(_Strict):
    new_version: Literal["keep", "ask"] = "keep"


class _RawPolicy(_Strict):
    version: Literal[1]
    levels: _RawLevels = msgspec.field(default_factory=_RawLevels)
    grants: _RawGrants = msgspec.field(default_factory=_RawGrants)
    rules: Annotated[list[_RawRule], msgspec.Meta(max_length=MAX_RULES)] = []
    limits: Annotated[list[_RawLimit], msgspec.Meta(max_length=MAX_LIMITS)] = []


def parse_policy(data: bytes, *, where: str = POLICY_NAME) -> Policy:
    """Compiles a policy file.

    Args:
        data: Its bytes: TOML 1.0, at most 4 MiB.
        where: What errors call it.

    Raises:
        InvalidPolicyError: It is not valid; its ``line`` says where.
    """
    text = _text(data, where)
    lines = lines_of(text)
    raw = _convert(_toml(text, where), lines, where)
    return _Compiler(lines, where).policy(raw)


def _text(data: bytes, where: str) -> str:
    if len(data) > MAX_BYTES:
        raise _invalid(where, 0, f"it is larger than {MAX_BYTES >> 20} MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _invalid(where, line, "it is not UTF-8") from None
    for number, line_text in enumerate(text.split("\n"), 1):
        if len(line_text) > MAX_LINE:
            raise _invalid(where, number, f"it is longer than {MAX_LINE} characters")
    return text.replace("\r\n", "\n")


def _toml(text: str, where: str) -> dict[str, object]:
    line, problem = 0, "it is nested too deeply"
    try:
        return tomllib.loads(text)
    except ValueError as error:  # also for numbers with more digits than Python reads
        problem = str(error)[:200]
        at = re.search(r"\(at line ([0-9]+),", problem)
        line = (
            int(at[1]) if at else (text.count("\n") + 1 if "end of document" in problem else 0)
        )
    except RecursionError:
        pass
    raise _invalid(where, line, problem)


def _convert(data: dict[str, object], lines: dict[Path, int], where: str) -> _RawPolicy:
    try:
        return msgspec.convert(data, _RawPolicy)
    except msgspec.ValidationError as error:
        found = _AT.fullmatch(str(error)[:500])
    message, at = (found[1], found[2] or "") if found else ("it is not valid", "")
    steps = _STEP.findall(at)
    path: Path = tuple(name or (int(i) if i.isdigit() else i) for name, i in steps)
    unknown = re.search(r"unknown field `([^`]*)`", message)
    if unknown:
        path = (*path, unknown[1])
    place = f"{at.lstrip('.')}: " if at else ""
    raise _invalid(where, line_for(lines, path), f"{place}{message}")


def _invalid(where: str, line: int, problem: str, hint: str = "") -> InvalidPolicyError:
    place = f"{where}, line {line}" if line else where
    error = InvalidPolicyError(
        f"{place}: {problem}.", hint=hint or "See docs/POLICY.md for what may stand there."
    )
    error.line = line
    return error


class _Compiler:
    """From tables to rules; knows the lines of what it compiles."""

    def __init__(self, lines: dict[Path, int], where: str) -> None:
        self._lines = lines
        self._where = where
        self._ids: set[str] = set()
        self._windows: dict[tuple[object, ...], hours.Window] = {}
        self._patterns: dict[tuple[object, str], Pattern] = {}

    def policy(self, raw: _RawPolicy) -> Policy:
        return Policy(
            [self._rule(number, rule) for number, rule in enumerate(raw.rules)],
            levels={
                name: self._level(name, level) for name, level in raw.levels.given().items()
            },
            limits=[self._limit(number, limit) for number, limit in enumerate(raw.limits)],
            keep_grants=raw.grants.new_version == "keep",
        )

    def _level(self, name: Sensitivity, raw: _RawLevel) -> Level:
        second = _seconds(raw.second_factor)
        if second is None:
            second = DEFAULT_LEVELS[name].second_factor
        return Level(raw.decision, second, line_for(self._lines, ("levels", name.value)))

    def _rule(self, number: int, raw: _RawRule) -> Rule:
        at: Path = ("rules", number)
        if raw.reveal and raw.decision is not Verdict.ALLOW:
            raise self._wrong((*at, "reveal"), "only a rule that allows can say reveal")
        return Rule(
            id=self._id(at, raw.id),
            decision=raw.decision,
            line=line_for(self._lines, at),
            plugin=self._names((*at, "plugin"), raw.plugin),
            action=self._names((*at, "action"), raw.action),
            credential=self._names((*at, "credential"), raw.credential),
            scope=self._names((*at, "scope"), raw.scope),
            origin=self._some((*at, "origin"), raw.origin, origin_pattern),
            time=self._window((*at, "time"), raw.time),
            reveal=raw.reveal,
            second_factor=_seconds(raw.second_factor),
        )

    def _limit(self, number: int, raw: _RawLimit) -> LimitRule:
        at: Path = ("limits", number)
        amount, seconds = self._rate((*at, "limit"), raw.limit)
        return LimitRule(
            id=self._id(at, raw.id),
            per=raw.per,
            of=raw.of,
            amount=amount,
            seconds=seconds,
            line=line_for(self._lines, at),
            plugin=self._names((*at, "plugin"), raw.plugin),
            credential=self._names((*at, "credential"), raw.credential),
            persist=raw.persist,
        )

    def _rate(self, at: Path, text: str) -> tuple[int, int]:
        found = _RATE.fullmatch(text)
        amount = int(found["amount"]) if found else 0
        if found is None or not 0 < amount <= MAX_AMOUNT:
            raise self._wrong(at, f"{text[:40]!r} is no rate", 'Write it like "10/minute".')
        seconds = int(found["many"] or 1) * _UNITS[found["unit"].lower()]
        if not 0 < seconds <= MAX_SECONDS:
            raise self._wrong(at, "a limit is over at most 31 days")
        return amount, seconds

    def _id(self, at: Path, text: str) -> str:
        name = text or f"{at[0]}[{at[1]}]"
        if text:
            self._try((*at, "id"), lambda: check_name(text, what="id"))
        if name in self._ids:
            raise self._wrong((*at, "id"), f"the id {name!r} is there twice")
        self._ids.add(name)
        return name

    def _names(self, at: Path, raw: str | list[str] | None) -> tuple[Pattern, ...]:
        return self._some(at, raw, name_pattern)

    def _some(
        self, at: Path, raw: str | list[str] | None, read: Callable[[str], Pattern]
    ) -> tuple[Pattern, ...]:
        texts = [raw] if isinstance(raw, str) else raw or []
        found = tuple(self._pattern(at, text, read) for text in texts)
        # A list that has a pattern for everything says nothing.
        return found if all(pattern.segments for pattern in found) else ()

    def _pattern(self, at: Path, text: str, read: Callable[[str], Pattern]) -> Pattern:
        known = self._patterns.get((read, text))
        if known is None:
            known = self._patterns[read, text] = self._try(at, lambda: read(text))
        return known

    def _window(self, at: Path, raw: _RawTime | None) -> hours.Window | None:
        if raw is None:
            return None
        key = (tuple(raw.days or ()), raw.days is None, raw.start, raw.end, raw.zone)
        known = self._windows.get(key)
        if known is None:
            if len(self._windows) >= MAX_WINDOWS:
                raise self._wrong(at, f"there are more than {MAX_WINDOWS} different times")
            known = self._windows[key] = self._try(
                at,
                lambda: hours.window(
                    days=raw.days, start=raw.start, end=raw.end, zone=raw.zone
                ),
            )
        return known

    def _try(self, at: Path, read: Callable[[], T]) -> T:
        try:
            return read()
        except InvalidInputError as error:
            problem, hint = error.message.removesuffix("."), error.hint
        raise self._wrong(at, problem, hint)

    def _wrong(self, at: Path, problem: str, hint: str = "") -> InvalidPolicyError:
        place = f"{at[0]}[{at[1]}].{'.'.join(map(str, at[2:]))}"
        line = line_for(self._lines, at)
        return _invalid(self._where, line, f"{place}: {problem}", hint)


def _seconds(raw: str | float | None) -> float | None:
    if isinstance(raw, str):
        return EACH_LEASE if raw == "each_lease" else NEVER
    return None if raw is None else raw * 60

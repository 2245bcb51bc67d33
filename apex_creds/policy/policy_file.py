"""``security/policy.toml``: read strictly, and again when it changes.

Guarantee: a text is a valid policy, or an ``InvalidPolicyError`` that names the line; an
unknown field, a wrong type, a duplicate or an oversized file is an error, never ignored.
What is in force is always a whole, valid policy: a new file that is not valid, or not safe
to read, leaves the old policy in force and is reported, as every change is. Whether the file
changed costs one system call, at most every ``PERIOD`` seconds. The schema is in
docs/POLICY.md.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

import msgspec

from apex_creds.errors import ApexCredsError, InvalidInputError, InvalidPolicyError
from apex_creds.fs.home import SECURITY
from apex_creds.fs.private_files import Folder, translated
from apex_creds.model import Sensitivity, check_name
from apex_creds.policy.patterns import Pattern, name_pattern, origin_pattern
from apex_creds.policy.rules import (
    DEFAULT_LEVELS,
    EACH_LEASE,
    NEVER,
    NO_POLICY,
    Level,
    LimitRule,
    Policy,
    Rule,
    Verdict,
    Window,
    window,
)

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
    echoes: bool = False
    sign: bool = False
    principal: Patterns | None = None
    shared: bool = False
    second_factor: SecondFactor | None = None
    reason: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class _RawLimit(_Strict):
    per: Literal["plugin", "credential", "pair", "principal"]
    of: Literal["redeems", "denials"]
    limit: str
    id: str = ""
    plugin: Patterns | None = None
    credential: Patterns | None = None
    principal: Patterns | None = None
    persist: bool = False


class _RawGrants(_Strict):
    new_version: Literal["keep", "ask"] = "keep"


class _RawIsolation(_Strict):
    required: Patterns


class _RawPolicy(_Strict):
    version: Literal[1]
    levels: _RawLevels = msgspec.field(default_factory=_RawLevels)
    grants: _RawGrants = msgspec.field(default_factory=_RawGrants)
    isolation: _RawIsolation | None = None
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
    text = text.replace("\r\n", "\n")
    lines = lines_of(text)
    raw = _convert(_toml(text, where), lines, where)
    return _Compiler(lines, where).policy(raw)


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


def _convert(data: dict[str, object], lines: dict[Place, int], where: str) -> _RawPolicy:
    try:
        return msgspec.convert(data, _RawPolicy)
    except msgspec.ValidationError as error:
        found = _AT.fullmatch(str(error)[:500])
    message, at = (found[1], found[2] or "") if found else ("it is not valid", "")
    steps = _STEP.findall(at)
    path: Place = tuple(name or (int(i) if i.isdigit() else i) for name, i in steps)
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

    def __init__(self, lines: dict[Place, int], where: str) -> None:
        self._lines = lines
        self._where = where
        self._ids: set[str] = set()
        self._windows: dict[tuple[object, ...], Window] = {}
        self._patterns: dict[tuple[object, str], Pattern] = {}

    def policy(self, raw: _RawPolicy) -> Policy:
        rules = [self._rule(number, rule) for number, rule in enumerate(raw.rules)]
        levels: dict[Sensitivity, Level] = {}
        for name, level in raw.levels.given().items():
            second = _seconds(level.second_factor)
            if second is None:
                second = DEFAULT_LEVELS[name].second_factor
            line = line_for(self._lines, ("levels", name.value))
            levels[name] = Level(level.decision, second, line)
        return Policy(
            rules,
            levels=levels,
            limits=[self._limit(number, limit) for number, limit in enumerate(raw.limits)],
            keep_grants=raw.grants.new_version == "keep",
            isolated=None
            if raw.isolation is None
            else self._names(("isolation", "required"), raw.isolation.required),
        )

    def _rule(self, number: int, raw: _RawRule) -> Rule:
        at: Place = ("rules", number)
        for key in ("reveal", "echoes", "sign"):
            if getattr(raw, key) and raw.decision is not Verdict.ALLOW:
                raise self._wrong((*at, key), f"only a rule that allows can say {key}")
        if raw.shared and raw.decision is Verdict.DENY:
            raise self._wrong((*at, "shared"), "a rule that denies can't say shared")
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
            echoes=raw.echoes,
            sign=raw.sign,
            principal=self._names((*at, "principal"), raw.principal),
            shared=raw.shared,
            second_factor=_seconds(raw.second_factor),
        )

    def _limit(self, number: int, raw: _RawLimit) -> LimitRule:
        at: Place = ("limits", number)
        rate, text = (*at, "limit"), raw.limit
        found = _RATE.fullmatch(text)
        amount = int(found["amount"]) if found else 0
        if found is None or not 0 < amount <= MAX_AMOUNT:
            raise self._wrong(rate, f"{text[:40]!r} is no rate", 'Write it like "10/minute".')
        seconds = int(found["many"] or 1) * _UNITS[found["unit"].lower()]
        if not 0 < seconds <= MAX_SECONDS:
            raise self._wrong(rate, "a limit is over at most 31 days")
        return LimitRule(
            id=self._id(at, raw.id),
            per=raw.per,
            of=raw.of,
            amount=amount,
            seconds=seconds,
            line=line_for(self._lines, at),
            plugin=self._names((*at, "plugin"), raw.plugin),
            credential=self._names((*at, "credential"), raw.credential),
            principal=self._names((*at, "principal"), raw.principal),
            persist=raw.persist,
        )

    def _id(self, at: Place, text: str) -> str:
        name = text or f"{at[0]}[{at[1]}]"
        if text:
            self._try((*at, "id"), lambda: check_name(text, what="id"))
        if name in self._ids:
            raise self._wrong((*at, "id"), f"the id {name!r} is there twice")
        self._ids.add(name)
        return name

    def _names(self, at: Place, raw: str | list[str] | None) -> tuple[Pattern, ...]:
        return self._some(at, raw, name_pattern)

    def _some(
        self, at: Place, raw: str | list[str] | None, read: Callable[[str], Pattern]
    ) -> tuple[Pattern, ...]:
        texts = [raw] if isinstance(raw, str) else raw or []
        for text in texts:
            if (read, text) not in self._patterns:
                self._patterns[read, text] = self._try(at, partial(read, text))
        found = tuple(self._patterns[read, text] for text in texts)
        # A list that has a pattern for everything says nothing.
        return found if all(pattern.segments for pattern in found) else ()

    def _window(self, at: Place, raw: _RawTime | None) -> Window | None:
        if raw is None:
            return None
        key = (tuple(raw.days or ()), raw.days is None, raw.start, raw.end, raw.zone)
        known = self._windows.get(key)
        if known is None:
            if len(self._windows) >= MAX_WINDOWS:
                raise self._wrong(at, f"there are more than {MAX_WINDOWS} different times")
            known = self._windows[key] = self._try(
                at,
                lambda: window(days=raw.days, start=raw.start, end=raw.end, zone=raw.zone),
            )
        return known

    def _try(self, at: Place, read: Callable[[], T]) -> T:
        try:
            return read()
        except InvalidInputError as error:
            problem, hint = error.message.removesuffix("."), error.hint
        raise self._wrong(at, problem, hint)

    def _wrong(self, at: Place, problem: str, hint: str = "") -> InvalidPolicyError:
        place = f"{at[0]}[{at[1]}].{'.'.join(map(str, at[2:]))}"
        line = line_for(self._lines, at)
        return _invalid(self._where, line, f"{place}: {problem}", hint)


def _seconds(raw: str | float | None) -> float | None:
    if isinstance(raw, str):
        return EACH_LEASE if raw == "each_lease" else NEVER
    return None if raw is None else raw * 60


_TOKEN: Final = re.compile(
    r'(?P<text>"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\')'
    r"|(?P<comment>\#[^\n]*)|(?P<open>[\[{])|(?P<close>[\]}])|(?P<newline>\n)",
    re.DOTALL,
)
_HEADER: Final = re.compile(r"\s*(\[\[?)([^\[\]]*)\]\]?")
_KEY: Final = re.compile(r"\s*([^=\n#]*?)\s*=")

Place = tuple[str | int, ...]


def lines_of(text: str) -> dict[Place, int]:
    """The line, from 1, of each table and key: ``("rules", 2, "plugin")``.

    Inline tables and arrays are found by their key's line.
    """
    found: dict[Place, int] = {}
    table: Place = ()
    counts: dict[Place, int] = {}
    for number, line in _statements(text):
        header = _HEADER.match(line)
        if header is None:
            key = _KEY.match(line)
            if key is not None:
                found.setdefault((*table, *_parts(key[1])), number)
            continue
        # The header's path, with the index of each array of tables that it goes through.
        table, parts = (), _parts(header[2])
        for position, part in enumerate(parts, 1):
            table = (*table, part)
            if header[1] == "[[" and position == len(parts):
                counts[table] = counts.get(table, -1) + 1
            if table in counts:
                table = (*table, counts[table])
        found.setdefault(table, number)
    return found


def line_for(lines: dict[Place, int], path: Place) -> int:
    """The line of the innermost thing on ``path`` that has one; 0: there is none."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 0


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """The lines that begin a header or a key, with their numbers."""
    depth, number, start, begun = 0, 1, 0, 1
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "open":
            depth += 1
        elif kind == "close":
            depth = max(depth - 1, 0)
        elif kind == "text":
            number += token[0].count("\n")
        elif kind == "newline":
            number += 1
            if depth == 0:
                yield begun, text[start : token.start()]
                start, begun = token.end(), number
    yield begun, text[start:]


def _parts(dotted: str) -> Place:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


PERIOD: Final = 0.1
INLINE_BYTES: Final = 16 << 10
"""A larger file is compiled in a thread, off the event loop."""

_log = logging.getLogger(__name__)

_Stamp = tuple[int, ...]
_ABSENT: Final[_Stamp] = ()


class Change(NamedTuple):
    """A change of the file, or an attempt at one.

    Attributes:
        ok: Whether the new file is in force.
        detail: What happened, in words; of an invalid file, which line and why.
    """

    ok: bool
    detail: str


def load_policy(home: Path) -> Policy:
    """The policy of a vault's directory; ``NO_POLICY`` where there is no file.

    Raises:
        InvalidPolicyError: It is not valid.
        StorageError: It can't be read safely.
    """
    path = home / SECURITY / POLICY_NAME
    with translated(path, writing=False):
        try:
            with (
                Folder(home, outer=True) as root,
                Folder(home / SECURITY, within=root) as security,
            ):
                fd = security.open(POLICY_NAME)
        except FileNotFoundError:
            return NO_POLICY
        with os.fdopen(fd, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    return parse_policy(data, where=str(path))


class PolicySource:
    """The policy of one vault, as it is now.

    Args:
        home: The vault's directory.
        changed: Called with every change, perhaps from another thread.

    Raises:
        InvalidPolicyError: There is a file and it is not valid: nothing is decided by it.
        StorageError: It can't be read safely.
    """

    __slots__ = (
        "_changed",
        "_home",
        "_lock",
        "_path",
        "_seen",
        "due",
        "policy",
    )

    def __init__(self, home: Path, *, changed: Callable[[Change], None] | None = None) -> None:
        self._home = home
        self._path = str(home / SECURITY / POLICY_NAME)
        self._changed = changed
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self.policy = load_policy(home)
        self.due = 0.0

    def current(self, now: float) -> Policy:
        """The policy in force at ``now``, on a monotonic clock in seconds.

        Callers may compare ``now`` with ``due`` themselves and take ``policy``.
        """
        if now < self.due:
            return self.policy
        self.due = now + PERIOD
        stamp = self._stamp()
        if stamp == self._seen or not self._lock.acquire(blocking=False):
            return self.policy
        # An absent file has to stay so for a while: editors move it away and back.
        if stamp == _ABSENT and self._seen != (0,):
            self._seen = (0,)
            self._lock.release()
        elif stamp != _ABSENT and stamp[-1] > INLINE_BYTES:
            threading.Thread(
                target=self._load_and_release,
                args=(stamp,),
                name="apex-creds-policy",
                daemon=True,
            ).start()
        else:
            self._load_and_release(stamp)
        return self.policy

    def reload(self) -> Policy:
        """Reads the file now if it changed, and waits until it is compiled."""
        with self._lock:
            stamp = self._stamp()
            if stamp != self._seen:
                self._load(stamp)
        return self.policy

    def _load_and_release(self, stamp: _Stamp) -> None:
        try:
            self._load(stamp)
        finally:
            self._lock.release()

    def _load(self, stamp: _Stamp) -> None:
        """Puts the file in force if it is valid; says so either way."""
        self._seen = stamp
        try:
            found = load_policy(self._home)
        except ApexCredsError as error:
            change = Change(False, f"{error.message} The policy as it was stays in force.")
            _log.error("%s %s", change.detail, error.hint)
        else:
            gone = "There is no policy file any more." if found is NO_POLICY else ""
            change = Change(True, gone or f"A new policy of {len(found.rules)} rules.")
            self.policy = found
            _log.warning("%s", change.detail)
        if self._changed is not None:
            self._changed(change)

    def _stamp(self) -> _Stamp:
        """What changes when the file does."""
        try:
            found = os.lstat(self._path)
        except OSError:
            return _ABSENT
        mode, owner = found.st_mode, found.st_uid
        return (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, mode, owner, found.st_size)

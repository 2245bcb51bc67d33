"""Replaces secrets in what a plugin returned, raised, logged or streams.

Guarantee: a secret that ``SecretSource`` names does not pass in ``str``, ``bytes``, exceptions
and nested containers of them, in any spelling; what was found is reported before the value is
passed on. If the search can't be made (a secret can't be opened any more), the value is
withheld, not passed.
"""

from __future__ import annotations

import contextlib
import threading
from collections import UserString
from collections.abc import Callable, Iterator
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from types import EllipsisType, GetSetDescriptorType, MemberDescriptorType, NotImplementedType
from typing import Final, Protocol, Self

import msgspec

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import SecretLeakError
from apex_creds.model import PENDING, PREVIOUS
from apex_creds.redaction.containers import Walk, clear_frames
from apex_creds.redaction.matcher import LONG, SHORTEST, Needles, mark_of, marks

PLAIN: Final = frozenset({int, float, complex, bool, type(None)})
"""What has no text in it."""
_NO_TEXT: Final = (
    *(int, float, complex, bool, type(None), EllipsisType, NotImplementedType, type),
    *(Decimal, Fraction, range, slice, date, time, timedelta, tzinfo),
    *(type(threading.Lock()), type(threading.RLock())),
)
"""The classes of what holds no text, or none that a plugin would choose."""
PUBLIC_PARTS: Final = frozenset(
    before + part for before in ("", PENDING, PREVIOUS) for part in ("user", "session")
)
"""Of a credential; not searched for. A session of AWS stands in each URL that is signed."""
_RAISED: Final = "exception"
_PASSED_ON: Final = frozenset({"result", "chunk"})
_LONGEST: Final = 200
_MANY: Final = 2_000
_LARGE: Final = 1 << 18
_holding = threading.RLock()  # garbage is collected anywhere, and may be logged about

Key = tuple[str, int]
"""A credential's name and version."""


class OpenSecret(Protocol):
    """A secret's parts in locked memory, for the search; left by ``with``."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts."""

    def view(self, part: str = "") -> memoryview:
        """A part where it lies."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class SecretSource(Protocol):
    """The secrets to search for, opened while they are searched for."""

    @property
    def salt(self) -> SecretBytes:
        """The key of marks."""

    def __bool__(self) -> bool:
        """Whether there is anything to search for."""

    def names(self) -> list[Key]:
        """Which secrets."""

    def open(self, key: Key) -> OpenSecret | None:
        """One of them; None: it is not searched for any more.

        Raises:
            SecretLeakError: It can't be opened, so that nothing may pass.
        """


OnOpaque = Callable[[type], object]
"""Gets the class of an object in output that can't be searched."""
OnFound = Callable[[str, str], object]
"""Gets the name of a credential whose secret was found, and where it was."""


class Redactor:
    """Searches output for the secrets of one source.

    Needles are built when there is first something to search, and wiped by ``close``. They
    are built again for what comes later and may have a secret in it, by its marks.

    Args:
        source: What to search for.
        on_found: Called for each secret that was found in a value, before it is passed on;
            what it raises keeps the value back.
        on_opaque: The same for what can't be searched in a result or chunk.
        marks: Where marks of secrets are kept, by their keys, beyond this one.
    """

    __slots__ = (
        "_closed",
        "_holders",
        "_known",
        "_marking",
        "_marks",
        "_needles",
        "_on_found",
        "_on_opaque",
        "_source",
    )

    def __init__(
        self,
        source: SecretSource,
        *,
        on_found: OnFound,
        on_opaque: OnOpaque | None = None,
        marks: dict[Key, frozenset[int]] | None = None,
    ) -> None:
        self._source = source
        self._on_found = on_found
        self._on_opaque = on_opaque
        self._needles: Needles | None = None
        self._known: set[Key] = set()
        self._marking = marks is not None
        self._marks: dict[Key, frozenset[int]] = {} if marks is None else marks
        self._holders = 0
        self._closed = False

    @property
    def idle(self) -> bool:
        """Whether there is nothing to search for."""
        return not self._source

    def value(self, value: object, *, where: str) -> object:
        """``value`` without secrets; the same object if it has none.

        Args:
            value: Any object; containers are copied where something in them changes.
            where: ``result``, ``chunk``, ``log`` or ``exception``, for the report.
        """
        if type(value) in PLAIN or self.idle:
            return value
        if self._closed:
            with self.held():
                return self._walk(value, where, set())
        return self._walk(value, where, set())

    def text(self, text: str, *, where: str) -> str:
        """A string without secrets."""
        if self.idle or len(text) < SHORTEST:
            return text
        data = text.encode("utf-8", "surrogatepass")
        clean = self.data(data, where=where)
        return text if clean is data else clean.decode("utf-8", "surrogatepass")

    def data(self, data: bytes, *, where: str) -> bytes:
        """Bytes without secrets; the same object if there is none."""
        if self.idle or len(data) < SHORTEST:
            return data
        if self._closed and not self._suspected(data):
            return data
        found: set[str] = set()
        try:
            clean = self.needles().replace(data, found)
        finally:
            self._let_go()
        for name in sorted(found):
            self._on_found(name, where)
        return clean

    def exception(self, error: BaseException) -> BaseException:
        """An exception without secrets in arguments, attributes, notes and frames.

        The exception itself is cleaned; where that does not clean its text, a
        ``SecretLeakError`` takes its place.
        """
        if self.idle:
            return error
        with self.held():
            return self._exception(error, set())

    def needles(self) -> Needles:
        """What to search for, up to date with what was redeemed.

        Raises:
            SecretLeakError: A secret can't be opened for the search.
        """
        if self._needles is None:
            self._needles = Needles()
        for key in self._source.names():
            if key in self._known:
                continue
            opened = self._source.open(key)
            if opened is not None:
                made: list[SecretBytes] = []  # the spellings, which the needles own
                with opened:
                    for part in set(opened.names) - PUBLIC_PARTS:
                        with opened.view(part) as view:
                            made += self._needles.add(key[0], view)
                if self._closed or self._marking:
                    salt = self._source.salt
                    self._marks[key] = frozenset(mark_of(each.view(), salt) for each in made)
            self._known.add(key)
        return self._needles

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the needles through several searches in a row, also after ``close``."""
        with _holding:
            self._holders += 1
        try:
            yield
        finally:
            with _holding:
                self._holders -= 1
            self._let_go()

    def close(self) -> None:
        """Wipes the needles, for good; they are made again for each later search."""
        self._closed = True
        self._let_go()

    # -- inside ------------------------------------------------------------------

    def _let_go(self) -> None:
        if not self._closed:
            return
        with _holding:
            if self._holders:
                return
            needles, self._needles = self._needles, None
            self._known.clear()
        if needles is not None:
            needles.close()

    def _suspected(self, data: bytes) -> bool:
        """Whether a secret may be in ``data``: one that has no marks yet, or by them."""
        known, keys = self._marks, self._source.names()
        if len(data) >= LONG or not all(key in known for key in keys):
            return True
        found = marks(data, self._source.salt)
        return any(not found.isdisjoint(known[key]) for key in keys)

    def _walk(self, value: object, where: str, seen: set[int]) -> object:
        plain = where in _PASSED_ON  # what is logged or raised is searched by its texts
        return Walk(lambda leaf: self._leaf(leaf, where, seen), plain=plain).clean(value)

    def _leaf(self, value: object, where: str, seen: set[int]) -> object:
        """What is no container, without secrets."""
        if isinstance(value, str):
            clean = self.text(value, where=where)
            return value if clean == value else clean
        if isinstance(value, bytes):
            return self.data(value, where=where)
        if isinstance(value, UserString | PurePath):
            text = str(value)
            clean = self.text(text, where=where)
            return value if clean == text else clean
        if isinstance(value, bytearray | memoryview):
            data = bytes(value)
            found = self.data(data, where=where)
            return value if found is data else type(value)(found)
        if isinstance(value, BaseException):
            return self._exception(value, seen)
        opaque = where in _PASSED_ON and not isinstance(value, _NO_TEXT)
        if opaque and self._on_opaque is not None:
            self._on_opaque(type(value))
        return value

    def _exception(self, error: BaseException, seen: set[int]) -> BaseException:
        clean = self._clean_chain(error, seen)
        if clean:
            return error
        kind = shown(class_of(error), self)
        return withheld(error, "its text had a secret in it", kind=kind)

    def _clean_chain(self, error: BaseException, seen: set[int]) -> bool:
        """Cleans an exception and what hangs on it; whether that was possible."""
        if id(error) in seen:
            return True
        seen.add(id(error))
        clear_frames(error)
        clean = self._clean_fields(error, seen)
        linked = [error.__cause__, error.__context__]
        if isinstance(error, BaseExceptionGroup):
            linked += error.exceptions
        # All of them, also after one that is not clean.
        rest = [self._clean_chain(other, seen) for other in linked if other is not None]
        return clean and all(rest) and self._is_clean(error)

    def _clean_fields(self, error: BaseException, seen: set[int]) -> bool:
        error.args = tuple(self._walk(arg, _RAISED, seen) for arg in error.args)
        for name, held in list(vars(error).items()):
            vars(error)[name] = self._walk(held, _RAISED, seen)
        clean = True
        slots = (  # what is in none of its dictionaries
            name
            for base in type(error).__mro__
            for name, found in vars(base).items()
            if isinstance(found, MemberDescriptorType | GetSetDescriptorType)
            and not (name.startswith("__") or name == "args")
        )
        for name in slots:
            held = getattr(error, name, None)
            found = self._walk(held, _RAISED, seen)
            if found is not held:
                try:
                    setattr(error, name, found)
                except Exception:
                    clean = False
        return clean

    def _is_clean(self, error: BaseException) -> bool:
        for show in (str, repr):
            try:
                shown = show(error)
            except Exception:
                return False
            if self.text(shown, where=_RAISED) != shown:
                return False
        return True


def class_of(error: BaseException) -> str:
    """The name of an exception's class, which a plugin may have chosen."""
    return type(error).__name__[:_LONGEST]


def shown(text: str, redactor: Redactor) -> str:
    """A name that a plugin chose, without secrets; never raises."""
    try:
        return redactor.text(text, where="name")
    except Exception:
        return "[withheld]"


def withheld(error: BaseException, why: str, *, kind: str = "an exception") -> BaseException:
    """What takes the place of an exception that can't be shown.

    One that is no ``Exception`` (a cancellation, an exit) must do its work, so it stays,
    bare.
    """
    if isinstance(error, Exception):
        return SecretLeakError(
            f"A plugin raised {kind}, which is withheld: {why}.",
            hint="See the audit log.",
        )
    error.__cause__ = error.__context__ = error.__traceback__ = None
    if not all(isinstance(arg, int | None) for arg in error.args):
        error.args = ()
    vars(error).clear()
    return error


def is_large(value: object) -> bool:
    """Whether it has more than 2000 parts, or 256 KiB: an event loop would feel its search."""
    ahead, parts, size = [value], 0, 0
    while ahead:
        item = ahead.pop()
        parts += 1
        if isinstance(item, str | bytes | bytearray):
            size += len(item)
        else:
            inside = []
            if isinstance(item, dict):
                inside = [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple | set | frozenset):
                inside = list(item)
            elif isinstance(item, msgspec.Struct):
                inside = [getattr(item, name) for name in item.__struct_fields__]
            else:
                inside = list(getattr(item, "__dict__", {}).values())
            parts += len(inside)
            ahead += inside if parts <= _MANY else []
        if parts > _MANY or size > _LARGE:
            return True
    return False

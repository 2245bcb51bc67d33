"""Redaction of what a plugin gives back: values, stream chunks, exceptions.

Guarantee: a secret that was redeemed in the invocation does not pass in ``str``, ``bytes``,
exceptions and nested containers of them; each leak is audited once. If the search can't be
made (the secret can't be opened any more), the value is withheld, not passed.
"""

from __future__ import annotations

import contextlib
import threading
from collections import UserString
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import PurePath
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Final

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.records import Record
from apex_creds.errors import ApexCredsError, SecretLeakError
from apex_creds.leases.broker import LeaseBroker
from apex_creds.leases.invocation import Invocation
from apex_creds.leases.recent import Key
from apex_creds.middleware import frames
from apex_creds.middleware.containers import Walk
from apex_creds.middleware.marks import LONG, SHORTEST, mark_of, marks
from apex_creds.middleware.needles import Needles
from apex_creds.telemetry import instruments
from apex_creds.vault import Opened

_PLAIN: Final = (int, float, complex, bool, type(None))
_PUBLIC_PARTS: Final = frozenset({"user"})
_RAISED: Final = "exception"
_LONGEST: Final = 200
_holding = threading.RLock()  # garbage is collected anywhere, and may be logged about


class OnLeak(StrEnum):
    """What happens when a secret is found: it is replaced, or the invocation fails."""

    REDACT = "redact"
    ERROR = "error"


class Redactor:
    """Searches one invocation's output for what was redeemed in it.

    Needles are built when there is first something to search, and wiped by ``close``. They
    are built again for what comes later and may have a secret in it, by its marks.
    """

    __slots__ = (
        "_broker", "_closed", "_holders", "_invocation", "_known", "_marks", "_needles",
        "leaks",
    )  # fmt: skip

    def __init__(self, broker: LeaseBroker, invocation: Invocation) -> None:
        self._broker = broker
        self._invocation = invocation
        self._needles: Needles | None = None
        self._known: set[tuple[str, int]] = set()
        self._marks: dict[Key, frozenset[int]] = {}
        self._holders = 0
        self._closed = False
        self.leaks: set[tuple[str, str]] = set()

    @property
    def idle(self) -> bool:
        """Whether nothing was redeemed, so that there is nothing to look for."""
        return not self._invocation.used

    def value(self, value: object, *, where: str) -> object:
        """``value`` without secrets; the same object if it has none.

        Args:
            value: Any object; containers are copied where something in them changes.
            where: ``result``, ``chunk``, ``log`` or ``exception``, for the audit event.
        """
        if self.idle or isinstance(value, _PLAIN):
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
            self._report(name, where)
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
        """What to look for, up to date with what was redeemed.

        Raises:
            SecretLeakError: A secret can't be opened for the search.
        """
        if self._needles is None:
            self._needles = Needles()
        for key, record in self._used():
            if key not in self._known:
                self._add(self._needles, record)
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

    def _used(self) -> list[tuple[Key, Record]]:
        return list(self._invocation.used.items())

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

    def _add(self, needles: Needles, record: Record) -> None:
        opened = self._reopen(record)
        if opened is None:
            raise SecretLeakError(
                "The plugin's output can't be searched for secrets, so it is withheld.",
                hint="The credential was deleted or the vault sealed meanwhile.",
            )
        made = self._take(needles, record, opened)
        if self._closed:
            self._mark(record, made)

    def _suspected(self, data: bytes) -> bool:
        """Whether a secret may be in ``data``: one that has no marks yet, or by them."""
        known, keys = self._marks, [key for key, _ in self._used()]
        if len(data) >= LONG or not all(key in known for key in keys):
            return True
        found = marks(data, self._broker.recent.salt)
        return any(not found.isdisjoint(known[key]) for key in keys)

    def _mark(self, record: Record, made: Iterable[SecretBytes]) -> None:
        salt = self._broker.recent.salt
        key = record.info.name, record.info.version
        self._marks[key] = frozenset(mark_of(spelling.view(), salt) for spelling in made)

    def _take(self, needles: Needles, record: Record, opened: Opened) -> list[SecretBytes]:
        """Looks for each part; returns all their spellings, which the needles own."""
        made: list[SecretBytes] = []
        with opened:
            for part in set(opened.names) - _PUBLIC_PARTS:
                with opened.view(part) as view:
                    made += needles.add(record.info.name, view)
        return made

    def _reopen(self, record: Record) -> Opened | None:
        try:
            return self._broker.reopen(record)
        except ApexCredsError:
            return None

    def _walk(self, value: object, where: str, seen: set[int]) -> object:
        return Walk(lambda leaf: self._leaf(leaf, where, seen)).clean(value)

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
        frames.clear(error)
        clean = self._clean_fields(error, seen)
        linked = [error.__cause__, error.__context__]
        if isinstance(error, BaseExceptionGroup):
            linked += error.exceptions
        rest = _each(self._clean_chain(other, seen) for other in linked if other is not None)
        return clean and rest and self._is_clean(error)

    def _clean_fields(self, error: BaseException, seen: set[int]) -> bool:
        error.args = tuple(self._walk(arg, _RAISED, seen) for arg in error.args)
        for name, held in list(vars(error).items()):
            vars(error)[name] = self._walk(held, _RAISED, seen)
        clean = True
        for name in _slots(type(error)):
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

    def _report(self, name: str, where: str) -> None:
        if (name, where) in self.leaks:
            return
        invocation, manifest = self._invocation, self._invocation.manifest
        self._broker.log(
            AuditEvent(
                time=self._broker.clock.time(),
                kind=EventKind.LEAK,
                plugin=manifest.plugin,
                plugin_version=manifest.version,
                action=invocation.action,
                invocation=invocation.id,
                credential=name,
                outcome="redacted",
                detail=where,
            ),
            flush=True,
        )
        self.leaks.add((name, where))
        instruments.leaked(where)


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


def _each(results: Iterable[bool]) -> bool:
    """Whether all are true, without stopping at the first that is not."""
    return False not in list(results)


def _slots(cls: type) -> Iterator[str]:
    """The attributes of an exception that are in none of its dictionaries."""
    for base in cls.__mro__:
        for name, found in vars(base).items():
            slot = isinstance(found, MemberDescriptorType | GetSetDescriptorType)
            if slot and not name.startswith("__") and name != "args":
                yield name

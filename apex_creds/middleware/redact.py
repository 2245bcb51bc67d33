"""Redaction of what a plugin gives back: values, stream chunks, exceptions.

Guarantee: a secret that was redeemed in the invocation does not pass in ``str``, ``bytes``
and nested containers of them; each leak is audited once. If the search can't be made (the
secret can't be opened any more), the value is withheld, not passed.
"""

from __future__ import annotations

import copy
import dataclasses
import traceback
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from types import SimpleNamespace
from typing import Final

import msgspec

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.errors import ApexCredsError, SecretLeakError
from apex_creds.leases.broker import LeaseBroker
from apex_creds.leases.invocation import Invocation
from apex_creds.middleware.needles import SHORTEST, Needles
from apex_creds.vault import Opened
from apex_creds.vault.section import Record

_DEPTH: Final = 60
_PLAIN: Final = (int, float, complex, bool, type(None))
_PUBLIC_PARTS: Final = frozenset({"user"})
_WITHHELD: Final = "[redacted: nested too deeply to be searched]"


class OnLeak(StrEnum):
    """What happens when a secret is found: it is replaced, or the invocation fails."""

    REDACT = "redact"
    ERROR = "error"


class Redactor:
    """Searches one invocation's output for what was redeemed in it.

    Needles are built when there is first something to search, and wiped by ``close``.
    """

    __slots__ = ("_broker", "_invocation", "_known", "_needles", "leaks")

    def __init__(self, broker: LeaseBroker, invocation: Invocation) -> None:
        self._broker = broker
        self._invocation = invocation
        self._needles: Needles | None = None
        self._known: set[tuple[str, int]] = set()
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
        return self._walk(value, where, _DEPTH)

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
        needles = self.needles()
        clean = needles.replace(data)
        if clean is not data:
            self._report(where)
        return clean

    def exception(self, error: BaseException) -> BaseException:
        """An exception without secrets in arguments, attributes, notes and frames.

        The exception itself is cleaned; where that does not clean its text, a
        ``SecretLeakError`` takes its place.
        """
        if self.idle:
            return error
        seen: set[int] = set()
        clean = self._clean_chain(error, seen)
        if clean:
            return error
        return SecretLeakError(
            f"A plugin raised {type(error).__name__}, whose text had a secret in it.",
            hint="See the leak in the audit log; the text was withheld.",
        )

    def needles(self) -> Needles:
        """What to look for, up to date with what was redeemed.

        Raises:
            SecretLeakError: A secret can't be opened for the search.
        """
        if self._needles is None:
            self._needles = Needles()
        for key, record in list(self._invocation.used.items()):
            if key not in self._known:
                self._add(self._needles, record)
                self._known.add(key)
        return self._needles

    def close(self) -> None:
        """Wipes the needles; idempotent."""
        needles, self._needles = self._needles, None
        self._known.clear()
        if needles is not None:
            needles.close()

    # -- inside ------------------------------------------------------------------

    def _add(self, needles: Needles, record: Record) -> None:
        opened = self._reopen(record)
        if opened is None:
            raise SecretLeakError(
                "The plugin's output can't be searched for secrets, so it is withheld.",
                hint="The credential was deleted or the vault sealed meanwhile.",
            )
        with opened:
            for part in set(opened.names) - _PUBLIC_PARTS:
                with opened.view(part) as view:
                    needles.add(record.info.name, view)

    def _reopen(self, record: Record) -> Opened | None:
        try:
            return self._broker.reopen(record)
        except ApexCredsError:
            return None

    def _walk(self, value: object, where: str, depth: int) -> object:
        if isinstance(value, str):
            clean = self.text(value, where=where)
            return value if clean == value else clean
        if isinstance(value, bytes):
            return self.data(value, where=where)
        if isinstance(value, bytearray | memoryview):
            return self._walk_buffer(value, where)
        if isinstance(value, _PLAIN):
            return value
        rebuild = _rebuilder(value)
        if rebuild is None:
            return value
        if depth == 0:
            return _WITHHELD
        return rebuild(value, lambda item: self._walk(item, where, depth - 1))

    def _walk_buffer(self, value: bytearray | memoryview, where: str) -> object:
        data = bytes(value)
        clean = self.data(data, where=where)
        return value if clean is data else type(value)(clean)

    def _clean_chain(self, error: BaseException, seen: set[int]) -> bool:
        if id(error) in seen:
            return True
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error.args = self._as_tuple(error.args)
        for name, held in list(vars(error).items()):
            vars(error)[name] = self.value(held, where="exception")
        linked = [error.__cause__, error.__context__]
        if isinstance(error, BaseExceptionGroup):
            linked += error.exceptions
        rest = _each(self._clean_chain(other, seen) for other in linked if other is not None)
        return rest and self._is_clean(error)

    def _as_tuple(self, args: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(self.value(arg, where="exception") for arg in args)

    def _is_clean(self, error: BaseException) -> bool:
        needles = self.needles()
        for show in (str, repr):
            try:
                shown = show(error).encode("utf-8", "surrogatepass")
            except Exception:
                return False
            if needles.replace(shown) is not shown:
                self._report("exception")
                return False
        return True

    def _report(self, where: str) -> None:
        names = sorted({name for name, _ in self._known})
        new = (",".join(names), where)
        if new in self.leaks:
            return
        self.leaks.add(new)
        invocation = self._invocation
        for name in names:
            self._broker.log(
                AuditEvent(
                    time=self._broker.clock.time(),
                    kind=EventKind.LEAK,
                    plugin=invocation.manifest.plugin,
                    plugin_version=invocation.manifest.version,
                    action=invocation.action,
                    invocation=invocation.id,
                    credential=name,
                    outcome="redacted",
                    detail=where,
                ),
                flush=True,
            )


def _each(results: Iterable[bool]) -> bool:
    """Whether all are true, without stopping at the first that is not."""
    return False not in list(results)


Walk = Callable[[object], object]


def _rebuilder(value: object) -> Callable[[object, Walk], object] | None:
    """How to copy a container with each item walked; None for what is no container."""
    if isinstance(value, Mapping):
        return _mapping
    if isinstance(value, list | set | frozenset):
        return _collection
    if isinstance(value, tuple):
        return _tuple
    if isinstance(value, SimpleNamespace) or dataclasses.is_dataclass(value):
        return _attributes
    if isinstance(value, msgspec.Struct):
        return _struct
    if isinstance(value, BaseException):
        return None
    return None


def _mapping(value: object, walk: Walk) -> object:
    assert isinstance(value, Mapping)
    pairs = [(walk(key), walk(item)) for key, item in value.items()]
    same = all(a is c and b is d for (a, b), (c, d) in zip(pairs, value.items(), strict=True))
    if same or not isinstance(value, dict):
        return value if same else dict(pairs)
    twin = copy.copy(value)
    twin.clear()
    twin.update(pairs)
    return twin


def _collection(value: object, walk: Walk) -> object:
    assert isinstance(value, list | set | frozenset)
    before = list(value)
    items = [walk(item) for item in before]
    same = all(a is b for a, b in zip(items, before, strict=True))
    return value if same else type(value)(items)


def _tuple(value: object, walk: Walk) -> object:
    assert isinstance(value, tuple)
    items = [walk(item) for item in value]
    if all(a is b for a, b in zip(items, value, strict=True)):
        return value
    make = getattr(type(value), "_make", None)
    return make(items) if make is not None else tuple(items)


def _attributes(value: object, walk: Walk) -> object:
    names = list(getattr(value, "__dict__", {})) or list(_field_names(value))
    before = {name: getattr(value, name) for name in names if hasattr(value, name)}
    after = {name: walk(item) for name, item in before.items()}
    if all(after[name] is before[name] for name in before):
        return value
    twin = copy.copy(value)
    for name, item in after.items():
        object.__setattr__(twin, name, item)
    return twin


def _field_names(value: object) -> tuple[str, ...]:
    fields = getattr(type(value), "__dataclass_fields__", {})
    return tuple(fields)


def _struct(value: object, walk: Walk) -> object:
    assert isinstance(value, msgspec.Struct)
    before = {name: getattr(value, name) for name in value.__struct_fields__}
    after = {name: walk(item) for name, item in before.items()}
    if all(after[name] is before[name] for name in before):
        return value
    return msgspec.structs.replace(value, **after)

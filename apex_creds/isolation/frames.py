"""What goes over the socket between the host and a worker: frames, and the values in them.

Guarantee: nothing here runs code that the other side names. A frame is at most ``LARGEST``
bytes and one of a few shapes; a value is plain data, rebuilt as such; an error is one of
Python's own or of this package's, made from a text, or a ``PluginRaisedError``. What is not of
these is a ``ProtocolError``, after which the other side is not listened to any more. A frame
takes no time or memory out of proportion to its bytes: there are so many containers in it, and
keys whose hashes are known beforehand, so that all could have one.
"""

from __future__ import annotations

import builtins
import datetime
import decimal
import keyword
import logging
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import PurePath
from typing import Any, Final

import msgspec

from apex_creds import errors
from apex_creds.errors import (
    ApexCredsError,
    InvalidInputError,
    IsolationError,
    PluginRaisedError,
)

LARGEST: Final = 32 << 20
"""Bytes of one frame."""
MOST_KEYS: Final = 4096
"""Of keys and members of sets in one frame, those that are neither texts nor bytes."""
_MOST_CONTAINERS: Final = 1 << 20
_SMALL: Final = 64 << 10
"""Bytes of a frame that can't hold enough of either to matter."""
MOST_NOTES: Final = 32
LONGEST_TEXT: Final = 64 << 10
"""Characters of an error's text, or of a note."""
_LONGEST_NAME: Final = 200
_DEEPEST_CAUSE: Final = 4


class ProtocolError(IsolationError):
    """The other side does not keep to the frames."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An exception.

    Attributes:
        name: Its class's qualified name, with its module where that is not ``builtins``.
        bases: The names of Python's own exceptions that it is, the nearest first.
        ours: The name of the class of ``apex_creds.errors`` that it is; empty: of none.
        hint: Of such a one.
    """

    name: str
    text: str
    bases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ours: str = ""
    hint: str = ""
    cause: Failure | None = None


class Request(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Asks the other side for something, which it does beside what else was asked."""

    id: int
    what: str
    value: Any = None


class Response(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The end of what was asked: its value."""

    id: int
    value: Any = None


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The end of what was asked: an exception."""

    id: int
    failure: Failure


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """What was asked for goes on: it is a stream, or is to be awaited; ``Step`` runs it."""

    id: int
    kind: str


class Step(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """One step of what is open: the other side does no more than it was asked for."""

    id: int
    how: str
    value: Any = None


class Item(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """What a step brought."""

    id: int
    value: Any = None


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """What was asked, or its step, is to end now; it answers all the same."""

    id: int


class Notification(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Something to know; there is no answer."""

    what: str
    value: Any = None


Frame = Request | Response | Failed | Opened | Step | Item | Cancel | Notification

AWAITABLE: Final = "awaitable"
ASYNC_STREAM: Final = "async"
SYNC_STREAM: Final = "sync"
"""What goes on is of one of these kinds."""


class Target(msgspec.Struct, frozen=True):
    """Which function of which file.

    Attributes:
        root: Where its module is imported from.
        module: Its dotted name, from there.
        name: The function's qualified name; of a plugin of a runtime, the class's.
        method: Of an instance of that class; empty: ``name`` is called.
        made_with: What the instance is made with, as far as the class takes it.
        dispatched: The method's name is given to the plugin's own ``execute_action``.
        initialized: The instance's ``initialize`` is called once.
    """

    root: str
    module: str
    name: str
    method: str = ""
    made_with: dict[str, Any] = {}
    dispatched: bool = False
    initialized: bool = False


class Calling(msgspec.Struct, frozen=True):
    """One call.

    Attributes:
        handles: What names the leases, as ``RemoteHandle`` takes it.
        in_turn: The caller can't wait: what is to be awaited comes back as such.
    """

    id: str
    plugin: str
    target: Target
    args: list[Any]
    kwargs: dict[str, Any]
    handles: list[list[Any]]
    in_turn: bool = False
    log_level: int = logging.WARNING


# -- values --------------------------------------------------------------------------------

_TUPLE, _SET, _FROZEN, _BYTEARRAY, _INTEGER, _TEXT, _PAIRS, _PLACE = range(1, 9)
_TEXTS: Final[dict[str, tuple[type, Callable[[str], object]]]] = {
    "datetime": (datetime.datetime, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.fromisoformat),
    "decimal": (decimal.Decimal, decimal.Decimal),
    "uuid": (uuid.UUID, uuid.UUID),
}
_WHOLE: Final = range(-(2**63), 2**64)
_LONGEST_INTEGER: Final = 4000
"""Digits: what Python reads by default (``sys.set_int_max_str_digits``)."""

_BASES: Final[tuple[Callable[[Any], object], ...]] = (
    *(int, float, str, bytes, dict, list, tuple, set, frozenset),
)
"""What a value of a subclass is sent as."""

_LISTS: Final[dict[int, Callable[[list[Any]], object]]] = {
    _TUPLE: tuple,
    _SET: set,
    _FROZEN: frozenset,
    _PAIRS: dict,
    _TEXT: lambda pair: _TEXTS[pair[0]][1](pair[1]),
}

_KEYS: Final[dict[int, Callable[[list[Any]], Iterable[object]]]] = {
    _SET: tuple,
    _FROZEN: tuple,
    _PAIRS: lambda pairs: [pair[0] for pair in pairs],
}
Places = Callable[[object], object | None]
"""What stands for a thing that does not cross; None: it is none of those."""


class Codec:
    """Frames as bytes.

    Args:
        leave: Says what stands for a thing that can't cross: a callback, a handle.
        arrive: Makes something of what stands for a thing of the other side's.
    """

    def __init__(
        self,
        leave: Places = lambda _: None,
        arrive: Callable[[object], object] | None = None,
    ) -> None:
        self._leave = leave
        self._arrive = arrive
        self._keys = self._containers = 0
        self._large = False
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Frame, ext_hook=self._ext)
        self._values = msgspec.msgpack.Decoder(ext_hook=self._ext)

    def plain(self, value: object) -> object:
        """``value`` as it can be sent.

        Raises:
            InvalidInputError: It, or something in it, is not plain data.
        """
        self._keys = 0
        try:
            return self._plain(value)
        except RecursionError:
            raise InvalidInputError("A value that is nested so deeply can't cross.") from None

    def encode(self, frame: Frame) -> bytes:
        """A frame whose value is plain already.

        Raises:
            InvalidInputError: It is too large.
        """
        try:
            data = self._encoder.encode(frame)
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise InvalidInputError("The value can't be written as plain data.") from None
        if len(data) > LARGEST:
            raise InvalidInputError(
                f"A value of {len(data)} bytes can't cross: {LARGEST} are the most.",
                hint="Return a stream, in pieces.",
            )
        return data

    def decode(self, data: bytes) -> Frame:
        """A frame of the other side's.

        Raises:
            ProtocolError: It is none.
        """
        self._keys, self._containers, self._large = 0, 0, len(data) > _SMALL
        try:
            self._check(data)
            return self._decoder.decode(data)
        except (
            msgspec.DecodeError,
            ValueError,
            TypeError,
            LookupError,
            ArithmeticError,
            RecursionError,
        ):
            raise ProtocolError("The other side sent what is no frame.") from None

    def _plain(self, value: object) -> object:
        kind = type(value)
        if value is None or kind in (bool, float, bytes):
            return value
        if kind in (str, msgspec.msgpack.Ext):  # the latter was made plain already
            return value
        if kind is int:
            return value if value in _WHOLE else self._ext_of(_INTEGER, format(value, "d"))
        if kind is list:
            return [self._plain(each) for each in value]  # type: ignore[attr-defined]
        if kind is dict:
            return self._dict(value)  # type: ignore[arg-type]
        for number, sequence in ((_TUPLE, tuple), (_SET, set), (_FROZEN, frozenset)):
            if kind is sequence:
                return self._sequence(number, value)  # type: ignore[arg-type]
        stands = self._leave(value)
        if stands is not None:
            return self._ext_of(_PLACE, self._plain(stands))
        return self._converted(value)

    def _sequence(self, number: int, value: Collection[object]) -> object:
        if number in _KEYS:
            self._check_keys(value)
        return self._ext_of(number, [self._plain(each) for each in value])

    def _check_keys(self, keys: Iterable[object]) -> None:
        if self._too_many(keys):
            raise InvalidInputError(
                f"More than {MOST_KEYS} keys or members of sets that are no texts can't cross.",
                hint="Pass and return lists.",
            )

    def _dict(self, value: dict[object, object]) -> object:
        if all(type(key) is str for key in value):
            return {key: self._plain(each) for key, each in value.items()}
        self._check_keys(value)
        pairs = [[self._plain(key), self._plain(each)] for key, each in value.items()]
        return self._ext_of(_PAIRS, pairs)

    def _converted(self, value: object) -> object:
        """What is plain data under another class."""
        if isinstance(value, bytearray | memoryview):
            return self._ext_of(_BYTEARRAY, bytes(value))
        for name, (kind, _) in _TEXTS.items():
            if type(value) is kind:
                text = value.isoformat() if hasattr(value, "isoformat") else str(value)
                return self._ext_of(_TEXT, [name, text])
        for base in _BASES:
            if isinstance(value, base):  # type: ignore[arg-type]
                return self._plain(base(value))
        if isinstance(value, PurePath | Mapping):
            return str(value) if isinstance(value, PurePath) else self._plain(dict(value))
        dump = getattr(value, "model_dump", None)
        try:
            return self._plain(dump() if callable(dump) else msgspec.to_builtins(value))
        except (TypeError, ValueError):
            pass
        raise InvalidInputError(
            f"A {type(value).__name__[:80]} can't cross the wall: only plain data does.",
            hint="Pass and return numbers, texts, bytes, lists, dicts, or dataclasses of them.",
        )

    def _ext_of(self, number: int, value: object) -> msgspec.msgpack.Ext:
        return msgspec.msgpack.Ext(number, self._encoder.encode(value))

    def _too_many(self, keys: Iterable[object]) -> bool:
        """Counts those that the other side could have chosen to have one hash."""
        self._keys += sum(type(each) not in (str, bytes) for each in keys)
        return self._keys > MOST_KEYS

    def _check(self, data: bytes | memoryview) -> None:
        """Counts what a large frame holds, or what is wrapped in it, before it is decoded."""
        if self._large:
            self._containers += containers_in(data)
            if self._containers > _MOST_CONTAINERS:
                raise ProtocolError("The other side sent too many containers.")

    def _ext(self, number: int, data: memoryview) -> object:
        self._check(data)
        value = self._values.decode(data)
        if number == _PLACE and self._arrive is not None:
            return self._arrive(value)
        if number == _BYTEARRAY and isinstance(value, bytes):
            return bytearray(value)
        if number == _INTEGER and isinstance(value, str) and len(value) < _LONGEST_INTEGER:
            return int(value)
        made = _LISTS.get(number)
        if made is not None and isinstance(value, list):
            keys = _KEYS.get(number)
            if keys is not None and self._too_many(keys(value)):
                raise ProtocolError("The other side sent too many keys.")
            return made(value)
        raise ProtocolError("The other side sent what is no value.")


# -- exceptions ----------------------------------------------------------------------------

_OURS: Final = {
    name: found
    for name in errors.__all__
    if isinstance(found := getattr(errors, name), type) and issubclass(found, ApexCredsError)
}
_PYTHON: Final = {
    name: found
    for name, found in vars(builtins).items()
    if isinstance(found, type)
    and issubclass(found, Exception)
    # A coroutine or generator can't let these through; groups are more than a text.
    and not issubclass(found, StopIteration | StopAsyncIteration | ExceptionGroup)
}


def failure_of(error: BaseException, *, depth: int = 0) -> Failure:
    """An exception, as it can be sent."""
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    ours = next(
        (each.__name__ for each in kind.__mro__ if _OURS.get(each.__name__) is each), ""
    )
    cause = error.__cause__
    return Failure(
        name=name[:_LONGEST_NAME],
        text=_text_of(error),
        bases=tuple(each.__name__ for each in kind.__mro__ if each.__module__ == "builtins"),
        notes=_notes_of(error),
        ours=ours,
        hint=error.hint[:LONGEST_TEXT] if isinstance(error, ApexCredsError) else "",
        cause=None
        if cause is None or depth >= _DEEPEST_CAUSE
        else failure_of(cause, depth=depth + 1),
    )


def error_of(failure: Failure, *, depth: int = 0) -> Exception:
    """The exception that a failure stands for; made of its texts alone."""
    error = _made(failure)
    for note in failure.notes[:MOST_NOTES]:
        error.add_note(note[:LONGEST_TEXT])
    if failure.cause is not None and depth < _DEEPEST_CAUSE:
        error.__cause__ = error_of(failure.cause, depth=depth + 1)
    return error


def _made(failure: Failure) -> Exception:
    text = failure.text[:LONGEST_TEXT]
    ours = _OURS.get(failure.ours)
    if ours is not None:
        try:
            return ours(text, hint=failure.hint[:LONGEST_TEXT])
        except TypeError:  # it takes more than a text
            return IsolationError(text, hint=failure.hint[:LONGEST_TEXT])
    same = _PYTHON.get(failure.name)
    if same is not None:
        try:
            return same(text)
        except TypeError:  # as UnicodeDecodeError, which takes five arguments
            pass
    base = next((_PYTHON[name] for name in failure.bases if name in _PYTHON), Exception)
    name = failure.name.rpartition(".")[2]
    if not name.isidentifier() or keyword.iskeyword(name):
        name = PluginRaisedError.__name__
    # Its class has the name and is what Python's own is; nothing of the plugin's is in it.
    for bases in ((PluginRaisedError, base), (PluginRaisedError,)):
        try:
            made: Exception = type(name, bases, {"__module__": __name__})(text)
        except TypeError:
            continue
        return made
    return PluginRaisedError(text)


def _text_of(error: BaseException) -> str:
    if isinstance(error, ApexCredsError):
        return error.message[:LONGEST_TEXT]
    try:
        # A KeyError's text is its argument's representation: made again, it would be twice.
        shown = error.args[0] if isinstance(error, KeyError) and error.args else error
        return str(shown)[:LONGEST_TEXT]
    except Exception:  # noqa: BLE001 - of a plugin's class
        return "(its text can't be shown)"


def _notes_of(error: BaseException) -> tuple[str, ...]:
    notes = getattr(error, "__notes__", ())
    if not isinstance(notes, list):
        return ()
    return tuple(str(note)[:LONGEST_TEXT] for note in notes[:MOST_NOTES] if type(note) is str)


# What a byte begins in MessagePack, with its size, or that of its length.
_NUMBERS: Final = {
    **dict.fromkeys((0xCC, 0xD0), 2),
    **dict.fromkeys((0xCD, 0xD1), 3),
    **dict.fromkeys((0xCA, 0xCE, 0xD2), 5),
    **dict.fromkeys((0xCB, 0xCF, 0xD3), 9),
}
_WRAPPED: Final = dict(zip(range(0xD4, 0xD9), (3, 4, 6, 10, 18), strict=True))
_SIZED: Final = {
    **dict(zip((0xC4, 0xC5, 0xC6), (1, 2, 4), strict=True)),
    **dict(zip((0xD9, 0xDA, 0xDB), (1, 2, 4), strict=True)),
}
_WRAPPED_SIZED: Final = dict(zip((0xC7, 0xC8, 0xC9), (1, 2, 4), strict=True))
"""One more byte says what is wrapped."""
_TEXT_KINDS: Final = frozenset({*range(0xA0, 0xC0), 0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB})
_RUNS: Final = {
    1: re.compile(rb"[\x00-\x7f\xc0-\xc3\xe0-\xff]+"),
    5: re.compile(rb"(?:[\xca\xce\xd2].{4})+", re.DOTALL),
    9: re.compile(rb"(?:[\xcb\xcf\xd3].{8})+", re.DOTALL),
}
"""Numbers of one size, which are passed over together."""


def containers_in(data: bytes | memoryview) -> int:
    """How many there are, with what is wrapped, but not in that.

    Raises:
        ValueError: A dictionary has a key that is no text.
    """
    at, count, left, keyed = 0, 0, 1, False
    outer: list[tuple[int, bool]] = []
    while at < len(data):
        while left == 0:
            if not outer:
                return count
            left, keyed = outer.pop()
        kind = data[at]
        if keyed and left % 2 == 0 and kind not in _TEXT_KINDS:
            raise ValueError("A key is no text.")
        left -= 1
        if 0x80 <= kind < 0xA0 or 0xDC <= kind <= 0xDF:
            wide = 0 if kind < 0xA0 else 4 if kind & 1 else 2
            items = kind & 0xF if wide == 0 else _number(data, at + 1, wide)
            outer.append((left, keyed))
            keyed = kind < 0x90 or kind >= 0xDE
            left, at, count = items * (2 if keyed else 1), at + 1 + wide, count + 1
            continue
        size = _size(data, at, kind)
        count += kind in _WRAPPED or kind in _WRAPPED_SIZED
        at += size
        if left and not keyed and size in _RUNS:
            run = _RUNS[size].match(data, at, at + size * left)
            if run is not None:
                left, at = left - (run.end() - at) // size, run.end()
    return count


def _size(data: bytes | memoryview, at: int, kind: int) -> int:
    """Of what begins there, and is no container."""
    if 0xA0 <= kind < 0xC0:
        return 1 + (kind & 0x1F)
    if kind in _SIZED:
        return 1 + _SIZED[kind] + _number(data, at + 1, _SIZED[kind])
    if kind in _WRAPPED_SIZED:
        return 2 + _WRAPPED_SIZED[kind] + _number(data, at + 1, _WRAPPED_SIZED[kind])
    return _NUMBERS.get(kind) or _WRAPPED.get(kind, 1)


def _number(data: bytes | memoryview, at: int, wide: int) -> int:
    return int.from_bytes(data[at : at + wide], "big")

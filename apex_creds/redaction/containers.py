"""Walks through nested containers, objects and tracebacks, and replaces what is in them. Pure.

Guarantee: a value in which nothing changes comes back as the same object; the original is
never altered; cycles and shared parts are walked once. What is nested too deeply to be
searched is withheld. Of an object all is walked that its dictionary and its slots hold, without
calling code of its class: models of pydantic and attrs, data classes and plain classes alike.
An object with state in C is no container, and neither is one that does something
when it is collected, as a transport does that closes its socket: a copy of it would, too. They
come to the leaf.

Of a traceback only frames that are over are cleared. One of a coroutine or generator that is
suspended belongs to what will resume it (clearing it would close it): the traceback is cut
short before it, so that its variables are not reached from there either.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import inspect
import struct
import sys
from collections import UserList, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView
from types import FrameType, MemberDescriptorType, ModuleType, SimpleNamespace
from typing import Final, TypeVar, cast

import msgspec

T = TypeVar("T")

_DEPTH: Final = 60
_POINTER: Final = struct.calcsize("P")
_TOO_DEEP: Final = "[redacted: nested too deeply to be searched]"
_NO_COPY: Final = "[redacted: an object that had a secret in it, and can't be copied]"
_MOST: Final = 20_000
"""Objects that are walked in one value; those beyond come to the leaf."""
_COPIED: Final = (msgspec.Struct, SimpleNamespace)
_MODELS: Final = ("__dataclass_fields__", "__pydantic_fields__", "__attrs_attrs__")
_NOTHING: Final = object()
_CYCLE: Final = "[redacted: refers to what it is in]"
_CAN_BE_SUSPENDED: Final = (
    inspect.CO_COROUTINE
    | inspect.CO_GENERATOR
    | inspect.CO_ASYNC_GENERATOR
    | inspect.CO_ITERABLE_COROUTINE
)

Clean = Callable[[object], object]


class Walk:
    """One walk over one value.

    Args:
        leaf: Cleans what is no container; returns the same object if it has nothing to.
        plain: Whether objects of plain classes are walked, too, and not only models.
    """

    __slots__ = ("_cyclic", "_inside", "_known", "_leaf", "_objects", "_plain", "_rebuilding")

    def __init__(self, leaf: Clean, *, plain: bool) -> None:
        self._leaf = leaf
        self._plain = plain
        self._reset(rebuilding=False)

    def clean(self, value: object) -> object:
        """``value`` with every leaf cleaned."""
        cleaned = self._walk(value, _DEPTH)
        if cleaned is value or not self._cyclic:
            return cleaned
        # The copies made so far refer back into the original: they are made again without, and
        # of objects in a cycle with copies that refer to each other.
        self._reset(rebuilding=True)
        return self._walk(value, _DEPTH)

    def _reset(self, *, rebuilding: bool) -> None:
        self._rebuilding = rebuilding
        self._cyclic = False
        self._objects = 0
        self._inside: set[int] = set()
        # With the values themselves, so that an id is not used again meanwhile.
        self._known: dict[int, tuple[object, object]] = {}

    def _walk(self, value: object, depth: int) -> object:
        rebuild = _rebuilder(value, plain=self._plain)
        if rebuild is None:
            return self._leaf(value)
        key = id(value)
        if key in self._known:
            return self._known[key][1]
        if key in self._inside:
            self._cyclic = True
            return _CYCLE if self._rebuilding else value
        if rebuild is _attributes:
            self._objects += 1
            if depth == 0 or self._objects > _MOST:
                return self._leaf(value)
        elif depth == 0:
            return _TOO_DEEP
        self._inside.add(key)
        if self._rebuilding and rebuild is _attributes and (twin := _twin(value)) is not None:
            self._known[key] = (value, twin)  # what refers back to it gets its copy
            rebuild = functools.partial(_attributes, twin=twin)
        cleaned = self._rebuilt(value, rebuild, lambda item: self._walk(item, depth - 1))
        self._inside.discard(key)
        self._known[key] = (value, cleaned)
        return cleaned

    def _rebuilt(
        self, value: object, rebuild: Callable[[object, Clean], object], clean: Clean
    ) -> object:
        try:
            return rebuild(value, clean)
        except _NoItemsError:  # as of urllib3's pools: it is an object like others then
            return _attributes(value, clean) if _shows_all(type(value)) else self._leaf(value)


def _rebuilder(value: object, *, plain: bool) -> Callable[[object, Clean], object] | None:
    """How to copy a container with each item cleaned; None for what is no container."""
    if isinstance(value, str | bytes):
        return None
    if isinstance(value, Mapping):
        return _mapping
    if isinstance(value, list | set | frozenset | deque | MappingView | UserList):
        return _collection
    if isinstance(value, tuple):
        return _tuple
    if isinstance(value, type | BaseException | ModuleType):
        return None
    if isinstance(value, msgspec.Struct | SimpleNamespace):
        return _attributes
    cls = type(value)
    is_model = plain or any(hasattr(cls, mark) for mark in _MODELS)
    return _attributes if is_model and _shows_all(cls) else None


def _shows_all(cls: type) -> bool:
    """Whether the dictionary and slots of its instances are all that they hold.

    What a class in C keeps besides makes its instances larger.
    """
    offsets = (cls.__weakrefoffset__, cls.__dictoffset__)
    shown = sum(offset > 0 for offset in offsets) + sum(1 for _ in slots(cls))
    size = object.__basicsize__ + shown * _POINTER
    return cls.__basicsize__ == size and not cls.__itemsize__ and not hasattr(cls, "__del__")


def slots(cls: type) -> Iterator[tuple[str, MemberDescriptorType]]:
    """The slots of its instances, also those that a subclass has again."""
    for base in cls.__mro__:
        for name, found in vars(base).items():
            if isinstance(found, MemberDescriptorType) and name != "__dict__":
                yield name, found


class _NoItemsError(Exception):
    """A container does not say what is in it."""


def _listed(items: Callable[[], Iterable[T]]) -> list[T]:
    try:
        return list(items())
    except Exception:
        raise _NoItemsError from None


def _mapping(value: object, clean: Clean) -> object:
    assert isinstance(value, Mapping)
    before = _listed(value.items)
    pairs = [(clean(key), clean(item)) for key, item in before]
    if all(a is c and b is d for (a, b), (c, d) in zip(pairs, before, strict=True)):
        return value
    if not isinstance(value, dict):
        return dict(pairs)
    try:
        twin = copy.copy(value)
        twin.clear()
        twin.update(pairs)
    except Exception:
        return dict(pairs)
    return twin


def _collection(value: object, clean: Clean) -> object:
    """A copy with its items cleaned; a plain one where its class can't be copied.

    Of a dictionary's view, or of what wraps a list: a list of its items.
    """
    before = _listed(lambda: cast("Iterable[object]", value))
    items = [clean(item) for item in before]
    if all(a is b for a, b in zip(items, before, strict=True)):
        return value
    if isinstance(value, frozenset):
        return frozenset(items)
    if not isinstance(value, list | set | deque):
        return items
    try:
        twin = copy.copy(value)
        twin.clear()
        if isinstance(twin, set):
            twin.update(items)
        else:
            twin.extend(items)
    except Exception:  # whatever its class does, its items are what counts
        return set(items) if isinstance(value, set) else items
    return twin


def _tuple(value: object, clean: Clean) -> object:
    assert isinstance(value, tuple)
    items = [clean(item) for item in value]
    if all(a is b for a, b in zip(items, value, strict=True)):
        return value
    make = getattr(type(value), "_make", None)
    try:
        return tuple(items) if make is None else make(items)
    except Exception:
        return tuple(items)


def _attributes(value: object, clean: Clean, *, twin: object = None) -> object:
    """A copy with what its dictionary and its slots (of a struct: its fields) hold, cleaned.

    Args:
        value: The object.
        clean: Cleans each.
        twin: The copy, empty, where there is to be one in any case.
    """
    cls, named = type(value), _dictionary(value)
    if isinstance(value, msgspec.Struct):
        fields = [getattr(cls, name) for name in value.__struct_fields__]
    else:
        fields = [slot for _, slot in slots(cls)]
    before = [(slot, held) for slot in fields if (held := _held(slot, value)) is not _NOTHING]
    after = [clean(held) for _, held in before]
    cleaned = clean(named)
    same = cleaned is named and all(a is b for a, (_, b) in zip(after, before, strict=True))
    if same and twin is None:
        return value
    twin = _twin(value) if twin is None else twin
    if twin is None:
        return _NO_COPY
    try:
        for (slot, _), item in zip(before, after, strict=True):
            if isinstance(twin, msgspec.Struct):
                msgspec.structs.force_setattr(twin, slot.__name__, item)
            else:
                slot.__set__(twin, item)
        _dictionary(twin).update(cast("dict[str, object]", cleaned))
    except Exception:
        return _NO_COPY
    return twin


def _twin(value: object) -> object:
    """An object of its class, to be filled; None if there can't be one."""
    try:
        return copy.copy(value) if isinstance(value, _COPIED) else object.__new__(type(value))
    except Exception:
        return None


def _dictionary(value: object) -> dict[str, object]:
    try:
        found: dict[str, object] = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found


def _held(slot: MemberDescriptorType, value: object) -> object:
    try:
        return slot.__get__(value)
    except AttributeError:
        return _NOTHING


def clear_frames(error: BaseException) -> None:
    """Clears the frames of an exception's own traceback."""
    running: set[int] = set()  # the frames that this thread is executing
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        running.add(id(frame))
        frame = frame.f_back
    step, before, kept = error.__traceback__, None, True
    while step is not None:
        after = step.tb_next  # also past the cut: other tracebacks may have these frames
        over = _is_over(step.tb_frame)
        if over:
            with contextlib.suppress(RuntimeError):  # it is running
                step.tb_frame.clear()
        elif kept and id(step.tb_frame) not in running:
            kept = False
            if before is None:
                error.__traceback__ = None
            else:
                before.tb_next = None
        step, before = after, step


def _is_over(frame: FrameType) -> bool:
    """Whether a frame can be cleared without ending what it is a part of.

    A frame owns (and so refers to) its code only once it is over; until then the
    coroutine or generator does. Where that is not so, no frame of one is cleared.
    """
    if not frame.f_code.co_flags & _CAN_BE_SUSPENDED:
        return True
    return any(owned is frame.f_code for owned in gc.get_referents(frame))

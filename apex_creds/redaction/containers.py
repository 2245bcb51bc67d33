"""Walks through nested containers and tracebacks, and replaces what is in them. Pure.

Guarantee: a value in which nothing changes comes back as the same object; the original is
never altered; cycles and shared parts are walked once. What is nested too deeply to be
searched is withheld.

Of a traceback only frames that are over are cleared. One of a coroutine or generator that is
suspended belongs to what will resume it (clearing it would close it): the traceback is cut
short before it, so that its variables are not reached from there either.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import inspect
import sys
from collections import UserList, deque
from collections.abc import Callable, Iterable, Mapping, MappingView
from types import FrameType, SimpleNamespace
from typing import Final, cast

import msgspec

_DEPTH: Final = 60
_TOO_DEEP: Final = "[redacted: nested too deeply to be searched]"
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
    """

    __slots__ = ("_cyclic", "_inside", "_known", "_leaf", "_rebuilding")

    def __init__(self, leaf: Clean) -> None:
        self._leaf = leaf
        self._reset(rebuilding=False)

    def clean(self, value: object) -> object:
        """``value`` with every leaf cleaned."""
        cleaned = self._walk(value, _DEPTH)
        if cleaned is value or not self._cyclic:
            return cleaned
        # The copies made so far refer back into the original: they are made again without.
        self._reset(rebuilding=True)
        return self._walk(value, _DEPTH)

    def _reset(self, *, rebuilding: bool) -> None:
        self._rebuilding = rebuilding
        self._cyclic = False
        self._inside: set[int] = set()
        # With the values themselves, so that an id is not used again meanwhile.
        self._known: dict[int, tuple[object, object]] = {}

    def _walk(self, value: object, depth: int) -> object:
        rebuild = _rebuilder(value)
        if rebuild is None:
            return self._leaf(value)
        key = id(value)
        if key in self._known:
            return self._known[key][1]
        if key in self._inside:
            self._cyclic = True
            return _CYCLE if self._rebuilding else value
        if depth == 0:
            return _TOO_DEEP
        self._inside.add(key)
        cleaned = rebuild(value, lambda item: self._walk(item, depth - 1))
        self._inside.discard(key)
        self._known[key] = (value, cleaned)
        return cleaned


def _rebuilder(value: object) -> Callable[[object, Clean], object] | None:
    """How to copy a container with each item cleaned; None for what is no container."""
    if isinstance(value, str | bytes):
        return None
    if isinstance(value, Mapping):
        return _mapping
    if isinstance(value, list | set | frozenset | deque | MappingView | UserList):
        return _collection
    if isinstance(value, tuple):
        return _tuple
    if isinstance(value, type | BaseException):
        return None
    if isinstance(value, msgspec.Struct | SimpleNamespace) or dataclasses.is_dataclass(value):
        return _attributes
    return None


def _mapping(value: object, clean: Clean) -> object:
    assert isinstance(value, Mapping)
    before = list(value.items())
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
    before: list[object] = list(cast("Iterable[object]", value))
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


def _attributes(value: object, clean: Clean) -> object:
    """Of a data class, namespace or struct: what its ``__dict__`` and its fields hold."""
    struct = isinstance(value, msgspec.Struct)
    marker = "__struct_fields__" if struct else "__dataclass_fields__"
    fields = getattr(type(value), marker, ())
    names = dict.fromkeys([*getattr(value, "__dict__", ()), *fields])
    before = {name: getattr(value, name) for name in names if hasattr(value, name)}
    after = {name: clean(item) for name, item in before.items()}
    if all(after[name] is before[name] for name in before):
        return value
    twin = copy.copy(value)
    for name, item in after.items():
        if isinstance(twin, msgspec.Struct) and name in fields:
            msgspec.structs.force_setattr(twin, name, item)
        else:
            object.__setattr__(twin, name, item)
    return twin


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

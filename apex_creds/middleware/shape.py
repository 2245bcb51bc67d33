"""What kind of callable a plugin's action is, and whether its result is a stream."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Final, NamedTuple, TypeGuard

CREDENTIALS: Final = "credentials"


class Shape(NamedTuple):
    """How to call it.

    Attributes:
        takes_credentials: It has a parameter ``credentials`` that can be a keyword.
        in_thread: It is synchronous, so it runs in a worker thread.
    """

    takes_credentials: bool
    in_thread: bool


_known: weakref.WeakKeyDictionary[object, Shape] = weakref.WeakKeyDictionary()


def shape_of(function: Callable[..., object]) -> Shape:
    """The shape of any callable."""
    plain = getattr(function, "__func__", function)
    try:
        found = _known.get(plain)
    except TypeError:
        return _look(function)
    if found is None:
        found = _look(function)
        with contextlib.suppress(TypeError):
            _known[plain] = found
    return found


def takes_credentials(function: Callable[..., object]) -> bool:
    """Whether ``credentials=…`` can be passed and is meant; ``**kwargs`` does not count."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    parameter = parameters.get(CREDENTIALS)
    return parameter is not None and parameter.kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )


def _look(function: Callable[..., object]) -> Shape:
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    if not (inspect.isroutine(inner) or inspect.isclass(inner)):
        inner = getattr(inner, "__call__", inner)  # noqa: B004 - its own, not whether
    lazy = (
        inspect.iscoroutinefunction(inner)
        or inspect.isasyncgenfunction(inner)
        or inspect.isgeneratorfunction(inner)
    )
    return Shape(takes_credentials(function), not lazy)


_NO_STREAMS: Final = (
    *("__len__", "__getitem__", "__contains__", "__enter__", "read", "readline"),
    *("__dataclass_fields__", "__struct_fields__", "__pydantic_fields__", "__attrs_attrs__"),
)
"""What containers, files, responses and models have: they are no streams."""


def is_async_stream(result: object) -> TypeGuard[AsyncIterable[object]]:
    """Whether it has steps that can only be awaited, as the streams of many SDKs."""
    kind = type(result)
    return getattr(kind, "__aiter__", None) is not None and not hasattr(kind, "read")


def is_stream(result: object) -> TypeGuard[Iterable[object]]:
    """Whether it has steps, and nothing by which it would be more than a stream."""
    kind = type(result)
    if getattr(kind, "__iter__", None) is None or issubclass(kind, type):
        return False
    return not any(hasattr(kind, name) for name in _NO_STREAMS)


def is_stream_of_any_kind(result: object) -> bool:
    """Whether its steps are searched one by one, rather than itself."""
    if isinstance(result, AsyncIterator | Iterator):
        return not isinstance(result, io.IOBase)
    return is_async_stream(result) or is_stream(result)

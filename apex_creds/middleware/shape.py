"""What kind of callable a plugin's action is, looked at once for each function."""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Final, NamedTuple

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

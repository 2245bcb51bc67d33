"""What a tool sends besides its result: a runtime's writers, sessions, stores and contexts.

Guarantee: what a tool gives to such an object has no secret of its invocation in it when the
object gets it; or it does not get it. All else reaches the object unchanged.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, MutableMapping
from typing import Any, TypeVar, cast

from apex_creds.leases.lease import current_invocation
from apex_creds.middleware.call import WrappedCall

__all__ = ["clean", "clean_items", "cleaning", "outlet"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])

_WHERE = "chunk"


def clean(value: T) -> T:
    """``value`` without what was redeemed in the invocation that runs.

    Raises:
        SecretLeakError: Policy makes a leak an error, and there was one.
    """
    return cast(T, _running().clean(value, where=_WHERE))


def clean_items(items: MutableMapping[str, Any]) -> None:
    """Cleans what a mapping has now, where it is."""
    for key, value in list(items.items()):
        cleaned = clean(value)
        if cleaned is not value:
            items[key] = cleaned


def cleaning(function: F) -> F:
    """``function``, of either kind, with arguments cleaned for the invocation that runs now."""
    return cast(F, _cleaning(function, _running()))


def outlet(thing: T, *inside: str) -> T:
    """A runtime's object as the tool of the invocation that runs now is to see it.

    Its methods clean what they are given, functions and classes apart, and so does setting an
    attribute of it.

    Args:
        thing: The object.
        inside: Its attributes that are such objects, too.
    """
    return thing if thing is None else cast(T, _Outlet(thing, _running(), inside))


def _running() -> WrappedCall:
    call = current_invocation()
    assert isinstance(call, WrappedCall)
    return call


class _Outlet:
    __slots__ = ("__weakref__", "_call", "_inside", "_thing")
    _call: WrappedCall
    _inside: Collection[str]
    _thing: object

    def __init__(self, thing: object, call: WrappedCall, inside: Collection[str]) -> None:
        for name, value in (("_thing", thing), ("_call", call), ("_inside", inside)):
            object.__setattr__(self, name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Runtimes ask what it is."""
        return type(self._thing)

    def __getattr__(self, name: str) -> object:
        found = getattr(self._thing, name)
        if name in self._inside:
            return _Outlet(found, self._call, ())
        if not inspect.isroutine(found):
            return found
        return _cleaning(found, self._call, made=self._made)

    def _made(self, thing: object) -> object:
        """What a method returns; one of its kind (a copy, a child) is an outlet, too."""
        if type(thing) is not type(self._thing):
            return thing
        return _Outlet(thing, self._call, self._inside)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._thing, name, _without(value, self._call))

    def __bool__(self) -> bool:
        return bool(self._thing)

    def __eq__(self, other: object) -> bool:
        return bool(self._thing == (other._thing if type(other) is _Outlet else other))

    def __hash__(self) -> int:
        return hash(self._thing)


def _cleaning(
    function: Callable[..., Any],
    call: WrappedCall,
    made: Callable[[object], object] = lambda thing: thing,
) -> Callable[..., object]:
    def without(args: tuple[object, ...], kwargs: dict[str, object]) -> functools.partial[Any]:
        given = {name: _without(value, call) for name, value in kwargs.items()}
        return functools.partial(function, *(_without(value, call) for value in args), **given)

    @functools.wraps(function)
    async def waits(*args: object, **kwargs: object) -> object:
        return made(await without(args, kwargs)())

    @functools.wraps(function)
    def calls(*args: object, **kwargs: object) -> object:
        return made(without(args, kwargs)())

    return waits if inspect.iscoroutinefunction(function) else calls


def _without(value: object, call: WrappedCall) -> object:
    is_own = type(value) is _Outlet or inspect.isroutine(value) or isinstance(value, type)
    return value if is_own else call.clean(value, where=_WHERE)

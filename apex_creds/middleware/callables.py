"""What a plugin's action is: how it is called and where, whether its result is a stream.

Guarantee: a callable is known by identity, whatever it says when it is compared. What runs
plugins elsewhere (``apex_creds.isolation`` has one) is a ``PluginRunner``, and the middleware
knows no more of it: it makes the invocation and its leases, and ends them.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeGuard,
    TypeVar,
)

from apex_creds.errors import IsolationUnavailableError
from apex_creds.policy.manifest import Manifest

if TYPE_CHECKING:
    from apex_creds.leases.handle import CredentialMap

CREDENTIALS: Final = "credentials"


class Shape(NamedTuple):
    """How to call a plugin's action.

    Attributes:
        takes_credentials: It has a parameter ``credentials`` that can be a keyword.
        in_thread: It is synchronous, so it runs in a worker thread.
    """

    takes_credentials: bool
    in_thread: bool


_known: Final[dict[int, tuple[weakref.ref[object], Shape]]] = {}
"""By identity: a callable may say what it likes when it is compared."""


def shape_of(function: Callable[..., object]) -> Shape:
    """The shape of any callable; remembered as long as it lives."""
    plain = getattr(function, "__func__", function)
    key = id(plain)
    found = _known.get(key)
    if found is not None and found[0]() is plain:
        return found[1]
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
    shape = Shape(takes_credentials(function), not lazy)
    with suppress(TypeError):
        _known[key] = (weakref.ref(plain, lambda _: _known.pop(key, None)), shape)
    return shape


def takes_credentials(function: Callable[..., object]) -> bool:
    """Whether ``credentials=…`` can be passed and is meant."""
    return takes(function, CREDENTIALS)


def takes(function: Callable[..., object], keyword: str) -> bool:
    """Whether a keyword can be passed and is meant; ``**kwargs`` does not count."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    parameter = parameters.get(keyword)
    return parameter is not None and parameter.kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )


VALUES: Final = frozenset(
    {int, float, complex, bool, type(None), str, bytes, bytearray}
    | {dict, list, tuple, set, frozenset}
)
"""Results of these very types are values, and no streams."""
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


# A parameter can't be taken out of a ``ParamSpec`` unless it is the first, so that a function
# with ``credentials`` is known by where that stands: its result keeps its type, its arguments
# are not compared.

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class _After0(Protocol[T_co]):
    def __call__(self, *, credentials: CredentialMap) -> T_co: ...


class _After1(Protocol[T_co]):
    def __call__(self, a: Any, /, *, credentials: CredentialMap) -> T_co: ...


class _After2(Protocol[T_co]):
    def __call__(self, a: Any, b: Any, /, *, credentials: CredentialMap) -> T_co: ...


class _After3(Protocol[T_co]):
    def __call__(self, a: Any, b: Any, c: Any, /, *, credentials: CredentialMap) -> T_co: ...


class _After4(Protocol[T_co]):
    def __call__(
        self, a: Any, b: Any, c: Any, d: Any, /, *, credentials: CredentialMap
    ) -> T_co: ...


TakesCredentials = _After0[T_co] | _After1[T_co] | _After2[T_co] | _After3[T_co] | _After4[T_co]
"""A function with a parameter ``credentials`` after at most four others, to type checkers."""


ELSEWHERE: Final = Shape(takes_credentials=False, in_thread=False)
"""How what runs a plugin elsewhere is called: its handles are not passed to it here."""


class PluginRunner(Protocol):
    """Calls plugins' functions in separate processes, in the current invocation."""

    @property
    def every(self) -> bool:
        """Whether it runs every plugin, or those that require it."""

    async def call(
        self,
        manifest: Manifest,
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        """What the function returns there; a generator of either kind for its streams."""

    def call_in_turn(
        self,
        manifest: Manifest,
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        """As ``call``, from code that can't wait: what is to be awaited comes back so."""

    async def close(self) -> None:
        """Ends its processes; idempotent."""


class BehindWall:
    """A function of the host's that itself runs the plugin behind a wall, as a program.

    It is called in this process, also for a plugin that is to run isolated: it does.

    Args:
        function: That function.
    """

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Awaitable[object]]) -> None:
        self._function = function

    async def __call__(self, *args: object) -> object:
        """What the function returns."""
        return await self._function(*args)


class Isolates(Protocol):
    """What ``isolation`` of a middleware is: it has a runner."""

    def runner(self) -> PluginRunner:
        """The runner, which the middleware closes."""


def elsewhere(
    runner: PluginRunner | None, manifest: Manifest, *, required: bool
) -> PluginRunner | None:
    """What runs a plugin; None: this process.

    Raises:
        IsolationUnavailableError: It is to run behind a wall, and there is none.
    """
    if runner is None and required:
        raise IsolationUnavailableError(
            f"Plugin {manifest.plugin} is to run isolated, and this middleware runs none so.",
            hint="Make it with CredentialMiddleware(vault, isolation=Isolation.BUBBLEWRAP).",
        )
    return runner if runner is not None and (required or runner.every) else None

"""What a middleware with isolation runs plugins by; ``apex_creds.isolation`` has one.

The middleware knows no more of it than this: it makes the invocation and its leases, and ends
them, whatever the plugin runs in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from apex_creds.errors import IsolationUnavailableError
from apex_creds.middleware.callables import Shape
from apex_creds.policy.manifest import Manifest

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

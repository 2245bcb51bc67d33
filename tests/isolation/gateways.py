"""A gateway on the loopback, and an invocation that runs behind it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx

from apex_creds.isolation.gateway import Gateway, Limits
from apex_creds.isolation.placeholders import Placeholders
from apex_creds.leases.lease import current_invocation
from tests.support.worlds import World

NEED = ({"name": "web"},)


class Behind:
    """What a plugin sees, and what its test knows.

    Attributes:
        gateway: That it talks to.
        call: The invocation that runs; None: none.
    """

    def __init__(self, world: World, names: tuple[str, ...], **limits: float) -> None:
        self.world = world
        self.call: object = None
        self.placeholders = Placeholders(dict.fromkeys(names, "sk-"))
        self.gateway = Gateway(
            lambda: self.call,  # type: ignore[arg-type,return-value]
            placeholders=self.placeholders,
            limits=Limits(**limits),  # type: ignore[arg-type]
        )

    def url(self, origin: str) -> str:
        """The base URL of an origin."""
        return f"http://{self.gateway.authority}/{origin.replace('://', '/')}"

    @property
    def key(self) -> str:
        return self.placeholders.of("web")

    async def run(
        self, plugin: Callable[[], Awaitable[object]], needs: tuple[object, ...] = NEED
    ) -> object:
        """Runs it as an invocation, behind the gateway."""

        async def inside() -> object:
            self.call = current_invocation()
            try:
                # What is behind the wall is in no context of the host's.
                return await outside(plugin)
            finally:
                self.call = None

        return await self.world.call(inside, needs=needs)  # type: ignore[arg-type]

    async def raw(self, data: bytes, *, ends: bool = False) -> bytes:
        """All that the gateway says to some bytes, until it hangs up."""
        host, port = self.gateway.authority.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        if ends:
            writer.write_eof()
        try:
            return await reader.read()
        finally:
            writer.close()


async def outside(plugin: Callable[[], Awaitable[object]]) -> object:
    """Runs it in an empty context, as another process has."""
    import contextvars

    loop = asyncio.get_running_loop()
    return await loop.create_task(_awaited(plugin), context=contextvars.Context())


async def _awaited(plugin: Callable[[], Awaitable[object]]) -> object:
    return await plugin()


@contextlib.asynccontextmanager
async def behind(world: World, *names: str, **limits: float) -> AsyncIterator[Behind]:
    made = Behind(world, names or ("web",), **limits)
    listener = socket.create_server(("127.0.0.1", 0))
    await made.gateway.start(listener)
    try:
        yield made
    finally:
        await made.gateway.close()


def client(**options: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=60, **options)  # type: ignore[arg-type]

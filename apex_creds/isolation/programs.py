"""Any program behind the wall, as one invocation of a plugin: its requests go by the gateway.

Guarantee: the program has placeholders where its keys would be; what it sends is an ordinary
redeem of the invocation, which ends when the program does. Nothing of it is left then: no
process, connection or lease.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import IO, Final

import anyio
import anyio.to_thread
import msgspec

from apex_creds.clocks import SystemClock
from apex_creds.crypto.certificates import CertificateAuthority
from apex_creds.errors import AccessDeniedError, InvalidInputError, IsolationError
from apex_creds.isolation.dialing import Dialer
from apex_creds.isolation.environment import Surroundings, surroundings
from apex_creds.isolation.gateway import Gateway
from apex_creds.isolation.invocations import Held, held_by
from apex_creds.isolation.sandbox import Wall, Walled
from apex_creds.leases.lease import Invocation, current_invocation
from apex_creds.middleware import CredentialMiddleware
from apex_creds.middleware.callables import BehindWall
from apex_creds.policy.manifest import Manifest

PORT: Final = "8080"
"""Of the gateway, in a network that has nothing else."""
_ACTION: Final = "run"


async def run_program(
    middleware: CredentialMiddleware,
    manifest: Manifest,
    wall: Wall,
    *,
    dialer: Dialer | None = None,
    began: Callable[[Walled], object] | None = None,
    stdout: int | IO[bytes] | None = None,
) -> int:
    """Runs a program until it ends.

    Args:
        middleware: Whose leases it works with.
        manifest: Of the plugin that it is.
        wall: The program, and what else it sees.
        dialer: Connects to servers.
        began: Called when it runs.
        stdout: Where it writes to; None: where this process does.

    Returns:
        Its exit status; negative: the number of a signal.

    Raises:
        AccessDeniedError: A required credential is refused.
        IsolationError: It could not be started.
    """

    async def invocation() -> int:
        call = current_invocation()
        assert call is not None
        held = await held_by(call)
        if not held:
            raise AccessDeniedError(
                "The plugin may use none of its credentials.",
                hint="The operator can see why in the audit log.",
            )
        gateway, found = way_out(held, lambda: call, dialer=dialer)
        walled = await with_surroundings(wall, found).start(stdin=None, stdout=stdout)
        try:
            await serve(gateway, found, walled.listeners)
            if began is not None:
                began(walled)
            return await _ended(walled)
        finally:
            with anyio.CancelScope(shield=True):
                await gateway.close()
                await anyio.to_thread.run_sync(walled.close)

    if not manifest.needs:
        raise InvalidInputError(
            f"The plugin {manifest.plugin!r} declares no credential.",
            hint="What needs none needs no gateway, and has no network here.",
        )
    status = await middleware.invoke_action(manifest, _ACTION, BehindWall(invocation))
    if not isinstance(status, int):
        raise IsolationError("The program did not say how it ended.", hint="Run it again.")
    return status


def way_out(
    held: list[Held],
    invocation_of: Callable[[], Invocation | None],
    *,
    dialer: Dialer | None = None,
) -> tuple[Gateway, Surroundings]:
    """A gateway for what runs behind a wall that listens at ``PORT``, and what it finds there.

    Args:
        held: The credentials that may be sent.
        invocation_of: Who runs there now; None: nobody.
        dialer: Connects to servers.
    """
    origins = {origin for each in held for origin in each.origins}
    hosts = {origin.host for origin in origins if origin.scheme == "https"}
    certificates = CertificateAuthority(hosts, now=SystemClock().time())
    found = surroundings(held, f"127.0.0.1:{PORT}", certificates=certificates.pem)
    gateway = Gateway(
        invocation_of,
        placeholders=found.placeholders,
        certificates=certificates,
        dialer=dialer,
    )
    return gateway, found


def with_surroundings(wall: Wall, found: Surroundings) -> Wall:
    """The wall with what a program behind it finds, and where it connects to."""
    return msgspec.structs.replace(
        wall,
        environment={**found.variables, **wall.environment},
        files={**found.files, **wall.files},
        listen=sockets_of(found),
        unix_sockets=bool(found.logins) or wall.unix_sockets,
    )


def sockets_of(found: Surroundings) -> list[str]:
    """Where what is behind a wall connects to: the gateway, and databases."""
    return [PORT, *(login.path for login in found.logins)]


async def serve(
    gateway: Gateway, found: Surroundings, listeners: Sequence[socket.socket]
) -> None:
    """Has a gateway serve those sockets, in their order."""
    http, *sockets = listeners
    await gateway.start(http)
    for login, listener in zip(found.logins, sockets, strict=True):
        await gateway.start_login(listener, login)


async def _ended(walled: Walled) -> int:
    """Waits for its end without a thread, which a cancellation could not end."""
    fd = os.pidfd_open(walled.process.pid)
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    try:
        loop.add_reader(fd, over.set)
        await over.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return walled.process.wait()

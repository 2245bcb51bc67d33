"""Finds the invocation that a connection from behind the wall belongs to, and what it may do.

Guarantee: only open leases count; what is refused is audited for one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from apex_creds.concurrency import soon
from apex_creds.errors import (
    AccessDeniedError,
    ApexCredsError,
    RequestNotAllowedError,
    SecretLeakError,
)
from apex_creds.isolation.placeholders import MisplacedError
from apex_creds.isolation.request_heads import Head, Place
from apex_creds.leases.broker import LeaseBroker, find_open, keep_open
from apex_creds.leases.handle import CredentialMap
from apex_creds.leases.lease import AccessRequest, Invocation, Lease
from apex_creds.middleware.call import WrappedCall
from apex_creds.model import HTTP, CredentialInfo, Origin

_POSTGRES: Final = "postgresql"


class Held(NamedTuple):
    """A credential of an invocation.

    Attributes:
        origins: Where it may be sent by HTTP.
        database: Of PostgreSQL, that it may log in to; empty: the role's own; None: it is for
            no such server.
        variables: That the manifest wants it in.
    """

    info: CredentialInfo
    origins: tuple[Origin, ...]
    database: str | None = None
    variables: tuple[str, ...] = ()


def open_leases(call: Invocation) -> list[tuple[Lease, LeaseBroker]]:
    """Those of its leases that have not ended."""
    handles, found = call.credentials, []
    assert isinstance(handles, CredentialMap)
    for handle in handles.values():
        with contextlib.suppress(ApexCredsError):
            found.append(find_open(handle.id))
    return found


async def held_by(call: Invocation) -> list[Held]:
    """The credentials that an invocation has open leases on."""
    found: list[Held] = []
    for lease, broker in open_leases(call):
        state = (broker.states_now((lease.need,)) or await broker.states((lease.need,)))[0]
        if state.record is None:
            continue
        origins, paths = lease.permission.origins, lease.permission.paths
        database = None
        if any(each.scheme == _POSTGRES for each in origins):
            named = [path[1:] for path in paths if not path.endswith("*")]
            only = len(named) == len(paths) == 1 and "/" not in named[0]
            database = named[0] if only else ""
        http = sorted(each for each in origins if each.scheme in HTTP)
        found.append(Held(state.record.info, tuple(http), database, lease.need.variables))
    return found


@contextlib.contextmanager
def cancelled_at_end(call: Invocation | None) -> Iterator[None]:
    """Has the current task cancelled when an invocation ends."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def end() -> None:
        if call is not None and call.ended:
            soon(loop, task.cancel)

    leases = [] if call is None else list(call.leases)
    for lease in leases:
        lease.close_at_end(end)
    try:
        yield
    finally:
        for lease in leases:
            keep_open(lease.id, end)


def check_tunnel(call: Invocation, host: str, port: int) -> Origin:
    """Where a tunnel leads, before the name is looked up.

    Raises:
        RequestNotAllowedError: No credential may be sent there; audited.
    """
    leases = open_leases(call)
    for scheme in ("https", "http"):
        origin = Origin(scheme, host, port)
        if any(origin in lease.permission.origins for lease, _ in leases):
            return origin
    for lease, broker in leases[:1]:
        asked = AccessRequest("CONNECT", Origin("https", host, port))
        broker.log_refused_request(lease, asked)
    raise RequestNotAllowedError(
        f"Nothing may be sent to {Origin('https', host, port)}.",
        hint="A credential's owner says where it may go: apex-creds edit NAME --origin URL",
    )


def report_leak(
    error: MisplacedError, call: WrappedCall, head: Head, place: Place
) -> ApexCredsError:
    """Audits that a placeholder was where none may be, and what it is refused with."""
    call.report_leak(error.name, where="request")
    handles = call.credentials
    assert isinstance(handles, CredentialMap)
    handle = handles.get(error.name)
    if handle is not None:
        lease, broker = find_open(handle.id)
        path = place.target.partition("?")[0]
        broker.log_refused_request(lease, AccessRequest(head.method, place.origin, path))
    name = f" {error.name!r}" if error.name else ""
    return SecretLeakError(
        f"The key{name} stands in {error.where}, where it is not sent.",
        hint="It is a placeholder, and the request was not sent. If its service wants it "
        "there, its owner says so: apex-creds edit NAME --delivery HOW",
    )


def nobody_there() -> AccessDeniedError:
    """The refusal outside of an invocation, and after it."""
    return AccessDeniedError(
        "No invocation of the plugin runs that this connection is known to belong to.",
        hint="Send requests while the plugin is called, and connect anew in each call. In "
        "several calls at once they are sent by handles: credentials[NAME].client().",
    )

"""Carries out what a worker's handles request, in the invocation that they belong to.

Guarantee: each of these is the same step as in one process: found by its lease, checked,
audited, and only then decrypted. What a worker sends is data of known types, or is refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final, cast

import httpx
import msgspec

from apex_creds.errors import AccessDeniedError, InvalidInputError
from apex_creds.isolation.channel import Open, opened
from apex_creds.leases.broker import find_open
from apex_creds.leases.exchange import exchange
from apex_creds.leases.handle import CredentialHandle, Reveal, current_credentials
from apex_creds.leases.http_messages import Request, SendFailure

LEFT: Final = "reveal:worker"
"""In the log: the value has left the host, for a worker."""
ANSWER: Final = "answer"
_WHERE: Final = "isolated:"  # where pieces of an upload may come from


class Sending(msgspec.Struct, frozen=True, array_like=True):
    """A request, as ``remote_handles.exchange`` sends it."""

    lease_ids: list[str]
    method: str
    url: str
    headers: list[tuple[bytes, bytes]]
    body: Any
    timeout: dict[str, float | None]
    scope: str | None


class _SendFailed(Exception):  # noqa: N818 - what went wrong is its argument
    """For the library behind the wall to say."""


def described(handle: CredentialHandle) -> list[object]:
    """A handle, as ``RemoteHandle`` takes it: what the plugin may know of it."""
    lease, _ = find_open(handle.id)
    origins = sorted(map(str, lease.permission.origins))
    return [handle.id, handle.name, list(handle.scopes), handle.expires, origins]


def find(what: str) -> Callable[[list[Any]], Awaitable[object]] | None:
    """What does it; None: nothing of that name is done for handles."""
    return _DONE.get(what)


async def _reveal(value: list[Any]) -> bytes:
    lease_id, part, scope = msgspec.convert(value, tuple[str, str, str | None])
    async with Reveal(lease_id, part, scope, logged=LEFT) as secret:
        return secret.expose_bytes()


async def _active(value: list[Any]) -> bool:
    (lease_id,) = msgspec.convert(value, tuple[str])
    return _handle(lease_id).active


async def _made(how: str, value: list[Any]) -> object:
    """What a method of the handle makes with the secret."""
    lease_id, args, options = msgspec.convert(value, tuple[str, list[Any], dict[str, Any]])
    return await getattr(_handle(lease_id), how)(*args, **options)


async def _attenuate(value: list[Any]) -> list[object]:
    lease_id, options = msgspec.convert(value, tuple[str, dict[str, Any]])
    if "scopes" in options and options["scopes"] is not None:
        options["scopes"] = tuple(options["scopes"])
    return described(_handle(lease_id).attenuate(**options))


async def _refuse(value: list[Any]) -> None:
    (name,) = msgspec.convert(value, tuple[str])
    current_credentials()[name]  # logs it, and raises
    raise AccessDeniedError("There is no such credential here.")


async def _send(value: list[Any]) -> Open:
    asked = msgspec.convert(value, Sending)
    if asked.body is not None and not isinstance(asked.body, bytes | Pieces):
        raise InvalidInputError("A request's body is bytes, or comes in pieces.")
    if not asked.lease_ids:
        raise AccessDeniedError("This request has no credential to be sent with.")
    return opened(_sent(asked), ANSWER)


async def _sent(asked: Sending) -> AsyncIterator[object]:
    """First its head, then the pieces of its body."""
    body = asked.body.steps() if isinstance(asked.body, Pieces) else asked.body
    request = Request(
        asked.method, asked.url, asked.headers, body, asked.timeout, _SendFailed, asked.scope
    )
    try:
        answered = await exchange(asked.lease_ids, request)
        headers = [list(each) for each in answered.headers]
        yield ["answered", answered.status, headers, answered.http_version]
        stream = cast("httpx.AsyncByteStream", answered.body)
        try:
            async for piece in stream:
                yield piece
        finally:
            await stream.aclose()
    except _SendFailed as error:
        failure = cast("SendFailure", error.args[0])
        yield ["failed", failure.kind, failure.name, failure.text]


class Pieces:
    """A body that the worker gives piece by piece.

    Args:
        steps: Asks it for them.
    """

    def __init__(self, steps: Callable[[], AsyncIterator[bytes]]) -> None:
        self.steps = steps


def _handle(lease_id: str) -> CredentialHandle:
    lease, _ = find_open(lease_id)
    return CredentialHandle(lease)


_DONE: Final[dict[str, Callable[[list[Any]], Awaitable[object]]]] = {
    "reveal": _reveal,
    "active": _active,
    **{how: partial(_made, how) for how in ("sign", "jwt", "presign")},
    "attenuate": _attenuate,
    "refuse": _refuse,
    "send": _send,
}

"""What requests say and what is answered, as JSON.

Guarantee: a body is read up to a limit and must be exactly what is expected; an error has
nothing in it but what this package's own errors say, escaped.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final, TypeVar

import anyio
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from apex_creds.dashboard.shown import text
from apex_creds.errors import (
    AccessDeniedError,
    ApexCredsError,
    InvalidInputError,
    LockedOutError,
    SecondFactorError,
)

T = TypeVar("T", bound=msgspec.Struct)

MAX_BODY: Final = 8192
BODY_SECONDS: Final = 10.0
encode = msgspec.json.Encoder().encode


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """An empty body: ``{}``."""


async def body(request: Request, kind: type[T]) -> T:
    """The request's JSON.

    Raises:
        InvalidInputError: It is not what is expected.
    """
    data = b""
    with anyio.move_on_after(BODY_SECONDS), suppress(ClientDisconnect):
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_BODY:
                break
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidInputError("That is not what the page sends.") from None


def told(value: object) -> Response:
    """An answer."""
    return Response(encode(value), media_type="application/json")


def refused(status: int, error: str, hint: str = "", **more: object) -> JSONResponse:
    """An answer that says no, and why."""
    return JSONResponse({"error": error, "hint": hint, **more}, status_code=status)


async def not_found(_: Request, __: Exception) -> Response:
    """There is no such place, or it is not asked so."""
    return refused(404, "There is nothing here.")


async def failed(_: Request, error: Exception) -> Response:
    """An error of this package."""
    assert isinstance(error, ApexCredsError)
    message, hint = text(error.message), text(error.hint)
    if isinstance(error, LockedOutError):
        wait = round(error.retry_after)
        return refused(429, message, hint, factor=True, retry_after=wait)
    if isinstance(error, SecondFactorError):
        return refused(403, message, hint, factor=True)
    if isinstance(error, InvalidInputError):
        return refused(400, message, hint)
    return refused(403 if isinstance(error, AccessDeniedError) else 503, message, hint)


async def broken(_: Request, __: Exception) -> Response:
    """Anything else; the terminal says what."""
    return refused(500, "Something went wrong; the terminal says what.")

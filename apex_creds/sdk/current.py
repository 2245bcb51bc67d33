"""Late binding: by names to the handles of the invocation that sends a request.

Guarantee: what an SDK keeps has names only. Which secrets go in is decided at each request, by
the invocation that it is made in; several plugins, tasks and threads may share one client, and
none sends with another's rights: an answer's cookies, which a client would send along in all of
them, are not passed on. A refusal is an answer, 403 with ``x-should-retry: false`` and
our words as JSON, so that an SDK tries once and raises its own permission error: what a
transport raises it would take for a connection that failed, and try again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Final, Literal, TypeVar

import httpx
import msgspec

from apex_creds.errors import AccessDeniedError, ApexCredsError, InvalidInputError
from apex_creds.leases.broker import find_open
from apex_creds.leases.exchange import exchange, exchange_blocking, seen
from apex_creds.leases.handle import current_credentials
from apex_creds.leases.http_messages import Answered, Request
from apex_creds.leases.lease import current_invocation
from apex_creds.model import PLACEHOLDER
from apex_creds.plain import plain_text, plain_texts

T = TypeVar("T")

Refusal = Literal["answer", "raise"]
"""What a refused request is for the SDK: an answer of 403, or our exception."""
_WORD_END: Final = re.compile(r"(?<!^)(?=[A-Z])")
COOKIES: Final = frozenset({b"set-cookie", b"set-cookie2"})
"""Headers of answers that are not passed on."""
_NO_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


def placeholder(prefix: str = "") -> str:
    """A key that is none, for an SDK that asks for one when its client is made.

    Each header with it is taken out before the real credential is put in; a request with it
    anywhere else is refused.

    Args:
        prefix: What the SDK wants a key to begin with, as ``sk-ant-``.
    """
    return plain_text(prefix, what="prefix") + PLACEHOLDER


class Executor(ThreadPoolExecutor):
    """A pool of threads in which what is submitted runs in the invocation of its submitter."""

    def submit(self, fn: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        """See ``concurrent.futures.Executor.submit``."""
        return super().submit(copy_context().run, partial(fn, *args, **kwargs))


class Binding:
    """What an adapter sends through; made before there is any invocation.

    Args:
        names: Of credentials. Those that may go to where a request goes are sent with it; none:
            all that the invocation has.
        scope: One that the leases must have.
        refusal: ``answer`` or ``raise``.

    Raises:
        InvalidInputError: An argument is of another kind.
    """

    __slots__ = ("_names", "_raises", "_scope")

    def __init__(
        self, names: tuple[str, ...], scope: str | None = None, refusal: Refusal = "answer"
    ) -> None:
        self._names = plain_texts(names, what="credential names")
        self._scope = None if scope is None else plain_text(scope, what="scope")
        if refusal not in ("answer", "raise"):
            raise InvalidInputError("The refusal is one of: answer, raise.")
        self._raises = refusal == "raise"

    async def send(self, request: Request) -> Answered:
        """Sends with the handles of the current invocation; a refusal is an answer.

        Raises:
            ApexCredsError: It was refused, and ``refusal`` is ``raise``.
        """
        try:
            answered = await exchange(self.leases(request), self._prepared(request))
            return _without_cookies(answered)
        except ApexCredsError as error:
            if self._raises:
                raise
            return refused(error)

    def send_blocking(self, request: Request) -> Answered:
        """As ``send``, for threads."""
        try:
            answered = exchange_blocking(self.leases(request), self._prepared(request))
            return _without_cookies(answered)
        except ApexCredsError as error:
            if self._raises:
                raise
            return refused(error)

    def _prepared(self, request: Request) -> Request:
        """Of this scope, with a header that says where the body ends."""
        headers, body = list(request.headers), request.body
        # httpx says it itself, and where it says nothing there is no body.
        if not (
            body is None
            or isinstance(body, httpx.ByteStream)
            or any(name.lower() in _NO_FRAMING for name, _ in headers)
        ):
            headers.append(
                (b"Content-Length", str(len(body)).encode())
                if isinstance(body, bytes)
                else (b"Transfer-Encoding", b"chunked")
            )
        return msgspec.structs.replace(request, headers=headers, scope=self._scope)

    def leases(self, request: Request) -> list[str]:
        """The leases of the current invocation that go into a request.

        Raises:
            AccessDeniedError: There is none; audited in an invocation.
        """
        if current_invocation() is None:
            raise AccessDeniedError(
                "This client sends with an invocation's credentials, and there is none here.",
                hint="Make it anywhere, and use it in a plugin's action. In threads: "
                "apex_creds.sdk.Executor, or contextvars.copy_context().run(…).",
            )
        credentials = current_credentials()
        handles = [credentials.get(name) for name in self._names or credentials]
        found = [handle.id for handle in handles if handle is not None]
        origin = seen(request).origin
        going = [lease for lease in found if origin in find_open(lease)[0].permission.origins]
        if going:
            return going
        for name in self._names:
            credentials[name]  # refuses the first that it has no handle for, and logs it
        if not found:
            raise AccessDeniedError(
                "This invocation has no credential to send.",
                hint="Declare it in the plugin's manifest, and have it granted.",
            )
        return found[:1]  # which is refused, with where it went


def _without_cookies(answered: Answered) -> Answered:
    """A session that a credential has begun is not for who else uses the client."""
    kept = [each for each in answered.headers if each[0].lower() not in COOKIES]
    if len(kept) == len(answered.headers):
        return answered
    return msgspec.structs.replace(answered, headers=kept, given=None)


def refused(error: ApexCredsError) -> Answered:
    """A refusal, as the answer that an SDK understands."""
    code = _WORD_END.sub("_", type(error).__name__.removesuffix("Error")).lower()
    message = str(error)
    said = {
        "error": {"type": "permission_error", "code": code, "message": message},
        # Where other SDKs look: those of GitHub and Twilio, and by RFC 9457.
        "message": message,
        "detail": message,
    }
    body = json.dumps(said).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-should-retry", b"false"),
    ]
    return Answered(403, headers, httpx.ByteStream(body), b"HTTP/1.1", None)

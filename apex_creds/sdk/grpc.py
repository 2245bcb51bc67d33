"""gRPC channels whose calls carry credentials that no call object has.

Guarantee: at each call the invocation that makes it is found; the secret goes in as the core's
own call credentials, below every interceptor, for the server that the core names, by TLS only.
Streams end with the lease. What a server answers is searched for the secret: ``grpc_answers``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import grpc.aio

from apex_creds.concurrency import run_at_once, soon
from apex_creds.errors import ApexCredsError, InvalidInputError, RequestNotAllowedError
from apex_creds.leases.broker import find_open, keep_open
from apex_creds.leases.exchange import injected_head
from apex_creds.leases.http_messages import Request
from apex_creds.leases.lease import AccessRequest
from apex_creds.leases.logins import lease_here, trusted_certificates
from apex_creds.model import Origin
from apex_creds.sdk.current import Binding
from apex_creds.sdk.grpc_answers import Answer, Ending, Failed, Sent, aio_answer

_REDIRECTING: Final = (
    "authority",
    "target_name",
    "proxy",
    "ssl",
    "lb_policy",
)
_RETRIES: Final = frozenset({"methodConfig", "retryThrottling"})
"""Of a service config: how calls are tried again; other parts say where they go."""
_Options = Sequence[tuple[str, Any]]


def channel(target: str, *names: str, options: _Options = ()) -> grpc.Channel:
    """A channel to a server, made once; each call carries the current invocation's secrets.

    Args:
        target: ``HOST:PORT``; the credential's origin is ``https://HOST:PORT``.
        names: Of credentials; none: all of an invocation that may go there.
        options: Of the channel; those that say another server are refused.

    Raises:
        InvalidInputError: An argument is not as described.
    """
    origin, chosen = _origin(target), _checked(options)
    made = grpc.secure_channel(target, _trust(), chosen)
    return grpc.intercept_channel(made, _Interceptor(Binding(names), names, origin))


def aio_channel(target: str, *names: str, options: _Options = ()) -> grpc.aio.Channel:
    """As ``channel``, of ``grpc.aio``."""
    origin, chosen = _origin(target), _checked(options)
    found = _aio_interceptors(names, origin)
    return grpc.aio.secure_channel(target, _trust(), chosen, interceptors=found)


def interceptors(*names: str) -> list[Any]:
    """For ``grpc.intercept_channel`` of a channel that something else makes, by TLS.

    The secret goes to the server that the core says the channel leads to. How that is checked
    (by certificates, by an authority) is up to the code that makes the channel.
    """
    return [_Interceptor(Binding(names), names, None)]


def aio_interceptors(*names: str) -> list[Any]:
    """As ``interceptors``, for ``grpc.aio.secure_channel(…, interceptors=)``."""
    return _aio_interceptors(names, None)


def _aio_interceptors(names: tuple[str, ...], origin: Origin | None) -> list[Any]:
    binding = Binding(names)
    kinds = (_AioUnaryUnary, _AioUnaryStream, _AioStreamUnary, _AioStreamStream)
    return [kind(binding, names, origin) for kind in kinds]


def _origin(target: str) -> Origin:
    return Origin.parse(f"https://{target.removeprefix('dns:///')}")


def _checked(options: _Options) -> list[tuple[str, Any]]:
    taken = [
        (key, _retries(value) if "service_config" in key else value) for key, value in options
    ]
    refused = [
        key
        for key, value in taken
        if value is None or any(word in key for word in _REDIRECTING)
    ]
    if refused:
        raise InvalidInputError(
            f"sdk.grpc does not take the option {refused[0]}.",
            hint="The target says where the channel leads to.",
        )
    return [*taken, ("grpc.enable_http_proxy", 0)]


def _retries(config: object) -> str | None:
    """A service config that says how calls are tried again, as it was read; None: more."""
    try:
        found = json.loads(str(config))
    except ValueError:
        return None
    return json.dumps(found) if isinstance(found, dict) and found.keys() <= _RETRIES else None


def _trust() -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(Path(trusted_certificates()).read_bytes())


class _Details(NamedTuple):
    """What ``grpc.ClientCallDetails`` is, as every version reads it."""

    method: Any
    timeout: Any
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any = None


class _Secret(grpc.AuthMetadataPlugin):
    """Called by the core, in the context of the invocation that it was made in."""

    def __init__(self, binding: Binding, call: Sent) -> None:
        self._binding, self._call = binding, call

    def __call__(self, context: Any, callback: Callable[..., None]) -> None:
        url = f"{context.service_url}/{context.method_name}"
        try:
            request = Request("POST", url, [], None, {}, _unsaid)
            leases = self._binding.leases(request)
            head = run_at_once(injected_head(leases, request, blocking=True))
            sent = head.outgoing
            if str(sent.url) != url:
                raise RequestNotAllowedError("A gRPC call has its credential in a header only.")
            self._call.add(head.search, head.leases, head.records)
            found = [(name.decode().lower(), value.decode()) for name, value in sent.headers]
        except ApexCredsError as error:
            callback((), RuntimeError(str(error)))
        else:
            callback(tuple(found), None)


class _Ours:
    """What every interceptor does: made once, at each call for the current invocation."""

    def __init__(self, binding: Binding, names: tuple[str, ...], origin: Origin | None) -> None:
        self._binding, self._names, self._origin = binding, names, origin

    def _prepared(self, details: Any, call: Sent) -> tuple[_Details, list[str]]:
        """The details with call credentials, and the leases that they are of.

        Raises:
            ApexCredsError: The call is refused.
        """
        leases = self._leases(details.method)
        ours = grpc.metadata_call_credentials(_Secret(self._binding, call))
        given = details.credentials
        return _Details(
            details.method,
            details.timeout,
            details.metadata,
            ours if given is None else grpc.composite_call_credentials(given, ours),
            details.wait_for_ready,
            getattr(details, "compression", None),
        ), leases

    def _leases(self, method: str | bytes) -> list[str]:
        if self._origin is None:
            return [lease_here(name) for name in self._names]
        path = method.decode() if isinstance(method, bytes) else method
        request = Request("POST", f"{self._origin}{path}", [], None, {}, _unsaid)
        found = self._binding.leases(request)
        asked = AccessRequest("POST", self._origin, path)
        for lease_id in found:
            lease, broker = find_open(lease_id)
            if not lease.permission.allows_request(
                origin=self._origin, method="POST", path=path
            ):
                # The core would say "unavailable" of what its plugin refuses.
                broker.redeem_blocking(lease, asked)[1].close()
        return found


class _Interceptor(
    _Ours,
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Of blocking channels."""

    def _call(self, continuation: Any, details: Any, request: Any) -> Any:
        sent = Sent()
        try:
            prepared, leases = self._prepared(details, sent)
            call = continuation(prepared, request)
            for lease in leases:
                _end_with(lease, call, call.cancel)
        except ApexCredsError as error:
            raise Failed(Ending(grpc.StatusCode.PERMISSION_DENIED, str(error))) from None
        return Answer(call, sent)

    intercept_unary_unary = _call
    intercept_unary_stream = _call
    intercept_stream_unary = _call
    intercept_stream_stream = _call


class _AioOurs(_Ours):
    async def _call(self, continuation: Any, details: Any, request: Any) -> Any:
        sent = Sent()
        try:
            prepared, leases = self._prepared(details, sent)
            call = await continuation(prepared, request)
            loop = asyncio.get_running_loop()
            for lease in leases:
                _end_with(lease, call, partial(soon, loop, call.cancel))
        except ApexCredsError as error:
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.PERMISSION_DENIED, nothing, nothing, str(error)
            ) from None
        return aio_answer(call, sent)


class _AioUnaryUnary(_AioOurs, grpc.aio.UnaryUnaryClientInterceptor):
    intercept_unary_unary = _AioOurs._call


class _AioUnaryStream(_AioOurs, grpc.aio.UnaryStreamClientInterceptor):
    intercept_unary_stream = _AioOurs._call


class _AioStreamUnary(_AioOurs, grpc.aio.StreamUnaryClientInterceptor):
    intercept_stream_unary = _AioOurs._call


class _AioStreamStream(_AioOurs, grpc.aio.StreamStreamClientInterceptor):
    intercept_stream_stream = _AioOurs._call


def _end_with(lease_id: str, call: Any, cancel: Callable[[], object]) -> None:
    find_open(lease_id)[0].close_at_end(cancel)
    with suppress(AttributeError):  # one that is over already has no callbacks
        call.add_done_callback(lambda _: keep_open(lease_id, cancel))


def _unsaid(*_: object) -> BaseException:
    return OSError("the call failed")

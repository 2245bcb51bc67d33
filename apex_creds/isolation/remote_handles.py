"""The plugin's handles behind the wall: the same names and calls, done by the host.

Guarantee: nothing here has a secret, but what a plugin reveals that manifest and grant allow
to: that comes over the socket, and the log says that it has left the host. Whether a handle may
be used is decided by the host at each use, as if the plugin ran there.
"""

from __future__ import annotations

import asyncio
import hmac
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, NoReturn, Protocol, TypeVar, cast

import httpx

from apex_creds.errors import (
    AccessDeniedError,
    LeaseEndedError,
    SecretMisuseError,
    SecretWipedError,
)
from apex_creds.isolation.channel import Ended, Remote
from apex_creds.leases.http_messages import Answered, Request, Say, SendFailure
from apex_creds.model import Origin

T = TypeVar("T")


class Host(Protocol):
    """What does it."""

    async def ask(self, what: str, value: object) -> object:
        """In the plugin's event loop."""

    def ask_blocking(self, what: str, value: object) -> object:
        """In any thread."""

    async def over(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does a step of what the host has open."""

    def over_blocking(self, work: Callable[[], Awaitable[T]]) -> T:
        """As ``over``, in any thread."""


class Call(NamedTuple):
    """The call of the plugin that is being run.

    Attributes:
        id: The host's name for it.
        plugin: Its id.
        credentials: Its handles, by credential name.
    """

    id: str
    plugin: str
    credentials: RemoteMap
    host: Host


current: Final[ContextVar[Call | None]] = ContextVar("apex_creds_call", default=None)
_by_lease: Final[dict[str, RemoteHandle]] = {}


def _call() -> Call:
    found = current.get()
    if found is None:
        raise AccessDeniedError(
            "There is no credential here: each call of a plugin has its own handles.",
            hint="Use it in an action, or in what an action has started.",
        )
    return found


async def _asked(what: str, *values: object) -> Any:
    call = _call()
    return await call.host.ask(what, [call.id, *values])


def _asked_blocking(what: str, *values: object) -> Any:
    call = _call()
    return call.host.ask_blocking(what, [call.id, *values])


class RemoteHandle:
    """A handle, as ``CredentialHandle`` is one in the host."""

    __slots__ = ("expires", "id", "name", "origins", "scopes")

    def __init__(self, fields: list[Any]) -> None:
        self.id, self.name, scopes, self.expires, origins = fields
        self.scopes = tuple(scopes)
        self.origins = frozenset(Origin.parse(each) for each in origins)

    @property
    def active(self) -> bool:
        """Whether a redeem could succeed now."""
        return bool(_asked_blocking("active", self.id))

    def reveal(self, *, part: str = "", scope: str | None = None) -> RemoteReveal:
        """The secret itself, which leaves the host: manifest and grant must both say so."""
        return RemoteReveal([self.id, part, scope])

    def client(self, *, scope: str | None = None, **options: object) -> httpx.AsyncClient:
        """An HTTP client whose requests the host sends, with the secret in them."""
        from apex_creds.leases.http_client import open_async_client

        return open_async_client(self.id, scope, options)

    def sync_client(self, *, scope: str | None = None, **options: object) -> httpx.Client:
        """As ``client``, for threads."""
        from apex_creds.leases.http_client import open_client

        return open_client(self.id, scope, options)

    async def sign(self, data: bytes, **options: object) -> bytes:
        """An HMAC, made by the host."""
        return bytes(await _asked("sign", self.id, [bytes(data)], options))

    def sync_sign(self, data: bytes, **options: object) -> bytes:
        """As ``sign``, for threads."""
        return bytes(_asked_blocking("sign", self.id, [bytes(data)], options))

    async def jwt(self, claims: Mapping[str, object], **options: object) -> str:
        """A JSON Web Token, made by the host."""
        return str(await _asked("jwt", self.id, [dict(claims)], options))

    def sync_jwt(self, claims: Mapping[str, object], **options: object) -> str:
        """As ``jwt``, for threads."""
        return str(_asked_blocking("jwt", self.id, [dict(claims)], options))

    async def presign(self, method: str, url: str, **options: object) -> str:
        """A signed URL, made by the host."""
        return str(await _asked("presign", self.id, [method, url], options))

    def sync_presign(self, method: str, url: str, **options: object) -> str:
        """As ``presign``, for threads."""
        return str(_asked_blocking("presign", self.id, [method, url], options))

    def attenuate(self, **options: object) -> RemoteHandle:
        """A narrower handle."""
        return known(RemoteHandle(_asked_blocking("attenuate", self.id, options)))

    def __repr__(self) -> str:
        return f"<CredentialHandle {self.name!r}>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise SecretMisuseError("A credential handle can't be pickled or copied.")


def known(handle: RemoteHandle) -> RemoteHandle:
    """Has it found by its lease."""
    _by_lease[handle.id] = handle
    return handle


def forget(handles: Iterable[RemoteHandle]) -> None:
    """Their call is over."""
    for handle in handles:
        _by_lease.pop(handle.id, None)


class RemoteMap(Mapping[str, RemoteHandle]):
    """An invocation's handles by credential name."""

    __slots__ = ("_handles",)

    def __init__(self, handles: Mapping[str, RemoteHandle]) -> None:
        self._handles = handles

    def __getitem__(self, name: object) -> RemoteHandle:
        found = self._handles.get(name) if isinstance(name, str) else None
        if found is None:
            _asked_blocking("refuse", str(name)[:200])  # logs it, and raises
            raise AccessDeniedError("There is no such credential here.")
        return found

    def get(self, name: object, default: Any = None) -> Any:
        """The handle, or ``default``; asking is no offence."""
        return self._handles.get(name, default) if isinstance(name, str) else default

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._handles

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def __repr__(self) -> str:
        return f"<CredentialMap {sorted(self._handles)}>"


_NONE: Final = RemoteMap({})


def current_credentials() -> RemoteMap:
    """The handles of the current invocation, by credential name."""
    found = current.get()
    return _NONE if found is None else found.credentials


class CurrentMap(RemoteMap):
    """The handles of whichever call it is used in."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__({})

    @property
    def _handles(self) -> Mapping[str, RemoteHandle]:
        return current_credentials()._handles

    @_handles.setter
    def _handles(self, value: object) -> None:
        pass


# -- what was revealed ---------------------------------------------------------------------


class RemoteSecret:
    """What ``reveal`` gives, as ``SecretBytes`` is it in the host; wiped on exit."""

    __slots__ = ("_bytes",)

    def __init__(self, data: bytes) -> None:
        self._bytes: bytearray | None = bytearray(data)

    def _open(self) -> bytearray:
        if self._bytes is None:
            raise SecretWipedError("The secret was wiped: its block has ended.")
        return self._bytes

    def view(self) -> memoryview:
        """A view of it."""
        return memoryview(self._open()).toreadonly()

    def equals(self, other: object) -> bool:
        """Whether it is the same, in constant time."""
        data = other._open() if isinstance(other, RemoteSecret) else bytes(cast("bytes", other))
        return hmac.compare_digest(self._open(), data)

    @property
    def closed(self) -> bool:
        """Whether it was wiped."""
        return self._bytes is None

    def expose_bytes(self) -> bytes:
        """A copy of it."""
        return bytes(self._open())

    def expose_str(self) -> str:
        """A copy of it, as text."""
        return self._open().decode()

    def __len__(self) -> int:
        return len(self._open())

    def __repr__(self) -> str:
        return "<SecretBytes>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise SecretMisuseError("A secret can't be pickled or copied.")

    def close(self) -> None:
        """Wipes it; idempotent."""
        data, self._bytes = self._bytes, None
        if data is not None:
            data[:] = bytes(len(data))


class RemoteReveal:
    """What ``handle.reveal()`` returns; enter it once."""

    __slots__ = ("_secret", "_values")

    def __init__(self, values: list[object]) -> None:
        self._values = values
        self._secret: RemoteSecret | None = None

    async def __aenter__(self) -> RemoteSecret:
        self._secret = RemoteSecret(await _asked("reveal", *self._values))
        return self._secret

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()

    def __enter__(self) -> RemoteSecret:
        self._secret = RemoteSecret(_asked_blocking("reveal", *self._values))
        return self._secret

    def __exit__(self, *_: object) -> None:
        secret, self._secret = self._secret, None
        if secret is not None:
            secret.close()


# -- requests ------------------------------------------------------------------------------

OPEN: Final[set[object]] = set()
"""The answers that are not closed."""


class _Body:
    def __init__(self, remote: Remote, host: Host, say: Say) -> None:
        self._remote = remote
        self._host = host
        self._say = say
        OPEN.add(self)

    def _piece(self, value: Any) -> bytes:
        """What a step brought.

        Raises:
            BaseException: The library's own, of what went wrong.
        """
        if isinstance(value, bytes):
            return value
        raise self._say(SendFailure(*value[1:]))


class RemoteBody(_Body, httpx.AsyncByteStream):
    """The body of an answer, which the host reads."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            try:
                value = await self._host.over(self._remote.step)
            except Ended:
                break
            yield self._piece(value)
        OPEN.discard(self)

    async def aclose(self) -> None:
        """Has the host close it."""
        OPEN.discard(self)
        await self._host.over(self._remote.close)


class RemoteSyncBody(_Body, httpx.SyncByteStream):
    """As ``RemoteBody``, for threads."""

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                value = self._host.over_blocking(self._remote.step)
            except Ended:
                break
            yield self._piece(value)
        OPEN.discard(self)

    def close(self) -> None:
        """Has the host close it."""
        OPEN.discard(self)
        self._host.over_blocking(self._remote.close)


async def exchange(lease_ids: Iterable[str], request: Request) -> Answered:
    """Has the host send a request; as ``leases.exchange.exchange``."""
    call = _call()
    remote = await call.host.ask("send", [call.id, *_sent(lease_ids, request)])
    assert isinstance(remote, Remote)
    head = await call.host.over(remote.step)
    return _answered(head, RemoteBody(remote, call.host, request.say), request)


def exchange_blocking(lease_ids: Iterable[str], request: Request) -> Answered:
    """As ``exchange``, for threads."""
    call = _call()
    remote = call.host.ask_blocking("send", [call.id, *_sent(lease_ids, request)])
    assert isinstance(remote, Remote)
    head = call.host.over_blocking(remote.step)
    return _answered(head, RemoteSyncBody(remote, call.host, request.say), request)


def _sent(lease_ids: Iterable[str], request: Request) -> list[object]:
    body = request.body
    if isinstance(body, httpx.ByteStream):
        body = b"".join(body)
    if body is not None and not isinstance(body, bytes):
        body = Upload(body)
    headers = [[bytes(name), bytes(value)] for name, value in request.headers]
    timeout = {str(name): value for name, value in request.timeout.items()}
    method, url = str(request.method), str(request.url)
    return [list(lease_ids), method, url, headers, body, timeout, request.scope]


class Upload:
    """A request's body that comes in pieces, which the host asks for."""

    def __init__(self, pieces: Any) -> None:
        self._pieces = pieces

    async def steps(self) -> AsyncIterator[bytes]:
        """Its pieces."""
        if hasattr(self._pieces, "__aiter__"):
            async for piece in self._pieces:
                yield bytes(piece)
            return
        steps = iter(self._pieces)
        while True:
            piece = await asyncio.to_thread(next, steps, None)
            if piece is None:
                return
            yield bytes(piece)


def _answered(head: Any, body: RemoteBody | RemoteSyncBody, request: Request) -> Answered:
    if head[0] == "failed":
        OPEN.discard(body)
        raise request.say(SendFailure(*head[1:]))
    _, status, headers, version = head
    return Answered(status, [(name, value) for name, value in headers], body, version, None)


# -- in place of the host's own modules ----------------------------------------------------


class _Seen(NamedTuple):
    origin: Origin | None


def _seen(request: Request) -> _Seen:
    url = httpx.URL(str(request.url))
    port = url.port or {"https": 443, "http": 80}.get(url.scheme, 0)
    return _Seen(Origin(url.scheme, url.host, port) if port else None)


class _Permission(NamedTuple):
    origins: frozenset[Origin]


class _Lease(NamedTuple):
    permission: _Permission


def _find_open(lease_id: str) -> tuple[_Lease, None]:
    found = _by_lease.get(lease_id)
    if found is None:
        raise LeaseEndedError("The lease has ended: its call is over.")
    return _Lease(_Permission(found.origins)), None


def stand_in() -> None:
    """Puts these where plugins and the adapters of SDKs look for the host's."""
    import apex_creds

    handles: dict[str, object] = {
        "CredentialHandle": RemoteHandle,
        "CredentialMap": RemoteMap,
        "current_credentials": current_credentials,
    }
    _module("leases.handle", **handles)
    _module("leases.broker", find_open=_find_open)
    _module("leases.lease", current_invocation=current.get)
    _module("leases.bodies", OPEN=OPEN, AsyncBody=RemoteBody, SyncBody=RemoteSyncBody)
    _module(
        "leases.exchange", exchange=exchange, exchange_blocking=exchange_blocking, seen=_seen
    )
    for name, value in handles.items():
        setattr(sys.modules["apex_creds.leases"], name, value)
        setattr(apex_creds, name, value)
    apex_creds.SecretBytes = RemoteSecret  # type: ignore[misc,assignment]


def _absent(name: str) -> NoReturn:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(
        f"{name} is not there behind the wall: of apex_creds.sdk, what sends HTTP is (httpx, "
        "requests, urllib3, aiohttp). PostgreSQL is a socket there: PGHOST, DATABASE_URL."
    )


def _module(name: str, **values: object) -> None:
    made = types.ModuleType(f"apex_creds.{name}")
    vars(made).update(values, __getattr__=_absent)
    sys.modules[made.__name__] = made
    package, _, last = made.__name__.rpartition(".")
    setattr(sys.modules[package], last, made)

"""The connection pools of a broker: one for each plugin, credential and event loop.

Guarantee: a connection never carries requests of two plugins, or of two credentials: what
one leaves behind in it can't become part of another's request. A pool is used on the loop
that it was made on, and closed there: after it was idle, with the broker, or when its loop
ends. One of a loop that is closed already is dropped. A transport that was given is used
for all, and never closed here. Once a response, or an error, has come back, nothing that it
leads to has the request's headers or URL: they are taken out of the pool's request.

Requests wait for a connection here, in a fair queue, and not in the pool of httpcore, which
searches everything that waits whenever a connection becomes free: with thousands of
waiting requests that costs more than the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import ssl
import threading
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from contextvars import ContextVar
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import anyio
import httpcore
import httpx

from apex_creds.concurrency import running_loop
from apex_creds.leases.outgoing_requests import Outgoing
from apex_creds.model import Origin

_AT_ONCE: Final = 32
"""Requests to one origin; a slow server keeps only its own origin's places."""
_IDLE: Final = 10.0
"""Seconds after which a pool that nobody uses is closed."""
_MOST: Final = 256
"""Pools of one loop, or of the threads; beyond, the ones that are idle are closed first."""
_TIMED_OUT: Final = "No connection became free in time: too many requests at once."
_KEPT_ALIVE: Final = 20
_EXPIRY: Final = 5.0
_NOWHERE: Final = httpcore.URL(scheme=b"http", host=b"", port=None, target=b"/")

P = TypeVar("P", bound="_Pool")


class Key(NamedTuple):
    """What a pool belongs to: the plugin that sends, and the credential's id.

    Attributes:
        network: What dials; None: httpcore does.
    """

    plugin: str
    credential: str
    network: httpcore.AsyncNetworkBackend | None = None


NETWORK: Final[ContextVar[httpcore.AsyncNetworkBackend | None]] = ContextVar(
    "apex_creds_network", default=None
)
"""What dials for the requests of a task; a pool has connections of one only."""


class Answer(NamedTuple):
    """What came back.

    Attributes:
        stream: The body, which closes as streams of httpx do.
        given: The headers as httpx has them already; None: it has not.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    stream: AsyncIterable[bytes] | Iterable[bytes]
    extensions: Mapping[str, Any]
    given: httpx.Headers | None = None


class Permit:
    """A request's place in a pool; ``done`` gives it to the next, once."""

    __slots__ = ("_release",)

    def __init__(self, release: Callable[[], object] | None = None) -> None:
        self._release = release

    def done(self) -> None:
        """Lets the next request go; idempotent."""
        release, self._release = self._release, None
        if release is not None:
            release()


class _Semaphore(Protocol):
    def release(self) -> object: ...


class _Places:
    """A semaphore whose ``release`` may be called while garbage is collected in ``acquire``."""

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(_AT_ONCE):
            self._free.put(None)

    def acquire(self, *, timeout: float | None) -> bool:
        """Whether there was a place in that time."""
        try:
            self._free.get(timeout=timeout)
        except queue.Empty:
            return False
        return True

    def release(self) -> None:
        self._free.put(None)


class _PoolLock:
    """The lock of a pool of httpcore, in place of one that waits for itself without end.

    An answer that was left half read is closed when it is collected as garbage: anywhere, also
    by a thread that is changing the pool. There it is closed when that is done.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within: set[int] = set()
        self._later: deque[Callable[[], object]] = deque()

    def __enter__(self) -> None:
        self._within.add(threading.get_ident())
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        self._within.discard(threading.get_ident())
        while self._later:
            with contextlib.suppress(IndexError):  # another thread took it
                self._later.popleft()()

    def unheld(self, close: Callable[[], object]) -> None:
        """Calls it now, or as soon as this thread does not hold the lock."""
        if threading.get_ident() in self._within:
            self._later.append(close)
        else:
            close()


class _Pool:
    """What both kinds of pool do; the lock is held for no longer than a few steps."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # garbage is collected anywhere, also while it is held
        self._busy = 0
        self._idle_since = time.monotonic()

    def enter(self) -> None:
        """Keeps the pool open until ``leave``."""
        with self._lock:
            self._busy += 1

    def leave(self, places: _Semaphore | None) -> None:
        """A request is over."""
        with self._lock:
            self._busy -= 1
            self._idle_since = time.monotonic()
        if places is not None:
            places.release()

    def idle_for(self, now: float) -> float:
        """Seconds since it was last used; negative while it is."""
        return -1.0 if self._busy else now - self._idle_since


class AsyncPool(_Pool):
    """The connections of one plugin with one credential, on one event loop."""

    def __init__(
        self, transport: httpx.AsyncBaseTransport | Connections, *, queues: bool
    ) -> None:
        super().__init__()
        self.transport = transport
        self._queues = queues
        self._places: dict[Origin, anyio.Semaphore] = {}

    async def permit(self, origin: Origin | None, *, patience: float | None) -> Permit:
        """Waits for a free connection to an origin, ``patience`` seconds at most.

        Args:
            origin: One that is allowed: each is remembered. None: does not wait.
            patience: None: without end.

        Raises:
            httpx.PoolTimeout: None became free in that time.
        """
        with self._lock:  # as ``enter``, which a request would pay for
            self._busy += 1
        try:
            places = None
            if origin is not None and self._queues:
                places = self._places.get(origin)
                if places is None:
                    places = self._places[origin] = anyio.Semaphore(_AT_ONCE)
                try:
                    places.acquire_nowait()
                except anyio.WouldBlock:
                    with anyio.move_on_after(patience) as waiting:
                        await places.acquire()
                    if waiting.cancelled_caught:
                        raise httpx.PoolTimeout(_TIMED_OUT) from None
        except BaseException:
            self.leave(None)
            raise
        return Permit(functools.partial(self.leave, places))


class Pool(_Pool):
    """As ``AsyncPool``, for threads."""

    def __init__(self, transport: httpx.BaseTransport | Connections, *, queues: bool) -> None:
        super().__init__()
        self.transport = transport
        self._queues = queues
        self._places: dict[Origin, _Places] = {}

    def permit(self, origin: Origin | None, *, patience: float | None) -> Permit:
        """As ``AsyncPool.permit``; its place was taken by ``enter``."""
        places = None
        if origin is not None and self._queues:
            with self._lock:
                places = self._places.get(origin)
                if places is None:
                    places = self._places[origin] = _Places()
            if not places.acquire(timeout=patience):
                self.leave(None)
                raise httpx.PoolTimeout(_TIMED_OUT)
        return Permit(functools.partial(self.leave, places))


class _Kept(Generic[P]):
    """The pools of one loop, or of the threads, the one used last at the end."""

    def __init__(self) -> None:
        self.by_key: dict[Key, P] = {}

    def find(self, key: Key) -> P | None:
        found = self.by_key.pop(key, None)
        if found is not None:
            self.by_key[key] = found
        return found

    def take_idle(self, now: float, *, room: int = 0) -> list[P]:
        """Those to close: idle for long, or in the way of ``room``; they are here no more."""
        surplus = len(self.by_key) + room - _MOST
        taken: list[P] = []
        for key, pool in list(self.by_key.items()):
            idle = pool.idle_for(now)
            if idle >= _IDLE or (idle >= 0 and len(taken) < surplus):
                taken.append(self.by_key.pop(key))
        return taken

    def take_all(self) -> list[P]:
        taken = list(self.by_key.values())
        self.by_key.clear()
        return taken


class _OfLoop(_Kept[AsyncPool]):
    """The pools of one event loop; all but ``close_from_elsewhere`` is called on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._until_end = _at_end_of_loop(self)

    async def start(self) -> None:
        """Has the pools closed when the loop ends."""
        await anext(self._until_end)

    def add(self, key: Key, pool: AsyncPool) -> None:
        if len(self.by_key) >= _MOST:
            self._close_soon(self.take_idle(time.monotonic(), room=1))
        self.by_key[key] = pool
        if self._timer is None:
            self._timer = self._loop.call_later(_IDLE, self.sweep)

    def sweep(self) -> None:
        """Closes what is idle, now and then."""
        self._close_soon(self.take_idle(time.monotonic()))
        self._timer = self._loop.call_later(_IDLE, self.sweep) if self.by_key else None

    async def close(self) -> None:
        """Closes all, and waits for it."""
        await self._until_end.aclose()

    async def close_now(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        await _close(self.take_all())

    def close_from_elsewhere(self) -> None:
        """Has them closed by their loop, when it runs next; a closed one is left alone."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(
                    lambda: self._keep(self._loop.create_task(self.close()))
                )

    def _close_soon(self, pools: list[AsyncPool]) -> None:
        if pools:
            self._keep(self._loop.create_task(_close(pools)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _at_end_of_loop(mine: _OfLoop) -> AsyncGenerator[None, None]:
    """Waits at its ``yield``: a loop closes what generators it has left before it ends."""
    try:
        yield
    finally:
        await mine.close_now()


async def _close(pools: list[AsyncPool]) -> None:
    with anyio.CancelScope(shield=True):
        for pool in pools:
            with contextlib.suppress(httpx.HTTPError, OSError):
                await pool.transport.aclose()


class ConnectionPools:
    """The pools of one broker.

    Args:
        transport: To be used instead of asynchronous pools, by all plugins and loops.
        sync_transport: To be used instead of those for threads.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | None,
        sync_transport: httpx.BaseTransport | None,
    ) -> None:
        self._given = None if transport is None else AsyncPool(transport, queues=False)
        self._sync_given = (
            None if sync_transport is None else Pool(sync_transport, queues=False)
        )
        self._lock = threading.Lock()  # loops and worker threads come here at once
        self._context: ssl.SSLContext | None = None
        self._loops: dict[asyncio.AbstractEventLoop, _OfLoop] = {}
        self._threads: _Kept[Pool] = _Kept()
        self._swept = 0.0

    async def here(self, key: Key) -> AsyncPool:
        """The pool for the running loop."""
        if self._given is not None:
            return self._given
        loop = running_loop()
        mine = self._loops.get(loop)
        if mine is None:
            with self._lock:
                for ended in [known for known in self._loops if known.is_closed()]:
                    del self._loops[ended]
                mine = self._loops[loop] = _OfLoop(loop)
            await mine.start()
        network = NETWORK.get()
        if network is not None:
            key = key._replace(network=network)
        pool = mine.find(key)
        if pool is None:
            pool = AsyncPool(Connections(self._ssl(), network), queues=True)
            mine.add(key, pool)
        return pool

    def entered(self, key: Key) -> Pool:
        """The pool for threads; entered already, so that no other thread closes it."""
        if self._sync_given is not None:
            self._sync_given.enter()
            return self._sync_given
        context, now = self._ssl(), time.monotonic()
        with self._lock:
            pool = self._threads.find(key)
            if pool is None:
                made = Pool(Connections(context, blocking=True), queues=True)
                pool = self._threads.by_key[key] = made
            pool.enter()
            idle: list[Pool] = []
            if now - self._swept >= _IDLE or len(self._threads.by_key) > _MOST:
                self._swept, idle = now, self._threads.take_idle(now)
        for unused in idle:
            unused.transport.close()
        return pool

    async def close(self) -> None:
        """Closes what was made here, from any loop; idempotent.

        Pools of this loop are closed when it returns; another loop closes its own.
        """
        with self._lock:
            loops, self._loops = list(self._loops.items()), {}
            threads = self._threads.take_all()
        here = asyncio._get_running_loop()
        for loop, pools in loops:
            if loop is here:
                await pools.close()
            else:
                pools.close_from_elsewhere()
        for pool in threads:
            pool.transport.close()

    def _ssl(self) -> ssl.SSLContext:
        if self._context is None:
            with self._lock:
                if self._context is None:
                    self._context = httpx.create_ssl_context()
        return self._context


class Connections:
    """A pool of connections: of one event loop, or of the threads.

    Args:
        context: Shared by all pools: to load certificates takes milliseconds.
        network: What dials in a loop; None: httpcore does.
        blocking: Of the threads.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        network: httpcore.AsyncNetworkBackend | None = None,
        *,
        blocking: bool = False,
    ) -> None:
        options: dict[str, Any] = {
            "ssl_context": context,
            "max_connections": None,
            "max_keepalive_connections": _KEPT_ALIVE,
            "keepalive_expiry": _EXPIRY,
        }
        self._pool: httpcore.AsyncConnectionPool | httpcore.ConnectionPool = (
            httpcore.ConnectionPool(**options)
            if blocking
            else httpcore.AsyncConnectionPool(network_backend=network, **options)
        )
        self._lock = _PoolLock()
        if isinstance(self._pool, httpcore.ConnectionPool):
            self._pool._optional_thread_lock = self._lock  # type: ignore[assignment]

    async def send(self, outgoing: Outgoing) -> Answer:
        """Sends a request, whose headers go along as they are; in a thread without waiting.

        Raises:
            Exception: It failed, with an error of httpcore; reading the answer may, too.
        """
        url, pool = outgoing.url, self._pool
        sent = httpcore.Request(
            outgoing.method,
            httpcore.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            ),
            headers=outgoing.headers,
            content=outgoing.body,
            extensions={"timeout": outgoing.timeout},
        )
        try:
            if isinstance(pool, httpcore.ConnectionPool):
                answer = pool.handle_request(sent)
            else:
                answer = await pool.handle_async_request(sent)
        finally:
            # The pool, and the stream of a response, refer to it for as long as they are open.
            sent.headers, sent.url = [], _NOWHERE
        stream = answer.stream
        if isinstance(pool, httpcore.ConnectionPool):
            stream = _BlockingStream(stream, self._lock)
        return Answer(answer.status, answer.headers, stream, answer.extensions)

    async def aclose(self) -> None:
        """Closes the connections of a loop, those in use as well."""
        assert isinstance(self._pool, httpcore.AsyncConnectionPool)
        await self._pool.aclose()

    def close(self) -> None:
        """As ``aclose``, of the threads."""
        assert isinstance(self._pool, httpcore.ConnectionPool)
        self._pool.close()


class _BlockingStream:
    """An answer's body; it has its iterator, which would close it when it is let go."""

    def __init__(self, stream: Any, lock: _PoolLock) -> None:
        self._stream = stream
        self._chunks: Iterator[bytes] = iter(stream)
        self._lock = lock

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._lock.unheld(self._close)

    def _close(self) -> None:
        self._stream.close()

"""For SDKs on aiohttp: a connector without sockets.

What aiohttp writes to a connection is read as a request, sent by the sending step, and the
answer fed back: below everything that aiohttp keeps or shows (``request_info`` as well). Each
request has its own connection, made in the task that sends it, so in its invocation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from functools import partial
from http.client import responses
from typing import Any, Final

import aiohttp
import h11
import httpx
from aiohttp.client_proto import ResponseHandler

from apex_creds.leases.http_messages import Request, SendFailure
from apex_creds.sdk.current import Binding, Refusal

_WHOLE: Final = 1 << 20
"""Bytes of a body that is sent in one piece; a longer one streams."""
_WAITING: Final = 16
"""Pieces of a body that were written and not sent; beyond, aiohttp waits."""


def connector(
    *names: str, scope: str | None = None, refusal: Refusal = "answer"
) -> aiohttp.BaseConnector:
    """A connector for ``aiohttp.ClientSession``; made, as all of aiohttp's, on a running loop.

    Args:
        names: Of credentials; none: all that the invocation has.
        scope: One that the leases must have.
        refusal: ``answer``: a refused request is a 403; ``raise``: it raises our error.
    """
    return _Connector(Binding(names, scope, refusal))


class _Connector(aiohttp.BaseConnector):
    def __init__(self, binding: Binding) -> None:
        super().__init__(force_close=True, limit=0)
        self._binding = binding

    async def _create_connection(self, req: Any, _traces: object, limits: Any) -> Any:
        if req.proxy:
            raise aiohttp.ClientConnectionError("A credential is not sent through a proxy.")
        protocol = ResponseHandler(loop=asyncio.get_running_loop())
        connect = limits.sock_connect or limits.connect
        protocol.connection_made(_Wire(self._binding, protocol, req, connect))
        return protocol


class _Wire(asyncio.Transport):
    """The socket that there is not, for one request."""

    def __init__(
        self, binding: Binding, protocol: Any, req: Any, connect: float | None
    ) -> None:
        super().__init__()
        self._binding = binding
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._origin = str(req.url.origin())
        self._timeout = {"connect": connect, "pool": connect}
        self._say = partial(_error, req.connection_key)
        self._server = h11.Connection(h11.SERVER)
        self._head: h11.Request | None = None
        self._whole: list[bytes] | None = []
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._reading = asyncio.Event()
        self._reading.set()
        self._closing = self._paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._server.receive_data(bytes(data))
        while True:
            event = self._server.next_event()
            if isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data):
                self._add(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                if self._whole is not None:
                    self._start(b"".join(self._whole) or None)
                else:
                    self._parts.put_nowait(None)
            else:
                return

    def _begin(self, head: h11.Request) -> None:
        self._head = head
        lengths = [int(value) for name, value in head.headers if name == b"content-length"]
        chunked = any(name == b"transfer-encoding" for name, _ in head.headers)
        if chunked or max(lengths, default=0) > _WHOLE:
            self._whole = None
            self._start(self._streamed())

    def _add(self, part: bytes) -> None:
        if self._whole is not None:
            self._whole.append(part)
            return
        self._parts.put_nowait(part)
        if self._parts.qsize() > _WAITING and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    async def _streamed(self) -> AsyncIterator[bytes]:
        while (part := await self._parts.get()) is not None:
            if self._paused and self._parts.empty():
                self._paused = False
                self._protocol.resume_writing()
            yield part

    def _start(self, body: object) -> None:
        assert self._head is not None
        head = self._head
        request = Request(
            head.method.decode("ascii"),
            self._origin + head.target.decode("ascii"),
            head.headers.raw_items(),
            body,
            self._timeout,
            self._say,
        )
        # In the context of who writes: a task of the invocation that sends.
        self._task = self._loop.create_task(self._run(request))

    async def _run(self, request: Request) -> None:
        try:
            answered = await self._binding.send(request)
            body = answered.body
            assert isinstance(body, httpx.AsyncByteStream)
            try:
                reason = responses.get(answered.status, "").encode()
                head = h11.Response(
                    status_code=answered.status, headers=answered.headers, reason=reason
                )
                self._feed(head)
                async for chunk in body:
                    self._feed(h11.Data(data=chunk))
                    await self._reading.wait()
                self._feed(h11.EndOfMessage())
            finally:
                await body.aclose()
        except Exception as error:  # noqa: BLE001 - it is aiohttp's to raise
            if self._server.our_state is h11.SEND_RESPONSE:  # before the answer
                self._protocol.set_exception(error)
            self._protocol.connection_lost(error)

    def _feed(self, event: h11.Event) -> None:
        data = self._server.send(event)
        if data and not self._closing:
            self._protocol.data_received(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if self._task is not asyncio.current_task(self._loop) and self._task is not None:
                self._task.cancel()
            self._loop.call_soon(self._protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._reading.clear()

    def resume_reading(self) -> None:
        self._reading.set()

    def get_write_buffer_size(self) -> int:
        return self._parts.qsize()


def _error(key: Any, failure: SendFailure) -> Exception:
    kind, text = failure.kind, failure.text
    if kind == "connect":
        return aiohttp.ClientConnectorError(key, OSError(0, text))
    if kind in ("connect_timeout", "pool_timeout"):
        return aiohttp.ConnectionTimeoutError(text)
    if kind == "read_timeout":
        return aiohttp.SocketTimeoutError(text)
    return aiohttp.ServerDisconnectedError(text)

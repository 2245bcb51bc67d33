"""In front of any MCP server: each ``tools/call`` is an invocation of its own.

Guarantee: the server's program runs behind the wall and has placeholders, or the server is
reached by HTTP, and the client has no key; in both cases a secret is only sent by the host, for
the tool call that is under way, checked and audited. What the server sends is cleaned as whole
messages, so that no half of one is waited for. A refusal is a result with ``isError``.

Lines are messages of JSON-RPC 2.0 (MCP, transports: stdio); what is no request for a tool is
handed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import anyio
import anyio.to_thread
import httpx

from apex_creds.errors import ApexCredsError, InvalidInputError, IsolationError
from apex_creds.integrations.tools import explain
from apex_creds.isolation.dialing import Dialer
from apex_creds.isolation.invocations import held_by
from apex_creds.isolation.programs import serve, way_out, with_surroundings
from apex_creds.isolation.sandbox import Wall, Walled
from apex_creds.leases.lease import Invocation, current_invocation
from apex_creds.middleware import CredentialMiddleware
from apex_creds.middleware.call import WrappedCall
from apex_creds.middleware.plugin_runner import BehindWall
from apex_creds.policy.manifest import Manifest
from apex_creds.sdk.httpx import async_transport

__all__ = ["LONGEST", "CommandProxy", "HttpProxy", "lines"]

LONGEST: Final = 16 * 1024 * 1024
"""Bytes of a message; a longer one ends the connection."""
_INTERNAL_ERROR: Final = -32603  # JSON-RPC 2.0, section 5.1
_REMEMBERED: Final = 64
_VERSION: Final = re.compile(r"[0-9A-Za-z.-]{1,32}")
_GRACE: Final = 5.0
"""Seconds that a server has to end, once its client has gone."""
_log: Final = logging.getLogger(__name__)

Message = dict[str, Any]
Send = Callable[[bytes], Awaitable[None]]


class _Proxy:
    """What both have in common: tool calls as invocations, and messages cleaned whole."""

    def __init__(self, middleware: CredentialMiddleware, manifest: Manifest) -> None:
        if not manifest.needs:
            raise InvalidInputError(
                f"The plugin {manifest.plugin!r} declares no credential.",
                hint="A server that needs none needs no proxy.",
            )
        self._middleware = middleware
        self._manifest = manifest
        self._running: dict[str, anyio.CancelScope] = {}
        self._recent: deque[WrappedCall] = deque(maxlen=_REMEMBERED)
        self._turn: AbstractAsyncContextManager[object] = contextlib.nullcontext()

    def _begin(
        self,
        message: Message,
        ask: Callable[[Message], Awaitable[Any]],
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        """Starts a request, which can be cancelled from now on."""
        key = _key(message)
        if key in self._running:
            taken = _failed(message, "A request with that id is under way.")
            tasks.start_soon(self._send, taken)
            return
        self._running[key] = anyio.CancelScope()
        tasks.start_soon(self._invoke, message, ask)

    async def _invoke(self, message: Message, ask: Callable[[Message], Awaitable[Any]]) -> None:
        """One request as an invocation; its answer goes to the client."""
        key, answer = _key(message), None
        with self._running.setdefault(key, anyio.CancelScope()):
            try:
                async with self._turn:
                    answer = await self._middleware.invoke_action(
                        self._manifest, _action(message), BehindWall(ask), (message,)
                    )
            except ApexCredsError as error:
                if isinstance(error, IsolationError):
                    answer = _unanswered(message, error)
                else:
                    answer = _refused(message, explain(error))
            except Exception as error:  # noqa: BLE001 - the next call is served in any case
                answer = _unanswered(message, error)
            finally:
                del self._running[key]
        if isinstance(answer, dict):
            await self._send(answer)

    def _entered(self) -> WrappedCall:
        call = current_invocation()
        assert isinstance(call, WrappedCall)
        self._recent.append(call)
        return call

    def _cancel(self, message: Message) -> None:
        scope = self._running.get(_cancelled(message))
        if scope is not None:
            scope.cancel()

    async def _pass_on(self, message: Message) -> None:
        """What the server sends by itself, without what was redeemed of late."""
        try:
            for call in list(self._recent):
                message = call.clean(message, where="chunk")  # type: ignore[assignment]
        except Exception as error:  # noqa: BLE001 - what can't be searched is withheld
            _log.error("A message of the server was withheld: %s.", type(error).__name__)
            if "method" in message:
                return
            message = _failed(message, "The server's answer was withheld.")
        await self._send(message)

    async def _send(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # a client that has gone also ends its input
            await self._out(_line(message))

    _out: Send


class CommandProxy(_Proxy):
    """A server that is a program, behind the wall.

    While it starts, until it has answered ``initialize``, it may use its credentials as the
    action ``start``; from then on only in tool calls. Those are handed to it one at a time, so
    that each of its requests is known to be one call's. Its answers are passed on once, and to
    what was asked: an id in another spelling (``1.0``) would answer a call and leave it open.

    Args:
        middleware: Whose leases it works with.
        manifest: Of the plugin that it is.
        wall: The program, and what else it sees.
        dialer: Connects to servers.
    """

    def __init__(
        self,
        middleware: CredentialMiddleware,
        manifest: Manifest,
        wall: Wall,
        *,
        dialer: Dialer | None = None,
    ) -> None:
        super().__init__(middleware, manifest)
        self._wall = wall
        self._dialer = dialer
        self._turn = anyio.Lock()
        self._current: list[WrappedCall] = []
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._initialize = ""
        self._asked: set[str] = set()
        self._walled: Walled | None = None
        self._ended = False
        self._initialized = asyncio.Event()

    async def run(self, incoming: AsyncIterator[bytes], out: Send) -> int:
        """Hands messages to and fro until one of both ends.

        Args:
            incoming: The client's lines.
            out: Sends it a line.

        Returns:
            The program's exit status; negative: the number of a signal.

        Raises:
            AccessDeniedError: A required credential is refused.
            IsolationError: It could not be started.
        """
        self._out = out
        started: asyncio.Future[Walled] = asyncio.get_running_loop().create_future()
        start = asyncio.ensure_future(
            self._middleware.invoke_action(
                self._manifest, "start", BehindWall(self._start), (started,)
            )
        )
        try:
            await asyncio.wait((start, started), return_when=asyncio.FIRST_COMPLETED)
            if not started.done():
                await start
                raise IsolationError("The program did not start.", hint="Run it again.")
            walled = started.result()
            async with (
                anyio.create_task_group() as calls,  # they are answered, with errors
                anyio.create_task_group() as reading,
            ):
                reading.start_soon(self._from_client, incoming, walled, calls)
                await self._from_server(walled)
                reading.cancel_scope.cancel()
            with anyio.move_on_after(_GRACE):  # it may have closed its output, and stay
                await anyio.to_thread.run_sync(walled.process.wait, abandon_on_cancel=True)
            walled.process.kill()
            return await anyio.to_thread.run_sync(walled.process.wait)
        finally:
            self._initialized.set()
            if not started.done():
                start.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.gather(start, return_exceptions=True)
                if self._walled is not None:
                    await self._gateway.close()
                    await anyio.to_thread.run_sync(self._walled.close)

    async def _start(self, started: asyncio.Future[Walled]) -> None:
        call = self._entered()
        self._current.append(call)
        try:
            self._gateway, found = way_out(
                await held_by(call), self._invocation, dialer=self._dialer
            )
            self._walled = walled = await with_surroundings(self._wall, found).start(
                stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            await serve(self._gateway, found, walled.listeners)
            started.set_result(walled)
            await self._initialized.wait()
        finally:
            self._current.remove(call)

    def _invocation(self) -> Invocation | None:
        return self._current[-1] if self._current else None

    async def _from_client(
        self, incoming: AsyncIterator[bytes], walled: Walled, calls: anyio.abc.TaskGroup
    ) -> None:
        assert walled.process.stdin is not None
        self._server = await _writer(walled.process.stdin)
        try:
            async for line in incoming:
                message = _parsed(line)
                if message is not None:
                    await self._asked_for(message, calls)
            self._server.close()
            await anyio.sleep(_GRACE)
            walled.process.terminate()
        finally:
            self._server.close()

    async def _asked_for(self, message: Message, calls: anyio.abc.TaskGroup) -> None:
        method, is_request = message.get("method"), "method" in message and "id" in message
        if method == "tools/call" and is_request:
            self._begin(message, self._ask, calls)
            return
        if is_request:
            self._asked.add(_key(message))
        if method == "initialize":
            self._initialize = _key(message)
        if method == "notifications/cancelled":
            self._cancel(message)
            self._asked.discard(_cancelled(message))
        try:
            await self._tell(message)
        except IsolationError as error:
            if is_request:
                await self._send(_unanswered(message, error))

    async def _ask(self, message: Message) -> Message:
        call, key = self._entered(), _key(message)
        if self._ended:
            raise IsolationError("The server has ended.", hint="Start it again.")
        self._current.append(call)
        answer = self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            await self._tell(message)
            return await answer
        finally:
            self._current.remove(call)
            del self._waiting[key]

    async def _tell(self, message: Message) -> None:
        self._server.write(_line(message))
        try:
            await self._server.drain()
        except ConnectionError:
            raise IsolationError("The server has ended.", hint="Start it again.") from None

    async def _from_server(self, walled: Walled) -> None:
        assert walled.process.stdout is not None
        reader = asyncio.StreamReader(limit=LONGEST)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), walled.process.stdout
        )
        try:
            async for line in lines(reader):
                message = _parsed(line)
                if message is not None:
                    await self._received(message)
        finally:
            transport.close()
        self._ended = True
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(IsolationError("The server has ended."))

    async def _received(self, message: Message) -> None:
        key = _key(message)
        if "method" in message:
            await self._pass_on(message)
        elif key in self._waiting:
            if not self._waiting[key].done():
                self._waiting[key].set_result(message)
        elif key in self._asked:
            self._asked.discard(key)
            await self._pass_on(message)
            if key == self._initialize:
                self._initialized.set()
        else:
            _log.warning("An answer to nothing that was asked was left out.")


class HttpProxy(_Proxy):
    """A server that is reached by streamable HTTP; its client speaks stdio, and has no key.

    Every request to it carries the plugin's credentials, so every one is an invocation, of a
    tool's name, or of the method's. What a server sends outside of answers is not fetched.

    Args:
        middleware: Whose leases it works with.
        manifest: Of the plugin that it is.
        url: Where the server is.
    """

    def __init__(self, middleware: CredentialMiddleware, manifest: Manifest, url: str) -> None:
        super().__init__(middleware, manifest)
        self._url = url
        self._headers = {"accept": "application/json, text/event-stream"}
        names = [need.name for need in manifest.needs]
        self._client = httpx.AsyncClient(
            transport=async_transport(*names, refusal="raise"), timeout=httpx.Timeout(300)
        )

    async def run(self, incoming: AsyncIterator[bytes], out: Send) -> int:
        """Hands messages to and fro until the client ends.

        Args:
            incoming: The client's lines.
            out: Sends it a line.

        Returns:
            0.
        """
        self._out = out
        async with self._client, anyio.create_task_group() as tasks:
            async for line in incoming:
                message = _parsed(line)
                if message is None:
                    continue
                if message.get("method") == "notifications/cancelled":
                    self._cancel(message)
                if "method" not in message:  # an answer: its id is of the server's numbers
                    tasks.start_soon(self._notify, message)
                elif "id" in message:
                    self._begin(message, self._post, tasks)
                else:  # in order: the server is to know of it before what comes next
                    await self._notify(message)
            tasks.cancel_scope.deadline = anyio.current_time() + _GRACE
        return 0

    async def _notify(self, message: Message) -> None:
        """Sends what has no answer, not even an error."""
        try:
            action = _action(message) or "answer"
            await self._middleware.invoke_action(
                self._manifest, action, BehindWall(self._post), (message,)
            )
        except Exception as error:  # noqa: BLE001 - nobody waits for an answer
            _log.warning("A message did not reach the server: %s.", type(error).__name__)

    async def _post(self, message: Message) -> Message | None:
        self._entered()
        headers = {**self._headers, "content-type": "application/json"}
        request = self._client.build_request(
            "POST", self._url, content=_line(message), headers=headers
        )
        answer = await self._client.send(request, stream=True)
        try:
            answer.raise_for_status()
            session = answer.headers.get("mcp-session-id")
            if session is not None:
                self._headers["mcp-session-id"] = session
            if "method" not in message or "id" not in message:
                return None
            kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind == "text/event-stream":
                found = await self._streamed(answer, message)
            else:
                found = _parsed(b"\n".join([line async for line in _lines_of(answer)]))
        finally:
            await answer.aclose()
        if found is None or _key(found) != _key(message):
            raise ValueError("no answer")
        if message.get("method") == "initialize":
            result = found.get("result")
            version = result.get("protocolVersion") if isinstance(result, dict) else None
            if isinstance(version, str) and _VERSION.fullmatch(version):
                self._headers["mcp-protocol-version"] = version
        return found

    async def _streamed(self, answer: httpx.Response, asked: Message) -> Message | None:
        """The answer among the events of a stream (WHATWG HTML, server-sent events)."""
        data: list[bytes] = []
        async for line in _lines_of(answer):
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
                continue
            if line or not data:
                continue
            found, data = _parsed(b"\n".join(data)), []
            if found is None:
                continue
            if "method" in found:
                await self._pass_on(found)
            elif _key(found) == _key(asked):
                return found
        return None


# -- messages ----------------------------------------------------------------------------------


def _parsed(line: bytes) -> Message | None:
    """A message; None for what is none, which is left out."""
    if not line.strip():
        return None
    try:
        found = json.loads(line, parse_float=_number, parse_constant=_number)
    except (ValueError, RecursionError):
        found = None
    # Both at once would be a request to one reader and an answer to another.
    if not isinstance(found, dict) or ("method" in found and {"result", "error"} & {*found}):
        _log.warning("A line that is no message of JSON-RPC was left out.")
        return None
    return found


def _number(text: str) -> float:
    """A number of JSON: no infinity, nor what is written as none of its constants."""
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(text)
    return found


def _line(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _cancelled(message: Message) -> str:
    """The key of the request that a notification cancels."""
    params = message.get("params")
    return json.dumps(params.get("requestId")) if isinstance(params, dict) else ""


def _key(message: Message) -> str:
    return json.dumps(message.get("id"))


def _action(message: Message) -> str:
    params = message.get("params")
    name = params.get("name") if isinstance(params, dict) else None
    is_tool = message.get("method") == "tools/call" and isinstance(name, str)
    return str(name if is_tool else message.get("method", ""))


def _refused(message: Message, words: str) -> Message:
    result = {"content": [{"type": "text", "text": words}], "isError": True}
    if message.get("method") != "tools/call":
        return _failed(message, words)
    return {"jsonrpc": "2.0", "id": message.get("id"), "result": result}


def _failed(message: Message, words: str) -> Message:
    error = {"code": _INTERNAL_ERROR, "message": words}
    return {"jsonrpc": "2.0", "id": message.get("id"), "error": error}


def _unanswered(message: Message, error: Exception) -> Message:
    return _failed(message, f"The server gave no answer: {type(error).__name__}.")


async def _lines_of(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a body; of a stream, an event's data is as little endless as a line.

    Raises:
        ValueError: A message is longer than it may be.
    """
    held, size = bytearray(), 0
    async for chunk in answer.aiter_bytes():
        held += chunk
        size += len(chunk)
        if size > LONGEST:
            raise ValueError("too long")
        if b"\n" not in chunk:
            continue
        *whole, last = bytes(held).split(b"\n")
        held = bytearray(last)
        for line in (each.removesuffix(b"\r") for each in whole):
            if not line:  # the end of an event
                size = len(held)
            yield line
    yield bytes(held)


async def lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines that arrive, until the end or one that is too long."""
    while True:
        try:
            line = await reader.readline()
        except ValueError:
            _log.error("A message of more than %d bytes ends the connection.", LONGEST)
            return
        if not line:
            return
        yield line


async def _writer(pipe: Any) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(loop=loop), pipe
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)

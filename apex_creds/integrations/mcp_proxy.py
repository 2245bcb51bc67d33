"""In front of any MCP server: each ``tools/call`` is a separate invocation.

Guarantee: the server's program runs behind the wall and has placeholders, or the server is
reached by HTTP, and the client has no key; in both cases a secret is only sent by the host, for
the tool call that is under way, checked and audited. What the server sends is cleaned as whole
messages, so that no half of one is waited for. A refusal is a result with ``isError``.

Lines are messages of JSON-RPC 2.0 (MCP, transports: stdio), read and written by the
functions at the end; what is no request for a tool is handed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import anyio
import anyio.to_thread

from apex_creds.errors import ApexCredsError, InvalidInputError, IsolationError
from apex_creds.integrations.tools import explain
from apex_creds.isolation.dialing import Dialer
from apex_creds.isolation.invocations import held_by
from apex_creds.isolation.programs import serve, way_out, with_surroundings
from apex_creds.isolation.sandbox import Wall, Walled
from apex_creds.leases.lease import current_invocation
from apex_creds.middleware import CredentialMiddleware
from apex_creds.middleware.call import WrappedCall
from apex_creds.middleware.callables import BehindWall
from apex_creds.policy.manifest import Manifest

__all__ = ["CommandProxy", "Proxy"]

_REMEMBERED: Final = 64
GRACE: Final = 5.0
"""Seconds that a server has to end, once its client has gone."""
_log: Final = logging.getLogger(__name__)

Send = Callable[[bytes], Awaitable[None]]


class Proxy:
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
        key = key_of(message)
        if key in self._running:
            taken = failed(message, "A request with that id is under way.")
            tasks.start_soon(self._send, taken)
            return
        self._running[key] = anyio.CancelScope()
        tasks.start_soon(self._invoke, message, ask)

    async def _invoke(self, message: Message, ask: Callable[[Message], Awaitable[Any]]) -> None:
        """One request as an invocation; its answer goes to the client."""
        key, answer = key_of(message), None
        with self._running.setdefault(key, anyio.CancelScope()):
            try:
                async with self._turn:
                    answer = await self._middleware.invoke_action(
                        self._manifest, action_of(message), BehindWall(ask), (message,)
                    )
            except ApexCredsError as error:
                if isinstance(error, IsolationError):
                    answer = unanswered(message, error)
                else:
                    answer = refused(message, explain(error))
            except Exception as error:  # noqa: BLE001 - the next call is served in any case
                answer = unanswered(message, error)
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
        if scope := self._running.get(cancelled(message)):
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
            message = failed(message, "The server's answer was withheld.")
        await self._send(message)

    async def _send(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # a client that has gone also ends its input
            await self._out(line_of(message))

    _out: Send


class CommandProxy(Proxy):
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
            with anyio.move_on_after(GRACE):  # it may have closed its output, and stay
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
                await held_by(call),
                lambda: self._current[-1] if self._current else None,
                dialer=self._dialer,
            )
            self._walled = walled = await with_surroundings(self._wall, found).start(
                stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            await serve(self._gateway, found, walled.listeners)
            started.set_result(walled)
            await self._initialized.wait()
        finally:
            self._current.remove(call)

    async def _from_client(
        self, incoming: AsyncIterator[bytes], walled: Walled, calls: anyio.abc.TaskGroup
    ) -> None:
        assert walled.process.stdin is not None
        self._server = await _writer(walled.process.stdin)
        try:
            async for line in incoming:
                message = parsed(line)
                if message is not None:
                    await self._asked_for(message, calls)
            self._server.close()
            await anyio.sleep(GRACE)
            walled.process.terminate()
        finally:
            self._server.close()

    async def _asked_for(self, message: Message, calls: anyio.abc.TaskGroup) -> None:
        method, is_request = message.get("method"), "method" in message and "id" in message
        if method == "tools/call" and is_request:
            self._begin(message, self._ask, calls)
            return
        if is_request:
            self._asked.add(key_of(message))
        if method == "initialize":
            self._initialize = key_of(message)
        if method == "notifications/cancelled":
            self._cancel(message)
            self._asked.discard(cancelled(message))
        try:
            await self._tell(message)
        except IsolationError as error:
            if is_request:
                await self._send(unanswered(message, error))

    async def _ask(self, message: Message) -> Message:
        call, key = self._entered(), key_of(message)
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
        self._server.write(line_of(message))
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
                message = parsed(line)
                if message is not None:
                    await self._received(message)
        finally:
            transport.close()
        self._ended = True
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(IsolationError("The server has ended."))

    async def _received(self, message: Message) -> None:
        key = key_of(message)
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


async def _writer(pipe: Any) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(loop=loop), pipe
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)


LONGEST: Final = 16 * 1024 * 1024
"""Bytes of a message; a longer one ends the connection."""
_INTERNAL_ERROR: Final = -32603  # JSON-RPC 2.0, section 5.1

Message = dict[str, Any]


def parsed(line: bytes) -> Message | None:
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


def line_of(message: Message) -> bytes:
    """A message as it is sent."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def cancelled(message: Message) -> str:
    """The key of the request that a notification cancels."""
    params = message.get("params")
    return json.dumps(params.get("requestId")) if isinstance(params, dict) else ""


def key_of(message: Message) -> str:
    """What tells its request from others: 1 is not "1"."""
    return json.dumps(message.get("id"))


def action_of(message: Message) -> str:
    """The tool's name, or the method's."""
    params = message.get("params")
    name = params.get("name") if isinstance(params, dict) else None
    is_tool = message.get("method") == "tools/call" and isinstance(name, str)
    return str(name if is_tool else message.get("method", ""))


def refused(message: Message, words: str) -> Message:
    """The answer that a tool's call is refused with; an error to other requests."""
    result = {"content": [{"type": "text", "text": words}], "isError": True}
    if message.get("method") != "tools/call":
        return failed(message, words)
    return {"jsonrpc": "2.0", "id": message.get("id"), "result": result}


def failed(message: Message, words: str) -> Message:
    """The answer that is an error."""
    error = {"code": _INTERNAL_ERROR, "message": words}
    return {"jsonrpc": "2.0", "id": message.get("id"), "error": error}


def unanswered(message: Message, error: Exception) -> Message:
    """The answer where there is none."""
    return failed(message, f"The server gave no answer: {type(error).__name__}.")


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

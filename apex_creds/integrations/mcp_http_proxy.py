"""In front of an MCP server that is reached by streamable HTTP; see ``mcp_proxy``.

Guarantee: its client has no key, and every request carries the plugin's credentials as a
separate invocation.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import AsyncIterator
from typing import Final

import anyio
import httpx

from apex_creds.integrations.mcp_proxy import (
    GRACE,
    LONGEST,
    Message,
    Proxy,
    Send,
    action_of,
    key_of,
    line_of,
    parsed,
)
from apex_creds.middleware import CredentialMiddleware
from apex_creds.middleware.callables import BehindWall
from apex_creds.policy.manifest import Manifest
from apex_creds.sdk.httpx import async_transport

__all__ = ["HttpProxy"]

_VERSION: Final = re.compile(r"[0-9A-Za-z.-]{1,32}")
_VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
_NAMED: Final = frozenset({"tools/call", "prompts/get", "resources/read"})
_PLAIN: Final = re.compile(r"[\x20-\x7e]*")
_SESSION: Final = "mcp-session-id"
_JSON: Final = "application/json"
_log: Final = logging.getLogger(__name__)


class HttpProxy(Proxy):
    """A server that is reached by streamable HTTP; its client speaks stdio, and has no key.

    Every request to it carries the plugin's credentials, so every one is an invocation, of a
    tool's name, or of the method's. What a server with
    sessions sends outside of answers is fetched as the action ``listen``.

    Args:
        middleware: Whose leases it works with.
        manifest: Of the plugin that it is.
        url: Where the server is.
    """

    def __init__(self, middleware: CredentialMiddleware, manifest: Manifest, url: str) -> None:
        super().__init__(middleware, manifest)
        self._url = url
        self._listening = anyio.CancelScope()
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
                message = parsed(line)
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
                    if message["method"] == "notifications/initialized":
                        tasks.start_soon(self._listen)
            self._listening.cancel()
            tasks.cancel_scope.deadline = anyio.current_time() + GRACE
        return 0

    async def _notify(self, message: Message) -> None:
        """Sends what has no answer, not even an error."""
        try:
            action = action_of(message) or "answer"
            await self._middleware.invoke_action(
                self._manifest, action, BehindWall(self._post), (message,)
            )
        except Exception as error:  # noqa: BLE001 - nobody waits for an answer
            _log.warning("A message did not reach the server: %s.", type(error).__name__)

    async def _listen(self) -> None:
        """Passes on what a server with sessions sends outside of answers, if it does."""
        if _SESSION not in self._headers:
            return
        try:
            with self._listening:
                await self._middleware.invoke_action(
                    self._manifest, "listen", BehindWall(self._get)
                )
        except Exception as error:  # noqa: BLE001 - calls go on without
            _log.info("The server's own messages are not heard: %s.", type(error).__name__)

    async def _get(self) -> None:
        self._entered()
        request = self._client.build_request(
            "GET", self._url, headers=self._headers, timeout=httpx.Timeout(300, read=None)
        )
        answer = await self._client.send(request, stream=True)
        try:
            if answer.status_code == httpx.codes.OK:
                async for found in _events_of(answer):
                    if "method" in found:
                        await self._pass_on(found)
        finally:
            await answer.aclose()

    async def _post(self, message: Message) -> Message | None:
        self._entered()
        headers = {**self._headers, **_mirrored(message), "content-type": _JSON}
        request = self._client.build_request(
            "POST", self._url, content=line_of(message), headers=headers
        )
        answer = await self._client.send(request, stream=True)
        try:
            if answer.is_error and (refusal := await _error_in(answer, message)) is not None:
                return refusal
            answer.raise_for_status()
            session = answer.headers.get(_SESSION)
            if session is not None:
                self._headers[_SESSION] = session
            if "method" not in message or "id" not in message:
                return None
            kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind == "text/event-stream":
                found = await self._streamed(answer, message)
            else:
                found = parsed(b"\n".join([line async for line in _lines_of(answer)]))
        finally:
            await answer.aclose()
        if found is None or key_of(found) != key_of(message):
            raise ValueError("no answer")
        if message.get("method") == "initialize":
            result = found.get("result")
            version = result.get("protocolVersion") if isinstance(result, dict) else None
            if isinstance(version, str) and _VERSION.fullmatch(version):
                self._headers["mcp-protocol-version"] = version
        return found

    async def _streamed(self, answer: httpx.Response, asked: Message) -> Message | None:
        async for found in _events_of(answer):
            if "method" in found:
                await self._pass_on(found)
            elif key_of(found) == key_of(asked):
                return found
        return None


def _mirrored(message: Message) -> dict[str, str]:
    """What a request of the protocol since 2026-07-28 has in its headers, too."""
    params, method = message.get("params"), message.get("method")
    params = params if isinstance(params, dict) else {}
    meta = params.get("_meta")
    version = meta.get(_VERSION_KEY) if isinstance(meta, dict) else None
    if not (isinstance(version, str) and _VERSION.fullmatch(version)):
        return {}
    found = {"mcp-protocol-version": version, "mcp-method": _encoded(str(method))}
    name = params.get("uri" if method == "resources/read" else "name")
    if method in _NAMED and isinstance(name, str):
        found["mcp-name"] = _encoded(name)
    return found


def _encoded(value: str) -> str:
    """A header's value, in base64 where it could not be one (SEP-2243)."""
    if _PLAIN.fullmatch(value) and value == value.strip() and not value.startswith("=?"):
        return value
    text = base64.b64encode(value.encode("utf-8", "surrogatepass")).decode("ascii")
    return f"=?base64?{text}?="


async def _error_in(answer: httpx.Response, asked: Message) -> Message | None:
    """The error of JSON-RPC that a status of 400 or more comes with."""
    if "id" not in asked or not answer.headers.get("content-type", "").startswith(_JSON):
        return None
    found = parsed(b"\n".join([line async for line in _lines_of(answer)]))
    is_one = found is not None and "error" in found and key_of(found) == key_of(asked)
    return found if is_one else None


async def _events_of(answer: httpx.Response) -> AsyncIterator[Message]:
    """The messages of a stream (WHATWG HTML, server-sent events)."""
    data: list[bytes] = []
    async for line in _lines_of(answer):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif data and not line:
            found, data = parsed(b"\n".join(data)), []
            if found is not None:
                yield found


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

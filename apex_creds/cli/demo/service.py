"""What stands around the vault in the demo: a web service, a plugin manager, a keyring.

Guarantee: a request is served only if its Authorization header is exactly the one for its
path, compared in constant time; every other one is a 401, and counted. The plugin manager
behaves like ApexAgent's, the habit of logging included, and knows nothing of apex-creds:
``integrations.apexagent.install`` hooks it as it would hook the real one. ``keyring`` itself
never selects the keyring (its priority is below that of the backend that always fails), so it
is used only where it is passed in.
"""

from __future__ import annotations

import asyncio
import hmac
import importlib.util
import inspect
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from keyring.backend import KeyringBackend

_log = logging.getLogger("apexagent.plugins")

STORY: Final = ("Once upon a time, ", "a plugin asked for ", "{topic}", " and got a handle.")
"""What ``/v1/story`` streams."""

_MAX_HEAD: Final = 16 * 1024
_GRACE: Final = 5.0


class DemoService:
    """Serves ``/v1/forecast``, ``/v1/story`` (streamed) and ``/v1/echo``.

    Args:
        expected: The Authorization header that each path wants.

    Attributes:
        right: Requests that had it.
        wrong: Requests that did not.
    """

    def __init__(self, expected: Mapping[str, str]) -> None:
        self._expected = {path: value.encode() for path, value in expected.items()}
        self.right = 0
        self.wrong = 0
        self._serving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Listens on a free port of 127.0.0.1; yields the origin."""
        server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, backlog=1024, limit=_MAX_HEAD
        )
        host, port = server.sockets[0].getsockname()[:2]
        try:
            yield f"http://{host}:{port}"
        finally:
            server.close()
            if self._serving:
                await asyncio.wait(self._serving, timeout=_GRACE)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head, writer)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        url = urlsplit(first.split(" ")[1])
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        wanted = self._expected.get(url.path)
        sent = headers.get("authorization", "").encode("latin-1")
        if wanted is None or not hmac.compare_digest(wanted, sent):
            self.wrong += 1
            await _send(writer, 401, b'{"error":"unauthorized"}')
            return
        self.right += 1
        if url.path == "/v1/story":
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            for piece in STORY:
                data = piece.format(topic=query.get("topic", "")).encode()
                writer.write(b"%x\r\n%b\r\n" % (len(data), data))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        elif url.path == "/v1/echo":
            await _send(writer, 200, json.dumps({"you_sent": headers}).encode())
        else:
            answer = {"city": query.get("city", ""), "sky": "clear"}
            await _send(writer, 200, json.dumps(answer).encode())


async def _send(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    reason = "OK" if status == 200 else "Unauthorized"
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()


# -- plugins -------------------------------------------------------------------------------


class BasePlugin:
    """What ApexAgent's plugins derive from."""

    async def execute_action(self, action_name: str, **kwargs: object) -> object:
        """Logs the call with all it was given, then makes it."""
        # As the runtime does it, which is the point: nothing secret may be in there.
        _log.info(f"{type(self).__name__}: executing '{action_name}' with {kwargs}")
        result = getattr(self, action_name)(**kwargs)
        return await result if inspect.isawaitable(result) else result

    async def shutdown(self) -> None:
        """Called once at the end."""


class PluginManager:
    """Loads a folder of plugins and invokes their actions."""

    def __init__(self, folder: Path) -> None:
        self.plugins: dict[str, BasePlugin] = {}
        self._metadata: dict[str, dict[str, object]] = {}
        for path in sorted(folder.glob("*/plugin.json")):
            metadata = json.loads(path.read_bytes())
            self._metadata[metadata["id"]] = metadata
            main = path.parent / metadata["main_file"]
            spec = importlib.util.spec_from_file_location(f"_demo_{path.parent.name}", main)
            if spec is None or spec.loader is None:
                raise ImportError(f"no plugin in {main}")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            made = getattr(module, metadata["main_class"])()
            assert isinstance(made, BasePlugin)
            self.plugins[metadata["id"]] = made

    def get_plugin_metadata(self, plugin_id: str) -> dict[str, object] | None:
        """A plugin's record; its ``metadata`` is the content of plugin.json."""
        metadata = self._metadata.get(plugin_id)
        return None if metadata is None else {"id": plugin_id, "metadata": metadata}

    async def invoke_plugin_action(
        self, plugin_id: str, action_name: str, **kwargs: object
    ) -> object:
        """Calls an action; a stream is returned un-iterated."""
        return await self.plugins[plugin_id].execute_action(action_name, **kwargs)

    async def shutdown(self) -> None:
        """Ends all plugins."""
        for plugin in self.plugins.values():
            await plugin.shutdown()


# -- the keyring ---------------------------------------------------------------------------


class InProcessKeyring(KeyringBackend):
    """Entries in a dictionary; gone with the process."""

    priority = -1

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._entries: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        """The entry, or None."""
        return self._entries.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        """Stores an entry."""
        self._entries[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        """Deletes an entry."""
        self._entries.pop((service, username), None)

"""Something between a client and a PostgreSQL server that can cut or hold the line.

Guarantee: bytes are passed on unchanged; ``drop`` lets a statement reach the server and
closes the line before the answer comes, ``silent`` lets nothing through.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.postgres import Postgres

_PORT = 5432


@dataclass
class Proxy:
    """Listens on a Unix socket of its own."""

    server: Postgres
    folder: Path
    drop_about: bytes = b""
    """What statements say whose answers reach nobody."""
    drop_times: int = 0
    silent: bool = False
    dropped: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def url(self, **options: str) -> str:
        return Postgres(self.folder, _PORT).url(**options)

    def drop(self, about: bytes, *, times: int = 1) -> None:
        """Loses the answers to the next statements that have ``about`` in them."""
        self.drop_about, self.drop_times = about, times

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there = self.server.folder / f".s.PGSQL.{self.server.port}"
            back, forth = await asyncio.open_unix_connection(str(there))
        except OSError:
            writer.close()
            return
        self._writers |= {writer, forth}
        armed = asyncio.Event()
        both = [
            asyncio.ensure_future(self._ask(reader, forth, armed)),
            asyncio.ensure_future(self._answer(back, writer, armed)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in both:
                one.cancel()
            for end in (
                writer,
                forth,
            ):  # first: this task may be cancelled below
                end.transport.abort()
            await asyncio.gather(*both, return_exceptions=True)
            self._tasks.discard(task)

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, armed: asyncio.Event
    ) -> None:
        prepared = False
        async for data in self._heard(reader):
            if self.drop_times and self.drop_about in data:
                prepared = True
            if prepared and data.startswith(b"B"):  # and now it is bound and executed
                self.drop_times -= 1
                prepared = False
                armed.set()
            writer.write(data)

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, armed: asyncio.Event
    ) -> None:
        async for data in self._heard(reader):
            if armed.is_set():
                self.dropped += 1
                return
            writer.write(data)

    async def _heard(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                while self.silent:
                    await asyncio.sleep(0.01)
                yield data

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def proxy(server: Postgres) -> AsyncIterator[Proxy]:
    """A proxy in front of ``server``, in this event loop."""
    with tempfile.TemporaryDirectory(prefix="pgproxy-", dir="/tmp") as name:
        made = Proxy(server, Path(name))
        path = made.folder / f".s.PGSQL.{_PORT}"
        listening = await asyncio.start_unix_server(made.handle, str(path))
        try:
            yield made
        finally:
            listening.close()
            await made.close()

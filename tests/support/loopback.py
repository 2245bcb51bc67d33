"""A real HTTP server on the loopback that writes down what reaches it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field


@dataclass
class Server:
    """One origin.

    Attributes:
        answer: Makes the response's head and body from the request's head.
        requests: The heads that came, raw.
        connections: How many there were.
        hang: Set when a request has come, to which there will be no answer.
        last_words: Sent instead of an answer, before hanging up.
    """

    port: int = 0
    answer: Callable[[str], bytes] = lambda head: ok(b"hello")
    requests: list[str] = field(default_factory=list, repr=False)
    connections: int = 0
    hang: asyncio.Event | None = None
    last_words: bytes | None = None

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def header(self, name: str, *, at: int = -1) -> list[str]:
        lines = self.requests[at].split("\r\n")[1:]
        pairs = [line.partition(": ") for line in lines]
        return [value for key, _, value in pairs if key.lower() == name.lower()]

    @property
    def target(self) -> str:
        return self.requests[-1].split(" ")[1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.requests.append(head)
                if self.hang is not None:
                    self.hang.set()
                    await reader.read()
                    break
                if self.last_words is not None:
                    writer.write(self.last_words)
                    break
                writer.write(self.answer(head))
                await writer.drain()
        writer.close()


def ok(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[Server]:
    made = Server()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        listening.close()

"""A vendor's server on the loopback, in a thread: it insists on the right credential."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from apex_creds.model import ApiKey
from tests.support.canaries import holders
from tests.support.worlds import World

SECRET = "s3cr3t-canary-0123456789"


class Vendor:
    """One origin.

    Attributes:
        header: Where the credential has to be, and ``prefix`` what stands before it.
        statuses: Of the next answers; 200 when there are none.
        requests: What came: method, path, headers (names in lower case), body.
        answer: Makes a body (JSON) of the method, path and body; a list is a stream of events.
        gate: A stream stops after its first event until this is set.
        echoes: Whether each answer has the key that came in a header as well.
        headers: Sent with each answer that is no error.
        refusal: The body of one that is.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.header = "authorization"
        self.prefix = "Bearer "
        self.statuses: list[int] = []
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answer: Callable[[str, str, bytes], object] = lambda method, path, body: {
            "echo": body.decode(),
        }
        self.gate: threading.Event | None = None
        self.echoes = False
        self.headers: dict[str, str] = {}
        self.refusal: object = {"error": {"message": "later"}}

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def allow(
        self, world: World, name: str = "web", plugin: str = "demo", delivery: str = ""
    ) -> None:
        """Stores a credential that may be sent here, and grants it."""
        delivery = delivery or ("bearer" if self.prefix else f"header:{self.header}")
        await world.vault.put(name, ApiKey(SECRET), origins=[self.origin], delivery=delivery)
        await world.vault.grant(plugin, name)


@contextlib.asynccontextmanager
async def vendor() -> AsyncIterator[Vendor]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.read_body()
            headers = {name.lower(): value for name, value in self.headers.items()}
            made.requests.append((self.command, self.path, headers, body))
            found = self.headers.get_all(made.header) or []
            status = made.statuses.pop(0) if made.statuses else 200
            if found != [made.prefix + SECRET]:
                return self.say(401, json.dumps({"error": {"message": "wrong key"}}).encode())
            if status != 200:
                return self.say(status, json.dumps(made.refusal).encode())
            said = made.answer(self.command, self.path, body)
            if isinstance(said, list):
                return self.stream(said)
            return self.say(200, json.dumps(said).encode())

        do_GET = do_POST = do_PUT = do_DELETE = handle_any

        def read_body(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length", 0)))
            whole = b""
            while size := int(self.rfile.readline(), 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole

        def say(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("x-elastic-product", "Elasticsearch")  # its client asks for that
            self.send_header("set-cookie", f"session={len(made.requests)}; path=/")
            self.send_header("content-length", str(len(body)))
            if status != 200:  # as soon as may be, for who asks again
                self.send_header("retry-after", "0")
                self.send_header("retry-after-ms", "1")
            self.echo()
            self.end_headers()
            self.wfile.write(body)

        def echo(self) -> None:
            if made.echoes:
                self.send_header("x-seen", self.headers.get(made.header) or "")
            for name, value in made.headers.items():
                self.send_header(name, value)

        def stream(self, events: list[str]) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.echo()
            self.end_headers()
            for event in events:
                data = f"{event}\n\n".encode()
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()
                if made.gate is not None:
                    made.gate.wait()
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *args: object) -> None:
            pass

    class Listening(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, address: object) -> None:
            pass

    server = Listening(("127.0.0.1", 0), Handler)
    made = Vendor(server.server_address[1])
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield made
    finally:
        if made.gate is not None:
            made.gate.set()
        server.shutdown()
        server.server_close()


def has_secret(*starts: object, secret: str = SECRET) -> bool:
    """Whether any text or bytes that objects lead to has it; walked as the collector would."""
    return bool(holders(secret, *starts))

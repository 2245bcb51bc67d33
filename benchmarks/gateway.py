"""What the gateway costs: a request through it, beside a direct one and one through mitmproxy.

``python -m benchmarks.gateway [--json] [--rounds N] [--only NAME …] [--strict]``

A kept-alive client sends small requests to a server with TLS, on the loopback, in a process of
its own: directly, through the gateway (a redeem with its durable log each, in a thread of this
process), and through mitmdump, which changes a header (``MITMDUMP`` names the program: install
it in an environment of its own). 16 at once are the throughput. Behind the wall: a call in a
worker that is warm, and one whose worker is started for it; a worker's memory is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import httpx

from apex_creds import CredentialMiddleware
from apex_creds.concurrency import LoopThread
from apex_creds.isolation.code import plugin_function
from apex_creds.isolation.gateway import Gateway, Limits
from apex_creds.isolation.placeholders import Placeholders
from apex_creds.isolation.runner import IsolatedRunner
from apex_creds.leases.lease import current_invocation
from benchmarks.harness import (
    Budget,
    Operation,
    Run,
    Subject,
    UnavailableError,
    as_json,
    measure,
    show,
)
from benchmarks.invoke import manifest_for, vault_for
from tests.support.certificates import certificate

_AT_ONCE: Final = 16
_SERVER: Final = """
import asyncio, ssl, sys
async def serve(reader, writer):
    try:
        while True:
            await reader.readuntil(b"\\r\\n\\r\\n")
            writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 512\\r\\n\\r\\n" + b"x" * 512)
    except (OSError, asyncio.IncompleteReadError):
        writer.close()
async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[1:3])
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
_PLUGIN: Final = "def act(text):\n    return text\n"


class _Server(NamedTuple):
    """One with TLS: its origin, and the certificate to trust."""

    origin: str
    trusted: Path


@contextlib.contextmanager
def _server() -> Iterator[_Server]:
    """In a process of its own; this process trusts it meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        files = certificate(Path(folder))
        with subprocess.Popen(
            [sys.executable, "-c", _SERVER, *map(str, files)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            os.environ["SSL_CERT_FILE"] = str(files[0])
            try:
                yield _Server(f"https://127.0.0.1:{int(process.stdout.readline())}", files[0])
            finally:
                process.kill()
                del os.environ["SSL_CERT_FILE"]


def _started(command: Sequence[str], home: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env={**os.environ, "HOME": home})


@contextlib.asynccontextmanager
async def _requests(
    base: str, *, at_once: int, key: str = "", verify: ssl.SSLContext | bool = True
) -> AsyncIterator[Operation]:
    """So many GETs of a client that keeps its connections."""
    headers = {"Authorization": f"Bearer {key or 'none'}"}
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(
        base_url=base,
        headers=headers,
        verify=verify,
        trust_env=False,
        limits=limits,
        timeout=60,
    ) as client:

        async def once() -> None:
            (await client.get("/v1/models")).raise_for_status()

        async def batch() -> None:
            await asyncio.gather(*(once() for _ in range(at_once)))

        yield once if at_once == 1 else batch


@contextlib.asynccontextmanager
async def direct(server: _Server, at_once: int) -> AsyncIterator[Operation]:
    """By TLS to the server."""
    context = ssl.create_default_context(cafile=str(server.trusted))
    async with _requests(server.origin, at_once=at_once, verify=context) as operation:
        yield operation


@contextlib.asynccontextmanager
async def through_gateway(server: _Server, at_once: int) -> AsyncIterator[Operation]:
    """By the gateway, in the invocation of a plugin."""
    origin = server.origin
    thread = LoopThread("benchmark-gateway")
    ready, over = asyncio.Event(), asyncio.Event()
    found: list[tuple[str, str]] = []
    here = asyncio.get_running_loop()

    async def plugin() -> None:
        call = current_invocation()
        placeholders = Placeholders({"openai": "sk-"})
        gateway = Gateway(lambda: call, placeholders=placeholders, limits=Limits(idle=3600.0))
        await gateway.start(socket.create_server(("127.0.0.1", 0)))
        base = f"http://{gateway.authority}/{origin.replace('://', '/')}"
        found.append((base, placeholders.of("openai")))
        here.call_soon_threadsafe(ready.set)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(over.wait(), here))
        await gateway.close()

    async def serve() -> None:
        async with (
            vault_for(origin) as vault,
            CredentialMiddleware(vault, ttl=36_000, harden=False) as middleware,
        ):
            await middleware.invoke(manifest_for(origin, access="inject"), plugin)

    running = asyncio.create_task(asyncio.to_thread(thread.call, serve))
    try:
        await ready.wait()
        base, key = found[0]
        async with _requests(base, at_once=at_once, key=key) as operation:
            yield operation
    finally:
        over.set()
        await running
        thread.close()


@contextlib.asynccontextmanager
async def through_mitmproxy(server: _Server, at_once: int) -> AsyncIterator[Operation]:
    """By mitmdump, which adds a header; nothing is checked, decrypted or logged."""
    program = shutil.which(os.environ.get("MITMDUMP", "mitmdump"))
    if program is None:
        raise UnavailableError("no mitmdump: install mitmproxy, and say MITMDUMP=PATH")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = [
        *("--mode", f"reverse:{server.origin}", "--listen-host", "127.0.0.1", "-q"),
        *(
            "--listen-port",
            str(port),
            "--set",
            f"ssl_verify_upstream_trusted_ca={server.trusted}",
        ),
        *("--modify-headers", "/~q/Authorization/Bearer key"),
    ]
    with (
        tempfile.TemporaryDirectory() as home,
        _started([program, *options], home) as process,
    ):
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                await asyncio.sleep(0.05)
            base = f"http://127.0.0.1:{port}"
            async with _requests(base, at_once=at_once) as operation:
                yield operation
        finally:
            process.terminate()


@contextlib.asynccontextmanager
async def worker(*, warm: bool) -> AsyncIterator[Operation]:
    """A call of a plugin behind the wall."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "timed_plugin.py").write_text(_PLUGIN)
        act = plugin_function(Path(folder), "timed_plugin:act")
        manifest = manifest_for("https://api.example.com", access="inject")
        async with vault_for("https://api.example.com") as vault:

            async def call(middleware: CredentialMiddleware) -> None:
                assert await middleware.invoke(manifest, act, "x") == "x"

            async def cold() -> None:
                async with CredentialMiddleware(vault, isolation=IsolatedRunner()) as made:
                    await call(made)

            if not warm:
                yield cold
                return
            async with CredentialMiddleware(vault, isolation=IsolatedRunner()) as middleware:
                await call(middleware)
                print(f"memory of a worker: {_memory() / 1024:.1f} MiB, with its fork server")
                yield partial(call, middleware)


def _memory() -> int:
    """KiB of all processes behind walls that this one has started, shared pages divided."""
    found, waiting = 0, [os.getpid()]
    while waiting:
        process = Path("/proc") / str(waiting.pop())
        with contextlib.suppress(OSError):
            for task in process.glob("task/*/children"):
                waiting += map(int, task.read_text().split())
            if (
                process.name != str(os.getpid())
                and b"fork_server" in (process / "cmdline").read_bytes()
            ):
                line = (process / "smaps_rollup").read_text().partition("Pss:")[2]
                found += int(line.split()[0])
    return found


def _subjects(server: _Server) -> list[Subject]:
    ways = {
        "direct": ("by TLS to the server", direct),
        "gateway": ("by the gateway: a redeem each", through_gateway),
        "mitmproxy": ("by mitmdump: a header changed", through_mitmproxy),
    }
    found = [Subject(name, what, partial(way, server, 1)) for name, (what, way) in ways.items()]
    found += [
        Subject(
            f"{name}-{_AT_ONCE}", f"{_AT_ONCE} at once, {what}", partial(way, server, _AT_ONCE)
        )
        for name, (what, way) in ways.items()
    ]
    cold = "the same, its worker started for it"
    found.append(Subject("worker-warm", "a call in a warm worker", partial(worker, warm=True)))
    found.append(Subject("worker-cold", cold, partial(worker, warm=False)))
    return found


def budgets(run: Run) -> list[Budget]:
    """The budgets of DESIGN section 9 that this run can judge."""
    found, judged = run.results, []
    ours, plain = found.get("gateway"), found.get("direct")
    if ours is not None and plain is not None:
        judged.append(Budget("through the gateway, over TLS", ours.ratio_to(plain), 2.0, "×"))
    for end, what in (("", "one"), (f"-{_AT_ONCE}", f"{_AT_ONCE} at once")):
        ours, theirs = found.get(f"gateway{end}"), found.get(f"mitmproxy{end}")
        if ours is not None and theirs is not None:
            times = ours.ratio_to(theirs)
            judged.append(Budget(f"the same, over mitmproxy, {what}", times, 1.0, "×"))
    return judged


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0, or 1 when ``--strict`` and a budget is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks.gateway", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object, no tables")
    parser.add_argument("--rounds", type=int, default=20, help="figures for each subject")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="what begins so alone")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a budget is missed")
    chosen = parser.parse_args(argv)
    wanted = tuple(chosen.only or ("",))
    with _server() as server:
        found = _subjects(server)
        subjects = [subject for subject in found if subject.name.startswith(wanted)]
        run = asyncio.run(measure(subjects, rounds=max(chosen.rounds, 1)))
    judged = budgets(run)
    if chosen.json:
        print(as_json(run, reference=subjects[0].name, budgets=judged))
    else:
        show(run, reference=subjects[0].name, budgets=judged)
    return int(chosen.strict and not all(budget.kept for budget in judged))


if __name__ == "__main__":
    sys.exit(main())

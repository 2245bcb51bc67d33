"""What one plugin invocation costs with a handle instead of a secret, beside the peers.

``python -m benchmarks.invoke [--json] [--cpu] [--rounds N] [--only NAME …] [--profile NAME]``

One run measures the whole invocation through the middleware (lease, policy, audit write,
redeem, revoke), the bare call that it is over, a redeem alone, and each peer that is here; it
prints medians, paired ratios, and where the budgets of DESIGN section 9 stand.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from pathlib import Path
from typing import Final

import httpx
from opentelemetry import trace
from opentelemetry.metrics import _internal as metering
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from apex_creds import (
    ApiKey,
    CredentialHandle,
    CredentialMap,
    CredentialMiddleware,
    Manifest,
    Vault,
    parse_manifest,
)
from benchmarks.floor import FLOORS
from benchmarks.harness import (
    Budget,
    Operation,
    Run,
    Subject,
    as_json,
    measure,
    profile,
    serving,
    show,
)
from benchmarks.peers import PEERS, SECRET

_ORIGIN: Final = "https://api.openai.com"


def manifest_for(origin: str, *, access: str) -> Manifest:
    """What the plugin of the benchmarks declares."""
    need = {"name": "openai", "access": access, "origins": [origin], "reason": "to measure"}
    return parse_manifest(
        {"id": "bench", "name": "bench", "version": "1.0.0", "credentials": [need]}
    )


MANIFEST: Final = manifest_for(_ORIGIN, access="reveal")
_SPANS: Final = InMemorySpanExporter()
_PROVIDER: Final = TracerProvider()
_PROVIDER.add_span_processor(SimpleSpanProcessor(_SPANS))
_METERS: Final = MeterProvider([InMemoryMetricReader()])


@asynccontextmanager
async def bare_call() -> AsyncIterator[Operation]:
    """The plugin's action, called directly: what every overhead is over."""

    async def action(prompt: str) -> int:
        return len(prompt)

    async def call() -> int:
        return await action("hello")

    yield call


@asynccontextmanager
async def invocation() -> AsyncIterator[Operation]:
    """The action through the middleware, redeeming once."""

    async def action(prompt: str, credentials: CredentialMap) -> int:
        async with credentials["openai"].reveal():
            return len(prompt)

    async with vault_for() as vault, CredentialMiddleware(vault) as middleware:

        async def call() -> object:
            return await middleware.invoke_action(MANIFEST, "chat", action, ("hello",))

        yield call


@asynccontextmanager
async def declared() -> AsyncIterator[Operation]:
    """The same, but nothing is redeemed."""

    async def action(prompt: str, credentials: CredentialMap) -> int:  # noqa: ARG001
        return len(prompt)

    async with vault_for() as vault, CredentialMiddleware(vault) as middleware:

        async def call() -> object:
            return await middleware.invoke_action(MANIFEST, "chat", action, ("hello",))

        yield call


@asynccontextmanager
async def with_client() -> AsyncIterator[Operation]:
    """The action sends one request with the credential, over a connection that is kept."""
    with serving() as origin:
        async with _requesting(origin) as call:
            yield call


@asynccontextmanager
async def with_client_in_memory() -> AsyncIterator[Operation]:
    """The same without a network: the application's transport has the answer ready."""
    async with _requesting(_ORIGIN, _Ready()) as call:
        yield call


@asynccontextmanager
async def _requesting(
    origin: str, transport: httpx.AsyncBaseTransport | None = None
) -> AsyncIterator[Operation]:
    manifest, url = manifest_for(origin, access="inject"), f"{origin}/v1/models"

    async def action(credentials: CredentialMap) -> int:
        async with credentials["openai"].client() as client:
            return (await client.get(url)).status_code

    async with (
        vault_for(origin) as vault,
        CredentialMiddleware(vault, transport=transport) as middleware,
    ):

        async def call() -> object:
            return await middleware.invoke_action(manifest, "chat", action)

        yield call


@asynccontextmanager
async def plain_http() -> AsyncIterator[Operation]:
    """The same request by httpx, with the secret in its headers and connections kept."""
    with serving() as origin:
        async with httpx.AsyncHTTPTransport() as pool:
            yield _plain(origin, _Shared(pool))


@asynccontextmanager
async def plain_http_in_memory() -> AsyncIterator[Operation]:
    """The same without a network."""
    yield _plain(_ORIGIN, _Ready())


def _plain(origin: str, transport: httpx.AsyncBaseTransport) -> Operation:
    headers, url = {"Authorization": f"Bearer {SECRET}"}, f"{origin}/v1/models"

    async def call() -> int:
        client = httpx.AsyncClient(transport=transport, headers=headers, trust_env=False)
        async with client:
            return (await client.get(url)).status_code

    return call


class _Ready(httpx.AsyncBaseTransport):
    """Has its answer ready."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:  # noqa: ARG002
        return httpx.Response(200, content=b"hello")


class _Shared(httpx.AsyncBaseTransport):
    """A pool of connections that no client closes."""

    def __init__(self, pool: httpx.AsyncHTTPTransport) -> None:
        self._pool = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._pool.handle_async_request(request)


@asynccontextmanager
async def traced_invocation() -> AsyncIterator[Operation]:
    """The same with its three spans (invoke, lease, redeem), recorded and kept."""
    async with invocation() as call:
        _tracing_on()
        await call()  # type: ignore[misc]
        names = sorted(span.name for span in _SPANS.get_finished_spans())
        if names != ["apex_creds.invoke", "apex_creds.lease", "apex_creds.redeem"]:
            raise RuntimeError(f"expected three spans, not {names}")
        try:
            yield call
        finally:
            _tracing_off()


@asynccontextmanager
async def metered_invocation() -> AsyncIterator[Operation]:
    """The same with the three spans and the metrics, with exemplars."""
    async with traced_invocation() as call:
        try:
            yield call
        finally:
            _tracing_off()


# The API lets a provider be set only once; interleaved rounds need it on and off.
def _tracing_on() -> None:
    _SPANS.clear()
    trace._TRACER_PROVIDER = _PROVIDER
    metering._METER_PROVIDER = None


def _metering_on() -> None:
    _tracing_on()
    metering._METER_PROVIDER = _METERS


def _tracing_off() -> None:
    trace._TRACER_PROVIDER = metering._METER_PROVIDER = None


@asynccontextmanager
async def redeem() -> AsyncIterator[Operation]:
    """One redeem of an open lease: checks, audit write, decrypt, wipe.

    The lease is that of an action that waits; its handle works in its context only.
    """
    inside: asyncio.Future[tuple[Context, CredentialHandle]] = asyncio.Future()
    done = asyncio.Event()

    async def action(credentials: CredentialMap) -> None:
        inside.set_result((copy_context(), credentials["openai"]))
        await done.wait()

    async with vault_for() as vault, CredentialMiddleware(vault, ttl=3600) as middleware:
        waiting = asyncio.create_task(middleware.invoke_action(MANIFEST, "chat", action))
        context, handle = await inside

        def once() -> None:
            with handle.reveal():
                pass

        try:
            yield lambda: context.run(once)
        finally:
            done.set()
            await waiting


@asynccontextmanager
async def vault_for(origin: str = _ORIGIN) -> AsyncIterator[Vault]:
    """A vault on disk, under a key file, with the secret that the peers have too."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        async with await Vault.create(home / "vault", master=f"file:{home / 'key'}") as vault:
            await vault.put("openai", ApiKey(SECRET), delivery="bearer", origins=[origin])
            await vault.grant("bench", "openai", reveal=True)
            yield vault


INVOCATION: Final = Subject(
    "invocation", "whole invocation, tracing off", invocation, _tracing_off
)
DECLARED: Final = Subject(
    "declared", "the same, declared and not redeemed", declared, _tracing_off
)
WITH_CLIENT: Final = Subject(
    "client", "an invocation with client() and one GET", with_client, _tracing_off
)
WITH_CLIENT_IN_MEMORY: Final = Subject(
    "client-in-memory", "the same, the answer ready in memory", with_client_in_memory
)
PLAIN_HTTP: Final = Subject("httpx", "the same GET, by httpx alone", plain_http)
PLAIN_HTTP_IN_MEMORY: Final = Subject(
    "httpx-in-memory", "the same, the answer ready in memory", plain_http_in_memory
)
OWN: Final = (
    Subject("bare", "the action, called directly", bare_call),
    INVOCATION,
    DECLARED,
    WITH_CLIENT,
    PLAIN_HTTP,
    Subject("traced", "the same, three recorded spans", traced_invocation, _tracing_on),
    Subject("metered", "and with metrics and exemplars", metered_invocation, _metering_on),
    Subject("redeem", "one redeem of an open lease", redeem, _tracing_off),
    *FLOORS,
)


def budgets(run: Run) -> list[Budget]:
    """The budgets of DESIGN section 9 that this run can judge."""
    found = run.results
    judged: list[Budget] = []
    for name, what, limit in (
        ("invocation", "whole invocation, over the injector", 3),
        ("redeem", "redeem alone, over the injector", 1.5),
    ):
        if name in found and "injector" in found:
            times = found[name].ratio_to(found["injector"])
            judged.append(Budget(what, times, limit, "×"))
    if "client" in found and "httpx" in found:
        times = found["client"].ratio_to(found["httpx"])
        judged.append(Budget("client() and one GET, over httpx alone", times, 1.15, "×"))
    if "traced" in found and "openbao" in found:
        times = found["openbao"].ratio_to(found["traced"])
        what = "with three recorded spans, faster than one OpenBao kv get"
        judged.append(Budget(what, times, 15, "×", at_least=True))
    return judged


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.invoke", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object, no tables")
    parser.add_argument("--rounds", type=int, default=30, help="figures for each subject")
    parser.add_argument(
        "--cpu", action="store_true", help="processor time of the loop's thread: a busy machine"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these alone")
    parser.add_argument(
        "--profile",
        metavar="NAME",
        choices=[one.name for one in (*OWN, *PEERS)],
        help="where the time of this one goes, instead",
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 when a budget is missed")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0, or 1 when ``--strict`` and a budget is missed."""
    arguments = _arguments(argv)
    if arguments.profile:
        chosen = next(one for one in (*OWN, *PEERS) if one.name == arguments.profile)
        print(asyncio.run(profile(chosen)))
        return 0
    subjects = [one for one in (*OWN, *PEERS) if _wanted(one, arguments.only)]
    clock = time.thread_time if arguments.cpu else time.perf_counter
    run = asyncio.run(measure(subjects, rounds=max(arguments.rounds, 1), clock=clock))
    judged = budgets(run)
    if arguments.json:
        print(as_json(run, reference="invocation", budgets=judged))
    else:
        show(run, reference="invocation", budgets=judged)
    missed = [budget for budget in judged if not budget.kept]
    return 1 if arguments.strict and missed else 0


def _wanted(subject: Subject, only: Sequence[str] | None) -> bool:
    return only is None or subject.name in only


if __name__ == "__main__":
    sys.exit(main())

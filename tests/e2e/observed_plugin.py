"""A program that uses a vault and exports as OTEL_* says; run by the tests of exporters.

``python -m tests.e2e.observed_plugin HOME [wait]``: with ``wait``, it says ``ready`` when it
has done its work, and stays until its standard input ends.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import anyio

from apex_creds import (
    ApexCredsError,
    ApiKey,
    CredentialMap,
    CredentialMiddleware,
    Vault,
    parse_manifest,
)
from apex_creds.audit.sinks import CallbackSink, Destination
from apex_creds.scheduler.status import Watch
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.telemetry import sdk, semconv, tracing

CANARY = "sk-canary-4f1d9a"
MANIFEST = parse_manifest(
    {
        "id": "weather",
        "version": "1.0.0",
        "credentials": [{"name": "openai", "access": "reveal", "reason": "to call it"}],
    }
)
REFUSED = parse_manifest(
    {
        "id": "greedy",
        "version": "1.0.0",
        "credentials": [{"name": "openai", "access": "reveal", "reason": "to have it"}],
    }
)


async def forecast(credentials: CredentialMap) -> str:
    async with credentials["openai"].reveal() as secret:
        return secret.expose_bytes().decode()


async def work(home: Path) -> None:
    sink = Destination(name="function", sink=CallbackSink(lambda _: None))
    master = f"file:{home / 'key'}"
    async with await Vault.create(home / "vault", master=master, audit_to=[sink]) as vault:
        await vault.put("openai", ApiKey(CANARY))
        await vault.grant("weather", "openai", reveal=True)
        async with CredentialMiddleware(vault) as middleware:
            for _ in range(3):
                result = await middleware.invoke(MANIFEST, forecast)
                assert CANARY not in str(result)
            with contextlib.suppress(ApexCredsError):
                await middleware.invoke(REFUSED, forecast)
            watch = Watch(vault, RotationWorker(vault).engine)
            for look in (watch.verify, watch.count, watch.due):
                await look()
            with tracing.rotation(level="dek", keys=["00" * 16], trigger="manual") as step:
                step.set(semconv.RECORDS, 1)
            if sys.argv[2:] == ["wait"]:
                print("ready", flush=True)
                await anyio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    with sdk.exporting():
        anyio.run(work, Path(sys.argv[1]))

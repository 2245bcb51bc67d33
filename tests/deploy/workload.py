"""A runtime with plugins that behave and plugins that don't; run by the test of dashboards.

``python -m tests.deploy.workload HOME``: each line on standard input is a round of it, after
which it says ``done``; it stays until its standard input ends. Real vault, middleware,
second factor and worker; metrics are exported as ``OTEL_*`` says.
"""

from __future__ import annotations

import contextlib
import operator
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread

from apex_creds import (
    ApexCredsError,
    ApiKey,
    CredentialMap,
    CredentialMiddleware,
    Vault,
    parse_manifest,
)
from apex_creds.audit.sinks import CallbackSink, Destination
from apex_creds.auth.enrolment import Enrolment, Factors
from apex_creds.auth.totp import code_at
from apex_creds.policy.manifest import Manifest
from apex_creds.scheduler.rotation_state import labels_of, newest, order
from apex_creds.scheduler.schedule import Level
from apex_creds.scheduler.worker import Rhythm, RotationWorker
from apex_creds.telemetry import sdk

CANARY = "sk-canary-77c1e0"
QUICK = Rhythm(check=0.5, events=0.5, health=0.5, verify=0.5, count=0.25, due=0.5)


def _plugin(name: str) -> Manifest:
    need = {"name": "openai", "access": "reveal", "reason": "to call it"}
    return parse_manifest({"id": name, "version": "1.0.0", "credentials": [need]})


async def behave(credentials: CredentialMap) -> int:
    async with credentials["openai"].reveal() as secret:
        return len(secret)


async def leak(credentials: CredentialMap) -> str:
    async with credentials["openai"].reveal() as secret:
        return secret.expose_bytes().decode()


async def fail(credentials: CredentialMap) -> None:
    async with credentials["openai"].reveal() as secret:
        raise ValueError(secret.expose_bytes().decode())


class Runtime:
    """One vault with what uses it."""

    def __init__(self, vault: Vault, middleware: CredentialMiddleware) -> None:
        self.vault = vault
        self.middleware = middleware
        self.worker = RotationWorker(vault, rhythm=QUICK, watching=True)
        self.factors = Factors(vault)

    async def prepare(self) -> None:
        await self.vault.put("openai", ApiKey(CANARY))
        for plugin in ("weather", "mail"):
            await self.vault.grant(plugin, "openai", reveal=True)
        with self.factors.begin("phone") as enrolment:
            await self.factors.confirm(enrolment, self._code(enrolment))

    async def round(self) -> None:
        for _ in range(5):
            await self._call("weather", behave)
        await self._call("weather", leak)
        await self._call("mail", fail)
        await self._call("greedy", behave)
        for code in ("000000", "not a code"):
            with contextlib.suppress(ApexCredsError):
                await self.factors.verify(code)
        await self.vault.grant("former", "openai", reveal=True)
        await self.vault.revoke(plugin="former", credential="openai")
        await self._rotate()

    async def _call(self, plugin: str, function: Callable[..., object]) -> None:
        with contextlib.suppress(ApexCredsError, ValueError):
            answer = await self.middleware.invoke(_plugin(plugin), function)
            assert CANARY not in str(answer)

    async def _rotate(self) -> None:
        """Asks the worker for new keys, as `apex-creds rotate` does, and waits for them."""
        before, keystore = await self._versions(), await self.vault.store.keystore()
        for level in (Level.DEK, Level.KEK):
            wanted = newest(keystore, level, labels_of(keystore))
            await order(self.worker.engine.document, wanted)
        with anyio.fail_after(60):
            while any(map(operator.eq, before, await self._versions())):
                await anyio.sleep(0.02)

    async def _versions(self) -> tuple[int, int]:
        keystore = await self.vault.store.keystore()
        dek = keystore.by_label["api_keys/openai"].primary.version
        return dek, keystore.root_header.keks.primary.version

    def _code(self, enrolment: Enrolment) -> str:
        now = self.vault.clock.time()
        return code_at(enrolment.seed, settings=enrolment.settings, now=now)


async def work(home: Path) -> None:
    sink = Destination(name="function", sink=CallbackSink(lambda _: None))
    master = f"file:{home / 'key'}"
    made = await Vault.create(home / "vault", master=master, audit_to=[sink])
    async with made as vault, CredentialMiddleware(vault) as middleware:
        runtime = Runtime(vault, middleware)
        await runtime.prepare()
        async with runtime.worker:
            while await anyio.to_thread.run_sync(sys.stdin.readline):
                await runtime.round()
                print("done", flush=True)


if __name__ == "__main__":
    with sdk.exporting():
        anyio.run(work, Path(sys.argv[1]))

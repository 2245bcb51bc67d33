"""Invocations at a steady rate while all three levels rotate every few seconds.

``python -m benchmarks.under_load [--seconds 60] [--rate 500] [--every 3]``

Each invocation goes through the middleware, redeems a credential, and compares it with
what was stored. Prints errors, wrong secrets, and the latency with and without rotation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import quantiles

from apex_creds import ApiKey, CredentialMap, CredentialMiddleware, Vault, parse_manifest
from apex_creds.policy.manifest import Manifest
from apex_creds.scheduler.rotation_state import RotationState
from apex_creds.scheduler.schedule import LevelPolicy, Policies
from apex_creds.scheduler.worker import Rhythm, RotationWorker
from apex_creds.vault.lookup import PutItem

NAMES = [f"name{number}" for number in range(20)]


@dataclass(slots=True)
class Outcome:
    """What a run saw; latencies in seconds."""

    invocations: int = 0
    errors: list[str] = field(default_factory=list)
    wrong: int = 0
    p50: float = 0.0
    p99: float = 0.0
    versions: dict[str, int] = field(default_factory=dict)


async def load(
    seconds: float, rate: float, every: float | None, *, rotations: int = 0
) -> Outcome:
    """One run.

    Args:
        seconds: How long.
        rate: Invocations a second.
        every: How old a key gets; None for no rotation.
        rotations: Go on until each level was rotated so often.
    """
    manifest = parse_manifest(
        {
            "id": "load", "name": "load", "version": "1.0.0",
            "credentials": [
                {"name": n, "access": "reveal", "reason": "to measure"} for n in NAMES
            ],
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        master = f"file:{name}/master.key"
        async with await Vault.create(Path(name) / "home", master=master) as vault:
            items = [
                PutItem(name=n, secret=ApiKey(f"value of {n}"), service=f"service {i % 4}")
                for i, n in enumerate(NAMES)
            ]
            await vault.put_many(items)
            for n in NAMES:
                await vault.grant("load", n, reveal=True)
            async with CredentialMiddleware(vault) as middleware:
                run = _Run(vault, middleware, manifest, Outcome(), rotations)
                return await run.go(seconds, rate, every)


@dataclass(slots=True)
class _Run:
    vault: Vault
    middleware: CredentialMiddleware
    manifest: Manifest
    outcome: Outcome
    rotations: int
    latencies: list[float] = field(default_factory=list)

    async def go(self, seconds: float, rate: float, every: float | None) -> Outcome:
        if every is None:
            await self._steady(seconds, rate)
        else:
            worker = RotationWorker(self.vault, rhythm=Rhythm(check=0.5))
            quick = LevelPolicy(interval=every, grace=1.0)
            state = RotationState(policies=Policies(master=quick, kek=quick, dek=quick))
            await worker.engine.document.change(lambda _: state)
            async with worker:
                await self._steady(seconds, rate)
        cuts = quantiles(self.latencies, n=100)
        self.outcome.p50, self.outcome.p99 = cuts[49], cuts[98]
        self.outcome.versions = self._versions()
        return self.outcome

    def _versions(self) -> dict[str, int]:
        keystore = self.vault.store.unsealed()
        root = keystore.root_header
        return {
            "master": root.master.version,
            "kek": root.keks.primary.version,
            "dek": min(
                keyset.primary.version
                for keyset in keystore.body.deks
                if keyset.label.startswith("api_keys/")
            ),
        }

    async def _steady(self, seconds: float, rate: float) -> None:
        began, number = time.perf_counter(), 0
        async with asyncio.TaskGroup() as group:
            while number < seconds * rate or min(self._versions().values()) <= self.rotations:
                number += 1
                ahead = number / rate - (time.perf_counter() - began)
                await asyncio.sleep(max(0.0, ahead))
                group.create_task(self._once())

    async def _once(self) -> None:
        name = random.choice(NAMES)

        async def action(credentials: CredentialMap) -> None:
            async with credentials[name].reveal() as secret:
                await asyncio.sleep(0.002)
                if bytes(secret.view()) != f"value of {name}".encode():
                    self.outcome.wrong += 1

        began = time.perf_counter()
        self.outcome.invocations += 1
        try:
            await self.middleware.invoke_action(self.manifest, "load", action, ())
        except Exception as error:  # noqa: BLE001 - counted
            self.outcome.errors.append(f"{type(error).__name__}: {error}"[:200])
        self.latencies.append(time.perf_counter() - began - 0.002)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--every", type=float, default=3.0)
    chosen = parser.parse_args()
    for every in (None, chosen.every):
        found = asdict(asyncio.run(load(chosen.seconds, chosen.rate, every)))
        found["errors"] = [len(found["errors"]), *found["errors"][:3]]
        print("with rotation" if every else "without rotation", json.dumps(found))


if __name__ == "__main__":
    main()

"""What other processes do to a vault in these tests; started by ``helpers.start``."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import os
import random
import sys
import tempfile
from pathlib import Path

from apex_creds.errors import ApexCredsError, CredentialExistsError, CredentialNotFoundError
from apex_creds.leases.handle import CredentialMap
from apex_creds.middleware import CredentialMiddleware
from apex_creds.model import ApiKey
from apex_creds.policy.manifest import parse_manifest
from apex_creds.vault import Vault
from tests.support.vaults import create, home_in, secret_for, tree


def main(function: str, args: str) -> None:
    """Says that it is ready, waits for the word, runs, prints what was returned."""
    print("ready", flush=True)
    sys.stdin.readline()
    result = globals()[function](*json.loads(args))
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    print(json.dumps(result), flush=True)


def echo(text: str) -> str:
    return text


async def initialise(home: str, master: str) -> str:
    try:
        async with await Vault.create(home, master=master):
            return "created"
    except ApexCredsError as error:
        return type(error).__name__


async def read_only_folder(where: str) -> list[object]:
    """As nobody: puts into a folder that is closed to writing."""
    with tempfile.TemporaryDirectory() as warm:  # nobody may not import what root owns
        async with await create(Path(warm)) as vault:
            await vault.put("a", ApiKey("first"))
            await vault.delete("a")
    os.setegid(65534)
    os.seteuid(65534)
    path = Path(where)
    found: list[object] = []
    async with await create(path) as vault:
        await vault.put("a", ApiKey("first"))
        before = None
        # A new service makes its key first, in the key store; then the section refuses.
        for folder, service in (("credentials", None), ("security", "new")):
            (home_in(path) / folder).chmod(0o500)
            before = tree(home_in(path))
            try:
                await vault.put("a", ApiKey("second"), service=service)
            except ApexCredsError as error:
                found.append(type(error).__name__)
            unchanged = tree(home_in(path)) == before
            (home_in(path) / folder).chmod(0o700)
            if not unchanged:
                found.append(folder)
        found.append((await vault.get("a")).version == 1)
    return found


async def put_many_times(home: str, who: str, names: list[str], rounds: int) -> dict[str, str]:
    """Puts each name again and again; the last acknowledged values."""
    acknowledged = {}
    async with await Vault.unseal(home) as vault:
        for number in range(rounds):
            for name in names:
                value = f"{who}-{name}-{number}"
                await vault.put(name, ApiKey(value), service="shared")
                acknowledged[name] = value
    return acknowledged


async def put_and_delete(home: str, who: str, service: str, rounds: int) -> dict[str, str]:
    """Puts names of its own and deletes every other one; what must be there at the end."""
    kept = {}
    async with await Vault.unseal(home) as vault:
        for number in range(rounds):
            name = f"{who}-{number}"
            await vault.put(name, ApiKey(name * 2), service=service)
            kept[name] = name * 2
            if number % 2:
                gone = f"{who}-{number - 1}"
                assert (await vault.delete(gone)).name == gone
                del kept[gone]
    return kept


async def renew(home: str, section: str, service: str, rounds: int) -> int:
    """Gives a service new keys, re-encrypts, destroys the old ones."""
    from apex_creds.documents import key_versions

    async with await Vault.unseal(home) as vault:
        store = vault._store
        for _ in range(rounds):
            now = vault.clock.time()
            label = f"{section}/{service}"
            await key_versions.renew(store, label, now=now)
            await key_versions.move_records(store, section, label)
            await key_versions.destroy_unused(store, section, label, now=now)
    return rounds


async def contend(home: str, who: str, name: str, rounds: int, seed: int) -> list[str]:
    """Puts, replaces and deletes one name that others want too; errors are fine, some."""
    rng = random.Random(seed)
    outcomes = []
    async with await Vault.unseal(home) as vault:
        for number in range(rounds):
            try:
                if rng.random() < 0.4:
                    await vault.delete(name)
                    outcomes.append("deleted")
                else:
                    service = rng.choice([None, "one", "two"])
                    await vault.put(name, ApiKey(f"{who}-{number}"), service=service)
                    outcomes.append("put")
            except CredentialNotFoundError:
                outcomes.append("absent")
    return outcomes


async def kinds(home: str, kind: str, names: list[str]) -> list[str]:
    """Puts the names as one kind; those that were acknowledged."""
    acknowledged = []
    async with await Vault.unseal(home) as vault:
        for name in names:
            try:
                await vault.put(name, secret_for(kind, f"{kind}-{name}"))
                acknowledged.append(name)
            except CredentialExistsError:
                continue
    return acknowledged


async def use_token(home: str, tasks: int, name: str = "calendar") -> list[str]:
    """What so many invocations at once came to; each needs that credential."""
    ends: list[str] = []

    async def plugin(credentials: CredentialMap) -> None:
        async with credentials[name].reveal() as secret:
            ends.append(hashlib.sha256(secret.expose_str().encode()).hexdigest())

    async with await Vault.unseal(home) as vault:
        middleware = CredentialMiddleware(vault)
        manifest = parse_manifest(
            {
                "id": "demo",
                "version": "1.0.0",
                "credentials": [{"name": name, "access": "reveal"}],
            }
        )

        async def one() -> None:
            try:
                await middleware.invoke(manifest, plugin)
            except ApexCredsError as error:
                ends.append(type(error).__name__)

        await asyncio.gather(*(one() for _ in range(tasks)))
        await middleware.close()
    return ends

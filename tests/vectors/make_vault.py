"""Makes vault directories of the present document version, to be kept for good.

Run once for each version, before it is released, and never again:
``python -m tests.vectors.make_vault`` writes those of tests/vectors/vaults that are not there:
vN, and vN-divided, in which a section and the grants are in shards. (v1 and v2 are from before
grants had documents of their own: theirs are in the key store.) Their secrets are made up;
their master keys lie beside them on purpose.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from unittest import mock

from apex_creds.compat import vault_session
from apex_creds.documents import grant_set, sections
from apex_creds.documents.document import VERSION
from apex_creds.model import ApiKey, BasicAuth, GenericSecret, OAuthToken
from apex_creds.scheduler.schedule import Level
from apex_creds.vault import Vault

VAULTS = Path(__file__).parent / "vaults"


async def fill(vault: Vault) -> None:
    await vault.put("before", ApiKey("value before"), service="shared")
    await vault_session.rotate_levels(vault, (Level.DEK,))
    await vault_session.rotate_levels(vault, (Level.KEK,))
    await vault.put(
        "key", ApiKey("a value"), service="shared", delivery="header:X-Key",
        origins=["https://api.example.com"], sensitivity="critical",
    )  # fmt: skip
    token = OAuthToken("access", refresh_token="refresh", expires_at=4e9, scope="a b")
    await vault.put("token", token)
    await vault.put("login", BasicAuth("user", "password"))
    await vault.put("bytes", GenericSecret(bytes(range(256))), expires=4e9)
    await vault.put("ключ ☕", ApiKey("unicode name"))
    await vault.grant("plugin", "key", scopes=["read"], reveal=True)


async def fill_divided(vault: Vault) -> None:
    """As a large one is, but small: it is divided early."""
    with mock.patch.object(sections, "LARGE", 3), mock.patch.object(grant_set, "MANY", 2):
        await fill(vault)
        for number in range(4):
            await vault.put(f"more {number}", ApiKey(f"value {number}"), service="another")
            await vault.grant(f"plugin{number}", "key", scopes=["read"])
        await vault.revoke(plugin="plugin3")
        await vault_session.rotate_levels(vault, (Level.DEK,))


MADE = {f"v{VERSION}": fill, f"v{VERSION}-divided": fill_divided}


async def expected(vault: Vault) -> dict[str, object]:
    """What must be read from it: every part in hexadecimal, and the grants."""
    found = {}
    for info in await vault.list():
        async with vault.open(info.name) as opened:
            parts = {part: bytes(opened.view(part)).hex() for part in opened.names}
        found[info.name] = {
            "kind": info.kind.value, "service": info.service, "version": info.version,
            "delivery": str(info.delivery), "origins": [str(o) for o in info.origins],
            "expires": info.expires, "sensitivity": info.sensitivity.value, "parts": parts,
        }  # fmt: skip
    grants = [[g.plugin, g.credential, list(g.scopes), g.reveal] for g in await vault.grants()]
    return {"credentials": found, "grants": sorted(grants)}


async def main() -> None:
    for name, fill_one in MADE.items():
        place = VAULTS / name
        if place.exists():  # what landed is never made again
            continue
        place.mkdir(parents=True)
        master = f"file:{place}/master.key"
        async with await Vault.create(place / "home", master=master) as vault:
            await fill_one(vault)
            data = json.dumps(await expected(vault), indent=1, ensure_ascii=True)
        (place / "expected.json").write_text(data + "\n")
        for left in (*place.rglob("*.lock"), *place.rglob(".epoch")):
            left.unlink()


if __name__ == "__main__":
    asyncio.run(main())

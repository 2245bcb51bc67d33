"""Commands, and a small world to run them in: what fault injection and kills share."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apex_creds.admin.backup import backup
from apex_creds.documents import key_versions
from apex_creds.keys import provider_from_uri
from apex_creds.model import ApiKey
from apex_creds.vault import Vault

CANARY: Final = "canary-5f1c"
"""The value of ``first``; in clear it is in no file."""


@dataclass(frozen=True)
class Command:
    """A command line; ``done`` says whether it was, from the world as it is afterwards."""

    arguments: str
    done: Callable[[Mapping[str, Any]], bool] = lambda _: True
    stdin: bytes = b""
    again: tuple[int, ...] = (0,)
    before: str = ""
    """Another command, run in the world beforehand."""


COMMANDS: Final = {
    "init": Command("--home {w}/new init --master file:{w}/new.key", again=(0, 3)),
    "status": Command("status"),
    "list": Command("list"),
    "get": Command("get first --reveal --force"),
    "put": Command("set new", lambda w: "new" in w["values"], stdin=b"value"),
    "put-again": Command("set first", lambda w: w["values"]["first"] == "other", b"other"),
    "rm": Command("rm first --yes", lambda w: "first" not in w["values"], again=(0, 8)),
    "grant": Command("grant plugin second", lambda w: len(w["grants"]) == 2),
    "revoke": Command("revoke plugin", lambda w: not w["grants"], again=(0, 8)),
    "rotate-dek": Command("rotate dek", lambda w: w["dek"] > 1),
    "rotate-kek": Command("rotate kek", lambda w: w["kek"] > 1),
    "rotate-master": Command("rotate master", lambda w: w["master"] > 1),
    "backup": Command("backup {w}/made", again=(0, 7)),
    "backup-tar": Command("backup {w}/made.tar", again=(0, 7)),
    "restore": Command("restore {w}/copy.tar --reason test"),
    "audit": Command("audit verify"),
    "tail": Command("audit tail"),
    "lockdown": Command("lockdown --reason test", lambda w: w["locked"]),
    "unlock": Command(
        "unlock", lambda w: not w["locked"], before="lockdown --reason test"
    ),
    "copy": Command("copy --to {w}/copied"),
    "doctor": Command("doctor", again=(0, 1)),
    "policy": Command("policy check"),
}  # fmt: skip


class World:
    """A vault with two credentials and a grant, its key, and a backup of it."""

    def __init__(self, where: Path) -> None:
        self.live = where / "live"
        self.kept = where / "kept"
        self.live.mkdir(parents=True)
        asyncio.run(self._make())
        shutil.copytree(self.live, self.kept)

    @property
    def home(self) -> Path:
        return self.live / "home"

    async def _make(self) -> None:
        master = f"file:{self.live}/master.key"
        async with await Vault.create(self.home, master=master) as vault:
            await vault.put("first", ApiKey(CANARY))
            await vault.put("second", ApiKey("kept"))
            await vault.grant("plugin", "first", reveal=True)
            provider = provider_from_uri(master)
            await backup(vault, self.live / "copy.tar", provider=provider)
        (self.home / "security/policy.toml").write_text("version = 1\n")
        (self.home / "security/policy.toml").chmod(0o600)

    def fresh(self) -> None:
        shutil.rmtree(self.live)
        shutil.copytree(self.kept, self.live)

    def line(self, command: Command, text: str = "") -> list[str]:
        words = (text or command.arguments).format(w=self.live).split()
        return words if "--home" in words else ["--home", str(self.home), *words]

    def state(self) -> dict[str, Any]:
        """What a process that comes later finds."""
        return asyncio.run(self._state())

    async def _state(self) -> dict[str, Any]:
        async with await Vault.unseal(self.home) as vault:
            granted = await vault.grants()
            if granted.lockdown is not None:
                return {"locked": True, "values": {}, "grants": []}
            keystore = await vault.store.keystore()
            values = {}
            for info in await vault.list():
                async with vault.open(info.name) as opened:
                    values[info.name] = bytes(opened.view()).decode()
            return {
                "locked": False,
                "values": values,
                "grants": [str(each) for each in granted],
                "dek": max(k.primary.version for k in keystore.body.deks),
                "kek": keystore.header.key_version,
                "master": keystore.root_header.master.version,
            }

    def live_versions(self) -> list[str]:
        """Keys that nothing needs and that could still decrypt what was deleted."""
        return asyncio.run(self._live_versions())

    async def _live_versions(self) -> list[str]:
        async with await Vault.unseal(self.home) as vault:
            return await key_versions.left_behind(vault.store, "api_keys")

    def leftovers(self) -> list[str]:
        odd = re.compile(r"\.(?:tmp|new|partial|tar\.tmp)$|^\.restoring-")
        return [
            str(p.relative_to(self.live)) for p in self.live.rglob("*") if odd.search(p.name)
        ]

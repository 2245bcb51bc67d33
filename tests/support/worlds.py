"""A vault, a middleware and plugins to call: what the tests of leases and middleware share."""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from apex_creds.audit import AuditEvent, verify
from apex_creds.audit.verify import read
from apex_creds.clocks import Clock
from apex_creds.crypto.memory import arena
from apex_creds.leases.broker import _OPEN
from apex_creds.middleware import CredentialMiddleware
from apex_creds.model import ApiKey, BasicAuth, GenericSecret, OAuthToken
from apex_creds.policy.manifest import Manifest, parse_manifest
from apex_creds.vault import Vault
from tests.support.clocks import FakeClock

REPOSITORY = Path(__file__).parents[2]
KEY = "sk-live/Zq7+w0rld==&x"
TOKEN = "ya29.access-token-canary"
REFRESH = "1//refresh-token-canary"
PASSWORD = "pass word:\"'\\\n\u00e9\U0001f511"
BLOB = bytes(range(256))


def manifest_for(*needs: str | dict[str, object], plugin: str = "demo") -> Manifest:
    """A manifest that declares credentials, to be revealed unless it says otherwise."""
    declared = [
        {"name": need, "access": "reveal"} if isinstance(need, str) else need for need in needs
    ]
    return parse_manifest({"id": plugin, "version": "1.0.0", "credentials": declared})


class World:
    """What a test works in."""

    def __init__(self, where: Path, vault: Vault, clock: Clock) -> None:
        self.where = where
        self.vault = vault
        self.clock = clock
        self.middleware = CredentialMiddleware(vault)

    async def call(
        self,
        function: Callable[..., object],
        *args: object,
        needs: tuple[str | dict[str, object], ...] = ("key",),
        plugin: str = "demo",
        **kwargs: object,
    ) -> object:
        return await self.middleware.invoke(
            manifest_for(*needs, plugin=plugin), function, *args, **kwargs
        )

    def events(self, kind: str = "") -> list[AuditEvent]:
        """What is in the log, which must verify."""
        self.vault.audit.flush()
        directory = self.where / "home" / "security" / "audit"
        verify(directory, vault_id=self.vault.vault_id)
        return [
            event
            for event in read(directory, vault_id=self.vault.vault_id)
            if kind in ("", event.kind)
        ]

    def reasons(self) -> list[tuple[str, str]]:
        return [(event.credential, event.reason) for event in self.events("denial")]

    def elsewhere(self, code: str) -> object:
        """Runs code in another process, in which ``vault`` is this vault."""
        return in_other_process(self.where, code)

    @contextlib.contextmanager
    def nothing_left(self):
        """No lease, slot or thread of the block stays, but for masks to search answers with."""
        import gc
        import threading

        self.middleware.broker.search.wipe()
        gc.collect()
        before = (arena().open_slots, threading.active_count(), len(_OPEN))
        yield
        self.middleware.broker.search.wipe()
        gc.collect()
        after = (arena().open_slots, threading.active_count(), len(_OPEN))
        assert after[0] <= before[0]
        assert after[2] <= before[2]
        assert self.middleware.broker.open_leases == 0


@contextlib.asynccontextmanager
async def world_in(
    where: Path, *, clock: Clock | None = None, **options: object
) -> AsyncIterator[World]:
    """A world with the credentials and grants that most tests use."""
    await _copy_template(where / "home")
    clock = clock or FakeClock()
    async with await Vault.unseal(where / "home", clock=clock) as vault:
        for info in await vault.list():  # so that its keys are in memory already
            vault.reopen(await vault.find(info.name)).close()
        world = World(where, vault, clock)
        if options:
            await world.middleware.close()
            world.middleware = CredentialMiddleware(vault, **options)  # type: ignore[arg-type]
        try:
            yield world
        finally:
            await world.middleware.close()


_templates: list[Path] = []


async def _copy_template(home: Path) -> None:
    """A home that is made once, copied for each test; its master key is put back as it was.

    Beside the master key the vault keeps its anchor, which tells an older copy.
    """
    if not _templates:
        _templates.append(await _make_template())
    where = _templates[0]
    shutil.rmtree(where / "master", ignore_errors=True)
    shutil.copytree(where / "pristine" / "master", where / "master")
    shutil.copytree(where / "pristine" / "home", home)


async def _make_template() -> Path:
    where = Path(tempfile.mkdtemp(prefix="apex-creds-test-"))
    atexit.register(shutil.rmtree, where, ignore_errors=True)
    (where / "master").mkdir(mode=0o700)
    home, master = where / "home", f"file:{where}/master/key"
    async with await Vault.create(home, master=master, clock=FakeClock()) as vault:
        await _fill(vault)
    for name in ("home", "master"):
        shutil.copytree(where / name, where / "pristine" / name)
    return where


async def _fill(vault: Vault) -> None:
    secrets = {
        "key": ApiKey(KEY),
        "token": OAuthToken(TOKEN, refresh_token=REFRESH),
        "login": BasicAuth("alice", PASSWORD),
        "blob": GenericSecret(BLOB),
        "ungranted": ApiKey("never-granted"),
    }
    for name, secret in secrets.items():
        await vault.put(name, secret, origins=["https://api.example.com"])
    for name in ("key", "token", "login", "blob"):
        for plugin in ("demo", "inner"):
            await vault.grant(plugin, name, scopes=["read", "write"], reveal=True)


def in_other_process(where: Path, code: str) -> object:
    body = "\n".join(f"        {line}" for line in code.splitlines())
    program = (
        "import anyio, json, sys\n"
        "from apex_creds import *\n"
        "async def main():\n"
        f"    async with await Vault.unseal({str(where / 'home')!r}) as vault:\n"
        f"        result = None\n{body}\n"
        "        print(json.dumps(result))\n"
        "anyio.run(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=480,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])

"""A vault in which a lot goes on: what the dashboard's tests look at, and its pictures show."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import anyio

from apex_creds import ApiKey, CredentialMiddleware, Vault, current_credentials, parse_manifest
from apex_creds.auth.consent_queue import QueueConsent
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.totp import TotpSettings, code_at
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents import key_versions
from apex_creds.errors import AccessDeniedError
from apex_creds.model import Origin, Sensitivity
from apex_creds.policy.grants import GrantDecision
from apex_creds.policy.manifest import Manifest
from apex_creds.scheduler import kek_rotation
from apex_creds.scheduler.reencryption import Pace, reencrypt
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.vault.lookup import PutItem

SECRET = "sk-live-THE-SECRET-THAT-MUST-NOT-BE-SEEN"
POLICY = """\
version = 1
[levels.normal]
decision = "allow"

[[rules]]
id = "no-payroll-for-chatter"
plugin = "org.chatter"
credential = "payroll/*"
decision = "deny"
"""


def manifest(plugin: str, *needs: dict[str, object], version: str = "1.4.0") -> Manifest:
    return parse_manifest({"id": plugin, "version": version, "credentials": list(needs)})


def need(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "access": "reveal", "reason": "", **more}


WEATHER = manifest("org.weather", need("weather/openweather", reason="to ask for forecasts"))
CHATTER = manifest(
    "org.chatter",
    need("llm/openai", reason="to write answers"),
    need("payroll/datev", required=False),
)
BOOKS = manifest(
    "org.bookkeeper", need("payments/stripe", reason="to read last month's invoices")
)


class Town:
    """The vault, a runtime in this process, and what goes on."""

    def __init__(self, vault: Vault, middleware: CredentialMiddleware) -> None:
        self.vault = vault
        self.middleware = middleware
        self.seed = b""
        self.answers: dict[str, object] = {}

    async def use(self, plugin: Manifest, name: str, action: str = "run") -> object:
        """One whole invocation, which uses a credential."""

        async def work() -> int:
            async with current_credentials()[name].reveal() as secret:
                return len(secret)

        work.__name__ = action
        return await self.middleware.invoke(plugin, work)

    async def leak(self) -> object:
        async def answer() -> str:
            async with current_credentials()["llm/openai"].reveal() as secret:
                return f"my key is {secret.expose_str()}"

        return await self.middleware.invoke(CHATTER, answer)

    async def hand_on(self) -> None:
        """An invocation that calls another one, with an attenuated handle."""
        inner = manifest("org.summariser")

        async def plan() -> int:
            handle = current_credentials()["llm/openai"].attenuate(max_uses=2)

            async def summarise() -> int:
                async with handle.reveal() as secret:
                    return len(secret)

            return await self.middleware.invoke(inner, summarise)

        await self.middleware.invoke(CHATTER, plan)

    async def denied(self, name: str = "payroll/datev") -> None:
        snoop = manifest("org.snoop", need(name))
        with contextlib.suppress(AccessDeniedError):
            await self.use(snoop, name, "look_around")

    async def hold(self, plugin: Manifest, name: str, stop: anyio.Event, action: str) -> None:
        """An invocation that goes on until it is told to stop."""

        async def stream() -> None:
            async with current_credentials()[name].reveal():
                pass
            await stop.wait()

        stream.__name__ = action
        await self.middleware.invoke(plugin, stream)

    async def ask(self, plugin: Manifest, name: str, action: str = "run") -> None:
        """An invocation that waits for a person; what came of it is in ``answers``."""
        try:
            self.answers[plugin.plugin] = await self.use(plugin, name, action)
        except AccessDeniedError as error:
            self.answers[plugin.plugin] = error

    async def half_rotate(self, label: str, *, moved: int) -> None:
        """A new key for a service; of its credentials, only some are under it yet."""
        store = self.vault.store
        await key_versions.renew(store, label, now=self.vault.clock.time())
        pace = Pace(slice_records=moved)
        async for _ in reencrypt(store, label.partition("/")[0], labels=[label], pace=pace):
            break

    async def finish_rotation(self) -> None:
        """Does what is due, as a worker would."""
        await RotationWorker(self.vault).run_once()

    async def enrol(self) -> None:
        factors = Factors(self.vault)
        with factors.begin("phone") as new:
            self.seed = bytes(new.seed.view())
            now = self.vault.clock.time() - 60
            with contextlib.suppress(Exception):
                await factors.confirm(new, code_at(new.seed, settings=new.settings, now=now))
            if not await factors.enrolled():
                now = self.vault.clock.time() - 30
                await factors.confirm(new, code_at(new.seed, settings=new.settings, now=now))

    def code(self) -> str:
        with SecretBytes.from_bytes(self.seed) as seed:
            return code_at(seed, settings=TotpSettings(), now=self.vault.clock.time())


@contextlib.asynccontextmanager
async def town_in(
    where: Path, *, many: int = 40, storage: str | None = None
) -> AsyncIterator[Town]:
    """A town in a folder: ``home`` and ``master.key``."""
    home, master = where / "home", f"file:{where}/master.key"
    async with await Vault.create(home, master=master, storage=storage) as vault:
        await fill(vault, many=many)
        path = home / "security" / "policy.toml"
        path.touch(mode=0o600)
        path.write_text(POLICY)
        async with CredentialMiddleware(vault, consent=QueueConsent(vault)) as middleware:
            yield Town(vault, middleware)


async def fill(vault: Vault, *, many: int = 40) -> None:
    """Credentials of several levels and services, and grants."""
    names = {
        "weather/openweather": "normal",
        "llm/openai": "sensitive",
        "llm/anthropic": "sensitive",
        "payments/stripe": "critical",
        "payroll/datev": "critical",
        "mail/smtp": "sensitive",
    }
    names |= {f"tenants/customer-{n:03}": "sensitive" for n in range(many)}
    items = [
        PutItem(
            name=name,
            secret=ApiKey(f"{SECRET}-{name}"),
            service=name.partition("/")[0],
            origins=(Origin.parse(f"https://api.{name.replace('/', '.')}.test"),),
            sensitivity=Sensitivity(level),
        )
        for name, level in names.items()
    ]
    await vault.put_many(items)
    now = vault.clock.time()
    await vault.grant("org.weather", "weather/openweather", reveal=True)
    await vault.grant("org.chatter", "llm/openai", reveal=True, until=now + 86_400)
    await vault.grant("org.snoop", "payroll/datev", decision=GrantDecision.DENY)
    await vault.grant("org.mailer", "mail/smtp", scopes=["send"], until=now - 60)


async def turn_kek(vault: Vault) -> None:
    """A new KEK; documents move to it as they are written."""
    keks = (await vault.store.keystore()).root_header.keks
    await kek_rotation.rotate_kek(
        vault.store, replaces=keks.primary.version, now=vault.clock.time()
    )

"""The demo from an empty directory to its findings."""

from __future__ import annotations

import base64
import dataclasses
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

import anyio.to_thread

from apex_creds.audit import EventKind, Recorded, check, read
from apex_creds.cli import dotenv
from apex_creds.cli.demo import calls as demo_calls
from apex_creds.cli.demo.calls import Call, LogLines, Tally
from apex_creds.cli.demo.findings import Findings
from apex_creds.cli.demo.manager import PluginManager
from apex_creds.cli.demo.service import DemoService
from apex_creds.fs.home import audit_directory
from apex_creds.integrations.apexagent import install
from apex_creds.keys import MasterKeyProvider
from apex_creds.keys.os_keyring import KeyringProvider
from apex_creds.middleware import CredentialMiddleware
from apex_creds.vault import Vault
from apex_creds.vault.identity import home_id

PLUGINS: Final = Path(__file__).with_name("plugins")

_PATHS: Final = {
    "WEATHER_API_KEY": "/v1/forecast",
    "STORY_TOKEN": "/v1/story",
    "CHATTER_TOKEN": "/v1/echo",
}
_GRANTS: Final = (
    ("demo.weather", "WEATHER_API_KEY", False),
    ("demo.narrator", "STORY_TOKEN", False),
    ("demo.chatter", "CHATTER_TOKEN", True),
)
_UNUSED: Final = "PAYROLL_TOKEN"

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Hooks:
    """How the demo tells what it does: in words, and by calls done.

    Attributes:
        progress: Given the number of calls, a context in which it counts those done.
    """

    say: Say
    progress: Callable[[int], AbstractContextManager[Callable[[], None]]]


def write_env(path: Path) -> dict[str, str]:
    """Writes a .env file of fresh secrets, 0600; returns them by name."""
    made = {name: f"demo-{secrets.token_urlsafe(24)}" for name in (*_PATHS, _UNUSED)}
    lines = ["# Secrets made for the demo.", "EMPTY="]
    lines += [f"export {name}='{value}'" for name, value in made.items()]
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return made


async def run(
    home: Path, env: Path, provider: MasterKeyProvider, *, count: int, hooks: Hooks
) -> Findings:
    """Runs everything.

    Args:
        home: Where the vault is made; there must be none.
        env: Where the .env file is made, and removed once it is imported.
        provider: Of the master key.
        count: How many invocations.
        hooks: How to tell.
    """
    values = write_env(env)
    plan = demo_calls.plan(count)
    headers = {path: f"Bearer {values[name]}" for name, path in _PATHS.items()}
    service = DemoService(headers)
    async with _vault(home, provider, hooks.say) as vault, service.running() as base:
        await _fill(vault, env, base, hooks.say)
        manager = PluginManager(PLUGINS)
        async with CredentialMiddleware(vault) as middleware:
            with demo_calls.captured_logs() as logs, install(manager, middleware):
                hooks.say(f"{len(manager.plugins)} plugins loaded and hooked; {base} listens.")
                with hooks.progress(count) as done:
                    tally = await demo_calls.make(manager, plan, base, done=done)
                overhead = await demo_calls.overhead(manager)
                await manager.shutdown()
            leases = middleware.broker.open_leases
        vault_id = vault.vault_id
    return _judge(
        home, vault_id, values, plan, tally, logs, service, leases=leases, overhead=overhead
    )


@asynccontextmanager
async def _vault(home: Path, provider: MasterKeyProvider, say: Say) -> AsyncIterator[Vault]:
    """A new vault; its key and its anchor are taken out of the keyring again afterwards."""
    vault = await Vault.create(home, master=provider)
    vault_id = vault.vault_id
    try:
        async with vault:
            say(f"A vault in {home}; master key: {provider.uri}")
            yield vault
    finally:  # a vault that closes writes its anchor
        if isinstance(provider, KeyringProvider):
            await provider.discard(vault_id=vault_id, version=1)
            forget = partial(provider.delete_anchor, vault_id=vault_id)
            await anyio.to_thread.run_sync(forget)
            await anyio.to_thread.run_sync(partial(provider.delete_pin, home=home_id(home)))


async def _fill(vault: Vault, env: Path, base: str, say: Say) -> None:
    read_plan = dotenv.read_plan(_taken(env))
    names = await dotenv.store(vault, read_plan, replace=False, origins=[base])
    skipped = ", ".join(f"{name} ({why})" for name, why in read_plan.skipped)
    say(f"Imported {', '.join(names)} from {env.name}; skipped {skipped}.")
    for plugin, credential, reveal in _GRANTS:
        await vault.grant(plugin, credential, reveal=reveal)
    say(f"Granted each plugin its own credential; {_UNUSED} to nobody.")


def _taken(env: Path) -> str:
    """The file's text; the file itself is removed."""
    text, _ = dotenv.read_file(env)
    env.unlink()
    return text


def _judge(
    home: Path,
    vault_id: str,
    values: Mapping[str, str],
    plan: list[Call],
    tally: Tally,
    logs: LogLines,
    service: DemoService,
    *,
    leases: int,
    overhead: float,
) -> Findings:
    directory = audit_directory(home)
    report = check(directory, vault_id=vault_id)
    events = list(read(directory, vault_id=vault_id)) if report.ok else []
    return Findings(
        calls=len(plan),
        as_expected=tally.as_expected,
        wrong=tuple(tally.wrong),
        right_wanted=sum(call.requests for call in plan),
        right=service.right,
        refused_by_service=service.wrong,
        denials_wanted=sum(call.denied for call in plan),
        denials=tally.denied,
        denials_logged=_count(events, EventKind.DENIAL),
        leaks_wanted=sum(call.leaks for call in plan),
        leaking_calls=len({e.invocation for e in events if e.kind is EventKind.LEAK}),
        leaks=_count(events, EventKind.LEAK),
        found=_search(values.values(), [*tally.searched, *logs.lines, *_files(home)]),
        searched=len(tally.searched) + len(logs.lines),
        leases=leases,
        events=report.count,
        chain_ok=report.ok,
        overhead=overhead,
        samples=_samples(tally, logs),
    )


def _count(events: list[Recorded], kind: EventKind) -> int:
    return sum(event.kind is kind for event in events)


def _files(home: Path) -> Iterator[str]:
    for path in home.rglob("*"):
        if path.is_file():
            yield path.read_bytes().decode("latin-1")


def _search(values: Iterable[str], texts: list[str]) -> int:
    """How many of the texts hold any of the values, in clear or encoded."""
    needles = [spelled for value in values for spelled in _spellings(value)]
    return sum(any(needle in text for needle in needles) for text in texts)


def _spellings(value: str) -> set[str]:
    raw = value.encode()
    encoded = base64.b64encode(raw).decode().rstrip("=")[:-1]
    return {value, raw.hex(), encoded, quote(value, safe="")}


def _samples(tally: Tally, logs: LogLines) -> tuple[tuple[str, str], ...]:
    mark = demo_calls.REDACTED
    line = next((text for text in logs.lines if mark in text), "")
    error = next((t for t in tally.searched if "RuntimeError" in t and mark in t), "")
    last = error.rstrip().rpartition("\n")[2]
    drip = next((t for t in tally.searched if t.startswith("my token is")), "")
    found = (("its log line", line), ("its exception", last), ("its stream", drip))
    return tuple((what, text) for what, text in found if text)

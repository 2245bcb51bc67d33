"""The demo from an empty directory to its findings: its calls, and what must come of each.

Guarantee: every result, stream, exception and traceback is searched for every secret in
all the encodings that the middleware knows; one hit fails the demo.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, TypeAlias
from urllib.parse import quote

import anyio.to_thread

from apex_creds.audit import EventKind, check, read
from apex_creds.cli import import_export
from apex_creds.cli.demo.service import STORY, DemoService, PluginManager
from apex_creds.errors import AccessDeniedError
from apex_creds.fs.home import audit_directory
from apex_creds.integrations.apexagent import install
from apex_creds.keys import MasterKeyProvider
from apex_creds.keys.os_keyring import KeyringProvider
from apex_creds.middleware import CredentialMiddleware
from apex_creds.vault import Vault
from apex_creds.vault.anchor import home_id

PLUGINS: Final = Path(__file__).with_name("plugins")
AT_ONCE: Final = 300
"""More would wait for a connection longer than an HTTP client's time-out."""
REDACTED: Final = "[redacted:CHATTER_TOKEN]"

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

Say: TypeAlias = Callable[[str], None]


async def run(
    home: Path,
    env: Path,
    provider: MasterKeyProvider,
    *,
    count: int,
    say: Say,
    progress: Callable[[int], AbstractContextManager[Callable[[], None]]],
) -> Findings:
    """Runs everything.

    Args:
        home: Where the vault is made; there must be none.
        env: Where the .env file is made, and removed once it is imported.
        provider: Of the master key.
        count: How many invocations.
        say: What is done, in words.
        progress: Given the number of calls, a context in which it counts those done.
    """
    values, calls = write_env(env), plan(count)
    service = DemoService({path: f"Bearer {values[name]}" for name, path in _PATHS.items()})
    async with _vault(home, provider, say) as vault, service.running() as base:
        await _fill(vault, env, base, say)
        manager = PluginManager(PLUGINS)
        async with CredentialMiddleware(vault) as middleware:
            with captured_logs() as logs, install(manager, middleware):
                say(f"{len(manager.plugins)} plugins loaded and hooked; {base} listens.")
                with progress(count) as done:
                    tally = await make(manager, calls, base, done=done)
                cost = await overhead(manager)
                await manager.shutdown()
            leases = middleware.broker.open_leases
        vault_id = vault.vault_id
    directory = audit_directory(home)
    report = check(directory, vault_id=vault_id)
    events = list(read(directory, vault_id=vault_id)) if report.ok else []
    leaks = [event for event in events if event.kind is EventKind.LEAK]
    texts = (*tally.searched, *logs.lines)
    return Findings(
        calls=len(calls),
        as_expected=tally.as_expected,
        wrong=tuple(tally.wrong),
        right_wanted=sum(call.requests for call in calls),
        right=service.right,
        refused_by_service=service.wrong,
        denials_wanted=sum(call.denied for call in calls),
        denials=tally.denied,
        denials_logged=sum(event.kind is EventKind.DENIAL for event in events),
        leaks_wanted=sum(call.leaks for call in calls),
        leaking_calls=len({event.invocation for event in leaks}),
        leaks=len(leaks),
        found=_search(values.values(), texts, home),
        searched=len(texts),
        leases=leases,
        events=report.count,
        chain_ok=report.ok,
        overhead=cost,
        samples=tuple(_samples(tally, logs)),
    )


def write_env(path: Path) -> dict[str, str]:
    """Writes a .env file of fresh secrets, 0600; returns them by name."""
    made = {name: f"demo-{secrets.token_urlsafe(24)}" for name in (*_PATHS, _UNUSED)}
    lines = ["# Secrets made for the demo.", "EMPTY="]
    lines += [f"export {name}='{value}'" for name, value in made.items()]
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return made


@contextlib.asynccontextmanager
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
    """Imports the .env file, and grants each plugin its own credential."""
    data, _ = import_export.read_file(env)
    await anyio.to_thread.run_sync(env.unlink)
    read_plan = import_export.read_plan(data)
    origins = [import_export.Where.parse(base)]
    names = await import_export.store(vault, read_plan, replace=False, origins=origins)
    skipped = ", ".join(f"{name} ({why})" for name, why in read_plan.skipped)
    say(f"Imported {', '.join(names)} from {env.name}; skipped {skipped}.")
    for plugin, credential, reveal in _GRANTS:
        await vault.grant(plugin, credential, reveal=reveal)
    say(f"Granted each plugin its own credential; {_UNUSED} to nobody.")


def _search(values: Iterable[str], texts: Iterable[str], home: Path) -> int:
    """How many of the texts and of the files hold any of the values, in clear or encoded."""
    needles = set[str]()
    for value in values:
        raw = value.encode()
        encoded = base64.b64encode(raw).decode().rstrip("=")[:-1]
        needles |= {value, raw.hex(), encoded, quote(value, safe="")}
    files = (each.read_bytes().decode("latin-1") for each in home.rglob("*") if each.is_file())
    found = (any(needle in text for needle in needles) for text in (*texts, *files))
    return sum(found)


def _samples(tally: Tally, logs: LogLines) -> Iterator[tuple[str, str]]:
    """What the leaking plugin got out, and how it reads."""
    line = next((text for text in logs.lines if REDACTED in text), "")
    error = next((t for t in tally.searched if "RuntimeError" in t and REDACTED in t), "")
    drip = next((t for t in tally.searched if t.startswith("my token is")), "")
    last = error.rstrip().rpartition("\n")[2]
    for what, text in (("its log line", line), ("its exception", last), ("its stream", drip)):
        if text:
            yield what, text


# -- calls ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """One kind of invocation.

    Attributes:
        requests: How many requests the service must have served for it.
        denied: It must be refused.
        leaks: It must have been redacted.
        sends: It is given the service's address.
        about: An argument, whose value is its name and the call's number.
        answer: What must come out, with ``#`` for that number.
    """

    plugin: str
    action: str
    requests: int = 0
    denied: bool = False
    leaks: bool = False
    sends: bool = True
    about: str = ""
    answer: str = ""


_SKY: Final = repr({"city": "city-#", "sky": "clear"})
_TOLD: Final = "".join(STORY).format(topic="topic-#")
_DRIPPED: Final = f"my token is {REDACTED}, believe me"

FORECAST: Final = Call("demo.weather", "forecast", requests=1, about="city", answer=_SKY)
STORY_CALL: Final = Call("demo.narrator", "story", requests=1, about="topic", answer=_TOLD)
SEND: Final = Call("demo.chatter", "send", requests=1, leaks=True)
CRASH: Final = Call("demo.chatter", "crash", requests=1, leaks=True)
DRIP: Final = Call("demo.chatter", "drip", leaks=True, sends=False, answer=_DRIPPED)
STRAY: Final = Call("demo.weather", "stray", denied=True)
SNOOP: Final = Call("demo.weather", "snoop", denied=True, sends=False)

_ROUND: Final = (*[FORECAST] * 5, *[STORY_CALL] * 4, SEND, SEND, CRASH, DRIP, STRAY, SNOOP)


def plan(count: int) -> list[Call]:
    """``count`` calls, the kinds in turn."""
    return [_ROUND[i % len(_ROUND)] for i in range(count)]


@dataclass(slots=True)
class Tally:
    """What came of the calls.

    Attributes:
        as_expected: Calls that ended as their kind must.
        denied: Calls that were refused.
        wrong: What the others did instead; no secrets, as it is searched first.
        searched: All that came out: results, streams, tracebacks.
    """

    as_expected: int = 0
    denied: int = 0
    wrong: list[str] = field(default_factory=list)
    searched: list[str] = field(default_factory=list)


async def make(
    manager: PluginManager, calls: list[Call], base: str, *, done: Callable[[], None]
) -> Tally:
    """Makes the calls, up to ``AT_ONCE`` of them at a time."""
    tally, gate = Tally(), asyncio.Semaphore(AT_ONCE)

    async def one(number: int, call: Call) -> None:
        async with gate:
            good = await _one(manager, call, number, base, tally)
        tally.as_expected += good
        if not good:
            last = tally.searched[-1].rstrip().rpartition("\n")[2]
            tally.wrong.append(f"{call.plugin} {call.action}: {last[:200]}")
        done()

    async with asyncio.TaskGroup() as group:
        for number, call in enumerate(calls):
            group.create_task(one(number, call))
    return tally


async def _one(
    manager: PluginManager, call: Call, number: int, base: str, tally: Tally
) -> bool:
    arguments = {"base": base} if call.sends else {}
    if call.about:
        arguments[call.about] = f"{call.about}-{number}"
    try:
        result = await manager.invoke_plugin_action(call.plugin, call.action, **arguments)
        if isinstance(result, AsyncIterator):
            text = "".join([str(piece) async for piece in result])
        else:
            text = repr(result)
    except AccessDeniedError as error:
        tally.denied += 1
        tally.searched.append("".join(traceback.format_exception(error)))
        return call.denied
    except Exception as error:  # noqa: BLE001 - a plugin raises what it likes
        text = "".join(traceback.format_exception(error))
        tally.searched.append(text)
        return call is CRASH and isinstance(error, RuntimeError) and REDACTED in str(error)
    tally.searched.append(text)
    if call is SEND:
        return text.count(REDACTED) == 2
    return call.answer != "" and text == call.answer.replace("#", str(number))


async def overhead(manager: PluginManager, *, rounds: int = 1000) -> float:
    """Microseconds that a call with a handle takes over a bare one (medians, in turn).

    The call makes a lease, decides, logs, redeems into locked memory, wipes and ends.
    """
    bare, guarded = [], []
    plain = type(manager).invoke_plugin_action
    for _ in range(rounds):
        started = time.perf_counter_ns()
        await plain(manager, "demo.chatter", "idle")
        middle = time.perf_counter_ns()
        await manager.invoke_plugin_action("demo.chatter", "use")
        guarded.append(time.perf_counter_ns() - middle)
        bare.append(middle - started)
    return (median(guarded) - median(bare)) / 1000


class LogLines(logging.Handler):
    """Keeps every formatted line, as a log file would."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Formats and keeps a record."""
        self.lines.append(self.format(record))


@contextlib.contextmanager
def captured_logs() -> Iterator[LogLines]:
    """Everything that is logged at INFO and above goes here meanwhile, and only here."""
    root, handler = logging.getLogger(), LogLines()
    before, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        root.handlers[:] = before
        root.setLevel(level)


# -- what was found: pure; the table and the JSON are made of the same rows --------------


@dataclass(frozen=True, slots=True)
class Row:
    """One line: what was checked, what was found, and what had to be found."""

    name: str
    found: str
    wanted: str
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Counts of one run; ``…_wanted`` is what the plan of calls demands.

    Attributes:
        found: Texts and files that held a secret, in clear or encoded.
        overhead: Microseconds that a call with a handle takes over a bare one; not judged.
        samples: What the leaking plugin got out, and how it reads.
    """

    calls: int
    as_expected: int
    wrong: tuple[str, ...]
    right_wanted: int
    right: int
    refused_by_service: int
    denials_wanted: int
    denials: int
    denials_logged: int
    leaks_wanted: int
    leaking_calls: int
    leaks: int
    found: int
    searched: int
    leases: int
    events: int
    chain_ok: bool
    overhead: float
    samples: tuple[tuple[str, str], ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as it must be."""
        return all(row.ok for row in self.rows())

    def rows(self) -> list[Row]:
        """The table."""
        return [
            _exactly("calls that ended as they must", self.as_expected, self.calls),
            _exactly(
                "calls served with the right secret",
                self.right,
                self.right_wanted,
                but=(self.refused_by_service, "with a wrong one"),
            ),
            _exactly(
                "denials",
                self.denials,
                self.denials_wanted,
                but=(self.denials - self.denials_logged, "not in the log"),
            ),
            Row(
                "leaks redacted",
                f"{self.leaks} in {self.leaking_calls} calls",
                f"in {self.leaks_wanted} calls",
                self.leaking_calls == self.leaks_wanted,
            ),
            _exactly("secrets in results, logs, errors, files", self.found, 0),
            _exactly("leases open", self.leases, 0),
            Row(
                "audit events",
                f"{self.events}, chain {'unbroken' if self.chain_ok else 'BROKEN'}",
                "chain unbroken",
                self.chain_ok and self.events > 0,
            ),
        ]


def _exactly(name: str, found: int, wanted: int, *, but: tuple[int, str] = (0, "")) -> Row:
    text = f"{found}, {but[0]} {but[1]}" if but[0] else str(found)
    return Row(name, text, str(wanted), found == wanted and not but[0])

"""``rotate``, ``rotation`` and ``events``: keys renewed, looked at, and declared lost."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, TypeVar

import anyio
import typer
from msgspec import to_builtins
from msgspec.structs import replace
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from apex_creds.cli import automatic, options, output, session, when
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption
from apex_creds.errors import ConflictError, InvalidInputError
from apex_creds.keys import MasterKeyProvider, provider_from_uri
from apex_creds.keys.passphrase import terminal_prompt
from apex_creds.policy.display import parse_span
from apex_creds.scheduler import report
from apex_creds.scheduler.compromise import declare
from apex_creds.scheduler.events import (
    DEFAULT_TABLE,
    CompromiseSuspected,
    Event,
    Reaction,
    fingerprint,
    kind_of,
    parse_event,
)
from apex_creds.scheduler.orders import (
    Numbers,
    labels_of,
    newest,
    newest_below,
    order,
    surviving,
    undone,
)
from apex_creds.scheduler.policy import Level, LevelPolicy
from apex_creds.scheduler.reencrypt import Progress as Moved
from apex_creds.scheduler.report import Status, VersionLine
from apex_creds.scheduler.worker import RotationWorker, next_fire
from apex_creds.vault import Vault

T = TypeVar("T")

_LOOK_AGAIN = 0.2
_BY_HAND = (
    "The master key is a passphrase: no worker rotates it or the KEK, as somebody must type "
    "it. Run apex-creds rotate master (or kek). DEKs rotate by themselves."
)
rotation = typer.Typer(
    context_settings=options.HELP, help="How the keys are, and when they rotate."
)
events = typer.Typer(context_settings=options.HELP, help="Security events.")

LevelArgument = Annotated[Level, typer.Argument(help="dek, kek or master.", show_default=False)]


def rotate(
    ctx: typer.Context,
    level: LevelArgument,
    service: Annotated[
        str,
        typer.Option(metavar="NAME", help="DEK: of this service alone.", show_default=False),
    ] = "",
    version: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="With --compromised: this version.", show_default=False
        ),
    ] = None,
    compromised: Annotated[
        bool,
        typer.Option(
            "--compromised",
            help="It may be in wrong hands: re-encrypt at once, destroy without grace, "
            "and everything below it, too.",
        ),
    ] = False,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait", help="Wait while another process rotates, or fail (code 6)."
        ),
    ] = True,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Renew keys now: DEKs, the KEK, or the master key."""
    if version and not compromised:
        raise InvalidInputError(
            "Only the primary version is renewed.", hint="Did you mean --compromised?"
        )
    if service and level is not Level.DEK:
        raise InvalidInputError("Only DEKs are of a service.")

    async def work(vault: Vault) -> None:
        with _bar() as tell:
            worker = RotationWorker(vault, tell=tell)
            keystore = await vault.store.keystore()
            labels = labels_of(keystore, service) if level is Level.DEK else ()
            if compromised:
                upto = newest_below(keystore, level, labels)
                lost = Lost(level=level, version=version or 0, upto=upto)
                await declare(
                    vault.store,
                    worker.engine.document,
                    level=level,
                    service=service,
                    version=version or 0,
                    upto=upto,
                )
                await _finish(worker, lost=lost, wait=wait)
            else:
                numbers = newest(keystore, level, labels)
                await order(worker.engine.document, numbers)
                await _finish(worker, numbers, wait=wait)

    _with_vault(options.settings(ctx, home, master), work)
    output.say(f"The {level.value} rotation is done.", style="green")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Versions that are to be destroyed; see ``orders.surviving``."""

    level: Level
    version: int = 0
    upto: Numbers


async def _finish(
    worker: RotationWorker,
    orders: Numbers | None = None,
    *,
    lost: Lost | None = None,
    wait: bool,
) -> None:
    """Has everything done that is due, and looks whether what was asked for is.

    Raises:
        ConflictError: It is not: another process is at it, or gets in the way.
    """
    said = False
    while (outcome := await worker.engine.run()).waiting and not outcome.failed and wait:
        if not said:
            output.note("Another process is rotating keys; waiting until it is done.")
            said = True
        await anyio.sleep(_LOOK_AGAIN)
    for failure in outcome.failed.values():
        raise failure
    store = worker.engine.store
    keystore, state = await store.keystore(), await worker.engine.document.read()
    left = undone(keystore, orders or {})
    if lost is not None:
        left += surviving(keystore, state, lost.upto, level=lost.level, version=lost.version)
    if left:
        raise ConflictError(
            f"Another process is rotating keys; this is not done yet: {', '.join(left[:3])}.",
            hint="It stays asked for. See: apex-creds rotation status",
        )


@contextmanager
def _bar() -> Iterator[Callable[[Moved], None]]:
    tasks: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    shown = output.console(sys.stderr)
    with Progress(*columns, console=shown, disable=not sys.stderr.isatty()) as bar:

        def tell(moved: Moved) -> None:
            task = tasks.get(moved.section)
            if task is None:
                task = tasks[moved.section] = bar.add_task(moved.section)
            bar.update(task, total=moved.total, completed=moved.done)

        yield tell


# -- rotation --------------------------------------------------------------------------


@rotation.command("status")
def status(
    ctx: typer.Context,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Levels, versions and states; what each version still protects; what is next."""
    found = _with_vault(options.settings(ctx, home, master), lambda v: _status(v, False))
    if json:
        output.json_out(_status_json(found))
        return
    output.table(
        ("level", "key", "version", "state", "protects", "encryptions", "since"),
        map(_row, found.lines),
    )
    for level, at in found.due.items():
        output.say(f"{level.value}: next due {when.show(at)}")
    if found.by_hand:
        output.note(_BY_HAND)
    for step in found.steps:
        about = f" {step.label}" if step.label else ""
        output.note(f"due now: {step.action.value} {step.level.value}{about} ({step.reason})")


@rotation.command("history")
def history(
    ctx: typer.Context,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """The life of every key version, and the events that were acted on."""
    found = _with_vault(options.settings(ctx, home, master), lambda v: _status(v, True))
    lines = sorted(found.lines, key=lambda line: (line.created, line.level, line.label))
    past = [
        {"event": kind_of(item.event), "at": when.show(item.at), "source": item.event.source}
        for item in found.state.acted
    ]
    if json:
        output.json_out({"versions": [_line_json(line) for line in lines], "events": past})
        return
    columns = ("level", "key", "version", "made", "state", "since", "compromised")
    output.table(columns, map(_life, lines))
    for item in past:
        output.say(f"{item['at']}  {item['event']}  by {item['source']}")


@rotation.command("policy")
def policy(
    ctx: typer.Context,
    level: LevelArgument,
    interval: Annotated[
        str | None, typer.Option(metavar="SPAN", help="90d, 1y; never: no interval.")
    ] = None,
    cron: Annotated[
        str | None, typer.Option(metavar="FIELDS", help="Five fields, UTC; empty: none.")
    ] = None,
    jitter: Annotated[str | None, typer.Option(metavar="SPAN", help="Up to so late.")] = None,
    max_encryptions: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="DEKs; 0: no limit.")
    ] = None,
    grace: Annotated[
        str | None, typer.Option(metavar="SPAN", help="How long retired keys are kept.")
    ] = None,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Print when the keys of a level rotate; change what is given."""
    changes: dict[str, object] = {}
    if interval is not None:
        changes["interval"] = None if interval == "never" else parse_span(interval)
    if cron is not None:
        next_fire(cron or "0 0 * * *", 0.0)
        changes["cron"] = cron
    if max_encryptions is not None:
        changes["max_encryptions"] = max_encryptions or None
    changes |= {
        name: parse_span(text) for name, text in (("jitter", jitter), ("grace", grace)) if text
    }

    async def work(vault: Vault) -> LevelPolicy:
        document = RotationWorker(vault).engine.document
        state = await document.read()
        if changes:
            made = replace(state.policies.of(level), **changes)
            new = replace(state.policies, **{level.value: made})
            state = await document.change(lambda s: replace(s, policies=new))
        return state.policies.of(level)

    found = to_builtins(_with_vault(options.settings(ctx, home, master), work))
    if json:
        output.json_out(found)
    else:
        output.fields((name, "-" if v in (None, "") else v) for name, v in found.items())


# -- events ----------------------------------------------------------------------------


@events.command("emit")
def emit(
    ctx: typer.Context,
    kind: Annotated[
        str, typer.Argument(help=f"One of {', '.join(DEFAULT_TABLE)}.", show_default=False)
    ],
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="What the event is about."),
    ] = None,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Tell the vault what happened; a worker acts on it, or this command does."""
    pairs = dict(_pair(text) for text in fields or ())
    event = parse_event(kind, {**pairs, "source": "operator"})

    async def work(vault: Vault) -> bool:
        worker = RotationWorker(vault)
        if service := getattr(event, "service", ""):
            labels_of(await vault.store.keystore(), service)
        new = await worker.bus.accept(event)
        await worker.bus.act()
        if not vault.store.sealed:  # by a lockdown, which it may have been
            await _act_on(worker, event)
        return new

    if _with_vault(options.settings(ctx, home, master), work):
        output.say("Accepted, and acted on.", style="green")
    else:
        output.say("The same event was accepted a moment ago, and acted on.")


async def _act_on(worker: RotationWorker, event: Event) -> None:
    """Does what an event asks for, as its place in the document says."""
    state = await worker.engine.document.read()
    mark, reactions = fingerprint(event), state.table.get(kind_of(event), ())
    found = [item for item in (*state.acted, *state.queue) if fingerprint(item.event) == mark]
    upto = found[-1].concerns if found else None
    if Reaction.ROTATE_AND_DESTROY in reactions and upto:
        level = event.level if isinstance(event, CompromiseSuspected) else Level.DEK
        version = event.version if isinstance(event, CompromiseSuspected) else 0
        await _finish(worker, lost=Lost(level=level, version=version, upto=upto), wait=True)
    else:
        await _finish(worker, state.renew, wait=True)


def _pair(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name or name in ("event", "source"):
        raise InvalidInputError(f"{text[:40]!r} is not NAME=VALUE.")
    return name, value


# -- showing ---------------------------------------------------------------------------


async def _status(vault: Vault, destroyed: bool) -> Status:
    return await report.status(RotationWorker(vault).engine, destroyed=destroyed)


def _row(line: VersionLine) -> tuple[object, ...]:
    state = f"{line.state} (compromised)" if line.compromised else line.state
    style = "red" if line.compromised else ""
    protects = "all" if line.protects < 0 else line.protects
    return (
        line.level.value,
        line.label or "-",
        line.version,
        output.cell(state, style=style),
        protects,
        line.encryptions or "-",
        when.show(line.changed),
    )


def _life(line: VersionLine) -> tuple[object, ...]:
    lost = "yes" if line.compromised else "-"
    made, since = when.show(line.created), when.show(line.changed)
    return line.level.value, line.label or "-", line.version, made, line.state, since, lost


def _line_json(line: VersionLine) -> dict[str, output.Json]:
    return {
        "level": line.level.value,
        "key": line.label,
        "version": line.version,
        "state": line.state,
        "compromised": line.compromised,
        "protects": line.protects if line.protects >= 0 else None,
        "encryptions": line.encryptions,
        "created": when.show(line.created),
        "changed": when.show(line.changed),
    }


def _status_json(found: Status) -> dict[str, output.Json]:
    steps = [
        {
            "level": step.level.value,
            "action": step.action.value,
            "key": step.label,
            "version": step.version,
            "reason": step.reason.value,
        }
        for step in found.steps
    ]
    return {
        "versions": [_line_json(line) for line in found.lines],
        "next_due": {level.value: when.show(at) for level, at in found.due.items()},
        "due_now": steps,
        "by_hand": sorted(level.value for level in found.by_hand),
        "waiting_events": [kind_of(item.event) for item in found.state.queue],
    }


# -- the vault -------------------------------------------------------------------------


def _with_vault(chosen: options.Settings, work: Callable[[Vault], Awaitable[T]]) -> T:
    """As ``session.with_vault``, with a provider that can ask for a passphrase again."""
    uri = session.master_uri(chosen, session.read_header(chosen))

    async def body() -> T:
        provider = rotating_provider(uri)
        async with await Vault.unseal(chosen.home, master=provider) as vault:
            await automatic.look(vault)
            return await work(vault)

    return anyio.run(body)


def rotating_provider(uri: str) -> MasterKeyProvider:
    """A provider that asks each time that the key is needed.

    Raises:
        InvalidInputError: The URI is not understood.
    """
    if uri != session.PASSPHRASE:
        return provider_from_uri(uri)
    return provider_from_uri(uri, prompt=terminal_prompt)

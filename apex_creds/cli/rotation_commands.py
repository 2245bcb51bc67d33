"""``rotate``, ``rotation`` and ``events``: rotate keys and credentials, show how that goes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

import anyio
import typer
from msgspec import to_builtins
from msgspec.structs import replace

from apex_creds.cli import console
from apex_creds.cli.command import ForOption, Settings, command, group, span, with_vault
from apex_creds.cli.console import (
    Cell,
    Fields,
    Json,
    Note,
    Part,
    Report,
    Rows,
    done,
    safe,
)
from apex_creds.cli.credential_commands import rotation_as_json, rotation_due
from apex_creds.cli.program import argument, flag, option
from apex_creds.errors import ConflictError, InvalidInputError
from apex_creds.model import CredentialInfo, RotationStage, key_of, shown_key, split_key
from apex_creds.policy.display import show_span, show_time
from apex_creds.rotators.dynamic import logins_document
from apex_creds.rotators.plan import MOST_REFUSALS
from apex_creds.rotators.rotation import is_wrong, rotations_of
from apex_creds.scheduler.compromise import declare
from apex_creds.scheduler.rotation_state import (
    DEFAULT_TABLE,
    CompromiseSuspected,
    Event,
    Numbers,
    Reaction,
    fingerprint,
    kind_of,
    labels_of,
    newest,
    newest_below,
    order,
    parse_event,
    surviving,
    undone,
)
from apex_creds.scheduler.schedule import Level
from apex_creds.scheduler.status import VersionLine, rotation_status
from apex_creds.scheduler.worker import RotationWorker, next_fire
from apex_creds.vault import Vault

_POLL: Final = 0.2
_BY_HAND: Final = (
    "The master key is a passphrase: no worker rotates it or the KEK, as somebody must type "
    "it. Run apex-creds rotate master (or kek). DEKs rotate by themselves."
)

rotation = group("How the keys are, and when they rotate.")
events = group("Security events.")

LevelArgument = Annotated[
    Level, typer.Argument(metavar="LEVEL", help="dek, kek or master.", show_default=False)
]


class What(StrEnum):
    """What ``rotate`` renews: the keys of a level, or a secret at its provider."""

    MASTER = "master"
    KEK = "kek"
    DEK = "dek"
    CREDENTIAL = "credential"


@command()
def rotate(
    chosen: Settings,
    what: Annotated[
        What,
        typer.Argument(
            metavar="WHAT", help="dek, kek, master or credential.", show_default=False
        ),
    ],
    name: Annotated[str, argument("[NAME]", "Of the credential.")] = "",
    service: Annotated[
        str,
        option("NAME", "DEK: of this service alone."),
    ] = "",
    version: Annotated[
        int | None,
        option("N", "With --compromised: this version.", min=1),
    ] = None,
    compromised: Annotated[
        bool,
        flag(
            "It may be in wrong hands: re-encrypt at once, destroy without grace, "
            "and everything below it, too. A credential: end the old value at once.",
            "--compromised",
        ),
    ] = False,
    wait: Annotated[
        bool,
        flag("Wait while another process rotates, or fail (code 6).", "--wait/--no-wait"),
    ] = True,
    whose: ForOption = None,
) -> Report:
    """Renew keys now (DEKs, the KEK, the master key), or a credential at its provider."""
    if what is What.CREDENTIAL:
        if not name or service or version:
            raise InvalidInputError("Say rotate credential NAME, and nothing of keys.")
        key = key_of(name, whose or "")
        return _rotate_credential(chosen, key, compromised=compromised, wait=wait)
    if name or whose:
        raise InvalidInputError("Only a credential has a name.", hint="Did you mean --service?")
    level = Level(what)
    if version and not compromised:
        raise InvalidInputError(
            "Only the primary version is renewed.", hint="Did you mean --compromised?"
        )
    if service and level is not Level.DEK:
        raise InvalidInputError("Only DEKs are of a service.")

    async def work(vault: Vault) -> dict[str, int]:
        await renew(vault)
        keystore = await vault.store.keystore()
        return {} if level is Level.DEK else newest(keystore, level)

    async def renew(vault: Vault) -> None:
        with console.bars() as bar:
            worker = RotationWorker(
                vault, on_progress=lambda moved: bar(moved.section, moved.done, moved.total)
            )
            document, keystore = worker.engine.document, await vault.store.keystore()
            labels = labels_of(keystore, service) if level is Level.DEK else ()
            if not compromised:
                numbers = newest(keystore, level, labels)
                await order(document, numbers)
                await _finish(worker, numbers, wait=wait)
                return
            upto = newest_below(keystore, level, labels)
            await declare(
                vault.store,
                document,
                level=level,
                service=service,
                version=version or 0,
                upto=upto,
            )
            lost = Lost(level=level, version=version or 0, upto=upto)
            await _finish(worker, lost=lost, wait=wait)

    made = with_vault(chosen, work, asks_again=True)
    data: dict[str, Json] = {
        "level": level.value,
        "service": service or None,
        "compromised": compromised,
        "version": version,
        "primary": next(iter(made.values()), None),
    }
    return done(data, f"The {level.value} rotation is done.")


def _rotate_credential(chosen: Settings, key: str, *, compromised: bool, wait: bool) -> Report:
    name, principal = split_key(key)

    async def work(vault: Vault) -> tuple[CredentialInfo, CredentialInfo]:
        rotations = rotations_of(vault)
        before = await rotations.ask(name, principal=principal, lost=compromised, by_hand=True)
        return before, await rotations.advance(name, principal=principal, wait=wait)

    before, info = with_vault(chosen, work)
    state = info.rotation
    assert state is not None
    if before.rotation is None or state.since <= before.rotation.since:
        raise ConflictError(
            f"The value before is still valid, until {show_time(state.retires)}.",
            hint="It is replaced then, or now: --compromised.",
        )
    waits = state.stage is RotationStage.FINISH
    until = f"is valid until {show_time(state.retires)}" if waits else "is not valid any more"
    data: dict[str, Json] = {
        "credential": name,
        "principal": principal or None,
        "compromised": compromised,
        "version": info.version,
        "previous_until": show_time(state.retires) if waits else None,
    }
    return done(data, f"{shown_key(key)} has a new value; the old one {until}.")


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
    """Has everything done that is due, and checks that what was asked for is.

    Raises:
        ConflictError: It is not: another process is at it, or gets in the way.
    """
    announced = False
    while (outcome := await worker.engine.run()).waiting and not outcome.failed and wait:
        if not announced:
            console.note("Another process is rotating keys; waiting until it is done.")
            announced = True
        await anyio.sleep(_POLL)
    for failure in outcome.failed.values():
        raise failure
    keystore = await worker.engine.store.keystore()
    state = await worker.engine.document.read()
    left = undone(keystore, orders or {})
    if lost is not None:
        left += surviving(keystore, state, lost.upto, level=lost.level, version=lost.version)
    if left:
        raise ConflictError(
            f"Another process is rotating keys; this is not done yet: {', '.join(left[:3])}.",
            hint="It stays asked for. See: apex-creds rotation status",
        )


# -- rotation ------------------------------------------------------------------------------


@rotation.command("status")
@command(asks_again=True)
async def status(vault: Vault) -> Report:
    """Levels, versions and states; what each version still protects; what is next."""
    found = await rotation_status(RotationWorker(vault).engine, destroyed=False)
    rotated = [info for info in await vault.list() if info.rotation is not None]
    now = time.time()
    logins = (await logins_document(vault.store).read()).open.values()
    data: dict[str, Json] = {
        "versions": [_as_json(line) for line in found.lines],
        "next_due": {level.value: show_time(at) for level, at in found.due.items()},
        "due_now": [
            {
                "level": step.level.value,
                "action": step.action.value,
                "key": step.label,
                "version": step.version,
                "reason": step.reason.value,
            }
            for step in found.steps
        ],
        "by_hand": sorted(level.value for level in found.by_hand),
        "waiting_events": [kind_of(item.event) for item in found.state.queue],
        "credentials": [
            {
                "name": each.name,
                "principal": each.principal or None,
                **(rotation_as_json(each, now) or {}),
            }
            for each in rotated
        ],
        "logins": [
            {
                "credential": each.credential,
                "until": show_time(each.until),
                "ending": each.ending,
                "failures": each.failures,
            }
            for each in logins
        ],
    }
    columns = ("level", "key", "version", "state", "protects", "encryptions", "since")
    rows = [
        (
            line.level.value,
            line.label or "-",
            line.version,
            Cell(f"{line.state} (compromised)", "red") if line.compromised else line.state,
            "all" if line.protects < 0 else line.protects,
            line.encryptions or "-",
            show_time(line.changed),
        )
        for line in found.lines
    ]
    parts: list[Part] = [Rows(columns, rows)]
    parts += [f"{level.value}: next due {show_time(at)}" for level, at in found.due.items()]
    if found.by_hand:
        parts.append(Note(_BY_HAND))
    for step in found.steps:
        about = f" {step.label}" if step.label else ""
        text = f"due now: {step.action.value} {step.level.value}{about} ({step.reason})"
        parts.append(Note(text))
    parts += [_shown(each, now) for each in rotated]
    for login in logins:
        until = show_time(login.until)
        if login.ending:
            parts.append(
                Note(
                    f"{safe(login.credential)}: a login that has ended was not revoked "
                    f"({login.failures} tries); it ends by itself at {until}"
                )
            )
        else:
            parts.append(f"{safe(login.credential)}: a login is in use, until {until}")
    return Report(data, *parts)


def _shown(info: CredentialInfo, now: float) -> Part:
    """A line about a credential that is replaced at its provider."""
    state = info.rotation
    assert state is not None
    if info.dynamic:
        return f"{safe(shown_key(info.key))}: made anew for each lease"
    text = f"{safe(shown_key(info.key))}: replaced by {safe(state.rotator.partition(':')[0])}"
    if state.stage is RotationStage.NEEDS_PERSON:
        why = " (the vault is of an earlier time)" if state.outcome == "restored" else ""
        return Note(f"{text}; it needs a person{why}: apex-creds rotate credential NAME")
    if is_wrong(info):
        again = state.refusals < MOST_REFUSALS or state.stage is not RotationStage.IDLE
        then = "it is tried again" if again else "rotate it by hand"
        return Note(f"{text}; the step {state.stage.value} failed ({state.outcome}), {then}")
    if state.stage is RotationStage.FINISH:
        text = f"{text}; the value before is valid until {show_time(state.retires)}"
    else:
        text = f"{text}; its value is of {show_time(state.changed)}"
    due = rotation_due(info)
    if due is not None and due <= now:
        return Note(f"{text}; it was due at {show_time(due)}: does a worker run?")
    return text if due is None else f"{text}; next due {show_time(due)}"


@rotation.command("history")
@command(asks_again=True)
async def history(vault: Vault) -> Report:
    """The life of every key version, and the events that were acted on."""
    found = await rotation_status(RotationWorker(vault).engine, destroyed=True)
    lines = sorted(found.lines, key=lambda line: (line.created, line.level, line.label))
    past = [
        (show_time(item.at), kind_of(item.event), item.event.source)
        for item in found.state.acted
    ]
    columns = ("level", "key", "version", "made", "state", "since", "compromised")
    rows = [
        (
            line.level.value,
            line.label or "-",
            line.version,
            show_time(line.created),
            line.state,
            show_time(line.changed),
            "yes" if line.compromised else "-",
        )
        for line in lines
    ]
    return Report(
        {
            "versions": [_as_json(line) for line in lines],
            "events": [{"event": kind, "at": at, "source": by} for at, kind, by in past],
        },
        Rows(columns, rows),
        *(f"{at}  {kind}  by {by}" for at, kind, by in past),
    )


def _as_json(line: VersionLine) -> dict[str, Json]:
    return {
        "level": line.level.value,
        "key": line.label,
        "version": line.version,
        "state": line.state,
        "compromised": line.compromised,
        "protects": line.protects if line.protects >= 0 else None,
        "encryptions": line.encryptions,
        "created": show_time(line.created),
        "changed": show_time(line.changed),
    }


@rotation.command("policy")
@command()
def policy(
    chosen: Settings,
    level: LevelArgument,
    interval: Annotated[str | None, option("SPAN", "90d, 1y; never: no interval.")] = None,
    cron: Annotated[str | None, option("FIELDS", "Five fields, UTC; empty: none.")] = None,
    jitter: Annotated[str | None, option("SPAN", "Up to so late.")] = None,
    max_encryptions: Annotated[int | None, option("N", "DEKs; 0: no limit.", min=0)] = None,
    grace: Annotated[str | None, option("SPAN", "How long retired keys are kept.")] = None,
) -> Report:
    """Print when the keys of a level rotate; change what is given."""
    changes: dict[str, object] = {}
    if interval is not None:
        changes["interval"] = None if interval == "never" else span(interval)
    if cron is not None:
        next_fire(cron or "0 0 * * *", 0.0)
        changes["cron"] = cron
    if max_encryptions is not None:
        changes["max_encryptions"] = max_encryptions or None
    changes |= {
        name: span(text) for name, text in (("jitter", jitter), ("grace", grace)) if text
    }

    async def work(vault: Vault) -> dict[str, Json]:
        document = RotationWorker(vault).engine.document
        state = await document.read()
        if changes:
            made = replace(state.policies.of(level), **changes)
            new = replace(state.policies, **{level.value: made})
            state = await document.change(lambda s: replace(s, policies=new))
        data: dict[str, Json] = to_builtins(state.policies.of(level))
        return data

    found = with_vault(chosen, work, asks_again=True)
    rows: list[tuple[str, object]] = []
    for name, value in found.items():
        if name in ("interval", "jitter", "grace") and isinstance(value, float):
            rows.append((name, show_span(value)))
        else:
            rows.append((name, "-" if value in (None, "") else value))
    return Report(found, Fields(rows))


# -- events --------------------------------------------------------------------------------


@events.command("emit")
@command()
def emit(
    chosen: Settings,
    kind: Annotated[
        str,
        typer.Argument(
            metavar="EVENT", help=f"One of {', '.join(DEFAULT_TABLE)}.", show_default=False
        ),
    ],
    fields: Annotated[
        list[str] | None,
        argument("[NAME=VALUE]...", "What the event is about."),
    ] = None,
    yes: Annotated[
        bool, flag("Do not ask, though it is about all keys.", "--yes", "-y")
    ] = False,
) -> Report:
    """Tell the vault what happened; a worker acts on it, or this command does."""
    pairs: dict[str, object] = {}
    for text in fields or ():
        name, equals, pairs[name] = text.partition("=")
        if not equals or not name or name in ("event", "source"):
            raise InvalidInputError(f"{text[:40]!r} is not NAME=VALUE.")
    event = parse_event(kind, {**pairs, "source": "operator"})
    if isinstance(event, CompromiseSuspected) and not event.service and not yes:
        about = "every key" if event.level is Level.DEK else f"the {event.level.value} key"
        question = f"This is about {about}: new ones are made, the old destroyed. Go on?"
        if not console.confirmed(question, about="whether it is about every key"):
            return Report(
                {"event": kind, "new": False}, notes=[Note("Nothing was done.")], code=1
            )
    if with_vault(chosen, lambda vault: _act_on(vault, event), asks_again=True):
        return done({"event": kind, "new": True}, "Accepted, and acted on.")
    return Report(
        {"event": kind, "new": False}, "The same event was accepted a moment ago, and acted on."
    )


async def _act_on(vault: Vault, event: Event) -> bool:
    """Does what an event asks for, as its place in the document says; whether it was new."""
    worker = RotationWorker(vault)
    if service := getattr(event, "service", ""):
        labels_of(await vault.store.keystore(), service)
    new = await worker.bus.accept(event)
    await worker.bus.act()
    if vault.store.sealed:  # by a lockdown, which it may have been
        return new
    state = await worker.engine.document.read()
    mark, reactions = fingerprint(event), state.table.get(kind_of(event), ())
    found = [item for item in (*state.acted, *state.queue) if fingerprint(item.event) == mark]
    upto = found[-1].concerns if found else None
    if Reaction.ROTATE_AND_DESTROY in reactions and upto:
        level, version = Level.DEK, 0
        if isinstance(event, CompromiseSuspected):
            level, version = event.level, event.version
        await _finish(worker, lost=Lost(level=level, version=version, upto=upto), wait=True)
    else:
        await _finish(worker, state.renew, wait=True)
    return new

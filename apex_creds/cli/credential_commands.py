"""``set``, ``list``, ``edit``, ``show``, ``get`` and ``rm``: one credential, or all of them.

Guarantee: ``get`` is the one place where a command prints a secret. It goes to a terminal, or
elsewhere only by ``--force``; to a terminal only as text without control characters, so that
a stored value can't drive the terminal. As raw output it leaves from locked memory without a
Python copy, where the stream has a file descriptor.
"""

from __future__ import annotations

import base64
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Annotated, TextIO

import anyio.to_thread

from apex_creds.cli import console
from apex_creds.cli.command import (
    DeliveryOption,
    ForOption,
    JsonOption,
    NameArgument,
    OriginOption,
    Settings,
    command,
    name_of,
    parse_time,
    span,
    with_vault,
)
from apex_creds.cli.console import Cell, Fields, Json, Note, Report, Rows, done
from apex_creds.cli.program import flag, option
from apex_creds.cli.standard_streams import ReaderGoneError
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import CredentialNotFoundError, InvalidInputError
from apex_creds.fs.private_files import write_all
from apex_creds.model import (
    CredentialInfo,
    CredentialKind,
    DeliveryStyle,
    Origin,
    RotationHealth,
    Sensitivity,
    key_of,
    shown_key,
)
from apex_creds.policy.display import operator_command, show_span, show_time
from apex_creds.vault import Vault

ChallengeOption = Annotated[
    bool | None,
    flag(
        "Each use takes a nonce that a client has signed; as it was, or not, by default.",
        "--challenge/--no-challenge",
    ),
]


@command()
async def set_credential(
    vault: Vault,
    name: NameArgument,
    service: Annotated[
        str | None,
        option("TEXT", "Chooses the key that encrypts it; NAME by default."),
    ] = None,
    kind: Annotated[
        CredentialKind | None,
        option(
            "KIND",
            "api_key, oauth_token, basic or generic; as it was, or api_key by default.",
            "--kind",
        ),
    ] = None,
    delivery: DeliveryOption = None,
    origin: OriginOption = None,
    expires: Annotated[
        float | None,
        option("WHEN", "2030-12-31, 2030-12-31T18:00Z, 12h, 30d, 1y.", parser=parse_time),
    ] = None,
    sensitivity: Annotated[
        Sensitivity | None,
        option("LEVEL", "normal, sensitive or critical; as it was, or sensitive by default."),
    ] = None,
    challenge: ChallengeOption = None,
    whose: ForOption = None,
) -> Report:
    """Store a credential, or a new version of it.

    The value is asked for without echo, or read from standard input; never an argument. A key
    of AWS (--delivery aws4) is two lines there, or three with its session token.
    """
    sent = delivery
    with contextlib.suppress(CredentialNotFoundError):
        stored = await vault.get(name, principal=whose or "")
        kind, sent = kind or stored.kind, delivery or stored.delivery
    aws = sent is not None and sent.style is DeliveryStyle.AWS4
    kind = kind or (CredentialKind.BASIC if aws else CredentialKind.API_KEY)
    info = await vault.put(
        name,
        console.read_secret(kind, aws=aws and kind is CredentialKind.BASIC),
        service=service,
        delivery=delivery,
        origins=origin,
        expires=expires,
        sensitivity=sensitivity,
        challenge=challenge,
        principal=whose or "",
    )
    return done(
        as_json(info, time.time()),
        f"Stored {shown_key(info.key)} ({info.kind}), version {info.version}.",
        notes=about_origins(info),
    )


def about_origins(info: CredentialInfo) -> list[Note]:
    """What to do about a credential that has no origin, or is sent in clear."""
    if not info.origins:
        advice = operator_command(
            "edit", info.name, principal=info.principal, options="--origin URL"
        )
        return [Note(f"It may be sent nowhere yet: {advice}")]
    return about_clear(info.origins)


def about_clear(origins: Iterable[Origin]) -> list[Note]:
    """What is said of origins to which a secret goes in clear."""
    clear = [one for one in origins if one.scheme in ("http", "redis") and not one.here]
    return [
        Note(f"It can be read on its way to {one}: that is {one.scheme}, not {one.scheme}s.")
        for one in clear
    ]


@command()
async def list_credentials(
    vault: Vault,
    whose: Annotated[
        str | None,
        option(
            "WHO",
            "Only those of this principal; all by default.",
            "--for",
            parser=name_of("principal"),
        ),
    ] = None,
) -> Report:
    """List the credentials, without their values."""
    found, now = await vault.list(principal=whose), time.time()
    use = await _uses(vault)
    several = any(info.principal for info in found)
    columns = (
        *(("name", "of") if several else ("name",)),
        *("kind", "service", "sent as", "origins", "level", "version", "expires"),
    )
    rows: list[tuple[object, ...]] = []
    for info in found:
        expires: object = show_time(info.expires) or "never"
        if info.ends is not None and info.ends <= now:
            expires = Cell(f"{expires} (expired)", "red")
        elif info.connection is not None:
            from apex_creds.oauth.refresh import needs_person

            lost = needs_person(info)
            expires = Cell("needs reconnect", "red") if lost else f"{expires} (renewed)"
        elif info.rotation is not None:
            wrong, due = _NOT_ROTATED.get(info.rotation.health), rotation_due(info)
            if not wrong and due is not None and due <= now:
                wrong = f"{expires} (rotation overdue)"
            again = "rotated" if due is None else f"rotated, next {show_time(due)}"
            expires = Cell(wrong, "red") if wrong else f"{expires} ({again})"
        origins = ", ".join(map(str, info.origins)) or "nowhere"
        named = (info.name, info.principal or "-") if several else (info.name,)
        delivered = (*named, info.kind, info.service, info.delivery, origins)
        rows.append((*delivered, _level(info), info.version, expires))
    return Report(
        [as_json(info, now) | use(info) for info in found],
        Rows(columns, rows, empty="No credentials yet. Store one with: apex-creds set NAME"),
    )


_NOT_ROTATED = {
    RotationHealth.NEEDS_PERSON: "needs a person",
    RotationHealth.FAILED: "not rotated",
}


def _level(info: CredentialInfo) -> str:
    return f"{info.sensitivity.value}{', challenge' if info.challenge else ''}"


def as_json(info: CredentialInfo, now: float) -> dict[str, Json]:
    """What is known of a credential."""
    return {
        "name": info.name,
        "principal": info.principal or None,
        "kind": info.kind.value,
        "service": info.service,
        "delivery": str(info.delivery),
        "origins": [str(origin) for origin in info.origins],
        "sensitivity": info.sensitivity.value,
        "challenge": info.challenge,
        "version": info.version,
        "created": show_time(info.created),
        "updated": show_time(info.updated),
        "expires": show_time(info.expires) or None,
        "expired": info.ends is not None and info.ends <= now,
        "token_type": info.token_type,
        "scope": info.scope,
        "connection": _connection_as_json(info),
        "rotation": rotation_as_json(info, now),
        "id": info.id,
    }


def _connection_as_json(info: CredentialInfo) -> dict[str, Json] | None:
    connection = info.connection
    if connection is None:
        return None
    from apex_creds.oauth.refresh import renews_at  # loads what talks to a provider

    return {
        "provider": connection.provider,
        "state": connection.state.value,
        "refreshed": show_time(connection.refreshed),
        "attempted": show_time(connection.attempted),
        "outcome": connection.outcome,
        "renews": show_time(renews_at(info)) or None,
        "by": connection.by,
    }


def rotation_due(info: CredentialInfo) -> float | None:
    """When a credential is replaced at its provider by the clock."""
    from apex_creds.scheduler.credential_rotation import rotates_at

    return None if info.rotation is None else rotates_at(info, next_fire=_next_fire)


def _next_fire(cron: str, after: float) -> float | None:
    from apex_creds.scheduler.worker import next_fire  # its scheduler is long to import

    return next_fire(cron, after)


def rotation_as_json(info: CredentialInfo, now: float) -> dict[str, Json] | None:
    """How a credential is replaced at its provider, and how far that is."""
    state = info.rotation
    if state is None:
        return None
    due = rotation_due(info)
    return {
        "rotator": state.rotator,
        "every": None if state.interval is None else show_span(state.interval),
        "cron": state.cron,
        "grace": show_span(state.grace),
        "stage": state.stage.value,
        "changed": _moment(state.changed),
        "attempted": _moment(state.attempted),
        "outcome": state.outcome,
        "refusals": state.refusals,
        "previous_until": _moment(state.retires),
        "asked": state.asked >= state.since,
        "due": show_time(due) or None,
        "overdue": due is not None and due <= now,
    }


def _moment(at: float) -> str | None:
    return show_time(at) if at else None


@command()
async def show(vault: Vault, name: NameArgument, whose: ForOption = None) -> Report:
    """Show what is known of a credential, without its value."""
    info = await vault.get(name, principal=whose or "")
    facts = as_json(info, time.time())
    facts |= (await _uses(vault))(info)
    lines = [(key.replace("_", " "), _plain(v)) for key, v in facts.items()]
    return Report(facts, Fields(line for line in lines if line not in _UNSAID))


async def _uses(vault: Vault) -> Callable[[CredentialInfo], dict[str, Json]]:
    """Says when a credential was released last, as far as the newest events of the log go."""
    from apex_creds.audit.line import SHARED
    from apex_creds.audit.verify import latest
    from apex_creds.fs.home import audit_directory

    found: dict[tuple[str, str], float] = {}
    shown = vault.audit.shown

    def read() -> None:
        vault.audit.flush()
        log = latest(audit_directory(vault.home), vault_id=vault.audit.vault_id)
        for event in islice(log, _NEWEST):
            if event.kind in ("redeem", "expose"):
                whose = "" if event.detail == SHARED else event.principal
                found.setdefault((event.credential, whose), event.time)

    def use(info: CredentialInfo) -> dict[str, Json]:
        at = found.get((shown(info.name), shown(info.principal)))
        return {"last_used": show_time(at) or None}

    await anyio.to_thread.run_sync(read)
    return use


_NEWEST = 5_000
_UNSAID = (("connection", "-"), ("rotation", "-"), ("principal", "-"))


def _plain(value: Json) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nowhere"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value) if value not in ("", None) else "-"


def _parse_end(text: str) -> float:
    return math.inf if text == "never" else parse_time(text)


@command()
def edit(
    chosen: Settings,
    name: NameArgument,
    challenge: ChallengeOption = None,
    sensitivity: Annotated[
        Sensitivity | None,
        option("LEVEL", "normal, sensitive or critical."),
    ] = None,
    origin: OriginOption = None,
    delivery: DeliveryOption = None,
    expires: Annotated[
        float | None,
        option("WHEN", "2030-12-31, 12h, 30d, 1y; never: without end.", parser=_parse_end),
    ] = None,
    rotator: Annotated[
        str | None,
        option("URI", "What replaces it at its provider (docs/ROTATION.md); none: nothing."),
    ] = None,
    rotate_every: Annotated[
        str | None, option("SPAN", "How often: 30d, 12h; never: by hand and on events.")
    ] = None,
    rotate_cron: Annotated[
        str | None, option("FIELDS", "When: five fields, UTC; empty: none.")
    ] = None,
    rotate_grace: Annotated[
        str | None, option("SPAN", "How long the replaced value stays valid; 1h by default.")
    ] = None,
    whose: ForOption = None,
) -> Report:
    """Change where and how a credential is sent and what a use takes; its value stays.

    Origins that are given replace those that it has.
    """
    facts = (challenge, sensitivity, origin, delivery, expires)
    rotation = (rotator, rotate_every, rotate_cron, rotate_grace)
    if all(it is None for it in (*facts, *rotation)):
        raise InvalidInputError(
            "There is nothing to change.",
            hint="Say --origin, --delivery, --expires, --sensitivity, --challenge, "
            "--no-challenge, --rotator, --rotate-every, --rotate-cron or --rotate-grace.",
        )

    notes: list[Note] = []

    async def work(vault: Vault) -> CredentialInfo:
        if any(it is not None for it in rotation):
            before = await vault.get(name, principal=whose or "")
            after = await _edit_rotation(vault, before, *rotation)
            if after.version > before.version:
                notes.append(Note("Other values that its rotation had left were deleted."))
        if all(it is None for it in facts):
            return await vault.get(name, principal=whose or "")
        return await vault.edit(
            name,
            challenge=challenge,
            sensitivity=sensitivity,
            origins=origin,
            delivery=delivery,
            expires=expires,
            principal=whose or "",
        )

    info = with_vault(chosen, work)
    places = ", ".join(map(str, info.origins)) or "nowhere"
    end = "never expires" if info.expires is None else f"expires at {show_time(info.expires)}"
    replaced = f"is replaced by {info.rotation.rotator if info.rotation else 'nothing'}"
    facets = {  # what there is to say, and the options that it is about
        f"is {_level(info)} from now on": (challenge, sensitivity),
        f"may be sent to {places}, as {info.delivery}": (origin, delivery),
        end: (expires,),
        replaced: rotation,
    }
    changed = [said for said, given in facets.items() if any(it is not None for it in given)]
    lines = [f"{shown_key(info.key)} {said}." for said in changed]
    return done(as_json(info, time.time()), *lines, notes=[*notes, *about_origins(info)])


async def _edit_rotation(
    vault: Vault,
    info: CredentialInfo,
    uri: str | None,
    every: str | None,
    cron: str | None,
    grace: str | None,
) -> CredentialInfo:
    from apex_creds.rotators import configure
    from apex_creds.scheduler.worker import next_fire

    if cron:
        next_fire(cron, 0.0)
    never = every == "never"
    return await configure(
        vault,
        info.name,
        principal=info.principal,
        uri="" if uri == "none" else uri,
        interval=None if every is None else 0.0 if never else span(every),
        cron=cron,
        grace=None if grace is None else span(grace),
    )


@command()
def remove(
    chosen: Settings,
    name: NameArgument,
    yes: Annotated[bool, flag("Do not ask.", "--yes", "-y")] = False,
    whose: ForOption = None,
) -> Report:
    """Delete a credential for good: its key is destroyed, its file overwritten."""
    question = f"Delete {console.safe(shown_key(key_of(name, whose or '')))} for good?"
    if not yes and not console.confirmed(question, about="whether to delete it"):
        return Report({"deleted": None}, notes=[Note("Nothing was deleted.")], code=1)
    gone = with_vault(chosen, lambda vault: vault.delete(name, principal=whose or ""))
    overwritten = {
        "overwritten": "verified: zeros were read back in its place",
        "unverifiable": "tried, but this file system can't prove it (copies may remain)",
        "no": "not done: there was nothing to overwrite",
    }[gone.overwritten]
    shredded = "verified: the key is destroyed" if gone.shredded else "NOT verified"
    return done(
        {"deleted": gone.name, "shredded": gone.shredded, "overwritten": gone.overwritten},
        f"Deleted {shown_key(key_of(name, whose or ''))}.",
        f"  shredding    {shredded}",
        f"  overwriting  {overwritten}",
    )


# -- a secret, printed ---------------------------------------------------------------------


@command()
def get(
    chosen: Settings,
    name: NameArgument,
    reveal: Annotated[bool, flag("Yes, print the secret.", "--reveal")] = False,
    part: Annotated[
        str,
        option("PART", "value, access, refresh, user or password; the main one by default."),
    ] = "",
    force: Annotated[
        bool,
        flag("Also where standard output is not a terminal.", "--force"),
    ] = False,
    whose: ForOption = None,
    json: JsonOption = False,
) -> None:
    """Print a secret; audited as an exposure."""
    from apex_creds.vault.lookup import MAIN_PART

    if not reveal:
        raise InvalidInputError(
            "This prints the secret, and asks you to say so.",
            hint="Add --reveal; for the rest there is: apex-creds show NAME",
        )
    check_exit(sys.stdout, force=force)

    async def work(vault: Vault) -> None:
        async with vault.open(name, action="get", principal=whose or "") as opened:
            with opened.part(part) as secret:
                if not json:
                    return _write(sys.stdout, secret)
                data = secret.expose_bytes()
                try:
                    value, encoding = data.decode(), "utf-8"
                except UnicodeDecodeError:
                    value, encoding = base64.b64encode(data).decode(), "base64"
                shown = {"name": name, "part": part or MAIN_PART[opened.kind]}
                return console.json_out(shown | {"encoding": encoding, "value": value})

    with_vault(chosen, work)


def check_exit(stream: TextIO, *, force: bool) -> None:
    """Refuses a stream that is no terminal, unless forced.

    Raises:
        InvalidInputError: It may be a file or a log.
    """
    if not force and not stream.isatty():
        raise InvalidInputError(
            "Standard output is not a terminal; the secret would stay in a file or a pipe.",
            hint="Add --force if that is what you want.",
        )


def _write(stream: TextIO, secret: SecretBytes) -> None:
    """The exact bytes; on a terminal with a line feed after them."""
    terminal = stream.isatty()
    if terminal:
        text = secret.expose_bytes().decode(errors="surrogateescape")
        # What is no UTF-8 is a lone surrogate here, which is not printable either.
        if not all(c.isprintable() or c in "\n\t" for c in text):
            raise InvalidInputError(
                "The secret is not printable text.",
                hint="Write it to a file: apex-creds get NAME --reveal --force > FILE",
            )
    stream.flush()
    with secret.view() as view:
        try:
            write_all(stream.fileno(), view)
        except (AttributeError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise ReaderGoneError from None
            stream.buffer.write(view)
    stream.write("\n" if terminal else "")

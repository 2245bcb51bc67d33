"""``set``, ``list``, ``show``, ``get`` and ``rm``: one credential, or all of them."""

from __future__ import annotations

import shlex
import sys
import time
from typing import Annotated

import typer

from apex_creds.cli import options, output, prompts, session, when
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption, NameArgument
from apex_creds.cli.reveal import check_exit, write_json, write_secret
from apex_creds.errors import CredentialNotFoundError, InvalidInputError
from apex_creds.model import (
    CredentialInfo,
    CredentialKind,
    Delivery,
    Origin,
    Sensitivity,
    check_name,
)
from apex_creds.vault import Deletion, Vault, marking
from apex_creds.vault.values import MAIN_PART

KindOption = Annotated[
    CredentialKind | None,
    typer.Option(
        "--kind",
        metavar="KIND",
        help="api_key, oauth_token, basic or generic; as it was, or api_key by default.",
        show_default=False,
    ),
]
OriginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--origin",
        metavar="URL",
        help="Where it may be sent, like https://api.example.com; repeat for more.",
        show_default=False,
    ),
]


DeliveryOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOW", help="How it is sent: bearer, basic, header:NAME or query:NAME."
    ),
]
ChallengeOption = Annotated[
    bool | None,
    typer.Option(
        "--challenge/--no-challenge",
        help="Each use takes a nonce that a client has signed; as it was, or not, by default.",
        show_default=False,
    ),
]


def set_credential(
    ctx: typer.Context,
    name: NameArgument,
    service: Annotated[
        str | None,
        typer.Option(help="Chooses the key that encrypts it; NAME by default.", metavar="TEXT"),
    ] = None,
    kind: KindOption = None,
    delivery: DeliveryOption = None,
    origin: OriginOption = None,
    expires: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="2030-12-31, 2030-12-31T18:00Z, 12h, 30d, 1y."),
    ] = None,
    sensitivity: Annotated[
        Sensitivity | None,
        typer.Option(
            metavar="LEVEL",
            help="normal, sensitive or critical; as it was, or sensitive by default.",
            show_default=False,
        ),
    ] = None,
    challenge: ChallengeOption = None,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Store a credential, or a new version of it.

    The value is asked for without echo, or read from standard input; never an argument.
    """
    check_name(name)
    sent = None if delivery is None else Delivery.parse(delivery)
    origins = None if origin is None else [Origin.parse(text) for text in origin]
    end = None if expires is None else when.parse(expires, now=time.time())

    async def work(vault: Vault) -> CredentialInfo:
        secret = prompts.read_secret(kind or await _known_kind(vault, name))
        return await vault.put(
            name,
            secret,
            service=service,
            delivery=sent,
            origins=origins,
            expires=end,
            sensitivity=sensitivity,
            challenge=challenge,
        )

    info = session.with_vault(options.settings(ctx, home, master), work)
    output.say(f"Stored {info.name} ({info.kind}), version {info.version}.", style="green")
    if not info.origins:
        output.note(
            f"It may be sent nowhere yet: apex-creds edit {shlex.quote(name)} --origin URL"
        )


async def _known_kind(vault: Vault, name: str) -> CredentialKind:
    try:
        return (await vault.get(name)).kind
    except CredentialNotFoundError:
        return CredentialKind.API_KEY


def list_credentials(
    ctx: typer.Context,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """List the credentials, without their values."""
    found = session.with_vault(options.settings(ctx, home, master), lambda v: v.list())
    now = time.time()
    if json:
        output.json_out([as_json(info, now) for info in found])
    elif not found:
        output.say("No credentials yet. Store one with: apex-creds set NAME")
    else:
        columns = (
            "name",
            "kind",
            "service",
            "sent as",
            "origins",
            "level",
            "version",
            "expires",
        )
        output.table(columns, (_row(info, now) for info in found))


def _row(info: CredentialInfo, now: float) -> tuple[object, ...]:
    origins = ", ".join(map(str, info.origins)) or "nowhere"
    return (
        info.name,
        info.kind,
        info.service,
        info.delivery,
        origins,
        _level(info),
        info.version,
        _expiry(info, now),
    )


def _level(info: CredentialInfo) -> str:
    level = info.sensitivity.value
    return f"{level}, challenge" if info.challenge else level


def _expiry(info: CredentialInfo, now: float) -> object:
    text = when.show(info.expires) or "never"
    over = info.expires is not None and info.expires <= now
    return output.cell(f"{text} (expired)", style="red") if over else text


def as_json(info: CredentialInfo, now: float) -> dict[str, output.Json]:
    """A credential's metadata for ``--json``."""
    return {
        "name": info.name,
        "kind": info.kind.value,
        "service": info.service,
        "delivery": str(info.delivery),
        "origins": [str(origin) for origin in info.origins],
        "sensitivity": info.sensitivity.value,
        "challenge": info.challenge,
        "version": info.version,
        "created": when.show(info.created),
        "updated": when.show(info.updated),
        "expires": when.show(info.expires) or None,
        "expired": info.expires is not None and info.expires <= now,
        "token_type": info.token_type,
        "scope": info.scope,
        "id": info.id,
    }


def show(
    ctx: typer.Context,
    name: NameArgument,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Show what is known of a credential, without its value."""
    check_name(name)
    info = session.with_vault(options.settings(ctx, home, master), lambda v: v.get(name))
    facts = as_json(info, time.time())
    if json:
        output.json_out(facts)
        return
    output.fields((key.replace("_", " "), _plain(value)) for key, value in facts.items())


def _plain(value: output.Json) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nowhere"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if value not in ("", None) else "-"


def edit(
    ctx: typer.Context,
    name: NameArgument,
    challenge: ChallengeOption = None,
    sensitivity: Annotated[
        Sensitivity | None,
        typer.Option(
            metavar="LEVEL", help="normal, sensitive or critical.", show_default=False
        ),
    ] = None,
    origin: OriginOption = None,
    delivery: DeliveryOption = None,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Change where and how a credential is sent and what a use takes; its value stays.

    Origins that are given replace those that it has.
    """
    check_name(name)
    if challenge is None and sensitivity is None and origin is None and delivery is None:
        raise InvalidInputError(
            "There is nothing to change.",
            hint="Say --origin, --delivery, --sensitivity, --challenge or --no-challenge.",
        )
    sent = None if delivery is None else Delivery.parse(delivery)
    origins = None if origin is None else [Origin.parse(text) for text in origin]
    info = session.with_vault(
        options.settings(ctx, home, master),
        lambda vault: marking.edit(
            vault,
            name,
            challenge=challenge,
            sensitivity=sensitivity,
            origins=origins,
            delivery=sent,
        ),
    )
    output.say(f"{info.name} is {_level(info)} from now on.", style="green")
    places = ", ".join(map(str, info.origins))
    output.say(f"It may be sent to {places or 'nowhere'}, as {info.delivery}.")


def get(
    ctx: typer.Context,
    name: NameArgument,
    reveal: Annotated[
        bool, typer.Option("--reveal", help="Yes, print the secret.", show_default=False)
    ] = False,
    part: Annotated[
        str,
        typer.Option(
            metavar="PART",
            help="value, access, refresh, user or password; the main one by default.",
            show_default=False,
        ),
    ] = "",
    force: Annotated[
        bool,
        typer.Option("--force", help="Also where standard output is not a terminal."),
    ] = False,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Print a secret; audited as an exposure."""
    check_name(name)
    if not reveal:
        raise InvalidInputError(
            "This prints the secret, and asks you to say so.",
            hint="Add --reveal; for the rest there is: apex-creds show NAME",
        )
    check_exit(sys.stdout, force=force)

    async def work(vault: Vault) -> None:
        async with vault.open(name, action="get") as opened:
            with opened.part(part) as secret:
                if json:
                    write_json(name, part or MAIN_PART[opened.kind], secret)
                else:
                    write_secret(sys.stdout, secret)

    session.with_vault(options.settings(ctx, home, master), work)


def remove(
    ctx: typer.Context,
    name: NameArgument,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask.", show_default=False)
    ] = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Delete a credential for good: its key is destroyed, its file overwritten."""
    check_name(name)
    chosen = options.settings(ctx, home, master)
    if not yes:
        _confirm(name)
    done = session.with_vault(chosen, lambda v: v.delete(name))
    output.say(f"Deleted {done.name}.", style="green")
    for line in _verified(done):
        output.say(line)


def _confirm(name: str) -> None:
    if not sys.stdin.isatty():
        raise InvalidInputError(
            "There is no terminal to ask whether to delete it.", hint="Add --yes."
        )
    if not typer.confirm(f"Delete {output.safe(name)} for good?", err=True):
        output.note("Nothing was deleted.")
        raise typer.Exit(1)


def _verified(done: Deletion) -> tuple[str, str]:
    key = "verified: the key is destroyed" if done.shredded else "NOT verified"
    file = {
        "overwritten": "verified: zeros were read back in its place",
        "unverifiable": "tried, but this file system can't prove it (copies may remain)",
        "no": "not done: there was nothing to overwrite",
    }[done.overwritten]
    return f"  shredding    {key}", f"  overwriting  {file}"

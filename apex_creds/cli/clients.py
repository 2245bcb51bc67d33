"""``client``: programs that may answer challenges.

Guarantee: a client's key is made in its own file and never printed; what is enrolled is
its public half.
"""

from __future__ import annotations

import base64
import binascii
import time
from pathlib import Path
from typing import Annotated

import typer

from apex_creds.cli import options, output, session, when
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption
from apex_creds.errors import InvalidInputError
from apex_creds.policy.access_state import Client
from apex_creds.vault import Vault
from apex_creds.vault.challenger import Challenger
from apex_creds.vault.client_key import ClientKey

client = typer.Typer(context_settings=options.HELP, invoke_without_command=True)
"""The group ``client``."""

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="The client's key file.", show_default=False)
]
ClientArgument = Annotated[
    str, typer.Argument(metavar="CLIENT", help="The client's name.", show_default=False)
]


@client.callback()
def root(ctx: typer.Context, home: HomeOption = None, master: MasterOption = None) -> None:
    """Enrol, list and revoke programs that answer challenges; make their keys."""
    ctx.obj = options.settings(ctx, home, master)
    options.help_without_command(ctx)


@client.command("keygen")
def keygen(file: FileArgument) -> None:
    """Make a client's key in a new file (0600), and print its public key. On its machine."""
    with ClientKey.generate(file) as key:
        output.say(public_text(key.public))
        output.note(f"Client {key.id}. Enrol it: apex-creds client enrol CLIENT PUBLIC")


@client.command("public")
def public(file: FileArgument) -> None:
    """Print the public key of a client's key file."""
    with ClientKey.load(file) as key:
        output.say(public_text(key.public))


@client.command("enrol")
def enrol(
    ctx: typer.Context,
    name: ClientArgument,
    public_key: Annotated[
        str,
        typer.Argument(metavar="PUBLIC", help="What keygen printed.", show_default=False),
    ],
    credential: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="It may answer for this; repeat; * for all.",
            show_default=False,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="2030-12-31, 12h, 30d; without end by default."),
    ] = None,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Let a program answer challenges for the credentials named."""
    end = None if until is None else when.parse(until, now=time.time())
    key = parse_public(public_key)

    async def work(vault: Vault) -> Client:
        challenger = Challenger(vault)
        return await challenger.enrol(name, key, credentials=credential or (), expires=end)

    made = session.with_vault(options.settings(ctx, home, master), work)
    ends = f" until {when.show(made.expires)}" if made.expires else ""
    output.say(f"{made.name} may answer for {_credentials(made)}{ends}.", style="green")


@client.command("list")
def list_clients(
    ctx: typer.Context,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """List the clients."""
    chosen = options.settings(ctx, home, master)
    found = session.with_vault(chosen, lambda vault: Challenger(vault).clients())
    if json:
        output.json_out([_as_json(item) for item in found])
    elif not found:
        output.say("No clients yet. Enrol one with: apex-creds client enrol CLIENT PUBLIC")
    else:
        rows = ((c.name, _credentials(c), c.id, when.show(c.created), _end(c)) for c in found)
        output.table(("client", "credentials", "id", "since", "until"), rows)


@client.command("revoke")
def revoke(
    ctx: typer.Context,
    name: ClientArgument,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Take a client's right away, by name or id; its open challenges are closed."""
    chosen = options.settings(ctx, home, master)
    gone = session.with_vault(chosen, lambda vault: Challenger(vault).revoke(name))
    output.say(f"{gone.name} may answer no more.", style="green")


def public_text(key: bytes) -> str:
    """A public key as it is printed and pasted: base64 of 32 bytes."""
    return base64.b64encode(key).decode()


def parse_public(text: str) -> bytes:
    """Reads ``public_text``.

    Raises:
        InvalidInputError: It is not base64.
    """
    try:
        return base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        pass
    raise InvalidInputError(
        "That is not a public key.", hint="Paste what apex-creds client keygen printed."
    )


def _credentials(item: Client) -> str:
    return ", ".join(item.credentials)


def _end(item: Client) -> object:
    if item.expires is not None and item.expires <= time.time():
        return output.cell(f"{when.show(item.expires)} (over)", style="red")
    return when.show(item.expires) or "without end"


def _as_json(item: Client) -> dict[str, output.Json]:
    return {
        "name": item.name,
        "id": item.id,
        "public": public_text(item.public),
        "credentials": list(item.credentials),
        "created": when.show(item.created),
        "until": when.show(item.expires) or None,
    }

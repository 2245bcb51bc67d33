"""``factor``, ``recovery-codes``, ``client``: who shows what before a secret is used.

Guarantee: a seed and recovery codes are shown once, on a terminal (elsewhere only by
``--force``); codes are read without echo, or from standard input, never from arguments.
Where there is a second factor already, what changes factors asks for it first. A client's
key is made in its own file and never printed; what is enrolled is its public half.
"""

from __future__ import annotations

import base64
import binascii
import getpass
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer

from apex_creds.auth.access_document import OPERATOR, Client, Factor
from apex_creds.auth.challenge_client import ClientKey
from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.cli import console
from apex_creds.cli.command import (
    ForceOption,
    Settings,
    UntilOption,
    command,
    group,
    with_vault,
)
from apex_creds.cli.console import Json, Line, Note, Part, Report, Rows, done
from apex_creds.cli.credential_commands import check_exit
from apex_creds.cli.grant_commands import end_of
from apex_creds.cli.program import argument, flag, option
from apex_creds.errors import (
    InvalidInputError,
    LockedOutError,
    NotFoundError,
    SecondFactorError,
)
from apex_creds.model import completed
from apex_creds.policy.display import show_time
from apex_creds.vault import Vault

T = TypeVar("T")

_TRIES: Final = 3
_CODE_LIMIT: Final = 1024

factor = group("Enrol, list, try and remove second factors (one-time codes of an app).")
client = group("Enrol, list and revoke programs that answer challenges; make their keys.")

LabelArgument = Annotated[
    str, typer.Argument(metavar="LABEL", help="What you call it.", show_default=False)
]
FileArgument = Annotated[Path, argument("FILE", "The client's key file.")]
ClientArgument = Annotated[str, argument("CLIENT", "The client's name.")]


# -- second factors ------------------------------------------------------------------------


@factor.command("enrol")
@command()
def enrol_factor(
    chosen: Settings,
    label: LabelArgument = "phone",
    plain: Annotated[bool, flag("Without the QR code.", "--no-qr")] = False,
    force: ForceOption = False,
) -> Report:
    """Enrol an authenticator app: shows a QR code, then asks for a code of the app."""
    check_exit(console.for_people(), force=force)

    async def work(vault: Vault) -> tuple[Factor, int]:
        factors = Factors(vault)
        if await factors.enrolled():
            await ask_for_one(factors)
        with factors.begin(label) as new:
            uri = new.uri()
            if not plain:
                console.draw_qr(uri, console.for_people())
            console.say("Scan this with an authenticator app, or type the secret into it.")
            console.say(f"URI:    {uri}")
            console.say(f"Secret: {new.base32()}")
            console.say("It is shown this once. Clear the screen afterwards.", style="yellow")
            made = await _until_right(
                "Code of the new factor", lambda code: factors.confirm(new, code)
            )
        return made, await factors.recovery_codes_left()

    made, left = with_vault(chosen, work)
    advice = "Next: apex-creds recovery-codes, for the day when the phone is lost."
    return done(
        {"id": made.id, "label": made.label, "recovery_codes_left": left},
        f"Enrolled {made.label}.",
        *([] if left else [advice]),
    )


@factor.command("list")
@command()
async def list_factors(vault: Vault) -> Report:
    """List the second factors, and how many recovery codes are left."""
    factors = Factors(vault)
    left, wait = await factors.recovery_codes_left(), await factors.locked_for()
    found = await factors.listed()
    data: dict[str, Json] = {
        "factors": [
            {
                "id": item.id,
                "label": item.label,
                "kind": item.kind,
                "principal": item.principal,
                "created": show_time(item.created),
            }
            for item in found
        ],
        "recovery_codes_left": left,
        "locked_for": round(wait),
    }
    if not found:
        return Report(data, "No second factor yet. Enrol one with: apex-creds factor enrol")
    parts: list[Part] = [f"Recovery codes left: {left}"]
    if wait:
        parts.append(Line(f"Locked out for {wait:.0f} seconds after wrong codes.", "red"))
    rows = [(f.label, f.kind, f.principal, show_time(f.created)) for f in found]
    return Report(data, Rows(("label", "kind", "of", "since"), rows), *parts)


@factor.command("verify")
@command()
def verify_factor(
    chosen: Settings,
    plugin: Annotated[
        str | None,
        option("PLUGIN", "Show it for this plugin."),
    ] = None,
    credential: Annotated[
        str | None,
        option("NAME", "And this credential."),
    ] = None,
) -> Report:
    """Show a second factor: to try it, or for a plugin that waits for one."""
    if (plugin is None) is not (credential is None):
        raise InvalidInputError("Name both, --plugin and --credential, or neither.")
    subject = None
    if plugin is not None and credential is not None:
        subject = Subject(plugin=plugin, credential=credential)
    with_vault(chosen, lambda vault: ask_for_one(Factors(vault), subject=subject))
    what = f" {plugin} may use {credential} now." if subject else ""
    data = {"accepted": True, "plugin": plugin, "credential": credential}
    return done(data, f"The code was accepted.{what}")


@factor.command("remove")
@command()
async def remove_factor(vault: Vault, label: LabelArgument) -> Report:
    """Remove a second factor; asks for a code of any, or for a recovery code."""
    factors = Factors(vault)
    listed = await factors.listed(OPERATOR)
    whole = completed(label, [f.id for f in listed])
    found = [f for f in listed if label == f.label or whole == f.id]
    if not found:
        raise NotFoundError(
            "There is no such second factor.", hint="See: apex-creds factor list"
        )
    await ask_for_one(factors)
    await factors.remove(found[0].id)
    return done({"removed": found[0].id, "label": found[0].label}, f"Removed {label}.")


@command()
def recovery_codes(chosen: Settings, force: ForceOption = False) -> Report:
    """Make ten recovery codes, each good once; earlier ones are void. Asks for a code."""
    check_exit(sys.stdout, force=force)

    async def work(vault: Vault) -> list[str]:
        factors = Factors(vault)
        await ask_for_one(factors)
        return await factors.new_recovery_codes()

    codes = with_vault(chosen, work)
    notice = Note("Keep these where the phone is not. They are shown this once.")
    return Report({"codes": codes}, *codes, notes=[notice])


async def ask_for_one(factors: Factors, *, subject: Subject | None = None) -> None:
    """Asks until a code passes, three times on a terminal.

    Raises:
        SecondFactorError: There is no factor, or none of the codes passed.
    """
    if not await factors.enrolled():
        raise SecondFactorError(
            "There is no second factor.", hint="Enrol one: apex-creds factor enrol"
        )
    wait = await factors.locked_for()
    if wait:
        console.note(f"After wrong codes, only recovery codes are accepted for {wait:.0f} s.")
    await _until_right("Code", lambda code: factors.verify(code, subject=subject))


async def _until_right(question: str, check: Callable[[str], Awaitable[T]]) -> T:
    for left in range(_TRIES - 1, -1, -1):
        try:
            return await check(read_code(question))
        except LockedOutError:
            raise
        except SecondFactorError as error:
            if not left or not sys.stdin.isatty():
                raise
            console.note(error.message)
    raise AssertionError  # the loop returns or raises


def read_code(question: str) -> str:
    """A code, typed without echo, or from standard input."""
    if sys.stdin.isatty():
        return getpass.getpass(f"{question} (not shown): ")
    return console.read_input(_CODE_LIMIT).decode("ascii", "replace").strip()


# -- clients -------------------------------------------------------------------------------


@client.command("keygen")
@command()
def make_key(file: FileArgument) -> Report:
    """Make a client's key in a new file (0600), and print its public key. On its machine."""
    with ClientKey.generate(file) as key:
        advice = Note(f"Client {key.id}. Enrol it: apex-creds client enrol CLIENT PUBLIC")
        public = _public_text(key.public)
        return Report({"id": key.id, "public": public}, public, notes=[advice])


@client.command("public")
@command()
def show_public(file: FileArgument) -> Report:
    """Print the public key of a client's key file."""
    with ClientKey.load(file) as key:
        public = _public_text(key.public)
        return Report({"id": key.id, "public": public}, public)


@client.command("enrol")
@command()
def enrol_client(
    chosen: Settings,
    name: ClientArgument,
    public_key: Annotated[
        str,
        argument("PUBLIC", "What keygen printed."),
    ],
    credential: Annotated[
        list[str] | None,
        option("NAME", "It may answer for this; repeat; * for all."),
    ] = None,
    until: UntilOption = None,
) -> Report:
    """Let a program answer challenges for the credentials named."""
    try:
        key = base64.b64decode(public_key.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInputError(
            "That is not a public key.", hint="Paste what apex-creds client keygen printed."
        ) from None
    made = with_vault(
        chosen,
        lambda vault: Challenger(vault).enrol(
            name, key, credentials=credential or (), expires=until
        ),
    )
    ends = f" until {show_time(made.expires)}" if made.expires else ""
    said = f"{made.name} may answer for {', '.join(made.credentials)}{ends}."
    return done(_as_json(made), said)


@client.command("list")
@command()
async def list_clients(vault: Vault) -> Report:
    """List the clients."""
    found = await Challenger(vault).clients()
    return Report(
        [_as_json(item) for item in found],
        Rows(
            ("client", "credentials", "id", "since", "until"),
            [
                (
                    c.name,
                    ", ".join(c.credentials),
                    c.id,
                    show_time(c.created),
                    end_of(c.expires),
                )
                for c in found
            ],
            empty="No clients yet. Enrol one with: apex-creds client enrol CLIENT PUBLIC",
        ),
    )


@client.command("revoke")
@command()
async def revoke_client(vault: Vault, name: ClientArgument) -> Report:
    """Take a client's right away, by name or id; its open challenges are closed."""
    gone = await Challenger(vault).revoke(name)
    return done(_as_json(gone), f"{gone.name} may answer no more.")


def _public_text(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _as_json(item: Client) -> dict[str, Json]:
    return {
        "name": item.name,
        "id": item.id,
        "public": _public_text(item.public),
        "credentials": list(item.credentials),
        "created": show_time(item.created),
        "until": show_time(item.expires) or None,
    }

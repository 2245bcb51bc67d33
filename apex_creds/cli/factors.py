"""``factor`` and ``recovery-codes``: the operator's second factor.

Guarantee: a seed and recovery codes are shown once, on a terminal (elsewhere only by
``--force``); codes are read without echo, or from standard input, never from arguments.
Where there is a second factor already, what changes factors asks for it first.
"""

from __future__ import annotations

import getpass
import sys
from typing import Annotated, Final

import typer

from apex_creds.cli import options, output, prompts, qr, session, when
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption
from apex_creds.cli.reveal import check_exit
from apex_creds.errors import InvalidInputError, LockedOutError, SecondFactorError
from apex_creds.policy.access_state import OPERATOR, Factor
from apex_creds.policy.factors import Subject
from apex_creds.vault import Vault
from apex_creds.vault.factors import Enrolment, Factors

factor = typer.Typer(context_settings=options.HELP, invoke_without_command=True)
"""The group ``factor``."""

_TRIES: Final = 3
_CODE_LIMIT: Final = 1024

ForceOption = Annotated[
    bool, typer.Option("--force", help="Even if standard output is not a terminal.")
]
LabelArgument = Annotated[
    str, typer.Argument(metavar="LABEL", help="What you call it.", show_default=False)
]


@factor.callback()
def root(ctx: typer.Context, home: HomeOption = None, master: MasterOption = None) -> None:
    """Enrol, list, try and remove second factors (one-time codes of an app)."""
    ctx.obj = options.settings(ctx, home, master)
    options.help_without_command(ctx)


@factor.command("enrol")
def enrol(
    ctx: typer.Context,
    label: LabelArgument = "phone",
    plain: Annotated[bool, typer.Option("--no-qr", help="Without the QR code.")] = False,
    force: ForceOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Enrol an authenticator app: shows a QR code, then asks for a code of the app."""
    check_exit(sys.stdout, force=force)

    async def work(vault: Vault) -> tuple[Factor, int]:
        factors = Factors(vault)
        if await factors.enrolled():
            await ask_for_one(factors)
        with factors.begin(label) as new:
            _show(new, plain=plain)
            made = await _confirm(factors, new)
        return made, await factors.recovery_codes_left()

    made, left = session.with_vault(options.settings(ctx, home, master), work)
    output.say(f"Enrolled {made.label}.", style="green")
    if not left:
        output.say("Next: apex-creds recovery-codes, for the day when the phone is lost.")


def _show(new: Enrolment, *, plain: bool) -> None:
    uri = new.uri()
    if not plain:
        qr.draw(uri, sys.stdout)
    output.say("Scan this with an authenticator app, or type the secret into it.")
    output.say(f"URI:    {uri}")
    output.say(f"Secret: {new.base32()}")
    output.say("It is shown this once. Clear the screen afterwards.", style="yellow")


async def _confirm(factors: Factors, new: Enrolment) -> Factor:
    for left in range(_TRIES - 1, -1, -1):
        try:
            return await factors.confirm(new, read_code("Code of the new factor"))
        except SecondFactorError as error:
            if not left or not sys.stdin.isatty():
                raise
            output.note(error.message)
    raise AssertionError  # the loop returns or raises


@factor.command("list")
def list_factors(
    ctx: typer.Context,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """List the second factors, and how many recovery codes are left."""

    async def work(vault: Vault) -> tuple[list[Factor], int, float]:
        factors = Factors(vault)
        left, wait = await factors.recovery_codes_left(), await factors.locked_for()
        return await factors.listed(), left, wait

    found, left, wait = session.with_vault(options.settings(ctx, home, master), work)
    if json:
        output.json_out(
            {
                "factors": [_as_json(item) for item in found],
                "recovery_codes_left": left,
                "locked_for": round(wait),
            }
        )
        return
    if not found:
        output.say("No second factor yet. Enrol one with: apex-creds factor enrol")
        return
    rows = ((f.label, f.kind, f.principal, when.show(f.created)) for f in found)
    output.table(("label", "kind", "of", "since"), rows)
    output.say(f"Recovery codes left: {left}")
    if wait:
        output.say(f"Locked out for {wait:.0f} seconds after wrong codes.", style="red")


def _as_json(item: Factor) -> dict[str, output.Json]:
    return {
        "id": item.id,
        "label": item.label,
        "kind": item.kind,
        "principal": item.principal,
        "created": when.show(item.created),
    }


@factor.command("verify")
def verify(
    ctx: typer.Context,
    plugin: Annotated[
        str | None,
        typer.Option(metavar="PLUGIN", help="Show it for this plugin.", show_default=False),
    ] = None,
    credential: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="And this credential.", show_default=False),
    ] = None,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Show a second factor: to try it, or for a plugin that waits for one."""
    if (plugin is None) is not (credential is None):
        raise InvalidInputError("Name both, --plugin and --credential, or neither.")
    subject = None
    if plugin is not None and credential is not None:
        subject = Subject(plugin=plugin, credential=credential)

    async def work(vault: Vault) -> None:
        await ask_for_one(Factors(vault), subject=subject)

    session.with_vault(options.settings(ctx, home, master), work)
    what = f" {plugin} may use {credential} now." if subject else ""
    output.say(f"The code was accepted.{what}", style="green")


@factor.command("remove")
def remove(
    ctx: typer.Context,
    label: LabelArgument,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Remove a second factor; asks for a code of any, or for a recovery code."""

    async def work(vault: Vault) -> None:
        factors = Factors(vault)
        found = [f for f in await factors.listed(OPERATOR) if label in (f.label, f.id)]
        if not found:
            raise InvalidInputError(
                "There is no such second factor.", hint="See: apex-creds factor list"
            )
        await ask_for_one(factors)
        await factors.remove(found[0].id)

    session.with_vault(options.settings(ctx, home, master), work)
    output.say(f"Removed {label}.", style="green")


def recovery_codes(
    ctx: typer.Context,
    force: ForceOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Make ten recovery codes, each good once; earlier ones are void. Asks for a code."""
    check_exit(sys.stdout, force=force)

    async def work(vault: Vault) -> list[str]:
        factors = Factors(vault)
        await ask_for_one(factors)
        return await factors.new_recovery_codes()

    codes = session.with_vault(options.settings(ctx, home, master), work)
    output.note("Keep these where the phone is not. They are shown this once.")
    for code in codes:
        output.say(code)


async def ask_for_one(factors: Factors, *, subject: Subject | None = None) -> None:
    """Asks until a code passes, three times on a terminal."""
    if not await factors.enrolled():
        raise SecondFactorError(
            "There is no second factor.", hint="Enrol one: apex-creds factor enrol"
        )
    wait = await factors.locked_for()
    if wait:
        output.note(f"After wrong codes, only recovery codes are accepted for {wait:.0f} s.")
    for left in range(_TRIES - 1, -1, -1):
        try:
            await factors.verify(read_code("Code"), subject=subject)
        except LockedOutError:
            raise
        except SecondFactorError as error:
            if not left or not sys.stdin.isatty():
                raise
            output.note(error.message)
        else:
            return


def read_code(question: str) -> str:
    """A code, typed without echo, or from standard input."""
    if sys.stdin.isatty():
        return getpass.getpass(f"{question} (not shown): ")
    data = prompts.read_input(_CODE_LIMIT)
    return data.decode("ascii", "replace").strip()

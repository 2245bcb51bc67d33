"""``requests``, ``approve``, ``deny``: a person decides; ``lockdown``, ``unlock``.

Guarantee: what a plugin says of itself is shown escaped; an approval is of the question
that is shown, and for once unless more is said. Where a second factor is needed it is asked
for before the answer is given, as it is before a lockdown ends.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from apex_creds.cli import options, output, session, when
from apex_creds.cli.factors import ask_for_one, read_code
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption
from apex_creds.clocks import Moment, SystemClock
from apex_creds.errors import InvalidInputError
from apex_creds.integrations.checksum import DEFAULT, tree_digest
from apex_creds.policy.access_state import PendingRequest
from apex_creds.policy.consent import Choice, ConsentAnswer, lines
from apex_creds.policy.factors import Subject
from apex_creds.policy.grants import Lockdown
from apex_creds.vault import Vault
from apex_creds.vault.factors import Factors
from apex_creds.vault.requests import Requests

_BY = "apex-creds"

IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="As `requests` shows it.", show_default=False)
]


def list_requests(
    ctx: typer.Context,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """List what plugins wait for: the questions that somebody has to answer."""
    found = session.with_vault(
        options.settings(ctx, home, master), lambda vault: Requests(vault).open()
    )
    if json:
        output.json_out([_as_json(item) for item in found])
    elif not found:
        output.say("Nothing waits for an answer.")
    now = Moment.now(SystemClock())
    for item in [] if json else found:
        output.say(f"{item.id}  ({item.seconds_left(now):.0f} seconds left)", style="bold")
        for line in lines(item.request):
            output.say(f"  {line}")


def _as_json(item: PendingRequest) -> dict[str, output.Json]:
    request = item.request
    return {
        "id": item.id,
        "asked": when.show(item.asked),
        "expires": when.show(item.expires),
        "plugin": request.plugin,
        "version": request.version,
        "action": request.action,
        "credential": request.credential,
        "level": request.level,
        "access": request.access.value,
        "scopes": list(request.scopes),
        "origins": list(request.origins),
        "methods": list(request.methods),
        "paths": list(request.paths),
        "reason": request.reason,
        "why": request.why,
        "before": request.before,
        "changes": list(request.changes),
        "unverified": request.unverified,
        "second_factor": request.second_factor,
    }


def approve(
    ctx: typer.Context,
    request_id: IdArgument,
    for_session: Annotated[
        bool, typer.Option("--session", help="Until the runtime that asks ends.")
    ] = False,
    until: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="2030-12-31, 12h, 30d.", show_default=False),
    ] = None,
    always: Annotated[bool, typer.Option("--always", help="Without end.")] = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Say yes to a request: once, unless an option says more."""
    answer = _yes(for_session=for_session, until=until, always=always)

    async def work(vault: Vault) -> PendingRequest:
        await vault.refuse_lockdown()
        requests = Requests(vault)
        found = await requests.find(request_id)
        for line in lines(found.request):
            output.note(line, style="")
        if found.request.second_factor:
            subject = Subject(plugin=found.request.plugin, credential=found.request.credential)
            await ask_for_one(Factors(vault), subject=subject)
        return await requests.answer(request_id, answer)

    done = session.with_vault(options.settings(ctx, home, master), work).request
    end = f" until {when.show(answer.until)}" if answer.until else ""
    how = "" if answer.until else f" ({answer.choice.value})"
    output.say(f"{done.plugin} may use {done.credential}{end}{how}.", style="green")


def _yes(*, for_session: bool, until: str | None, always: bool) -> ConsentAnswer:
    if for_session + always + (until is not None) > 1:
        raise InvalidInputError("Say one of --session, --until and --always, or none.")
    if until is not None:
        end = when.parse(until, now=time.time())
        return ConsentAnswer(choice=Choice.UNTIL, until=end, by=_BY)
    choice = Choice.ALWAYS if always else Choice.SESSION if for_session else Choice.ONCE
    return ConsentAnswer(choice=choice, by=_BY)


def deny(
    ctx: typer.Context,
    request_id: IdArgument,
    never: Annotated[bool, typer.Option("--never", help="And don't ask again.")] = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Say no to a request."""
    choice = Choice.NEVER if never else Choice.DENY
    answer = ConsentAnswer(choice=choice, by=_BY)
    done = session.with_vault(
        options.settings(ctx, home, master),
        lambda vault: Requests(vault).answer(request_id, answer),
    ).request
    again = ", and is not asked about again" if never else ""
    output.say(f"{done.plugin} may not use {done.credential}{again}.", style="green")


def lockdown(
    ctx: typer.Context,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="For the log.", show_default=False)
    ] = "",
    keep_grants: Annotated[
        bool, typer.Option("--keep-grants", help="Have them back after the unlocking.")
    ] = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Seal the vault: end everything, take back all grants, release nothing until `unlock`."""

    async def work(vault: Vault) -> tuple[Lockdown, bool]:
        async with vault.store.holding():
            made = await vault.lockdown(reason=reason, keep_grants=keep_grants)
            return made, await Factors(vault).enrolled()

    made, protected = session.with_vault(options.settings(ctx, home, master), work)
    output.say(f"Locked down since {when.show(made.since)}. No secret is released.")
    if not keep_grants:
        output.say("All grants are removed; what was denied stays denied.")
    output.say("To end it: apex-creds unlock")
    if not protected:
        output.note("No second factor is enrolled, so unlock asks for none.")


def unlock(ctx: typer.Context, home: HomeOption = None, master: MasterOption = None) -> None:
    """End a lockdown; asks for the second factor, if one is enrolled."""

    async def work(vault: Vault) -> bool | None:
        if (await vault.grants()).lockdown is None:
            return None
        code = read_code("Code") if await Factors(vault).enrolled() else None
        await vault.unlock(code)
        return len(await vault.grants()) > 0

    granted = session.with_vault(options.settings(ctx, home, master), work)
    if granted is None:
        output.say("The vault is not locked down.")
    elif granted:
        output.say("Unlocked; grants are in force again.", style="green")
    else:
        output.say("Unlocked; nothing is granted to any plugin.", style="green")


def checksum(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The plugin's.", show_default=False)
    ],
    algorithm: Annotated[str, typer.Option(metavar="NAME", help="The hash.")] = DEFAULT,
    json: JsonOption = False,
) -> None:
    """Print the checksum of a plugin's code, as its metadata should state it."""
    value = tree_digest(folder, algorithm=algorithm)
    if json:
        output.json_out({"algorithm": algorithm, "value": value})
    else:
        output.say(f"{algorithm} {value}")

"""``requests``, ``approve``, ``deny``, ``lockdown``, ``unlock``: what a person decides.

Guarantee: what a plugin says of itself is shown escaped; an approval is of the question
that is shown, and for once unless more is said. Where a second factor is needed it is asked
for before the answer is given, as it is before a lockdown ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from apex_creds.auth.access_document import PendingRequest
from apex_creds.auth.consent_queue import Requests
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.cli import console
from apex_creds.cli.access_commands import ask_for_one, read_code
from apex_creds.cli.command import Settings, command, parse_time, with_vault
from apex_creds.cli.console import Json, Line, Note, Part, Report, done
from apex_creds.cli.program import argument, flag, option
from apex_creds.clocks import Moment, SystemClock
from apex_creds.errors import InvalidInputError
from apex_creds.integrations.plugin_metadata import DEFAULT, tree_digest
from apex_creds.model import key_of, shown_key
from apex_creds.policy.consent import Choice, ConsentAnswer, ConsentRequest, lines
from apex_creds.policy.display import show_time
from apex_creds.vault import Vault

_BY = "apex-creds"

IdArgument = Annotated[str, argument("ID", "As `requests` shows it, or its beginning.")]


@command()
async def list_requests(vault: Vault) -> Report:
    """List what plugins wait for: the questions that somebody has to answer."""
    found, now = await Requests(vault).open(), Moment.now(SystemClock())
    parts: list[Part] = [] if found else ["Nothing waits for an answer."]
    for item in found:
        parts.append(Line(f"{item.id}  ({item.seconds_left(now):.0f} seconds left)", "bold"))
        parts += [f"  {line}" for line in lines(item.request)]
    data: list[dict[str, Json]] = [
        {
            "id": item.id,
            "asked": show_time(item.asked),
            "expires": show_time(item.expires),
            "plugin": item.request.plugin,
            "version": item.request.version,
            "action": item.request.action,
            "credential": item.request.credential,
            "owner": item.request.owner or None,
            "principal": item.request.principal or None,
            "level": item.request.level,
            "access": item.request.access.value,
            "scopes": list(item.request.scopes),
            "origins": list(item.request.origins),
            "methods": list(item.request.methods),
            "paths": list(item.request.paths),
            "reason": item.request.reason,
            "why": item.request.why,
            "before": item.request.before,
            "changes": list(item.request.changes),
            "unverified": item.request.unverified,
            "second_factor": item.request.second_factor,
        }
        for item in found
    ]
    return Report(data, *parts)


@command()
def approve(
    chosen: Settings,
    request_id: IdArgument,
    for_session: Annotated[
        bool, flag("Until the runtime that asks ends.", "--session")
    ] = False,
    until: Annotated[
        float | None,
        option("WHEN", "2030-12-31, 12h, 30d.", parser=parse_time),
    ] = None,
    always: Annotated[bool, flag("Without end.", "--always")] = False,
) -> Report:
    """Say yes to a request: once, unless an option says more."""
    if for_session + always + (until is not None) > 1:
        raise InvalidInputError("Say one of --session, --until and --always, or none.")
    choice = Choice.ALWAYS if always else Choice.SESSION if for_session else Choice.ONCE
    if until is not None:
        choice = Choice.UNTIL
    answer = ConsentAnswer(choice=choice, until=until, by=_BY)

    async def work(vault: Vault) -> PendingRequest:
        await vault.check_not_locked_down()
        requests = Requests(vault)
        found = await requests.find(request_id)
        request = found.request
        for line in lines(request):
            console.note(line, style="")
        if request.second_factor:
            key = key_of(request.credential, request.owner)
            subject = Subject(plugin=request.plugin, credential=key)
            await ask_for_one(Factors(vault), subject=subject)
        return await requests.answer(found.id, answer)

    answered = with_vault(chosen, work)
    how = f" until {show_time(until)}" if until is not None else f" ({choice.value})"
    request = answered.request
    return done(
        _answered(answered, answer), f"{request.plugin} may use {_called(request)}{how}."
    )


def _called(request: ConsentRequest) -> str:
    return shown_key(key_of(request.credential, request.owner))


def _answered(item: PendingRequest, answer: ConsentAnswer) -> dict[str, Json]:
    return {
        "id": item.id,
        "plugin": item.request.plugin,
        "credential": item.request.credential,
        "choice": answer.choice.value,
        "until": show_time(answer.until) or None,
    }


@command()
async def deny(
    vault: Vault,
    request_id: IdArgument,
    never: Annotated[bool, flag("And don't ask again.", "--never")] = False,
) -> Report:
    """Say no to a request."""
    answer = ConsentAnswer(choice=Choice.NEVER if never else Choice.DENY, by=_BY)
    requests = Requests(vault)
    answered = await requests.answer((await requests.find(request_id)).id, answer)
    request = answered.request
    again = ", and is not asked about again" if never else ""
    return done(
        _answered(answered, answer),
        f"{request.plugin} may not use {_called(request)}{again}.",
    )


@command()
async def lockdown(
    vault: Vault,
    reason: Annotated[str, option("TEXT", "For the log.")] = "",
    keep_grants: Annotated[
        bool, flag("Have them back after the unlocking.", "--keep-grants")
    ] = False,
) -> Report:
    """Seal the vault: end everything, take back all grants, release nothing until `unlock`."""
    async with vault.store.holding():
        made = await vault.lockdown(reason=reason, keep_grants=keep_grants)
        protected = await Factors(vault).enrolled()
    parts: list[Part] = [f"Locked down since {show_time(made.since)}. No secret is released."]
    if not keep_grants:
        parts.append("All grants are removed; what was denied stays denied.")
    parts.append("To end it: apex-creds unlock")
    if not protected:
        parts.append(Note("No second factor is enrolled, so unlock asks for none."))
    data: dict[str, Json] = {
        "locked_down": show_time(made.since),
        "grants_kept": keep_grants,
        "second_factor": protected,
    }
    return Report(data, *parts)


@command()
async def unlock(vault: Vault) -> Report:
    """End a lockdown; asks for the second factor, if one is enrolled."""
    if (await vault.grants()).lockdown is None:
        return Report({"unlocked": False}, "The vault is not locked down.")
    await vault.unlock(read_code("Code") if await Factors(vault).enrolled() else None)
    count = len(await vault.grants())
    said = "grants are in force again" if count else "nothing is granted to any plugin"
    return done({"unlocked": True, "grants": count}, f"Unlocked; {said}.")


@command()
def checksum(
    folder: Annotated[Path, argument("DIR", "The plugin's.")],
    algorithm: Annotated[str, option("NAME", "The hash.")] = DEFAULT,
) -> Report:
    """Print the checksum of a plugin's code, as its metadata should state it."""
    value = tree_digest(folder, algorithm=algorithm)
    return Report({"algorithm": algorithm, "value": value}, f"{algorithm} {value}")

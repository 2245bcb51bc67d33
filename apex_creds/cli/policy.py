"""``policy check`` and ``policy explain``: the policy file, and which rule decides."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from apex_creds.cli import options, output, session, when
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption
from apex_creds.errors import CredentialNotFoundError, InvalidInputError, InvalidPolicyError
from apex_creds.fs.oserrors import translated
from apex_creds.fs.private_files import read_small
from apex_creds.model import CredentialInfo, Origin, check_name
from apex_creds.policy.decide import Decision, Reason, decide
from apex_creds.policy.grants import Grant, Grants
from apex_creds.policy.manifest import Access, Need
from apex_creds.policy.policy_file import MAX_BYTES, load_policy, parse_policy
from apex_creds.policy.rules import EACH_LEASE, NEVER, NO_POLICY, Policy, Rule
from apex_creds.vault import Vault

_OTHERS: Final = 10

policy = typer.Typer(context_settings=options.HELP, invoke_without_command=True)
"""The group ``policy``."""


@policy.callback()
def root(ctx: typer.Context, home: HomeOption = None, master: MasterOption = None) -> None:
    """Check the policy file; say which rule decides on a use."""
    ctx.obj = options.settings(ctx, home, master)
    options.help_without_command(ctx)


@policy.command("check")
def check(
    ctx: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="That of the vault by default.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Check a policy file; says on which line it is wrong. Needs no key."""
    try:
        found = _load(options.settings(ctx, home, master), file)
    except InvalidPolicyError as error:
        if json:
            output.json_out({"ok": False, "line": error.line, "error": error.message})
        raise
    if json:
        output.json_out({"ok": True, **_summary(found)})
    elif found is NO_POLICY:
        output.say("There is no policy file: a person decides on everything.")
    else:
        count = f"{len(found.rules)} rules, {len(found.limits)} limits"
        output.say(f"The policy is valid: {count}.", style="green")
        output.fields((level.value, _level(found, level)) for level in found.levels)


@policy.command("explain")
def explain(
    ctx: typer.Context,
    plugin: Annotated[str, typer.Argument(metavar="PLUGIN", help="Its id.")],
    credential: Annotated[str, typer.Argument(metavar="CREDENTIAL", help="Its name.")],
    action: Annotated[
        str, typer.Argument(metavar="ACTION", help="What the plugin is to do.")
    ] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(metavar="SCOPE", help="It asks for this; repeat.", show_default=False),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="It asks to send there; the credential's origins by default.",
            show_default=False,
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="2030-12-31T18:00Z; now by default."),
    ] = None,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Say whether a plugin that declares a credential gets it, and which rule decides."""
    chosen = options.settings(ctx, home, master)
    asked = _Asked(
        check_name(plugin, what="plugin id"),
        check_name(credential, what="credential name"),
        check_name(action, what="action") if action else "",
        tuple(check_name(text, what="scope") for text in scope or ()),
        tuple(Origin.parse(text) for text in origin or ()),
        time.time() if at is None else _moment(at),
    )
    found = _load(chosen, None)

    async def work(vault: Vault) -> tuple[CredentialInfo | None, Grants]:
        grants = await vault.grants()
        try:
            info: CredentialInfo | None = await vault.get(credential)
        except CredentialNotFoundError:
            info = None
        return info, grants

    info, grants = session.with_vault(chosen, work)
    decision = asked.decide(found, info, grants.find(plugin, credential))
    if grants.lockdown is not None:
        decision = Decision(reason=Reason.LOCKED_DOWN)
    others = asked.others(found, info, decision)
    if json:
        output.json_out(_as_json(decision, others))
    else:
        _show(decision, others)
        if info is not None and info.challenge:
            output.note("Each use takes a nonce that a registered client has signed, besides.")


class _Asked(NamedTuple):
    plugin: str
    credential: str
    action: str
    scopes: tuple[str, ...]
    origins: tuple[Origin, ...]
    now: float

    def decide(
        self, policy: Policy, info: CredentialInfo | None, grant: Grant | None
    ) -> Decision:
        need = Need(
            name=self.credential,
            scopes=self.scopes,
            origins=self.origins,
            access=Access.REVEAL,
        )
        return decide(
            need=need,
            grant=grant,
            info=info,
            now=self.now,
            policy=policy,
            plugin=self.plugin,
            action=self.action,
        )

    def others(
        self, policy: Policy, info: CredentialInfo | None, decision: Decision
    ) -> list[Rule]:
        """The rules that match too, from the next one that would decide."""
        matching = policy.matching(
            plugin=self.plugin,
            action=self.action,
            credential=self.credential,
            scopes=self.scopes,
            origins=self.origins or (info.origins if info else ()),
            now=self.now,
        )
        return [rule for rule in matching if rule.id != decision.rule][:_OTHERS]


def _load(chosen: options.Settings, file: Path | None) -> Policy:
    if file is None:
        return load_policy(session.home_of(chosen))
    with translated(file):
        data = read_small(file, limit=MAX_BYTES, follow=True)
    return parse_policy(data, where=str(file))


def _moment(text: str) -> float:
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        raise InvalidInputError(
            f"{text[:40]!r} is not a time.", hint="Write it like 2030-12-31T18:00Z."
        ) from None


def _factor(seconds: float) -> str:
    if seconds == NEVER:
        return "never"
    return "each_lease" if seconds == EACH_LEASE else f"{seconds / 60:g} minutes"


def _level(found: Policy, level: object) -> str:
    chosen = {str(name): value for name, value in found.levels.items()}[str(level)]
    factor = _factor(chosen.second_factor)
    return chosen.decision if factor == "never" else f"{chosen.decision}, factor {factor}"


def _summary(found: Policy) -> dict[str, output.Json]:
    return {
        "file": found is not NO_POLICY,
        "rules": len(found.rules),
        "limits": len(found.limits),
        "levels": {
            level.value: {
                "decision": chosen.decision.value,
                "second_factor": _factor(chosen.second_factor),
            }
            for level, chosen in found.levels.items()
        },
    }


def _as_json(decision: Decision, others: list[Rule]) -> dict[str, output.Json]:
    permission = decision.permission
    return {
        "outcome": decision.outcome.value,
        "reason": decision.reason.value,
        "rule": decision.rule,
        "line": decision.line,
        "second_factor": _factor(decision.second_factor),
        "reveal": permission.reveal if permission else False,
        "until": when.show(permission.until) or None if permission else None,
        "also_match": [
            {"rule": rule.id, "line": rule.line, "decision": rule.decision.value}
            for rule in others
        ],
    }


_STYLES: Final = {"allow": "green", "ask": "yellow", "deny": "red"}


def _show(decision: Decision, others: list[Rule]) -> None:
    outcome = decision.outcome.value
    output.say(f"{outcome} ({decision.reason})", style=_STYLES[outcome])
    line = f" (line {decision.line})" if decision.line else ""
    output.fields(
        [
            ("rule", f"{decision.rule}{line}" if decision.rule else "-"),
            ("second factor", _factor(decision.second_factor)),
            ("also match", _names(others)),
        ]
    )


def _names(rules: list[Rule]) -> str:
    return ", ".join(f"{rule.id} ({rule.decision}, line {rule.line})" for rule in rules) or "-"

"""``policy check`` and ``policy explain``: the policy file, and which rule decides."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

from apex_creds.cli.command import Settings, command, group, name_of, with_vault
from apex_creds.cli.console import Fields, Json, Line, Note, Part, Report
from apex_creds.cli.program import argument, option
from apex_creds.errors import CredentialNotFoundError, InvalidInputError, InvalidPolicyError
from apex_creds.fs.private_files import read_small, translated
from apex_creds.model import CredentialInfo, Origin, check_name
from apex_creds.policy.decide import Decision, Reason, decide
from apex_creds.policy.display import show_time
from apex_creds.policy.grants import Grants
from apex_creds.policy.manifest import Access, Need
from apex_creds.policy.policy_file import MAX_BYTES, load_policy, parse_policy
from apex_creds.policy.rules import EACH_LEASE, NEVER, NO_POLICY, Policy, Rule
from apex_creds.vault import Vault

_OTHERS: Final = 10
_STYLES: Final = {"allow": "green", "ask": "yellow", "deny": "red"}

policy = group("Check the policy file; say which rule decides on a use.")


@policy.command("check")
@command()
def check(
    chosen: Settings,
    file: Annotated[
        Path | None,
        argument("FILE", "That of the vault by default."),
    ] = None,
) -> Report:
    """Check a policy file; says on which line it is wrong. Needs no key."""
    try:
        found = _load(chosen, file)
    except InvalidPolicyError as error:
        return Report({"ok": False, "line": error.line, "error": error.message}, error=error)
    data: dict[str, Json] = {
        "ok": True,
        "file": found is not NO_POLICY,
        "rules": len(found.rules),
        "limits": len(found.limits),
        "levels": {
            level.value: {
                "decision": rule.decision.value,
                "second_factor": _factor(rule.second_factor),
            }
            for level, rule in found.levels.items()
        },
    }
    if found is NO_POLICY:
        return Report(data, "There is no policy file: a person decides on everything.")
    count = f"{len(found.rules)} rules, {len(found.limits)} limits"
    rows: list[tuple[str, str]] = []
    for level, rule in found.levels.items():
        factor = _factor(rule.second_factor)
        asked = "" if factor == "never" else f", factor {factor}"
        rows.append((level.value, f"{rule.decision}{asked}"))
    return Report(data, Line(f"The policy is valid: {count}.", "green"), Fields(rows))


def _load(chosen: Settings, file: Path | None) -> Policy:
    if file is None:
        return load_policy(chosen.folder)
    with translated(file):
        data = read_small(file, limit=MAX_BYTES, follow=True)
    return parse_policy(data, where=str(file))


def _factor(seconds: float) -> str:
    if seconds == NEVER:
        return "never"
    return "each_lease" if seconds == EACH_LEASE else f"{seconds / 60:g} minutes"


def _moment(text: str) -> float:
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        raise InvalidInputError(
            f"{text[:40]!r} is not a time.", hint="Write it like 2030-12-31T18:00Z."
        ) from None


@policy.command("explain")
@command()
def explain(
    chosen: Settings,
    plugin: Annotated[
        str,
        argument("PLUGIN", "Its id.", parser=name_of("plugin id")),
    ],
    credential: Annotated[
        str,
        argument("CREDENTIAL", "Its name.", parser=name_of("credential name")),
    ],
    action: Annotated[str, argument("ACTION", "What the plugin is to do.")] = "",
    scope: Annotated[
        list[str] | None,
        option("SCOPE", "It asks for this; repeat.", parser=name_of("scope")),
    ] = None,
    origin: Annotated[
        list[Origin] | None,
        option(
            "URL",
            "It asks to send there; the credential's origins by default.",
            parser=Origin.parse,
        ),
    ] = None,
    at: Annotated[
        float | None,
        option("TIME", "2030-12-31T18:00Z; now by default.", parser=_moment),
    ] = None,
    whom: Annotated[
        str | None,
        option(
            "WHO",
            "The principal that the call is for; nobody by default.",
            "--for",
            parser=name_of("principal"),
        ),
    ] = None,
) -> Report:
    """Say whether a plugin that declares a credential gets it, and which rule decides."""
    if action:
        check_name(action, what="action")
    now = time.time() if at is None else at
    scopes, origins = tuple(scope or ()), tuple(origin or ())
    found = _load(chosen, None)

    async def work(vault: Vault) -> tuple[CredentialInfo | None, Grants]:
        grants = await vault.grants()
        for principal in dict.fromkeys((whom or "", "")):
            with suppress(CredentialNotFoundError):
                return await vault.get(credential, principal=principal), grants
        return None, grants

    info, grants = with_vault(chosen, work)
    decision = Decision(reason=Reason.LOCKED_DOWN)
    if grants.lockdown is None:
        decision = decide(
            need=Need(name=credential, scopes=scopes, origins=origins, access=Access.REVEAL),
            grant=grants.find(plugin, info.key if info else credential),
            info=info,
            now=now,
            policy=found,
            plugin=plugin,
            action=action,
            principal=whom or "",
        )
    matching = found.matching(
        plugin=plugin,
        action=action,
        credential=credential,
        scopes=scopes,
        origins=origins or (info.origins if info else ()),
        now=now,
        principal=whom or "",
    )
    others = [rule for rule in matching if rule.id != decision.rule][:_OTHERS]
    challenged = info is not None and info.challenge
    return _explained(decision, others, challenged=challenged)


def _explained(decision: Decision, others: list[Rule], *, challenged: bool) -> Report:
    outcome, permission = decision.outcome.value, decision.permission
    data: dict[str, Json] = {
        "outcome": outcome,
        "reason": decision.reason.value,
        "rule": decision.rule,
        "line": decision.line,
        "second_factor": _factor(decision.second_factor),
        "reveal": permission.reveal if permission else False,
        "echoes": permission.echoes if permission else False,
        "sign": permission.sign if permission else False,
        "until": show_time(permission.until) or None if permission else None,
        "also_match": [
            {"rule": rule.id, "line": rule.line, "decision": rule.decision.value}
            for rule in others
        ],
    }
    line = f" (line {decision.line})" if decision.line else ""
    names = (f"{rule.id} ({rule.decision}, line {rule.line})" for rule in others)
    rows = [
        ("rule", f"{decision.rule}{line}" if decision.rule else "-"),
        ("second factor", _factor(decision.second_factor)),
        ("also match", ", ".join(names) or "-"),
    ]
    parts: list[Part] = [
        Line(f"{outcome} ({decision.reason})", _STYLES[outcome]),
        Fields(rows),
    ]
    if challenged:
        text = "Each use takes a nonce that a registered client has signed, besides."
        parts.append(Note(text))
    return Report(data, *parts)

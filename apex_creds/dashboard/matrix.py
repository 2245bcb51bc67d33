"""The permission matrix as the page shows it: plugins by credentials.

Guarantee: pure. A cell says what is stored (a grant, a refusal), what the policy file says
where nothing is, and what the log tells of use; how many are sent is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from apex_creds.dashboard.activity import Use
from apex_creds.dashboard.shown import Names, text
from apex_creds.model import CredentialInfo, Sensitivity
from apex_creds.policy.grants import Grant, GrantDecision, Grants
from apex_creds.policy.rules import EACH_LEASE, NEVER, Policy, Verdict

MAX_CREDENTIALS: Final = 300
MAX_PLUGINS: Final = 60
_NO_USE: Final = Use()
_MANY: Final = 20


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One credential.

    Attributes:
        kind: Empty: there is none of that name (any more).
        rule: What its level decides where no rule matches: ``allow``, ``ask``, ``deny``.
        factor: Whether its level takes a second factor: ``each``, ``window`` or empty.
    """

    name: str
    kind: str = ""
    level: str = ""
    expires: float | None = None
    origins: tuple[str, ...] = ()
    rule: str = ""
    factor: str = ""


class Cell(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of one plugin (``p``) and one credential (``c``), by their places.

    Attributes:
        grant: ``allow``, ``deny``, ``over``, or empty: there is none.
        bound: Whether the grant is for one version of the plugin alone.
        verdict: What the policy file says, where it says more than the level.
        use: What the log tells.
    """

    p: int
    c: int
    grant: str = ""
    scopes: tuple[str, ...] = ()
    reveal: bool = False
    until: float | None = None
    created: float = 0.0
    by: str = ""
    bound: bool = False
    verdict: str = ""
    rule: str = ""
    use: Use | None = None


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """All of it.

    Attributes:
        more: Credentials and plugins that are not in it, since there are too many.
        rules: How many rules the policy file has; -1: it can't be read.
    """

    plugins: tuple[str, ...]
    credentials: tuple[Row, ...]
    cells: tuple[Cell, ...]
    more: tuple[int, int] = (0, 0)
    rules: int = 0


def matrix(
    infos: Iterable[CredentialInfo],
    grants: Grants,
    uses: Mapping[tuple[str, str], Use],
    policy: Policy | None,
    *,
    names: Names,
    now: float,
) -> Matrix:
    """Puts it together.

    Args:
        infos: All credentials.
        grants: All grants.
        uses: By plugin and by credential as the log calls it.
        policy: In force; None: it can't be read.
        names: How credentials are called.
        now: Unix seconds.
    """
    known = {info.name: info for info in infos}
    logged = {names.as_logged(name): name for name in known}
    used = {(p, logged[c]): use for (p, c), use in uses.items() if c in logged}
    granted = {(grant.plugin, grant.credential): grant for grant in grants}
    plugins = sorted({p for p, _ in granted} | {p for p, _ in uses})
    busy = {c for _, c in (*granted, *used)}
    ordered = sorted(known.keys() | busy, key=lambda name: (name not in busy, name))
    rows = ordered[:MAX_CREDENTIALS]
    columns = plugins[:MAX_PLUGINS]
    at = {name: place for place, name in enumerate(rows)}
    cells = tuple(_cells(columns, at, known, granted, used, policy, now))
    return Matrix(
        plugins=tuple(text(plugin) for plugin in columns),
        credentials=tuple(_row(name, known.get(name), policy, names) for name in rows),
        cells=cells,
        more=(len(ordered) - len(rows), len(plugins) - len(columns)),
        rules=-1 if policy is None else len(policy.rules),
    )


def _row(name: str, info: CredentialInfo | None, policy: Policy | None, names: Names) -> Row:
    if info is None:
        return Row(name=names.credential(name))
    level = None if policy is None else policy.levels[info.sensitivity]
    factor = NEVER if level is None else level.second_factor
    return Row(
        name=names.credential(name),
        kind=info.kind.value,
        level=info.sensitivity.value,
        expires=info.expires,
        origins=() if names.hidden else tuple(map(str, info.origins[:_MANY])),
        rule="" if level is None else level.decision.value,
        factor="" if factor == NEVER else "each" if factor == EACH_LEASE else "window",
    )


def _cells(
    plugins: list[str],
    at: Mapping[str, int],
    known: Mapping[str, CredentialInfo],
    granted: Mapping[tuple[str, str], Grant],
    used: Mapping[tuple[str, str], Use],
    policy: Policy | None,
    now: float,
) -> Iterator[Cell]:
    for p, plugin in enumerate(plugins):
        for name, c in at.items():
            grant, use = granted.get((plugin, name)), used.get((plugin, name))
            verdict, rule = _verdict(policy, plugin, known.get(name), now)
            if grant is None and use is None and not rule:
                continue
            cell = Cell(p=p, c=c, verdict=verdict, rule=text(rule), use=use)
            yield cell if grant is None else _with(cell, grant, now)


def _with(cell: Cell, grant: Grant, now: float) -> Cell:
    over = grant.until is not None and grant.until <= now
    deny = grant.decision is GrantDecision.DENY
    return msgspec.structs.replace(
        cell,
        grant="over" if over else "deny" if deny else "allow",
        scopes=tuple(text(scope) for scope in grant.scopes[:_MANY]),
        reveal=grant.reveal,
        until=grant.until,
        created=grant.created,
        by=text(grant.created_by),
        bound=bool(grant.manifest or grant.checksum),
    )


def _verdict(
    policy: Policy | None, plugin: str, info: CredentialInfo | None, now: float
) -> tuple[str, str]:
    """What a rule of the file says, and which; empty where only the level does."""
    if policy is None or not policy.rules or info is None:
        return "", ""
    ruling = policy.rule_on(
        plugin=plugin,
        action="",
        credential=info.name,
        level=info.sensitivity,
        origins=info.origins,
        now=now,
    )
    by_level = ruling.rule == f"levels.{Sensitivity(info.sensitivity).value}"
    return ("", "") if by_level else (Verdict(ruling.decision).value, ruling.rule)

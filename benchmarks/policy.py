"""What a decision costs, beside casbin, with one and with ten thousand rules.

``python -m benchmarks.policy [--json] [--rounds N] [--rules N] [--strict]``

The same rules in both: plugin, credential and action, with wildcards, deny overriding.
casbin is measured as it is used for that: ``keyMatch`` and deny-override. One run measures
all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from apex_creds.model import CredentialInfo, CredentialKind, Delivery, Sensitivity
from apex_creds.policy.decide import decide
from apex_creds.policy.decision_cache import DecisionCache
from apex_creds.policy.grants import Grants
from apex_creds.policy.manifest import Manifest, Need
from apex_creds.policy.policy_file import parse_policy
from apex_creds.policy.rules import Policy
from benchmarks.harness import (
    Budget,
    Operation,
    Run,
    Subject,
    UnavailableError,
    as_json,
    measure,
    show,
)

_MODEL: Final = """
[request_definition]
r = plugin, credential, action
[policy_definition]
p = plugin, credential, action, eft
[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
[matchers]
m = keyMatch(r.plugin, p.plugin) && keyMatch(r.credential, p.credential) \
&& keyMatch(r.action, p.action)
"""
_ASKED: Final = ("org7.plugin107", "svc7/key", "list_3_all")
_NEED: Final = Need(name=_ASKED[1])
_MANIFEST: Final = Manifest(plugin=_ASKED[0], version="1.0.0", needs=(_NEED,))
_INFO: Final = CredentialInfo(
    id="0" * 32,
    name=_ASKED[1],
    service="svc7",
    kind=CredentialKind.API_KEY,
    version=1,
    delivery=Delivery.parse("bearer"),
    origins=(),
    created=0.0,
    updated=0.0,
    sensitivity=Sensitivity.NORMAL,
)
_NOW: Final = 1_700_000_000.0

Line = tuple[str, str, str, str]


def lines(count: int) -> list[Line]:
    """Plugin, credential, action and decision of ``count`` different rules."""
    return [
        (
            f"org{n % 100}.plugin{n}",
            f"svc{n % 50}/*",
            f"list_{n % 7}_*",
            "allow" if n % 3 else "deny",
        )
        for n in range(count - 1)
    ] + [(_ASKED[0], "svc7/*", "list_3_*", "allow")]


def as_toml(rules: Sequence[Line]) -> bytes:
    """The rules as a policy file."""
    text = "".join(
        f'[[rules]]\nplugin = "{plugin}"\ncredential = "{credential}"\n'
        f'action = "{action}"\ndecision = "{decision}"\n'
        for plugin, credential, action, decision in rules
    )
    return f"version = 1\n{text}".encode()


def _decision(policy: Policy, *, remembered: bool) -> Operation:
    def once() -> object:
        if not remembered:
            # As for values that were never seen before.
            policy._known.clear()
            for matcher in (policy._plugin, policy._action, policy._credential):
                matcher._known.clear()
        return decide(
            need=_NEED,
            grant=None,
            info=_INFO,
            now=_NOW,
            policy=policy,
            plugin=_ASKED[0],
            action=_ASKED[2],
        )

    return once


def decision(count: int, *, remembered: bool) -> Subject:
    """``decide()`` whole, over ``count`` rules."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Operation]:
        policy = parse_policy(as_toml(lines(count)))
        operation = _decision(policy, remembered=remembered)
        if not getattr(operation(), "allowed", False):
            raise RuntimeError("the rules should allow this")
        yield operation

    what = "values seen before" if remembered else "values never seen before"
    name = f"decide-{count}" if remembered else f"decide-{count}-new"
    return Subject(name, f"decide(), {count} rules, {what}", opened)


@asynccontextmanager
async def cached() -> AsyncIterator[Operation]:
    """What the broker does for each lease where there is no policy file."""
    cache, grants = DecisionCache(), Grants()
    policy = parse_policy(b'version = 1\n[levels.normal]\ndecision = "allow"\n')

    def once() -> object:
        return cache.permission(
            _NEED, _INFO, _NOW, manifest=_MANIFEST, grants=grants, policy=policy
        )

    if once() is None:
        raise RuntimeError("the level should allow this")
    yield once


def casbin(count: int) -> Subject:
    """Casbin over the same rules."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Operation]:
        enforce = _enforcer(lines(count))
        if not enforce(*_ASKED):
            raise RuntimeError("the rules should allow this")
        yield lambda: enforce(*_ASKED)

    return Subject(f"casbin-{count}", f"casbin, {count} rules", opened)


def _enforcer(rules: Sequence[Line]) -> Callable[..., bool]:
    try:
        module: Any = importlib.import_module("casbin")
    except ImportError:
        raise UnavailableError("no casbin: scripts/bootstrap.sh .venv-bench bench") from None
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.conf"
        model.write_text(_MODEL, encoding="utf-8")
        enforcer = module.Enforcer(str(model))
    enforcer.add_policies([list(rule) for rule in rules])
    logging.getLogger("casbin").setLevel(logging.ERROR)
    found: Callable[..., bool] = enforcer.enforce
    return found


def subjects(count: int) -> list[Subject]:
    """All that one run measures."""
    return [
        Subject("cache", "the broker's look-up, no rules", cached),
        decision(1, remembered=True),
        decision(count, remembered=True),
        decision(count, remembered=False),
        casbin(1),
        casbin(count),
    ]


def budgets(run: Run, count: int) -> list[Budget]:
    """What issue 3 promises of a decision."""
    found, judged = run.results, []
    many, one, new = f"decide-{count}", "decide-1", f"decide-{count}-new"
    if many in found:
        judged.append(Budget(f"decide(), {count} rules", found[many].median * 1e6, 20, "µs"))
        judged.append(Budget("against one rule", found[many].ratio_to(found[one]), 3, "×"))
        judged.append(Budget("values never seen", found[new].median * 1e6, 200, "µs"))
    if f"casbin-{count}" in found:
        times = found[f"casbin-{count}"].ratio_to(found[many])
        judged.append(Budget("faster than casbin", times, 100, "×", at_least=True))
    return judged


def compile_seconds(count: int) -> float:
    """How long a file of ``count`` rules takes from its bytes to a policy."""
    data = as_toml(lines(count))
    began = time.perf_counter()
    parse_policy(data)
    return time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0, or 1 when ``--strict`` and a budget is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks.policy", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object, no tables")
    parser.add_argument("--rounds", type=int, default=20, help="figures for each subject")
    parser.add_argument("--rules", type=int, default=10_000, help="how many rules")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a budget is missed")
    arguments = parser.parse_args(argv)
    count = max(arguments.rules, 2)
    run = asyncio.run(measure(subjects(count), rounds=max(arguments.rounds, 1)))
    judged = budgets(run, count)
    if arguments.json:
        print(as_json(run, reference=f"decide-{count}", budgets=judged))
    else:
        show(run, reference=f"decide-{count}", budgets=judged)
        print(f"{count} rules compiled in {compile_seconds(count):.2f} s")
    missed = [budget for budget in judged if not budget.kept]
    return 1 if arguments.strict and missed else 0


if __name__ == "__main__":
    sys.exit(main())

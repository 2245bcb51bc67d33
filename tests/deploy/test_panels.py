"""Every panel's query, asked of a real Prometheus that scraped a real workload, has data."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.deploy.workload import CANARY
from tests.support.realparts import _free_port, prometheus

pytestmark = pytest.mark.e2e

DEPLOY = Path(__file__).parents[2] / "deploy"
VARIABLES = {"$__rate_interval": "30s", "$__range": "10m", "$job": ".*"}
ROUNDS = 4
ALERTS = {"ApexCredsSecretLeaked", "ApexCredsSecondFactorGuessed"}


@dataclass(frozen=True)
class Asked:
    """One query of one panel."""

    dashboard: str
    title: str
    expr: str


def _queries() -> Iterator[Asked]:
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield Asked(path.stem, panel["title"], _filled(target["expr"]))


def _filled(expr: str) -> str:
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


class Program:
    """The workload, and where its metrics are."""

    def __init__(self, process: subprocess.Popen[str], target: str) -> None:
        self._process = process
        self.target = target

    def round(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"


@contextmanager
def _program(home: Path) -> Iterator[Program]:
    port = _free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    env |= {
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
    }
    command = [sys.executable, "-m", "tests.deploy.workload", str(home)]
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Program(process, f"127.0.0.1:{port}")
        process.communicate(timeout=480)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


class Api:
    """Prometheus's own. Once ``at`` is set, everything is asked as of then."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.at: float | None = None

    def query(self, expr: str, *, at: float | None = None) -> dict[str, float]:
        """Values by their labels as text; what is no number is left out."""
        when = at or self.at
        params = {"query": expr} | ({} if when is None else {"time": f"{when:.3f}"})
        answer = self._client.get("/api/v1/query", params=params).json()
        assert answer["status"] == "success", (expr, answer)
        pairs = ((str(each["metric"]), each["value"][1]) for each in answer["data"]["result"])
        return {labels: float(value) for labels, value in pairs if not math.isnan(float(value))}

    def value(self, expr: str) -> float:
        (only,) = self.query(expr).values()
        return only

    def rules(self) -> list[dict[str, object]]:
        groups = self._client.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


def _until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 480
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Prometheus, when it has scraped each of the rounds, at a moment when it had them all."""
    home = tmp_path_factory.mktemp("workload")
    rules = DEPLOY / "prometheus" / "rules.yml"
    with ExitStack() as stack:
        program = stack.enter_context(_program(home))
        program.round()
        address = stack.enter_context(prometheus(program.target, rules=rules))
        client = stack.enter_context(httpx.Client(base_url=address, trust_env=False))
        made = Api(client)
        _until(partial(_scraped, made, 1), "the first round was not scraped")
        for number in range(2, ROUNDS + 1):
            program.round()
            _until(partial(_scraped, made, number), f"round {number} was not scraped")
        _until(partial(_settled, made), "what was scraped did not come to the rules")
        yield made


def _scraped(api: Api, rounds: int, *, at: float | None = None) -> bool:
    """Whether Prometheus has what a round did last, from memory and from the log."""
    wanted = (
        'apex_creds_denials_total{apex_creds_reason="not_granted"}',
        'apex_creds_audit_events_total{apex_creds_reason="rotate kek"}',
    )
    return all(sum(api.query(expr, at=at).values()) >= rounds for expr in wanted)


def _settled(api: Api) -> bool:
    """Sets the moment, if it is one after a scrape that was in time."""
    at = time.time()
    firing = 'ALERTS{alertname="%s", alertstate="firing"}'
    if not _scraped(api, ROUNDS, at=at) or not all(
        api.query(firing % a, at=at) for a in ALERTS
    ):
        return False
    api.at = at
    return True


def test_every_panel_has_data(api: Api) -> None:
    asked = list(_queries())
    assert len(asked) > 40
    empty = [
        (each.dashboard, each.title, each.expr) for each in asked if not api.query(each.expr)
    ]
    assert empty == []


def test_panels_say_what_the_workload_did(api: Api) -> None:
    shown = {(each.dashboard, each.title): each.expr for each in _queries()}
    assert api.value(shown["security", "Audit log"]) == 1
    # One round came before the first scrape, so that increases are of the others.
    lower, upper = ROUNDS - 1.5, 1.5 * ROUNDS
    for title, each in (
        ("Denials", 1),
        ("Secrets redacted", 2),
        ("Second factors refused", 2),
        ("Revocations", 1),
    ):
        assert lower * each <= api.value(shown["security", title]) <= upper * each, title
    reasons = api.query('apex_creds_audit_events_total{apex_creds_audit_kind="factor"} > 0')
    assert any("'wrong'" in labels for labels in reasons)
    top = api.query(shown["runtime", "Top plugins by invocations"])
    assert "weather" in max(top, key=lambda labels: top[labels])
    due = api.query(shown["keys", "Next rotation due in"])
    assert due
    assert all(seconds > 0 for seconds in due.values())
    assert api.value(shown["keys", "Problems of the worker"]) == 0


def test_rules_are_evaluated_and_the_leak_is_an_alert(api: Api) -> None:
    rules = api.rules()
    assert {rule["health"] for rule in rules} == {"ok"}
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    assert [name for name in recorded if not api.query(str(name))] == []
    names = {str(rule["name"]) for rule in rules}
    firing = api.query('ALERTS{alertstate="firing"}')
    assert {name for name in names if any(f"'{name}'" in each for each in firing)} == ALERTS


def test_nothing_secret_came_to_prometheus(api: Api) -> None:
    labels = api.query('{__name__=~"apex_creds.+"}')
    assert len(labels) > 100
    assert not any(CANARY in each or "openai" in each for each in labels)

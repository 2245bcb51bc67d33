"""Recording and alert rules: promtool's own checks, and each alert fires and does not."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_dashboards import _attributes, _known, _metrics_of
from tests.support.realparts import promtool_binary

pytestmark = pytest.mark.e2e

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"


def _promtool(*arguments: str) -> str:
    binary = promtool_binary()
    assert binary is not None, "apt-get install prometheus, or scripts/bootstrap.sh .venv dev"
    done = subprocess.run(
        [str(binary), *arguments],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _load(name: str) -> dict[str, Any]:
    import yaml

    return yaml.safe_load((FOLDER / name).read_text())


def _rules() -> list[dict[str, Any]]:
    return [rule for group in _load("rules.yml")["groups"] for rule in group["rules"]]


def test_promtool_accepts_the_rules() -> None:
    assert f"{len(_rules())} rules found" in _promtool("check", "rules", "rules.yml")


def test_promtool_s_unit_tests_pass() -> None:
    assert "SUCCESS" in _promtool("test", "rules", "rules_test.yml")


def test_every_rule_is_tested_both_ways() -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    asked = ""
    for each in _load("rules_test.yml")["tests"]:
        for case in each.get("alert_rule_test", ()):
            (fires if case["exp_alerts"] else silent).add(case["alertname"])
        asked += " ".join(case["expr"] for case in each.get("promql_expr_test", ()))
    alerts = {rule["alert"] for rule in _rules() if "alert" in rule}
    assert alerts == fires == silent
    assert [r["record"] for r in _rules() if "record" in r and r["record"] not in asked] == []


def test_rules_ask_for_metrics_that_exist() -> None:
    text = " ".join(rule["expr"] for rule in _rules())
    assert _metrics_of(text) - _known() - _attributes() == set()


def test_alerts_say_what_to_do_with_commands_that_exist() -> None:
    from typer.main import get_command

    from apex_creds.cli.app import tree

    for rule in _rules():
        if "alert" not in rule:
            continue
        assert rule["labels"]["severity"] in ("warning", "critical")
        text = " ".join(rule["annotations"].values())
        for words in re.findall(r"`apex-creds ([a-z -]+)", text):
            command: Any = get_command(tree())
            for word in words.split():
                if word.startswith("-"):
                    break
                commands = getattr(command, "commands", None)
                if commands is None:
                    break
                assert word in commands, (rule["alert"], words)
                command = commands[word]

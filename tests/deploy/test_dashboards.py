"""The dashboards that are committed are what the program makes, and name what exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from apex_creds.telemetry import semconv

pytestmark = pytest.mark.e2e

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = ("keys", "runtime", "security")
SUFFIXES = ("", "_total", "_seconds", "_seconds_bucket", "_seconds_count", "_seconds_sum")


def _dashboard(name: str) -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana" / "dashboards" / f"{name}.json").read_text())


def _panels(name: str) -> list[dict[str, Any]]:
    return _dashboard(name)["panels"]


def test_the_committed_files_are_up_to_date() -> None:
    from deploy.grafana.build import FOLDER, dashboards

    made = dashboards()
    assert set(made) == {f"{name}.json" for name in FILES} == {p.name for p in FOLDER.iterdir()}
    for name, text in made.items():
        assert (FOLDER / name).read_text() == text, "run: python -m deploy.grafana.build"


@pytest.mark.parametrize("name", FILES)
def test_panels_are_whole_and_next_to_each_other(name: str) -> None:
    panels = _panels(name)
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"]
            assert panel["targets"]
            assert panel["datasource"]["uid"] == "$datasource"


@pytest.mark.parametrize("name", FILES)
def test_every_query_is_filtered_by_service(name: str) -> None:
    for panel in _panels(name):
        for target in panel.get("targets", ()):
            selectors = re.findall(r"apex_creds_[a-z_]+\{([^}]*)\}", target["expr"])
            assert selectors, target["expr"]
            assert all('job=~"$job"' in each for each in selectors), target["expr"]


def _metrics_of(text: str) -> set[str]:
    """The names before a selector or a bracket."""
    return set(re.findall(r"\b(apex_creds_[a-z_]+)(?=\{|\[| offset|\)| >| =| <)", text))


def _known() -> set[str]:
    return {name.replace(".", "_") + suffix for name in semconv.METRICS for suffix in SUFFIXES}


@pytest.mark.parametrize("name", FILES)
def test_queries_ask_for_metrics_that_exist(name: str) -> None:
    text = " ".join(
        target["expr"] for panel in _panels(name) for target in panel.get("targets", ())
    )
    assert _metrics_of(text) - _known() - _attributes() == set()


def _attributes() -> set[str]:
    values = {v for n, v in vars(semconv).items() if n.isupper() and isinstance(v, str)}
    return {value.replace(".", "_") for value in values - set(semconv.METRICS)}


def test_every_metric_is_on_a_dashboard() -> None:
    text = " ".join(json.dumps(_panels(name)) for name in FILES)
    missing = {n for n in semconv.METRICS if n.replace(".", "_") not in text}
    assert missing == set()


def test_what_the_issue_asks_for_is_there() -> None:
    text = {name: json.dumps(_panels(name)) for name in FILES}
    for name, wanted in {
        "security": ("denials", "leaks", "factor", "revoke", "audit_intact"),
        "keys": ("key_age", "key_versions", "rotation_due", "records_left", "rotation"),
        "runtime": ("invoke_duration", "redeem_duration", "leases", "topk(10"),
    }.items():
        assert [each for each in wanted if each not in text[name]] == []


def test_nothing_is_loaded_from_elsewhere() -> None:
    for name in FILES:
        assert "http" not in json.dumps(_dashboard(name))

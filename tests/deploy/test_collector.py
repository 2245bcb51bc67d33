"""The Collector's configuration is whole; there is no Collector here to read it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.files import DEPLOY, load

pytestmark = pytest.mark.e2e

KINDS = ("receivers", "processors", "exporters")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return load(DEPLOY / "otel" / "collector.yml")


def test_pipelines_use_what_is_there_and_nothing_is_there_for_nothing(
    config: dict[str, Any],
) -> None:
    assert set(config) == {*KINDS, "extensions", "service"}
    pipelines = config["service"]["pipelines"]
    assert set(pipelines) == {"metrics", "traces"}
    for kind in KINDS:
        used = {name for each in pipelines.values() for name in each[kind]}
        assert used == set(config[kind]), kind
    assert set(config["service"]["extensions"]) == set(config["extensions"])


def test_memory_is_limited_first_and_batches_are_made_last(config: dict[str, Any]) -> None:
    for name, each in config["service"]["pipelines"].items():
        assert each["processors"][0] == "memory_limiter", name
        assert each["processors"][-1] == "batch", name


def test_headers_that_hold_secrets_are_taken_out_of_spans(config: dict[str, Any]) -> None:
    (name,) = [name for name in config["processors"] if name.startswith("attributes/")]
    assert name in config["service"]["pipelines"]["traces"]["processors"]
    actions = config["processors"][name]["actions"]
    assert {each["action"] for each in actions} == {"delete"}
    assert {
        "http.request.header.authorization",
        "http.request.header.cookie",
        "url.query",
    } <= {each["key"] for each in actions}


def test_what_stopped_reporting_goes_before_alerts_of_absence_wait(
    config: dict[str, Any],
) -> None:
    assert config["exporters"]["prometheus"]["metric_expiration"] == "2m"
    assert config["exporters"]["prometheus"]["enable_open_metrics"] is True

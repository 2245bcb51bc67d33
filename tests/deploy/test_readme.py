"""The page about deploy/ names what is there, and says the figures that tests hold."""

from __future__ import annotations

import re

import pytest

from tests.deploy.files import DEPLOY, compose
from tests.deploy.test_kubernetes import VERSIONS
from tests.deploy.test_systemd import EXPOSURE

pytestmark = pytest.mark.e2e

PAGE = (DEPLOY / "README.md").read_text()


def test_every_folder_is_in_the_table() -> None:
    listed = set(re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE))
    supporting = {"README.md", "Dockerfile.dockerignore", "docker", "compose", "secrets"}
    there = {path.name for path in DEPLOY.iterdir() if path.name != "__pycache__"}
    assert {name.rstrip("/") for name in listed} == there - supporting


def test_figures_are_those_of_the_tests() -> None:
    order = ("apex-creds-worker", "apex-creds-init", "apex-creds-verify")
    assert f"({', '.join(str(EXPOSURE[name]) for name in order)})" in PAGE
    assert f"schemas {VERSIONS[0]} to {VERSIONS[-1]}" in PAGE


def test_commands_name_what_is_there() -> None:
    services = compose()["services"]
    found = re.findall(r"docker compose (?:run --rm|build|exec) ([a-z-]+)", PAGE)
    assert len(found) >= 5
    assert set(found) <= set(services)
    for unit in re.findall(r"systemctl (?:start|enable --now) ([a-z. -]+)", PAGE):
        for name in unit.split():
            wanted = name if "." in name else f"{name}.service"
            assert (DEPLOY / "systemd" / wanted).exists(), name
    for path in re.findall(
        r"(?<![/\w-])((?:systemd|compose|grafana|prometheus)/[a-z./*-]+)", PAGE
    ):
        assert list(DEPLOY.glob(path.rstrip("."))), path


def test_what_was_not_run_is_said() -> None:
    said = PAGE[PAGE.index("**Not run:**") :].split("\n\n")[0]
    for part in ("Docker engine", "Kubernetes", "systemd", "Grafana", "Collector"):
        assert part in said

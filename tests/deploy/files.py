"""What the tests of deploy/ share: where things are, and how a service's files are read."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
BIN = Path(sys.executable).parent


def load_all(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    import yaml

    return [each for each in yaml.safe_load_all(path.read_text()) if each is not None]


def load(path: Path) -> dict[str, Any]:
    (only,) = load_all(path)
    return only


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command that must end well."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


@cache
def compose() -> dict[str, Any]:
    """docker-compose.yml, as Docker Compose itself understands it."""
    spec = importlib.util.find_spec("compose")
    assert spec is not None, "scripts/bootstrap.sh .venv dev"
    assert spec.submodule_search_locations is not None
    binary = Path(spec.submodule_search_locations[0]) / "docker-compose"
    command = [str(binary), "-f", str(DEPLOY / "docker-compose.yml"), "--profile", "setup"]
    return json.loads(run(*command, "config", "--format", "json").stdout)


@cache
def healthcheck() -> ModuleType:
    """The program that tells Docker and Kubernetes how the worker is."""
    path = DEPLOY / "docker" / "healthcheck.py"
    spec = importlib.util.spec_from_file_location("healthcheck", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

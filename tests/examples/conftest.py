"""Examples as packages that are installed, and `apex-creds` where they are."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.commands import PROGRAM

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def load():
    """The module of an example."""

    def load(folder, name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def install(tmp_path):
    """`apex-creds` where an example is installed: its file and what pip writes beside it."""

    def install(folder, name):
        config = tomllib.loads((EXAMPLES / folder / "pyproject.toml").read_text())
        project = config["project"]
        assert config["tool"]["hatch"]["build"]["targets"]["wheel"]["include"] == [f"{name}.py"]
        site = tmp_path / "site"
        about = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        about.mkdir(parents=True)
        (site / f"{name}.py").write_text((EXAMPLES / folder / f"{name}.py").read_text())
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        text = ""
        for group, points in project["entry-points"].items():
            text += f"[{group}]\n" + "".join(f"{at} = {to}\n" for at, to in points.items())
        (about / "entry_points.txt").write_text(text)

        def run(*arguments, code=0, stdin=b"", **env):
            done = subprocess.run(
                run.command(*arguments), env=run.env | env, input=stdin, capture_output=True
            )
            assert done.returncode == code, done
            return (done.stdout + done.stderr).decode()

        run.env = {**os.environ, "PYTHONPATH": str(site)}
        run.command = lambda *args: [*PROGRAM, "--home", str(tmp_path / "home"), *args]
        return run

    return install

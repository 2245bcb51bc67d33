"""The image's recipe: linted, complete, and without anything that it need not have."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from apex_creds.clocks import boot_id, boot_time
from tests.deploy.files import BIN, DEPLOY, REPOSITORY, healthcheck, run

pytestmark = pytest.mark.e2e

RECIPE = (DEPLOY / "Dockerfile").read_text()


def _instructions(name: str) -> list[str]:
    text = RECIPE.replace("\\\n", " ")
    return re.findall(rf"^{name} +(.+)$", text, re.MULTILINE)


def _copied() -> list[str]:
    """What is copied from the repository."""
    own = [line for line in _instructions("COPY") if "--from=" not in line]
    return [word for line in own for word in line.split()[:-1] if not word.startswith("--")]


def test_hadolint_has_nothing_to_say() -> None:
    run(str(BIN / "hadolint"), "--failure-threshold", "info", str(DEPLOY / "Dockerfile"))


def test_the_last_stage_runs_as_nobody_in_particular_and_has_no_build_tools() -> None:
    last = RECIPE[RECIPE.rindex("\nFROM ") :]
    assert _instructions("USER") == ["10001:10001"]
    assert last.index("\nUSER ") < last.index("\nENTRYPOINT ")
    assert "pip" not in last
    assert "pip uninstall --yes pip" in RECIPE
    assert json.loads(_instructions("ENTRYPOINT")[0]) == ["apex-creds"]
    assert not re.search(r"^(ENV|ARG).*(SECRET|PASSWORD|KEY|TOKEN)", RECIPE, re.MULTILINE)


def test_only_what_is_copied_is_sent_to_the_engine() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {line[1:] for line in rules if line.startswith("!")}
    assert allowed == {path.removeprefix("./") for path in _copied()}
    assert any(fnmatch.fnmatch("x/__pycache__", line) for line in rules)


def test_what_is_copied_is_enough_to_build(tmp_path: Path) -> None:
    """The wheel that the build stage makes, from those files alone, has everything."""
    source, wheels = tmp_path / "src", tmp_path / "wheels"
    for name in _copied():
        path = REPOSITORY / name
        assert path.exists(), name
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    run(*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source))
    (wheel,) = wheels.glob("apex_creds-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        there = set(archive.namelist())
    package = REPOSITORY / "apex_creds"
    wanted = {
        str(path.relative_to(REPOSITORY))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted - there == set()
    metadata = (REPOSITORY / "pyproject.toml").read_text()
    for extra in re.findall(r"\.\[([a-z,]+)\]", RECIPE)[0].split(","):
        assert f"\n{extra} = [" in metadata, extra


def _health(path: Path, **fields: object) -> str:
    report = {"beat": boot_time(), "boot": boot_id(), "problems": {}, **fields}
    path.write_text(json.dumps(report))
    return str(path)


def test_the_health_check(tmp_path: Path) -> None:
    judge = healthcheck().judge
    path = tmp_path / "health.json"
    assert "can't be read" in judge(str(path), 60.0)
    assert judge(_health(path), 60.0) == ""
    assert "verify: Event 2" in judge(_health(path, problems={"verify": "Event 2"}), 60.0)
    assert judge(_health(path, problems={"verify": "Event 2"}), 60.0, alive=True) == ""
    old = boot_time() - 100
    assert "report for 100 seconds" in judge(_health(path, beat=old), 60.0, alive=True)
    assert "was started" in judge(_health(path, boot="another"), 60.0, alive=True)
    path.write_text(json.dumps({"written": time.time(), "problems": {}}))
    assert judge(str(path), 60.0) == "", "as an earlier worker wrote it"
    path.write_text("[]")
    assert "can't be read" in judge(str(path), 60.0)


def test_the_health_check_s_exit_code(tmp_path: Path) -> None:
    program = [sys.executable, str(DEPLOY / "docker" / "healthcheck.py")]
    path = _health(tmp_path / "health.json", problems={"a": "b"})
    for arguments, code in (
        ([path], 1),
        ([path, "--alive"], 0),
        ([path, "5", "--alive"], 0),
        ([], 1),
    ):
        done = subprocess.run([*program, *arguments], capture_output=True, check=False)
        assert done.returncode == code, arguments

"""The worker runs as in its container, as far as that goes without a Docker engine.

Bubblewrap gives it what docker-compose.yml does: user 10001, no capability, a root file system
that is read-only, the volumes and nothing else to write to, secrets mounted read-only; and
no network at all.
"""

from __future__ import annotations

import base64
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, REPOSITORY, compose, healthcheck

pytestmark = pytest.mark.e2e

VOLUMES = {"home": "/var/lib/apex-creds/home", "state": "/var/lib/apex-creds/state"}


def _variables() -> dict[str, str]:
    """What the image and the service set, but for where programs and telemetry are."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    last = text[text.rindex("\nFROM ") :]
    pairs = " ".join(re.findall(r"^ENV (.+)$", last, re.MULTILINE)).split()
    found = dict(pair.split("=", 1) for pair in pairs)
    assert VOLUMES["home"] == found["APEX_CREDS_HOME"]
    assert VOLUMES["state"] == found["XDG_STATE_HOME"]
    return {**found, "PATH": "/usr/bin:/bin", "HOME": "/var/lib/apex-creds"}


@functools.cache
def _bubblewrap() -> str:
    """The program; skips where the kernel allows no namespaces, as in a chroot or container."""
    program = shutil.which("bwrap")
    assert program is not None, "apt-get install bubblewrap"
    tried = _run(program, "--unshare-all", "--uid", "10001", "--ro-bind", "/", "/", "true")
    if tried.returncode != 0:
        pytest.skip(f"no container in this one: {tried.stderr.strip()}")
    return program


def _contained(where: Path) -> list[str]:
    """The beginning of a command that runs in there."""
    program = _bubblewrap()
    mounted = {m["source"]: m["target"] for m in compose()["services"]["worker"]["volumes"]}
    assert {name: mounted[name] for name in VOLUMES} == VOLUMES
    command = [program, "--unshare-all", "--die-with-parent", "--new-session"]
    command += ["--uid", "10001", "--gid", "10001", "--cap-drop", "ALL"]
    command += ["--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    command += ["--ro-bind", str(REPOSITORY), str(REPOSITORY), "--tmpfs", "/var"]
    for name, place in VOLUMES.items():
        command += ["--dir", place, "--bind", str(where / name), place]
    command += ["--remount-ro", "/var", "--tmpfs", "/run"]
    command += ["--dir", "/run/apex-creds", "--bind", str(where / "run"), "/run/apex-creds"]
    command += ["--dir", "/run/secrets", "--ro-bind", str(where / "secrets"), "/run/secrets"]
    command += ["--remount-ro", "/run", "--chdir", str(REPOSITORY), "--clearenv"]
    for name, value in _variables().items():
        command += ["--setenv", name, value]
    return command


@pytest.fixture
def where(tmp_path: Path) -> Path:
    for name in (*VOLUMES, "run", "secrets"):
        (tmp_path / name).mkdir(mode=0o700)
    key = tmp_path / "secrets" / "master.key"
    key.write_bytes(base64.b64encode(os.urandom(32)))
    key.chmod(0o400)
    return tmp_path


def _words(service: str) -> list[str]:
    """The service's command, with the vault in files."""
    words = list(compose()["services"][service]["command"])
    if "--storage" in words:
        at = words.index("--storage")
        del words[at : at + 2]
    return [sys.executable, "-m", "apex_creds.cli", *words]


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=480, check=False)


def test_nothing_can_be_written_but_the_volumes(where: Path) -> None:
    script = "for f in /x /var/x /run/x /run/secrets/x /run/secrets/master.key; do"
    script += " echo x >>$f && exit 1; done; grep CapEff /proc/self/status; id -u"
    done = _run(*_contained(where), "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["CapEff:", "0" * 16, "10001"]


def test_the_vault_is_made_and_the_worker_is_healthy(where: Path) -> None:
    made = _run(*_contained(where), *_words("init"))
    assert "Made vault" in made.stdout, made.stderr
    process = subprocess.Popen([*_contained(where), *_words("worker")])
    try:
        judge, health = healthcheck().judge, str(where / "run" / "health.json")
        deadline = time.monotonic() + 480
        while wrong := judge(health, 60.0):
            assert time.monotonic() < deadline, wrong
            time.sleep(0.1)
    finally:
        # Bubblewrap's own child is process 1 in there, and the worker that one's.
        for pid in _descendants(process.pid):
            os.kill(pid, signal.SIGTERM)
        process.wait(60)
    assert process.returncode == 0
    assert list((where / "state").rglob("anchors/*"))
    assert sorted(path.name for path in (where / "secrets").iterdir()) == ["master.key"]


def _descendants(pid: int) -> list[int]:
    """The processes at the end: those that have no child."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if not children:
        return [pid]
    return [each for child in children for each in _descendants(int(child))]

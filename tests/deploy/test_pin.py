"""``deploy/pin.sh``, with a registry that answers from a file: there is none to ask here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY

DIGESTS = {"a": "sha256:" + "a" * 64, "b": "sha256:" + "b" * 64}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Dockerfile", "docker-compose.yml", "pin.sh"):
        shutil.copy(DEPLOY / name, tmp_path / name)
    return tmp_path


def run(folder: Path, answer: str, *words: str) -> subprocess.CompletedProcess[str]:
    docker = folder / "docker"
    docker.write_text(f"#!/bin/sh\necho {answer}\n")
    docker.chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [str(folder / "pin.sh"), *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_every_image_is_pinned_and_pinned_anew(folder: Path) -> None:
    before = run(folder, "", "--check")
    assert before.returncode == 1
    assert before.stdout.count("not pinned: ") == 5, before.stdout
    for digest in DIGESTS.values():
        assert run(folder, digest).returncode == 0
        assert run(folder, "", "--check").returncode == 0
        text = "".join(
            (folder / name).read_text() for name in ("Dockerfile", "docker-compose.yml")
        )
        assert text.count(f"@{digest}") == 5
        assert text.count("@sha256:") == 5


def test_what_is_no_digest_is_not_written(folder: Path) -> None:
    before = (folder / "Dockerfile").read_bytes()
    assert run(folder, "nothing").returncode == 1
    assert (folder / "Dockerfile").read_bytes() == before

"""A vault of its own for each test, and the program as a function and as a process."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from apex_creds.cli.app import run
from tests.support.commands import PROGRAM


@dataclass
class Done:
    code: int
    out: str
    err: str

    def json(self) -> object:
        return json.loads(self.out)

    def lines(self) -> list[str]:
        return self.err.splitlines()


@dataclass
class Program:
    """Runs commands on one vault, in this process."""

    home: Path
    key: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch
    seen: list[str] = field(default_factory=list)

    def __call__(self, *arguments: str, stdin: bytes = b"", home: bool = True) -> Done:
        before = ["--home", str(self.home)] if home else []
        text = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        self.monkeypatch.setattr(sys, "stdin", text)
        code = run([*before, *arguments])
        captured = self.capsys.readouterr()
        self.seen += [captured.out, captured.err]
        return Done(code, captured.out, captured.err)

    def process(self, *arguments: str, stdin: bytes = b"", **more: object) -> Done:
        env = {**os.environ, "APEX_CREDS_HOME": str(self.home)}
        done = subprocess.run(
            [*PROGRAM, *arguments],
            input=stdin,
            env=env,
            capture_output=True,
            timeout=480,
            **more,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def bare(
    fresh_home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Program:
    """The program, and no vault yet."""
    return Program(fresh_home / "vault", fresh_home / "master.key", capsys, monkeypatch)


@pytest.fixture
def cli(bare: Program) -> Program:
    """The program, and an empty vault."""
    assert bare("init", "--master", f"file:{bare.key}").code == 0
    return bare


@pytest.fixture
def error(cli: Program) -> Callable[..., str]:
    """Runs a command that must fail with a code; returns its message."""

    def check(code: int, *arguments: str, stdin: bytes = b"") -> str:
        done = cli(*arguments, stdin=stdin)
        assert done.code == code, done
        assert done.out == ""
        assert 1 <= len(done.lines()) <= 2
        assert done.lines()[0].startswith("error: ")
        assert "Traceback" not in done.err
        return done.err

    return check

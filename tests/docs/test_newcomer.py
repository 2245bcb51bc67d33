"""The newcomer's path is the README's own: its commands in order, in one session."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import newcomer

ROOT = Path(__file__).resolve().parents[2]


def test_every_command_of_the_readme_is_a_step_but_the_tests() -> None:
    found = newcomer.steps((ROOT / "README.md").read_text(encoding="utf-8"))
    commands = [what for kind, what, _ in found if kind == "run"]
    assert commands[0].startswith("make demo")
    assert "pip install ." in commands
    assert not [command for command in commands if command.startswith("make test")]
    order = [what for _, what, _ in found]
    assert order.index("quickstart.py") < order.index("python quickstart.py")
    assert any("<CredentialHandle" in output for _, _, output in found)


def test_a_session_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    session = newcomer.Session(tmp_path)
    assert session.run("cd /\nexport CHOSEN='a b'")[0] == 0
    assert session.run("pwd; echo $CHOSEN") == (0, "/\na b\n")
    assert session.run("false\necho not here") == (1, "")
    assert session.run("exit 3")[0] == 3


def test_a_promise_is_compared_with_what_was_printed() -> None:
    assert newcomer._same("", "anything")
    assert newcomer._same("made ... in\n", "made x in\n")
    assert not newcomer._same("one\n", "two\n")

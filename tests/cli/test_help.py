"""Every command's ``--help`` can be read, in a narrow and a wide terminal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import typer.main
from typer.testing import CliRunner

from apex_creds.cli.app import app


def commands(command: typer.main.TyperGroup, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *path, name)


ALL = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("width", ["20", "200"])
@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_can_be_read(path: tuple[str, ...], width: str) -> None:
    env = {"COLUMNS": width, "TERMINAL_WIDTH": width}
    found = CliRunner().invoke(app, [*path, "--help"], env=env)
    assert found.exit_code == 0, found.exception
    assert "Usage" in found.output


def test_there_are_commands_of_commands() -> None:
    assert ("migrate",) in ALL
    assert max(map(len, ALL)) == 2

"""Every command's ``--help`` can be read, in a narrow and a wide terminal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import typer.main
from typer.testing import CliRunner

from apex_creds.cli.app import named, tree
from apex_creds.cli.program import COMMANDS


def commands(command: typer.main.TyperGroup, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *path, name)


ALL = list(commands(typer.main.get_command(tree())))


@pytest.mark.parametrize("width", ["20", "200"])
@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_can_be_read(path: tuple[str, ...], width: str) -> None:
    found = CliRunner().invoke(tree(), [*path, "--help"], env={"COLUMNS": width})
    assert found.exit_code == 0, found.exception
    assert "Usage" in found.output


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_the_same_alone_and_among_all(name: str) -> None:
    alone, among = (CliRunner().invoke(each, [name, "-h"]) for each in (tree(name), tree()))
    assert alone.output == among.output
    assert alone.exit_code == among.exit_code == 0


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("list", "list"),
        ("--home x list --json", "list"),
        ("--home=x --master file:y rotate dek", "rotate"),
        ("rotate dek -h", "rotate"),
        ("nonsense list", "nonsense"),
        ("-h list", None),
        ("--home", None),
        ("--version", None),
        ("", None),
    ],
)
def test_which_command_a_line_is_about(line: str, command: str | None) -> None:
    assert named(line.split()) == command


def test_a_command_that_there_is_not_is_looked_for_among_all() -> None:
    assert set(typer.main.get_command(tree("nonsense")).commands) == set(COMMANDS)
    assert set(typer.main.get_command(tree("list")).commands) == {"list"}


def test_there_are_commands_of_commands() -> None:
    assert ("migrate",) in ALL
    assert max(map(len, ALL)) == 2


@pytest.mark.parametrize("path", [path for path in ALL if path], ids=" ".join)
def test_help_is_folded_by_the_terminal_alone(path: tuple[str, ...]) -> None:
    command = typer.main.get_command(tree())
    for name in path:
        command = command.commands[name]
    for paragraph in (command.help or "").split("\n\n"):
        assert "\n" not in paragraph.strip(), paragraph


@pytest.mark.parametrize("name", sorted({path[0] for path in ALL if len(path) == 2}))
def test_a_group_that_is_named_alone_shows_its_commands(name: str) -> None:
    shown = CliRunner().invoke(tree(name), [name])
    assert "Commands" in shown.output
    assert "Missing" not in shown.output

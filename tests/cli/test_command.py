"""What ``@command`` makes of a function: options, output, exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from apex_creds.cli.command import JsonOption, Settings, command, group
from apex_creds.cli.console import Fields, Line, Note, Report, Rows, Text, done
from apex_creds.cli.program import flag
from apex_creds.errors import InvalidInputError
from apex_creds.vault import Vault

HOME = "/nowhere"


@command()
async def opens(vault: Vault, name: str) -> Report:
    """Opens."""
    return Report(name)


@command()
def chooses(chosen: Settings, loud: Annotated[bool, flag("x", "--loud")] = False) -> Report:
    """Chooses."""
    shown = "!" if loud else ""
    rows = Rows(("a", "b"), [], empty="nothing")
    fields = Fields([("home", chosen.home)])
    return Report({"loud": loud}, f"{chosen.home}{shown}", rows, fields, notes=[Note("note")])


@command(keyless=True)
def keyless(chosen: Settings) -> Report:
    """Needs no key."""
    return done({"home": str(chosen.home)}, str(chosen.home), Line("more"))


@command()
def plain(size: int) -> Text:
    """Has nothing."""
    return Text(str(size), code=size)


@command()
def prints(chosen: Settings, json: JsonOption = False) -> None:
    """Prints by itself."""
    typer.echo(f"json: {json}")


@command()
def fails(chosen: Settings) -> Report:
    """Fails, and says how."""
    return Report({"ok": False}, "bad", error=InvalidInputError("No."))


def run(function: object, *words: str) -> typer.testing.Result:
    app = group("All.")
    app.command("it")(function)
    app.command("other")(plain)
    return CliRunner().invoke(app, words)


def options(function: object) -> list[str]:
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return [param.opts[0] for param in typer.main.get_command(app).params]


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (opens, ["name", "--json", "--home", "--master"]),
        (chooses, ["--loud", "--json", "--home", "--master"]),
        (keyless, ["--json", "--home"]),
        (plain, ["size"]),
        (prints, ["--json", "--home", "--master"]),
        (fails, ["--json", "--home", "--master"]),
    ],
)
def test_a_command_has_the_options_that_its_function_needs(function, names) -> None:
    assert options(function) == names


def test_what_a_function_returns_is_printed_or_is_json() -> None:
    done = run(chooses, "it", "--home", HOME, "--loud")
    assert done.stdout == f"{HOME}!\nnothing\nhome  {HOME}\n"
    assert done.stderr == "note\n"
    done = run(chooses, "--home", HOME, "it", "--json")
    assert (done.stdout, done.stderr) == ('{\n  "loud": false\n}\n', "note\n")


def test_the_nearer_option_wins() -> None:
    done = run(keyless, "--home", "/far", "it", "--home", HOME)
    assert done.stdout == f"{HOME}\nmore\n"


def test_a_function_that_prints_is_asked_for_nothing_else() -> None:
    assert run(prints, "it", "--json").stdout == "json: True\n"
    assert run(prints, "it").stdout == "json: False\n"


def test_a_code_and_an_error_come_after_what_is_printed() -> None:
    done = run(plain, "it", "3")
    assert (done.stdout, done.exit_code) == ("3\n", 3)
    assert run(plain, "it", "0").exit_code == 0
    for words, out in ((["it"], "bad\n"), (["it", "--json"], '{\n  "ok": false\n}\n')):
        done = run(fails, *words)
        assert done.stdout == out
        assert isinstance(done.exception, InvalidInputError)


def test_a_vault_is_opened_for_its_command_and_closed_again(bare, monkeypatch) -> None:
    key = f"file:{bare.key}"
    assert bare("init", "--master", key).code == 0
    seen: list[Vault] = []

    @command()
    async def looks(vault: Vault) -> Text:
        """Opens it."""
        seen.append(vault)
        return Text(str(vault.store.sealed))

    done = run(looks, "it", "--home", str(bare.home), "--master", key)
    assert done.stdout == "False\n"
    assert seen[0].store.sealed


def test_without_a_vault_its_function_is_not_called(tmp_path: Path) -> None:
    done = run(opens, "it", "name", "--home", str(tmp_path / "no"))
    assert done.exit_code
    assert "There is no vault" in str(done.exception)


def test_a_group_that_is_named_alone_says_what_it_has() -> None:
    done = run(plain)
    assert done.exit_code == 0
    assert "All." in done.stdout

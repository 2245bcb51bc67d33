"""Writes docs/CLI.md from the program itself; ``--check`` only says whether it is current."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from apex_creds.cli.app import EXIT_CODES, tree

PAGE = Path(__file__).resolve().parents[1] / "docs" / "CLI.md"

INTRO = """\
# The `apex-creds` command

<!-- Made by scripts/cli_docs.py from the program; don't edit. -->

`--home DIR` and `--master URI` are accepted before and after every command; the one
after it wins. Without `--master` the vault's own record of it is used (`keyring:` for
`init`). `-h` works everywhere. What can be read has `--json`; [JSON.md](JSON.md) says what it
is. `apex-creds --install-completion` makes bash, zsh and fish complete commands and
options (zsh from the second Tab of a session on).

Secrets are never arguments and never come from the environment: they are asked for
without echo, or read from standard input. On standard input `api_key` is the value (one
line feed at its end is taken off), `basic` is two lines (user, password), `oauth_token`
up to three (access token, refresh token, scope), `generic` every byte. With
`passphrase:fd=0` the first line is the passphrase, and the value follows it.

Times are UTC: `2030-12-31`, `2030-12-31T18:00Z`, or from now: `12h`, `30d`, `1y`.

An error is one line `error: …` and perhaps one line `hint: …` on standard error; with `--json`
it is a line of JSON there.
"""


def page() -> str:
    """The whole page."""
    root = typer.main.get_command(tree())
    parts = [INTRO, _exit_codes(), "## Commands", *_commands(root, "apex-creds")]
    return "\n".join(parts).rstrip() + "\n"


def _exit_codes() -> str:
    rows = [f"| {code} | {text} |" for code, text in EXIT_CODES.items()]
    return "\n".join(["## Exit codes", "", "| code | meaning |", "|---|---|", *rows, ""])


def _commands(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        inner = f"{path} {name}"
        if hasattr(command, "commands"):
            yield from _commands(command, inner)
        else:
            yield _command(command, inner)


def _command(command: Any, path: str) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    named = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join([path, *map(_usage, arguments), "[OPTIONS]"])
    text = "\n".join(line.strip() for line in (command.help or "").splitlines())
    rows = [*map(_argument, arguments), *map(_option, named)]
    shown = [row for row in rows if "`--home" not in row and "`--master" not in row]
    lines = [f"\n### `{usage}`\n", text, ""]
    if shown:
        lines += ["| | |", "|---|---|", *shown]
    return "\n".join(lines)


def _usage(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def _argument(argument: Any) -> str:
    return f"| `{argument.metavar}` | {argument.help} |"


def _option(option: Any) -> str:
    names = ", ".join(option.opts)
    value = "" if option.is_flag else f" {option.metavar or 'N'}"
    return f"| `{names}{value}` | {option.help} |"


def main() -> int:
    """Writes or checks; returns the exit code."""
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    return 0 if PAGE.read_text(encoding="utf-8") == page() else 1


if __name__ == "__main__":
    sys.exit(main())

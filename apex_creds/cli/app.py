"""The program: from the process's start to its exit code, and the tree of its commands.

Guarantee: the process is hardened first; every exception ends as at most two lines on
standard error, without a traceback (frames and exception texts may carry secrets) and
without repeating arguments (a secret may have been typed among them). Of the commands only
what is asked for is imported; a command works the same whether it was made alone or with all
others, and the help of the program names them all.
"""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from itertools import takewhile
from typing import Any, Final, NoReturn

import typer

from apex_creds import __version__
from apex_creds.cli import command, console, program, standard_streams
from apex_creds.cli.program import HomeOption, MasterOption, VersionOption
from apex_creds.crypto.memory import Hardening, harden_process
from apex_creds.errors import ApexCredsError, StorageError
from apex_creds.telemetry import sdk

EXIT_CODES: Final[dict[int, str]] = {
    0: "Done.",
    1: "A check of `doctor` or of `demo` failed, `migrate` or `import` left something out, or "
    "a question was answered with no.",
    2: "The command line is not understood.",
    3: "Vault: there is none, there is one already, or it is sealed.",
    4: "Master key: missing, unavailable, read-only, in an unsafe keyring, or the wrong one.",
    5: "Integrity: a stored document is not what this vault wrote. Nothing was changed.",
    6: "Storage: permissions, links, a full or read-only disk, a lock, a conflict.",
    7: "Input: a name, value, date, origin or manifest that is not acceptable.",
    8: "There is nothing of that name or id (credential, grant, request, client, factor, "
    "lease), or the name is taken.",
    9: "Access: denied, a lease that has ended, a secret that leaked or was wiped.",
    10: "Audit: the log can't be written, or does not verify.",
    11: "Something optional is needed that is not installed.",
    12: "OAuth: the provider refused, did not answer, or its answer can't be used.",
    13: "Rotation at a provider: it refused, did not answer, or is not set up as needed.",
    70: "An error that should not happen; please report it.",
    74: "Standard output could not be written (a full disk); what was done is done.",
    130: "Interrupted.",
    141: "The reader of standard output went away; what was done is done.",
}
"""What the process ends with; docs/CLI.md is made from this."""

hardening: Hardening | None = None
"""What was reached at the start; None where this process did not begin as the program."""

_USAGE: Final = 2
_BUG: Final = 70
_INTERRUPTED: Final = 130
_STOPPED: Final = "Interrupted; nothing more was done."
_USAGE_ERROR: Final = typer.BadParameter.__bases__[0]
_TAKES_A_VALUE: Final = frozenset({"--home", "--master"})


def main() -> int:
    """The program: hardens the process, then runs the command of ``sys.argv``."""
    global hardening
    hardening = harden_process()
    standard_streams.replace_standard()
    # asyncio leaves a handler that is not the default one alone. Its own would hold the
    # first Ctrl-C back while a prompt waits.
    signal.signal(signal.SIGINT, _interrupt)
    return run(sys.argv[1:])


def _interrupt(number: int, frame: object) -> NoReturn:  # noqa: ARG001 - a signal handler's
    raise KeyboardInterrupt


def run(arguments: Sequence[str]) -> int:
    """Runs one command.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit code.
    """
    # What follows -- is another program's.
    console.as_json = "--json" in takewhile(lambda word: word != "--", arguments)
    try:
        with sdk.exporting():
            app = tree(named(arguments))
            code = app(list(arguments), prog_name="apex-creds", standalone_mode=False)
        sys.stdout.flush()
    except ApexCredsError as error:
        console.fail(error.message, error.hint, kind=type(error).__name__, code=error.exit_code)
        return error.exit_code
    except (KeyboardInterrupt, EOFError, typer.Abort):
        code = _INTERRUPTED
    except (standard_streams.ReaderGoneError, standard_streams.OutputError) as error:
        return standard_streams.not_shown(error)
    except Exception as error:  # noqa: BLE001 - the last line of defence
        return _failed(error)
    if code == _INTERRUPTED:  # typer makes this of Ctrl-C, and says nothing
        console.fail(_STOPPED, kind="Interrupted", code=_INTERRUPTED)
    return code if isinstance(code, int) else 0


def _failed(error: Exception) -> int:
    if isinstance(error, _USAGE_ERROR):
        console.fail(*_usage(error), kind="UsageError", code=_USAGE)
        return _USAGE
    if isinstance(error, OSError):  # no mistake of ours, though the message should be better
        where = f" ({error.filename})" if error.filename else ""
        console.fail(
            f"The system refused something: {error.strerror or type(error).__name__}{where}.",
            "Check the disk and its permissions; then: apex-creds doctor.",
            kind="StorageError",
            code=StorageError.exit_code,
        )
        return StorageError.exit_code
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "apex_creds" in frame.filename] or frames
    last = ours[-1] if ours else None
    where = f"at {os.path.basename(last.filename)}:{last.lineno}" if last else "somewhere"
    console.fail(
        f"Unexpected {type(error).__name__} {where}.",
        "This is a mistake in apex-creds; please report this line.",
        kind="UnexpectedError",
        code=_BUG,
    )
    return _BUG


def _usage(error: Exception) -> tuple[str, str]:
    """The message and hint for a command line that was not understood."""
    context: Any = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "apex-creds")
    text = " ".join(str(getattr(error, "format_message", lambda: "")()).split())
    hint = f"See: {path} -h"
    if "unexpected extra argument" in text:
        text = "There are more arguments than this command takes."
        if path.endswith(" set"):
            hint = "The value is never an argument: it is asked for, or read from stdin."
    elif text.startswith("No such command"):
        text = "There is no such command."
        names = program.COMMANDS if path == "apex-creds" else context.command.commands
        # The word is compared, and not repeated: it may be a secret in the wrong place.
        typed = re.split("['\"]", str(getattr(error, "message", "")))[1:2]
        if typed and (close := difflib.get_close_matches(typed[0], names, n=1)):
            hint = f"Did you mean: {path} {close[0]}"
    return text, hint


def tree(only: str | None = None) -> typer.Typer:
    """The program, with all its commands; or with one, where there is one of that name."""
    app = program.empty()

    @app.callback(help=program.SUMMARY)
    def root(
        ctx: typer.Context,
        home: HomeOption = None,
        master: MasterOption = None,
        version: VersionOption = False,
    ) -> None:
        ctx.obj = command.settings(ctx, home, master)
        if version:
            typer.echo(f"apex-creds {__version__}")
            raise typer.Exit
        command.help_without_command(ctx)

    for panel, commands in program.PANELS.items():
        for name in commands:
            if only in program.COMMANDS and name != only:
                continue
            module, attribute = commands[name].where.split(":")
            found = getattr(import_module(f"apex_creds.cli.{module}"), attribute)
            if isinstance(found, typer.Typer):
                app.add_typer(found, name=name, rich_help_panel=panel)
            else:
                app.command(name, rich_help_panel=panel)(found)
    return app


def named(arguments: Sequence[str]) -> str | None:
    """The command that a command line is about; None where it may be about all."""
    rest = iter(arguments)
    for word in rest:
        if word in _TAKES_A_VALUE:
            next(rest, None)
        elif word in program.HELP["help_option_names"]:
            return None
        elif not word.startswith("-"):
            return word
    return None

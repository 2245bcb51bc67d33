"""From the process's start to its exit code.

Guarantee: the process is hardened first; every exception ends as at most two lines on
standard error, without a traceback (frames and exception texts may carry secrets) and
without repeating arguments (a secret may have been typed among them).
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Final, NoReturn

import typer

from apex_creds.audit import otel
from apex_creds.cli import output, streams
from apex_creds.cli.app import named, tree
from apex_creds.cli.doctor import system
from apex_creds.crypto.memory import harden_process
from apex_creds.errors import ApexCredsError, StorageError

EXIT_CODES: Final[dict[int, str]] = {
    0: "Done.",
    1: "A check of `doctor` or of `demo` failed, `migrate` left something over, or a question "
    "was answered with no.",
    2: "The command line is not understood.",
    3: "Vault: there is none, there is one already, or it is sealed.",
    4: "Master key: missing, unavailable, read-only, in an unsafe keyring, or the wrong one.",
    5: "Integrity: a stored document is not what this vault wrote. Nothing was changed.",
    6: "Storage: permissions, links, a full or read-only disk, a lock, a conflict.",
    7: "Input: a name, value, date, origin or manifest that is not acceptable.",
    8: "Credential or grant: there is none of that name, or the name is taken.",
    9: "Access: denied, a lease that has ended, a secret that leaked or was wiped.",
    10: "Audit: the log can't be written, or does not verify.",
    70: "An error that should not happen; please report it.",
    74: "Standard output could not be written (a full disk); what was done is done.",
    130: "Interrupted.",
}
"""What the process ends with; docs/CLI.md is made from this."""

_USAGE: Final = 2
_BUG: Final = 70
_NOT_SHOWN: Final = 74
_INTERRUPTED: Final = 130
_STOPPED: Final = "Interrupted; nothing more was done."
_USAGE_ERROR: Final = typer.BadParameter.__bases__[0]


def main() -> int:
    """The program: hardens the process, then runs the command of ``sys.argv``."""
    system.remember(harden_process())
    streams.replace_standard()
    # asyncio leaves a handler that is not the default one alone. Its own would hold the
    # first Ctrl-C back while a prompt waits.
    signal.signal(signal.SIGINT, _interrupt)
    return run(sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Runs one command.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit code.
    """
    try:
        with otel.exporting():
            app = tree(named(arguments))
            code = app(list(arguments), prog_name="apex-creds", standalone_mode=False)
        sys.stdout.flush()
    except ApexCredsError as error:
        output.fail(error.message, error.hint)
        return error.exit_code
    except (KeyboardInterrupt, EOFError, typer.Abort):
        output.fail(_STOPPED)
        return _INTERRUPTED
    except BrokenPipeError:
        streams.silence_stdout()
        return 1
    except streams.OutputError as error:
        streams.silence_stdout()
        output.fail(
            f"The output can't be written: {error.strerror}.",
            "What was done is done, and was not shown. See: apex-creds audit tail",
        )
        return _NOT_SHOWN
    except Exception as error:  # noqa: BLE001 - the last line of defence
        return _failed(error)
    if code == _INTERRUPTED:  # typer makes this of Ctrl-C, and says nothing
        output.fail(_STOPPED)
    return code if isinstance(code, int) else 0


def _failed(error: Exception) -> int:
    if isinstance(error, _USAGE_ERROR):
        output.fail(*_usage(error))
        return _USAGE
    if isinstance(error, OSError):  # no mistake of ours, though the message should be better
        where = f" ({error.filename})" if error.filename else ""
        output.fail(
            f"The system refused something: {error.strerror or type(error).__name__}{where}.",
            "Look at the disk and its permissions; then: apex-creds doctor.",
        )
        return StorageError.exit_code
    output.fail(
        f"Unexpected {type(error).__name__} {_where(error)}.",
        "This is a mistake in apex-creds; please report this line.",
    )
    return _BUG


def _usage(error: Exception) -> tuple[str, str]:
    """The message and hint for a command line that was not understood."""
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "apex-creds")
    text = str(getattr(error, "format_message", lambda: "")())
    hint = f"See: {command} -h"
    if "unexpected extra argument" in text:
        text = "There are more arguments than this command takes."
        if command.endswith(" set"):
            hint = "The value is never an argument: it is asked for, or read from stdin."
    elif text.startswith("No such command"):
        text = "There is no such command."
    return text, hint


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "apex_creds" in frame.filename] or frames
    if not ours:
        return "somewhere"
    return f"at {os.path.basename(ours[-1].filename)}:{ours[-1].lineno}"


def _interrupt(number: int, frame: object) -> NoReturn:  # noqa: ARG001 - a signal handler's
    raise KeyboardInterrupt

"""Standard output and error of the command, of which writing may fail.

Guarantee: what an encoding does not have is shown as an escape; a failed write is kept apart
from a failed command (``OutputError``); writing to standard error never raises.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, Final, TextIO

_LAST_STANDARD: Final = 2
_NOT_SHOWN: Final = 74
_READER_GONE: Final = 141


class OutputError(OSError):
    """Standard output can't be written: a full disk behind a redirection."""


class ReaderGoneError(Exception):
    """The reader of standard output went away. No ``OSError``: typer would end on it itself."""


class _Output(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise ReaderGoneError from None
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from None


class _Error(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def replace_standard() -> None:
    """Checks the process's own streams from now on; one that is closed shows nothing.

    What was closed is open to nothing then, so that no file of the vault gets its number.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD:
        os.set_inheritable(fd, True)
    os.close(fd)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    sys.stdout = _checked(sys.stdout, _Output)
    sys.stderr = _checked(sys.stderr, _Error)


def not_shown(error: ReaderGoneError | OutputError) -> int:
    """Says on standard error that standard output could not be written.

    Returns:
        The exit code.
    """
    # So that the interpreter's own flush at exit does not fail again.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    if isinstance(error, ReaderGoneError):
        return _READER_GONE
    from apex_creds.cli import console

    console.fail(
        f"The output can't be written: {error.strerror}.",
        "What was done is done, and was not shown. See: apex-creds audit tail",
        kind="OutputError",
        code=_NOT_SHOWN,
    )
    return _NOT_SHOWN


def _checked(stream: TextIO | None, kind: type[io.FileIO]) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    try:
        raw = kind(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError):  # not a file: a test's, a notebook's
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=kind is _Error or raw.isatty(),
        write_through=kind is _Error,
    )

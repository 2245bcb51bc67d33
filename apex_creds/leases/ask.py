"""Asks for a code on the process's terminal, beside a running event loop.

Guarantee: what is typed is not shown; one question at a time; when the wait is cancelled
(a deadline, an invocation that ends) the terminal is as it was, and what was typed until
then is thrown away, not left for the shell.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from apex_creds.concurrency import Lock
from apex_creds.errors import SecondFactorError
from apex_creds.fs.private_files import write_all
from apex_creds.policy.factors import Subject

if sys.platform != "win32":
    try:
        import termios
    except ImportError:
        termios = None  # type: ignore[assignment]

_LONGEST: Final = 1024
_LOOK_AGAIN: Final = 0.05


class TerminalAsk:
    """An ``Ask`` for runtimes that have a terminal of their own.

    Args:
        path: The terminal; the process's own by default.
    """

    def __init__(self, path: str = "/dev/tty") -> None:
        self._path = path
        self._one_at_a_time = Lock()

    async def __call__(self, subject: Subject, why: str) -> str | None:
        """See ``Ask``; an empty line is a refusal.

        Raises:
            SecondFactorError: There is no terminal.
        """
        async with self._one_at_a_time.held():
            fd = self._open()
            try:
                with _hidden(fd):
                    write_all(fd, _question(subject, why).encode())
                    return await read_line(fd)
            finally:
                os.close(fd)

    def _open(self) -> int:
        try:
            if sys.platform != "win32" and termios is not None:
                flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK
                fd = os.open(self._path, flags)
                if os.isatty(fd):
                    return fd
                os.close(fd)
        except OSError:
            pass
        raise SecondFactorError(
            "There is no terminal to ask for a second factor on.",
            hint="Show it from another one: apex-creds factor verify --plugin … --credential …",
        )


@contextmanager
def _hidden(fd: int) -> Iterator[None]:
    """Without echo; on exit as before, and without what was typed and not read."""
    if sys.platform == "win32":
        yield
        return
    before = termios.tcgetattr(fd)
    quiet = list(before)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(fd, termios.TCSAFLUSH, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)
        write_all(fd, b"\n")


async def read_line(fd: int) -> str | None:
    """A line of a terminal that was opened with ``O_NONBLOCK``; None: an empty one, or none."""
    typed = b""
    while not typed.endswith(b"\n") and len(typed) < _LONGEST:
        try:
            await anyio.wait_readable(fd)
        except OSError:  # macOS can't wait for /dev/tty
            await anyio.sleep(_LOOK_AGAIN)
        try:
            more = os.read(fd, _LONGEST)
        except BlockingIOError:
            continue
        except OSError:  # the terminal went away
            return None
        if not more:
            return None
        typed += more
    return typed.decode("utf-8", "replace").strip() or None


def _question(subject: Subject, why: str) -> str:
    again = f"{why} " if why else ""
    return (
        f"{again}{subject.plugin!a} wants to use {subject.credential!a}. "
        "Code, or Enter to refuse (not shown): "
    )

"""Asks on the process's terminal, for a code or for consent, beside a running event loop.

Guarantee: one question at a time. Nothing that a plugin says reaches the terminal but as
printable text; a code that is typed is not shown; what was typed before the question stood
there does not answer it. What is not understood three times, an empty line, and a terminal
that goes away are a denial. When the wait is cancelled (a deadline, an invocation that ends)
the terminal is as it was, and what was typed until then is thrown away, not left for the shell.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from apex_creds.auth.second_factor import Subject
from apex_creds.concurrency import Lock
from apex_creds.errors import AccessDeniedError, InvalidInputError, SecondFactorError
from apex_creds.fs.private_files import write_all
from apex_creds.model import Clock, SystemClock
from apex_creds.policy.consent import DENIED, Choice, ConsentAnswer, ConsentRequest, lines
from apex_creds.policy.display import parse_time

if sys.platform != "win32":
    try:
        import termios
    except ImportError:
        termios = None  # type: ignore[assignment]

_LONGEST: Final = 1024
_RETRY: Final = 0.05


class TerminalAsk:
    """An ``Ask`` for runtimes that run on a terminal.

    Args:
        path: The terminal; the process's own by default.
    """

    def __init__(self, path: str = "/dev/tty") -> None:
        self._path = path
        self._one_at_a_time = Lock()

    @classmethod
    def is_there(cls) -> bool:
        """Whether this process has a terminal to ask on."""
        try:
            os.close(cls()._open())
        except SecondFactorError:
            return False
        return True

    async def __call__(self, subject: Subject, why: str) -> str | None:
        """See ``Ask``; an empty line is a refusal.

        Raises:
            SecondFactorError: There is no terminal.
        """
        async with self._one_at_a_time.held():
            fd = self._open()
            try:
                with _hidden(fd):
                    again = f"{why} " if why else ""
                    question = (
                        f"{again}{subject.plugin!a} wants to use {subject.credential!a}. "
                        "Code, or Enter to refuse (not shown): "
                    )
                    write_all(fd, question.encode())
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
            await anyio.sleep(_RETRY)
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


_TRIES: Final = 3
_BY: Final = "terminal"
_CHOICES: Final = {
    "o": Choice.ONCE,
    "once": Choice.ONCE,
    "s": Choice.SESSION,
    "session": Choice.SESSION,
    "a": Choice.ALWAYS,
    "always": Choice.ALWAYS,
    "n": Choice.DENY,
    "no": Choice.DENY,
    "deny": Choice.DENY,
    "never": Choice.NEVER,
}
_QUESTION: Final = (
    "Allow? o = once, s = this session, u WHEN = until (12h, 30d, 2030-12-31), a = always,\n"
    "       n = no, never = no, and don't ask again [n]: "
)


class TerminalConsent(TerminalAsk):
    """A ``ConsentProvider`` for runtimes that have a terminal; one question at a time.

    It asks for codes of a second factor, too (``second_factor=`` of the middleware).

    Args:
        path: The terminal; the process's own by default.
        clock: Says what ``12h`` is from.
    """

    def __init__(self, path: str = "/dev/tty", *, clock: Clock | None = None) -> None:
        super().__init__(path)
        self._clock = clock or SystemClock()

    async def ask(self, request: ConsentRequest) -> ConsentAnswer:
        """See ``ConsentProvider``.

        Raises:
            AccessDeniedError: There is no terminal.
        """
        async with self._one_at_a_time.held():
            fd = self._open()
            try:
                write_all(fd, "\n".join(["", *lines(request), ""]).encode())
                for _ in range(_TRIES):
                    _forget_typed(fd)
                    write_all(fd, _QUESTION.encode())
                    typed = await read_line(fd)
                    if typed is None:
                        break
                    try:
                        return parse_answer(typed, now=self._clock.time)
                    except InvalidInputError as error:
                        write_all(fd, f"{error.message} {error.hint}\n".encode())
                write_all(fd, b"Denied.\n")
                return DENIED
            finally:
                _forget_typed(fd)
                os.close(fd)


def parse_answer(typed: str, *, now: Callable[[], float]) -> ConsentAnswer:
    """The answer that was typed.

    Raises:
        InvalidInputError: It is none of those that there are.
    """
    word, _, rest = typed.strip().partition(" ")
    if word.lower() in ("u", "until"):
        return ConsentAnswer(choice=Choice.UNTIL, until=parse_time(rest, now=now()), by=_BY)
    choice = _CHOICES.get(word.lower())
    if choice is None or rest:
        raise InvalidInputError(
            "That is none of the answers.", hint="Type o, s, u WHEN, a, n or never."
        )
    return ConsentAnswer(choice=choice, by=_BY)


def _forget_typed(fd: int) -> None:
    if sys.platform == "win32":
        return
    import termios

    try:
        termios.tcflush(fd, termios.TCIFLUSH)
    except termios.error:
        raise AccessDeniedError("The terminal went away.") from None

"""Asks a person on the process's terminal whether a plugin may use a credential.

Guarantee: nothing that a plugin says reaches the terminal but as printable text; what was
typed before the question stood there does not answer it; what is not understood three
times, an empty line, and a terminal that goes away are a denial.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

from apex_creds.errors import AccessDeniedError, InvalidInputError
from apex_creds.fs.private_files import write_all
from apex_creds.leases.ask import TerminalAsk, read_line
from apex_creds.model import Clock, SystemClock
from apex_creds.policy.consent import DENIED, Choice, ConsentAnswer, ConsentRequest, lines
from apex_creds.policy.display import parse_time

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
                return await self._answer(fd)
            finally:
                _forget_typed(fd)
                os.close(fd)

    async def _answer(self, fd: int) -> ConsentAnswer:
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


def parse_answer(typed: str, *, now: Callable[[], float]) -> ConsentAnswer:
    """The answer that somebody typed.

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

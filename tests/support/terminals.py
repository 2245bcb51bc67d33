"""Programs under a pseudo-terminal, as a person would use them."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

# Makes the terminal the session's controlling one (opening it does), then is the program.
# The test's process has threads: it must not run Python in a fork of itself.
_LAUNCHER: Final = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execv(sys.argv[1], sys.argv[1:])
"""
_PATIENCE: Final = 480.0


class Terminal:
    """A program under a terminal; reads what the screen would show.

    What is expected is looked for after what was expected before: a prompt that is shown
    again is waited for again. What is typed before a prompt without echo is lost, so a test
    expects the prompt first.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        import pty

        self.screen = ""
        self._seen = 0
        self._typed = ""
        self.fd, inside = pty.openpty()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-c", _LAUNCHER, *command],
                stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
                env=env, cwd=cwd,
            )  # fmt: skip
        finally:
            os.close(inside)

    def expect(self, text: str) -> Self:
        end = time.monotonic() + _PATIENCE
        while (at := self.screen.find(text, self._seen)) < 0:
            assert time.monotonic() < end, f"{text!r} is not in {self.screen!r}"
            if not self._read(0.2):
                assert text in self.screen[self._seen :], f"ended: {self.screen!r}"
        self._seen = at + len(text)
        return self

    def type(self, text: str) -> Self:
        self._typed = text
        os.write(self.fd, text.encode())
        return self

    def end(self) -> int:
        """Reads on until the program ends; its exit code."""
        while self._read(10.0):
            # A person would do it again, too: one that comes between a look for signals and
            # the read that then waits is only seen after it.
            if self._typed == "\x03" and not select.select([self.fd], [], [], 10.0)[0]:
                self.type("\x03")
        code = self.process.wait(_PATIENCE)
        os.close(self.fd)
        return code

    def echoes(self) -> bool:
        import termios

        return bool(termios.tcgetattr(self.fd)[3] & termios.ECHO)

    def _read(self, seconds: float) -> bool:
        if not select.select([self.fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.screen += data.decode(errors="replace")
        return bool(data)

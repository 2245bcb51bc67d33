"""A gate that asks on a real pseudo-terminal while the event loop goes on."""

from __future__ import annotations

import signal
import sys

import pytest

from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.auth.terminal import TerminalAsk
from apex_creds.errors import SecondFactorError
from tests.support.terminals import Terminal
from tests.support.vaults import REPOSITORY, home_in

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals"),
]

PROGRAM = """
import asyncio, signal, sys, termios
from apex_creds.errors import SecondFactorError
from apex_creds.auth.terminal import TerminalAsk
from apex_creds.auth.step_up import SecondFactorGate
from apex_creds.auth.second_factor import Subject
from apex_creds.vault import Vault
from apex_creds.auth.enrolment import Factors

class Loop(asyncio.SelectorEventLoop):
    ahead = 0.0  # an hour passes with SIGUSR1, and with nothing else
    def time(self):
        return self.ahead
    def an_hour_later(self):
        self.ahead += 3600.0

async def main(home):
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, loop.an_hour_later)
    async with await Vault.unseal(home) as vault:
        gate = SecondFactorGate(Factors(vault), ask=TerminalAsk(), deadline=60.0)
        try:
            await gate.require_second_factor(Subject(plugin="p\\x1b]0;evil", credential="c"))
            print("let through")
        except SecondFactorError as error:
            print("refused:", error.message)
    echo = bool(termios.tcgetattr(0)[3] & termios.ECHO)
    print("echo is", echo)

with asyncio.Runner(loop_factory=Loop) as runner:
    runner.run(main(sys.argv[1]))
"""


class Gate(Terminal):
    """The program above, under a terminal."""

    def __init__(self, home) -> None:
        super().__init__(
            [sys.executable, "-W", "error", "-c", PROGRAM, str(home)], cwd=REPOSITORY
        )


async def test_a_code_is_typed_without_echo(codes, tmp_path):
    asked = Gate(home_in(tmp_path)).expect("Code, or Enter to refuse (not shown): ")
    assert "wants to use 'c'" in asked.screen
    assert "\x1b" not in asked.screen
    assert not asked.echoes()
    asked.type("x\n").expect("The code was not accepted.").expect("(not shown): ")
    asked.type(codes[0] + "\n")
    asked.expect("let through").expect("echo is True")
    assert asked.end() == 0
    assert codes[0] not in asked.screen


@pytest.mark.parametrize("typed", ["\n", "\x04"])
async def test_enter_is_a_refusal(factors, tmp_path, typed):
    asked = Gate(home_in(tmp_path)).expect("Code, or Enter").type(typed)
    asked.expect("refused: No second factor was given.").expect("echo is True")
    assert asked.end() == 0


async def test_at_the_deadline_the_terminal_is_as_it_was(factors, tmp_path):
    asked = Gate(home_in(tmp_path)).expect("Code, or Enter")
    assert not asked.echoes()
    # A busy kernel may take this in, and echo it, when the terminal is as it was already.
    asked.type("half a co").process.send_signal(signal.SIGUSR1)
    asked.expect("refused: No second factor was shown in time.").expect("echo is True")
    assert asked.end() == 0


@pytest.mark.parametrize("path", ["/dev/null", "/nonexistent/tty"])
async def test_without_a_terminal_it_is_a_refusal(path):
    with pytest.raises(SecondFactorError, match="no terminal"):
        await TerminalAsk(path)(Subject(plugin="p", credential="c"), "")


async def test_the_factor_that_was_typed_is_used_up(codes, tmp_path, vault):
    asked = Gate(home_in(tmp_path)).expect("Code, or Enter").type(codes[0] + "\n")
    assert asked.expect("let through").end() == 0
    with pytest.raises(SecondFactorError):
        await Factors(vault).verify(codes[0])

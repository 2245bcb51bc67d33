"""A person decides, from another process and on a real pseudo-terminal."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.terminals import Terminal

WAITING = str(Path(__file__).with_name("waiting.py"))
ROOT = Path(__file__).parents[2]


class Runtime:
    """The waiting process."""

    def __init__(self, cli) -> None:
        self._cli = cli
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", WAITING, str(cli.home), "queue"],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def question(self) -> dict[str, object]:
        end = time.monotonic() + 480
        while not (found := self._cli("requests", "--json").json()):
            assert self.process.poll() is None
            assert time.monotonic() < end
        return found[0]

    def result(self) -> str:
        return self.process.stdout.readline().strip()


@contextlib.contextmanager
def runtime(cli) -> Iterator[Runtime]:
    cli("set", "openai", stdin=b"sk-secret-of-the-test")
    made = Runtime(cli)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        made.process.stdout.close()


def test_one_process_waits_and_another_approves(cli):
    with runtime(cli) as waiting:
        asked = waiting.question()
        assert asked["plugin"] == "weather"
        assert asked["why"] == "not_granted"
        table = cli("requests").out
        assert asked["id"] in table
        assert r"to ask\x1b[2J the model" in table
        done = cli("approve", asked["id"], "--session")
        assert done.code == 0, done
        assert "weather may use openai (session)." in done.out
        assert waiting.result() == "result: True"
        assert waiting.result() == "result: True"
        assert waiting.process.wait(60) == 0
    assert cli("requests", "--json").json() == []
    assert cli("grants", "--json").json() == []


def test_one_process_waits_and_another_denies(cli):
    with runtime(cli) as waiting:
        first = waiting.question()
        assert cli("deny", first["id"]).code == 0
        assert waiting.result() == "result: denied"
        second = waiting.question()
        assert second["id"] != first["id"]
        assert cli("deny", second["id"], "--never").code == 0
        assert waiting.result() == "result: denied"
        assert waiting.process.wait(60) == 0
    made = cli("grants", "--json").json()
    assert [(g["plugin"], g["decision"]) for g in made] == [("weather", "deny")]
    assert "denied" in cli("grants").out


def test_always_is_bound_to_what_was_asked(cli):
    with runtime(cli) as waiting:
        assert cli("approve", waiting.question()["id"], "--always").code == 0
        assert [waiting.result(), waiting.result()] == ["result: True"] * 2
    made = cli("grants", "--json").json()[0]
    assert len(made["manifest"]) == 64
    assert made["created_by"] == "apex-creds"
    assert cli("requests").out.startswith("Nothing waits")


def test_mistakes(cli, error):
    error(8, "approve", "12345678")
    error(8, "deny", "12345678")
    error(7, "approve", "x", "--always", "--session")
    error(7, "approve", "x", "--until", "2001-01-01")
    cli("lockdown")
    error(9, "approve", "12345678")


def test_a_lockdown_and_its_end(cli):
    cli("set", "openai", stdin=b"sk-secret")
    done = cli("lockdown", "--reason", "drill")
    assert done.code == 0
    assert "No second factor" in done.err
    assert cli("get", "openai", "--reveal", "--force").code == 9
    assert cli("status", "--json").json()["locked_down"]
    assert "locked down" in cli("status").out
    assert "Unlocked" in cli("unlock").out
    assert "locked down" not in cli("status").out
    assert cli("get", "openai", "--reveal", "--force").out.strip() == "sk-secret"
    assert "not locked" in cli("unlock").out


def test_a_lockdown_takes_the_grants_and_not_the_denials(cli, error):
    cli("set", "openai", stdin=b"sk-secret")
    assert cli("grant", "demo", "openai").code == 0
    cli("lockdown", "--keep-grants")
    assert "End that" in error(9, "grant", "demo", "other", "--ahead")
    assert "in force again" in cli("unlock").out
    assert [grant["plugin"] for grant in cli("grants", "--json").json()] == ["demo"]
    assert "All grants are removed" in cli("lockdown").out
    assert "nothing is granted" in cli("unlock").out
    assert cli("grants", "--json").json() == []


def test_no_spelling_of_the_reason_stops_a_lockdown(cli):
    """As a terminal passes bytes that are no text, and as long as it may be."""
    done = cli("lockdown", "--reason", "why \udcff" * 400)
    assert done.code == 0, done
    assert cli("get", "openai", "--reveal", "--force").code != 0
    told = [event.get("detail", "") for event in cli("audit", "tail", "--json").json()]
    assert any(text.startswith(r"why \udcff") for text in told)
    assert cli("unlock").code == 0


def test_the_end_of_a_lockdown_takes_the_second_factor(cli):
    import anyio
    import pyotp

    from apex_creds.auth.enrolment import Factors
    from apex_creds.vault import Vault

    async def enrol() -> str:
        async with await Vault.unseal(cli.home) as vault:
            factors = Factors(vault)
            with factors.begin("phone") as new:
                seed = base64.b32encode(new.seed.expose_bytes()).decode()
                await factors.confirm(new, pyotp.TOTP(seed).now())
                return seed

    seed = anyio.run(enrol)
    assert "No second factor" not in cli("lockdown").err
    assert cli("unlock", stdin=b"").code == 9
    assert cli("unlock", stdin=b"000000\n").code == 9
    code = pyotp.TOTP(seed).at(int(time.time()) + 30)
    assert cli("unlock", stdin=f"{code}\n".encode()).code == 0


# -- on a terminal ----------------------------------------------------------------------


class Prompted(Terminal):
    """The waiting process under a terminal."""

    def __init__(self, home: Path) -> None:
        super().__init__(
            [sys.executable, "-W", "error", WAITING, str(home), "terminal"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )


@pytest.fixture
def prompted(cli):
    if sys.platform == "win32":
        pytest.skip("no pseudo-terminals")
    cli("set", "openai", stdin=b"sk-secret-of-the-test")
    return Prompted(cli.home)


def test_a_prompt_shows_what_is_asked_and_takes_an_answer(prompted):
    prompted.expect("Allow?")
    shown = prompted.screen
    assert "Plugin weather (version 1.2.0) wants to use openai [sensitive]." in shown
    assert "scopes: read" in shown
    assert r'it says: "to ask\x1b[2J the model"' in shown
    assert "\x1b" not in shown
    assert "before: nothing was granted" in shown
    prompted.type("what?\n").expect("none of the answers").expect("Allow?")
    prompted.type("u 30d\n").expect("result: True\r\nresult: True")
    assert prompted.end() == 0


@pytest.mark.parametrize("typed", ["\n", "n\n", "\x04"])
def test_an_empty_line_is_a_denial(prompted, typed):
    prompted.expect("Allow?").type(typed).expect("result: denied")
    prompted.expect("Allow?").type("s\n").expect("result: True")
    assert prompted.end() == 0

"""``factor`` and ``recovery-codes``, on a real pseudo-terminal and without one."""

from __future__ import annotations

import base64
import logging
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyotp
import pytest

from tests.support.commands import PROGRAM, under_terminal

on_terminal = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")


@pytest.fixture
def terminal(cli):
    return lambda *arguments: under_terminal("--home", str(cli.home), *arguments)


class App:
    """An authenticator app that read the screen."""

    def __init__(self, screen: str) -> None:
        self.uri = re.search(r"otpauth://\S+", screen)[0]
        self.seed = parse_qs(urlsplit(self.uri).query)["secret"][0]
        self.used: set[str] = set()

    def code(self) -> str:
        """One that is good now and was not shown before; later ones than it are."""
        now = int(time.time())
        for at in (now, now + 30):
            code = pyotp.TOTP(self.seed).at(at)
            if code not in self.used and at // 30 > getattr(self, "last", 0):
                self.used.add(code)
                self.last = at // 30
                return code
        raise AssertionError("all codes of this minute are used")


def enrol(terminal, label: str = "phone") -> App:
    asked = terminal("factor", "enrol", label).expect("Code of the new factor (not shown): ")
    app = App(asked.screen)
    assert not asked.echoes()
    asked.type(app.code() + "\n").expect(f"Enrolled {label}")
    assert asked.end() == 0
    return app


@on_terminal
def test_enrolment_on_a_terminal(terminal, cli):
    asked = terminal("factor", "enrol", "ops phone").expect("Code of the new factor")
    app = App(asked.screen)
    assert urlsplit(app.uri).path == "/apex-creds:ops%20phone"
    assert f"Secret: {app.seed}" in asked.screen
    assert decoded(asked.screen) == app.uri
    wrong = "000000" if app.code() != "000000" else "111111"
    app = App(asked.screen)
    asked.type(wrong + "\n").expect("not the code of the new factor")
    asked.expect("(not shown): ")
    code = app.code()
    asked.type(code + "\n").expect("Enrolled ops phone")
    assert asked.end() == 0
    assert code not in asked.screen
    [found] = cli("factor", "list", "--json").json()["factors"]
    assert (found["label"], found["kind"]) == ("ops phone", "totp")


def decoded(screen: str) -> str:
    """What the QR code on the screen says, read by making it again from the URI."""
    import io

    import segno

    uri = re.search(r"otpauth://\S+", screen)[0]
    drawn = io.StringIO()
    segno.make(uri, micro=False, error="l").terminal(out=drawn, compact=True, border=2)
    shown = screen.replace("\r\n", "\n")
    assert drawn.getvalue().strip() in shown
    return uri


@on_terminal
def test_without_utf_8_the_qr_code_is_of_spaces(terminal, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    asked = terminal("factor", "enrol").expect("Code of the new factor")
    assert "\x1b[7m    " in asked.screen
    assert asked.type("\x03").end() == 130


@on_terminal
def test_a_second_one_takes_a_code_of_the_first(terminal, cli):
    app = enrol(terminal)
    asked = terminal("factor", "enrol", "tablet").expect("Code (not shown): ")
    assert "otpauth" not in asked.screen
    asked.type("x\n").expect("was not accepted").expect("Code (not shown): ")
    asked.type(app.code() + "\n").expect("Code of the new factor")
    tablet = App(asked.screen.split("Code (not shown)")[-1])
    asked.type(tablet.code() + "\n")
    assert asked.end() == 0
    assert len(cli("factor", "list", "--json").json()["factors"]) == 2


@on_terminal
def test_recovery_codes_are_shown_once_and_good_once(terminal, cli):
    app = enrol(terminal)
    asked = terminal("recovery-codes").expect("Code (not shown): ").type(app.code() + "\n")
    assert asked.end() == 0
    codes = re.findall(r"(?:[0-9A-Z]{4}-){5}[0-9A-Z]{4}", asked.screen)
    assert len(set(codes)) == 10
    assert cli("factor", "verify", stdin=codes[0].encode()).code == 0
    again = cli("factor", "verify", stdin=codes[0].encode())
    assert again.code == 9
    assert "was not accepted" in again.err
    assert cli("factor", "list", "--json").json()["recovery_codes_left"] == 9
    assert "Recovery codes left: 9" in cli("factor", "list").out
    assert cli("factor", "remove", "phone", stdin=codes[1].encode()).code == 0
    assert cli("factor", "list", "--json").json()["factors"] == []


@on_terminal
def test_lock_out_over_processes(terminal, cli):
    app = enrol(terminal)
    asked = terminal("factor", "verify")
    for _ in range(3):
        asked.expect("Code (not shown): ").type("x\n")
    assert asked.end() == 9
    assert "for 30 seconds" in asked.screen
    right = cli("factor", "verify", stdin=app.code().encode())
    assert right.code == 9
    assert "Too many wrong codes" in right.err
    assert 0 < cli("factor", "list", "--json").json()["locked_for"] <= 30
    assert "Locked out" in cli("factor", "list").out


@on_terminal
def test_showing_it_for_a_plugin(terminal, cli):
    app = enrol(terminal)
    code = app.code().encode()
    half = cli("factor", "verify", "--plugin", "p", stdin=code)
    assert half.code == 7
    done = cli("factor", "verify", "--plugin", "p", "--credential", "c", stdin=code)
    assert done.code == 0
    assert "p may use c now" in done.out


@on_terminal
@pytest.mark.parametrize("end", ["\x03", "\x04"])
def test_interrupted_enrolment_stores_nothing(terminal, cli, end):
    asked = terminal("factor", "enrol").expect("Code of the new factor").type(end)
    assert asked.end() == 130
    assert "Traceback" not in asked.screen
    assert cli("factor", "list", "--json").json()["factors"] == []


# -- without a terminal ---------------------------------------------------------------------


def test_a_seed_does_not_go_into_a_pipe(error):
    assert "not a terminal" in error(7, "factor", "enrol")
    assert "not a terminal" in error(7, "recovery-codes")


@pytest.mark.parametrize(
    "arguments",
    [("factor", "verify"), ("factor", "remove", "phone"), ("recovery-codes", "--force")],
)
def test_without_a_factor_there_is_nothing_to_show(error, arguments):
    assert "no" in error(8 if "remove" in arguments else 9, *arguments, stdin=b"000000")


def test_lists_are_empty_at_first(cli):
    assert "factor enrol" in cli("factor", "list").out
    assert cli("factor", "list", "--json").json() == {
        "factors": [],
        "recovery_codes_left": 0,
        "locked_for": 0,
    }


def test_in_a_pipe_by_force_and_from_another_program(cli):
    """The whole of it without a terminal, for those who automate it."""
    command = [*PROGRAM, "--home", str(cli.home), "factor", "enrol", "--force", "--no-qr"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        screen = ""
        while "Secret: " not in screen:
            screen += process.stdout.readline()
        app = App(screen)
        process.stdin.write(app.code() + "\n")
        process.stdin.close()
        assert "Enrolled phone" in process.stdout.read()
        assert process.wait(60) == 0
    assert "█" not in screen
    assert cli("factor", "verify", stdin=app.code().encode()).code == 0


def test_without_segno_it_says_what_to_install(error, monkeypatch):
    monkeypatch.setitem(sys.modules, "segno", None)
    message = error(11, "factor", "enrol", "--force")
    assert "apex-creds[factors]" in message


# -- canaries -------------------------------------------------------------------------------


@on_terminal
def test_seeds_and_codes_show_up_where_they_were_asked_for_and_nowhere_else(
    terminal, cli, caplog
):
    caplog.set_level(logging.DEBUG)
    app = enrol(terminal)
    asked = terminal("recovery-codes").expect("Code (not shown): ").type(app.code() + "\n")
    assert asked.end() == 0
    codes = re.findall(r"(?:[0-9A-Z]{4}-){5}[0-9A-Z]{4}", asked.screen)
    seed = base64.b32decode(app.seed)
    typed = codes[2]
    cli("factor", "verify", stdin=codes[0].encode())
    cli("factor", "verify", stdin=codes[0].encode())
    cli("factor", "verify", typed)  # typed as an argument by mistake: refused, not repeated
    cli("factor", "enrol", "tablet", "--force", stdin=b"x")
    cli("factor", "list"), cli("factor", "list", "--json"), cli("status"), cli("doctor")
    cli("audit", "tail"), cli("audit", "tail", "--json")
    cli("factor", "remove", "phone", stdin=codes[1].encode())
    forbidden = [
        seed, seed.hex().encode(), app.seed.encode(), base64.b64encode(seed)[:-2],
        *(c.encode() for c in codes), *(c.replace("-", "").encode() for c in codes),
    ]  # fmt: skip
    logged = [record.getMessage() for record in caplog.records]
    files = [p.read_bytes() for p in Path(cli.home).rglob("*") if p.is_file()]
    assert len(cli.seen) > 15
    for text in [*(s.encode() for s in [*cli.seen, *logged]), *files]:
        assert not [canary for canary in forbidden if canary in text]
    assert asked.screen.count(codes[0]) == 1


def test_a_label_can_not_drive_the_terminal(error):
    evil = "a\x1b]0;" + secrets.token_hex(4)
    assert "\x1b" not in error(7, "factor", "enrol", evil, "--force")
    assert "\x1b" not in error(8, "factor", "remove", evil)

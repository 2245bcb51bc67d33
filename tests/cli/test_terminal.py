"""Prompts on a real pseudo-terminal: no echo, and Ctrl-C leaves the terminal as it was."""

from __future__ import annotations

import os
import re
import secrets
import sys

import pytest

from tests.support.commands import under_terminal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")

VALUE = "sk-" + secrets.token_hex(16)


@pytest.fixture
def terminal(cli):
    return lambda *arguments: under_terminal("--home", str(cli.home), *arguments)


def test_a_value_is_typed_without_echo_and_read_back(terminal):
    asked = terminal("set", "openai").expect("Value (not shown): ")
    assert not asked.echoes()
    asked.type(VALUE + "\n").expect("Stored openai")
    assert asked.end() == 0
    assert VALUE not in asked.screen
    shown = terminal("get", "openai", "--reveal").expect(VALUE)
    assert shown.end() == 0


def test_a_user_is_shown_and_a_password_is_not(terminal, cli):
    asked = terminal("set", "box", "--kind", "basic").expect("User").type("bob\n")
    asked.expect("Password (not shown): ").type(VALUE + "\n")
    assert asked.end() == 0
    assert "bob" in asked.screen
    assert VALUE not in asked.screen
    assert cli("get", "box", "--reveal", "--force").out == VALUE


def test_a_token_is_asked_for_in_parts(terminal, cli):
    asked = terminal("set", "gh", "--kind", "oauth_token")
    asked.expect("Access token").type("acc\n").expect("Refresh token").type("\n")
    asked.expect("Scope").type("repo\n")
    assert asked.end() == 0
    assert cli("get", "gh", "--reveal", "--force").out == "acc"


def test_rm_asks(terminal, cli):
    cli("set", "a", stdin=b"v1")
    asked = terminal("rm", "a").expect("Delete a for good?").type("n\n")
    assert asked.end() == 1
    assert cli("show", "a").code == 0
    asked = terminal("rm", "a").expect("Delete a for good?").type("y\n")
    assert asked.end() == 0
    assert cli("show", "a").code == 8


def test_a_stored_value_can_not_drive_the_terminal(terminal, cli):
    cli("set", "evil", "--kind", "generic", stdin=b"\x1b]0;owned\x07")
    shown = terminal("get", "evil", "--reveal")
    assert shown.end() == 7
    assert "\x1b]0;" not in shown.screen
    assert "not printable" in shown.screen


@pytest.mark.parametrize("end", ["\x03", "\x04"])
def test_interrupted_prompts_end_at_once(terminal, cli, end):
    asked = terminal("set", "a").expect("Value (not shown): ").type(end)
    code = asked.end()
    assert code == 130
    assert "Traceback" not in asked.screen
    assert cli("list", "--json").json() == []


@pytest.mark.slow
def test_a_passphrase_is_asked_for_twice_then_once(bare):
    home = ["--home", str(bare.home)]
    made = under_terminal(*home, "init", "--master", "passphrase:")
    made.expect("Passphrase: ").type(VALUE + "\n")
    made.expect("Passphrase again: ").type(VALUE + "\n")
    assert made.end() == 0
    stopped = under_terminal(*home, "list").expect("Passphrase: ").type("\x03")
    assert stopped.end() == 130
    wrong = under_terminal(*home, "list").expect("Passphrase: ").type("wrong\n")
    assert wrong.end() == 4
    assert "The passphrase is wrong" in wrong.screen
    opened = under_terminal(*home, "list").expect("Passphrase: ").type(VALUE + "\n")
    assert opened.end() == 0
    assert "No credentials yet" in opened.screen
    assert VALUE not in made.screen + opened.screen
    # Without a terminal there is a way too; the value follows on the same input.
    line = f"{VALUE}\nvalue-from-the-second-line\n".encode()
    fd = ["--master", "passphrase:fd=0"]
    assert bare.process(*fd, "set", "a", stdin=line).code == 0
    got = bare.process(*fd, "get", "a", "--reveal", "--force", stdin=line)
    assert got.out == "value-from-the-second-line"
    assert bare.process("list", start_new_session=True).code == 4


@pytest.mark.parametrize(("width", "tabular"), [("60", False), ("140", True)])
def test_a_list_breaks_no_word(cli, width, tabular):
    cli("set", "openai-production-key", "--origin", "https://api.openai.com", stdin=b"sk-1234")
    env = {**os.environ, "COLUMNS": width}
    shown = under_terminal("--home", str(cli.home), "list", env=env)
    assert shown.end() == 0
    for word in ("openai-production-key", "api_key", "https://api.openai.com", "sensitive"):
        assert word in shown.screen
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.screen)
    (named,) = (line for line in plain.splitlines() if line.strip().startswith("name"))
    assert ("kind" in named) is tabular


@pytest.mark.parametrize("width", ["0", "1", "x"])
def test_a_list_is_shown_whatever_width_is_stated(cli, width):
    cli("set", "openai", stdin=b"sk-1234")
    env = {**os.environ, "COLUMNS": width}
    shown = under_terminal("--home", str(cli.home), "list", env=env)
    assert shown.end() == 0
    assert "openai" in shown.screen


def test_a_narrow_list_leaves_out_what_there_is_not(cli):
    cli("set", "openai", stdin=b"sk-1234567890")
    shown = under_terminal(
        "--home", str(cli.home), "audit", "tail", env={**os.environ, "COLUMNS": "30"}
    )
    assert shown.end() == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.screen)
    assert re.search(r"(?m)^credential +openai\r?$", plain)
    assert not re.search(r"(?m)^[a-z]+ +-?\r?$", plain)

"""What programs and people get for an answer: JSON, exit codes, names that are nearly right."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from apex_creds.cli import app, console, program
from tests.cli.test_help import commands
from tests.support.commands import PROGRAM

ROOT = Path(__file__).parents[2]


def failed(done):
    """The error of a command that was asked for JSON: one line on standard error."""
    assert done.out == ""
    (line,) = done.err.splitlines()
    what = json.loads(line)
    assert what.keys() == {"error", "message", "hint", "code"}
    assert what["code"] == done.code
    return what["error"]


def test_what_changes_the_vault_says_so_to_a_program(cli):
    stored = cli("set", "openai", "--origin", "https://a.example", "--json", stdin=b"sk-1234")
    assert (stored.json()["name"], stored.json()["version"]) == ("openai", 1)
    assert cli("edit", "openai", "--expires", "30d", "--json").json()["expires"]
    assert cli("edit", "openai", "--expires", "never", "--json").json()["expires"] is None
    granted = cli("grant", "weather", "openai", "--json").json()
    assert (granted["plugin"], granted["decision"]) == ("weather", "allow")
    assert cli("rotate", "dek", "--json").json()["level"] == "dek"
    assert cli("rotate", "kek", "--json").json()["primary"] == 2
    assert [one["plugin"] for one in cli("revoke", "weather", "--json").json()] == ["weather"]
    assert cli("lockdown", "--json").json()["grants_kept"] is False
    assert cli("unlock", "--json").json() == {"unlocked": True, "grants": 0}
    assert cli("rm", "openai", "--yes", "--json").json()["deleted"] == "openai"


def test_errors_are_json_where_json_was_asked_for(cli, bare):
    assert failed(cli("show", "nobody", "--json")) == "CredentialNotFoundError"
    assert failed(cli("approve", "abcdef", "--json")) == "NotFoundError"
    assert failed(cli("list", "--jsn", "--json")) == "UsageError"
    assert failed(cli("rotate", "--json")) == "UsageError"


EVERY = [
    path for path in commands(typer.main.get_command(app.tree())) if path and path[-1] != "demo"
]


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_a_command_line_that_is_not_understood_is_json_of_every_command(bare, path):
    assert failed(bare(*path, "--nonsense", "--json")) == "UsageError"


@pytest.mark.parametrize("state", ["no vault", "no key", "damaged", "locked"])
def test_why_a_vault_does_not_open_is_json(cli, state):
    cli("set", "openai", stdin=b"sk-12345678")
    kind = {
        "no vault": "VaultNotFoundError",
        "no key": "MasterKeyNotFoundError",
        "damaged": "CorruptDocumentError",
        "locked": "LockedDownError",
    }[state]
    if state == "no vault":
        shutil.rmtree(cli.home)
    elif state == "no key":
        cli.key.unlink()
    elif state == "damaged":
        store = cli.home / "security/keystore.enc"
        store.write_bytes(store.read_bytes().replace(b'"generation":', b'"generation":1', 1))
    else:
        assert cli("lockdown").code == 0
    for words in (
        ("get", "openai", "--reveal", "--force"),
        ("grant", "weather", "openai"),
        ("approve", "12345678"),
    ):
        assert failed(cli(*words, "--json")) == kind, words


def test_an_interruption_is_json(cli, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "read_secret", interrupted)
    done = cli("set", "openai", "--json")
    assert (done.code, failed(done)) == (130, "Interrupted")


def test_of_what_is_not_there_all_say_the_same(cli):
    for words in (
        ("approve", "12345678"),
        ("deny", "12345678"),
        ("show", "nobody"),
        ("revoke", "nobody"),
        ("client", "revoke", "nobody"),
        ("factor", "remove", "nobody"),
        ("audit", "show", "12345678"),
    ):
        assert cli(*words).code == 8, words


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("sett", "x"), "apex-creds set"),
        (("audit", "verfy"), "apex-creds audit verify"),
        (("rotation", "stauts"), "apex-creds rotation status"),
    ],
)
def test_a_word_that_is_nearly_a_command(cli, words, meant):
    done = cli(*words)
    assert (done.code, done.lines()[1]) == (2, f"hint: Did you mean: {meant}")


def test_a_name_that_is_nearly_a_credentials(cli):
    cli("set", "openai", stdin=b"sk-12345678")
    for words in (
        ("show", "opnai"),
        ("rm", "openia", "--yes"),
        ("grant", "weather", "open-ai"),
    ):
        done = cli(*words)
        assert done.code == 8
        assert done.lines()[1].startswith("hint: Did you mean openai? ")
    done = cli("show", "sk-live-0123456789")
    assert "openai" not in done.err
    assert "sk-live" not in done.err


def test_what_follows_the_dashes_is_another_programs(cli):
    done = cli("run", "--plugin-dir", "/nothing", "--", "tool", "--json")
    assert done.lines()[0].startswith("error: ")


def test_with_json_nothing_else_is_on_standard_output(cli):
    """What a person reads and types into an app is on standard error then."""
    done = cli("factor", "enrol", "--force", "--no-qr", "--json", stdin=b"000000\n")
    assert done.out == ""
    assert "otpauth://" in done.err


@pytest.mark.parametrize("name", ["-x", "--yes", "two words", "a'b", "$(id)"])
def test_what_is_advised_about_a_name_works_in_a_shell(cli, name):
    done = cli("set", "--", name, stdin=b"sk-12345678")
    advised = done.err.splitlines()[-1].partition("yet: apex-creds ")[2]
    assert cli(*shlex.split(advised.replace("URL", "https://a.example"))).code == 0


def test_a_word_that_is_none_is_not_repeated(cli):
    done = cli("sk-live-0123456789")
    assert done.code == 2
    assert "sk-live" not in done.out + done.err


def test_an_argument_that_is_missing_is_named_on_one_line(cli):
    done = cli("rotate")
    assert "Choose from: master, kek, dek" in done.err
    assert "\\n" not in done.err
    assert len(done.lines()) == 2


def test_a_file_that_is_not_there_is_said(cli, error, tmp_path):
    where = tmp_path / "nofile"
    for words in (("policy", "check"), ("import",), ("audit", "prove", "--check")):
        said = error(6, *words, str(where))
        assert f"There is no {where}" in said, words
        assert "init" not in said


def test_a_beginning_of_an_id_is_enough(cli):
    enrolled = cli("client", "keygen", str(cli.home.parent / "c.key"), "--json").json()
    cli("client", "enrol", "worker", enrolled["public"], "--credential", "openai")
    assert cli("client", "revoke", enrolled["id"][:3]).code == 8  # too short to be meant
    assert cli("client", "revoke", enrolled["id"][:6], "--json").json()["name"] == "worker"


def test_a_key_for_http_is_warned_of(cli):
    key = b"sk-1234"
    assert "http, not https" in cli("set", "a", "--origin", "http://a.example", stdin=key).err
    said = cli("import", "-", "--origin", "http://a.example", stdin=b"KEY=sk-1234").err
    assert "http, not https" in said
    assert "http" not in cli("set", "b", "--origin", "http://127.0.0.1:8", stdin=key).err
    assert "http" not in cli("set", "c", "--origin", "https://a.example", stdin=key).err


@pytest.mark.parametrize(
    "value",
    [
        '"sk-1234"',
        "'sk-1234'",
        "\u201csk-1234\u201d",
        "sk-\u200b1234",
        "sk-\u202e1234",
        "sk-1\nsk-1234",
    ],
)
def test_what_is_hardly_a_key_is_refused(cli, error, value):
    said = error(7, "set", "openai", stdin=value.encode())
    assert "--kind generic" in said
    assert "1234" not in said
    assert cli("set", "openai", "--kind", "generic", stdin=value.encode()).code == 0


@pytest.mark.parametrize(
    "value", ["us\u200ber\nsecret", "user\nsec\u202eret", "user\nsec\tret"]
)
def test_a_user_or_password_that_can_not_be_seen_is_refused(cli, error, value):
    said = error(7, "set", "box", "--kind", "basic", stdin=value.encode())
    assert "ret" not in said
    right = '"user"\n secr\u00e9t '.encode()
    assert cli("set", "box", "--kind", "basic", stdin=right).code == 0
    shown = cli("get", "box", "--part", "password", "--reveal", "--force")
    assert shown.out == " secr\u00e9t "


def test_a_compromise_of_everything_is_asked_about(cli, error):
    assert "--yes" in error(7, "events", "emit", "compromise_suspected")
    assert cli("events", "emit", "compromise_suspected", "--yes").code == 0


def test_spans_are_shown_as_they_are_typed(cli):
    cli("rotation", "policy", "dek", "--interval", "90d", "--jitter", "36h")
    shown = cli("rotation", "policy", "dek").out
    assert re.search(r"interval +90d\n", shown)
    assert re.search(r"jitter +36h\n", shown)
    assert cli("rotation", "policy", "dek", "--json").json()["interval"] == 90 * 86400


def test_times_are_written_in_one_way(cli):
    (event,) = cli("audit", "tail", "-n", "1", "--json").json()
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell):
    env = {
        "PATH": os.environ["PATH"],
        "_APEX_CREDS_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "apex-creds aud",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "apex-creds aud",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(PROGRAM, env=env, capture_output=True, text=True, check=False)
    assert "audit" in done.stdout, done


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("aud", ["audit"]),
        ("audit ver", ["verify"]),
        ("rotate de", ["dek"]),
        ("set x --kind b", ["basic"]),
        ("--home /x audit ver", ["verify"]),
    ],
)
def test_bash_completes_by_the_script_that_is_installed(typed, found, tmp_path):
    env = {**os.environ, "_APEX_CREDS_COMPLETE": "source_bash"}
    done = subprocess.run(PROGRAM, env=env, capture_output=True, text=True, check=False)
    program = tmp_path / "apex-creds"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    asked = f"""{done.stdout}
COMP_WORDS=(apex-creds {typed}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_apex_creds_completion {program}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    shown = subprocess.run(
        ["bash", "-c", asked], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert shown.stdout.split() == found, shown


def test_every_command_is_in_one_panel():
    assert sum(map(len, program.PANELS.values())) == len(program.COMMANDS)
    assert max(map(len, program.PANELS.values())) <= 12


def test_the_help_of_the_program_needs_no_command_and_says_what_they_say():
    whole = CliRunner().invoke(app.tree(), ["--help"], prog_name="apex-creds").output
    code = "import sys; sys.argv[1:] = ['-h']; from apex_creds.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print([name for name in sys.modules if name.startswith('apex_creds.')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    shown, _, loaded = done.stdout.rstrip().rpartition("\n")
    assert shown.split() == whole.split()
    assert ast.literal_eval(loaded) == [
        "apex_creds.cli",
        "apex_creds.cli.program",
        "apex_creds.cli.standard_streams",
    ]


def test_a_list_loads_nothing_that_talks_to_a_provider(cli):
    code = "import sys; from apex_creds.cli import main\n"
    code += f"sys.argv[1:] = ['--home', {str(cli.home)!r}, 'list']\nassert main() == 0\n"
    code += "print([n for n in sys.modules if n.startswith(('apex_creds.oauth.', 'httpx'))])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_exit_codes_that_errors_have_are_in_the_table():
    tree = ast.parse((ROOT / "apex_creds/errors.py").read_text())
    codes = {
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign) and "exit_code" in ast.unparse(node)
        if isinstance(node.value, ast.Constant)
    }
    assert codes <= app.EXIT_CODES.keys()


@pytest.mark.parametrize("words", [("list",), ("-h",)])
def test_a_reader_that_goes_away_while_a_table_is_printed(cli, words):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        command = [*PROGRAM, *(() if words == ("-h",) else ("--home", str(cli.home))), *words]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_help_that_can_not_be_written_is_said():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PROGRAM, "-h"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 74
    assert done.stderr.startswith(b"error: The output can't be written")

"""``recovery``, ``backup`` and ``restore`` as typed; shares show up where they should only."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import PROGRAM, under_terminal
from tests.support.realparts import gnome_keyring, gnome_keyring_missing


def exported(cli, *options: str) -> list[str]:
    done = cli("recovery", "export", "--force", "-k", "2", "-n", "3", *options)
    assert done.code == 0, done
    return [line for line in done.out.splitlines() if not line.startswith("#")]


def typed(shares: list[str]) -> bytes:
    return "\n".join(shares).encode()


@pytest.fixture
def shares(cli) -> list[str]:
    cli("set", "openai", stdin=b"sk-value")
    return exported(cli)


def value(cli) -> str:
    return cli("get", "openai", "--reveal", "--force").out


# -- export ------------------------------------------------------------------------------


def test_shares_do_not_go_into_a_file_unless_forced(cli, error):
    assert "not a terminal" in error(7, "recovery", "export")
    assert cli("recovery", "list", "--json").json() == []


def test_status_reminds_until_there_is_one_of_this_master_key(cli):
    assert cli("status", "--json").json()["recovery"] == "none exists"
    assert "recovery export" in cli("status").err
    exported(cli)
    done = cli("status")
    assert "recovery export" not in done.err
    assert cli("status", "--json").json()["recovery"] == "ok"
    assert cli("rotate", "master").code == 0
    assert "earlier master key" in cli("status").err
    listed = cli("recovery", "list", "--json").json()
    assert [(one["kind"], one["master_version"]) for one in listed] == [("2 of 3 shares", 1)]


def test_shares_are_tried_at_any_time(cli, shares):
    assert cli("recovery", "verify", stdin=typed(shares[1:])).code == 0
    for wrong in (shares[:1], [shares[0], shares[0]], ["nonsense"], []):
        assert cli("recovery", "verify", stdin=typed(wrong)).code == 7
    assert cli("recovery", "verify", stdin=typed([shares[0], exported(cli)[0]])).code == 7


def test_sealed_to_a_public_key(cli, bare, tmp_path, monkeypatch):
    cli("set", "openai", stdin=b"sk-value")
    private, sealed = tmp_path / "private", tmp_path / "sealed"
    public = cli("recovery", "keygen", str(private), home=False).out.strip()
    assert private.stat().st_mode & 0o077 == 0
    assert cli("recovery", "keygen", str(private), home=False).code == 6  # never overwritten
    sealed.write_text(cli("recovery", "export", "--to", public).out)
    assert cli("status", "--json").json()["recovery"] == "it was never tried"
    key = ["--sealed", str(sealed), "--private-key", str(private)]
    assert cli("recovery", "verify", *key).code == 0
    assert cli("status", "--json").json()["recovery"] == "ok"
    cli.key.unlink()
    assert cli("recovery", "restore", *key).code == 0
    assert value(cli) == "sk-value"
    other = tmp_path / "other"
    cli("recovery", "keygen", str(other), home=False)
    assert cli("recovery", "verify", *key[:3], str(other)).code == 5
    assert cli("recovery", "export", "--to", public[:-4]).code == 7
    assert cli("recovery", "export", "--to", public, "--private-key", str(private)).code == 0


# -- back --------------------------------------------------------------------------------


def test_a_lost_key_is_restored(cli, shares):
    cli.key.unlink()
    assert cli("list").code == 4
    assert cli("recovery", "restore", stdin=typed(shares[:2])).code == 0
    assert value(cli) == "sk-value"


def test_on_another_machine_with_another_key_file(cli, shares, tmp_path):
    shutil.copytree(cli.home, tmp_path / "there")
    cli.key.unlink()
    there, key = ["--home", str(tmp_path / "there")], f"file:{tmp_path}/there.key"
    done = cli(
        *there, "recovery", "restore", "--master", key, stdin=typed(shares[:2]), home=False
    )
    assert done.code == 0, done
    shown = cli(*there, "get", "openai", "--reveal", "--force", home=False)
    assert shown.out == "sk-value"


def test_a_lost_key_is_reset_once(cli, shares):
    cli.key.unlink()
    done = cli("recovery", "reset-master", stdin=typed(shares[:2]))
    assert done.code == 0, done
    assert "recovery export" in done.err
    assert value(cli) == "sk-value"
    again = cli("recovery", "reset-master", stdin=typed(shares[:2]))
    assert again.code == 0
    assert "nothing to reset" in again.out
    assert cli("recovery", "verify", stdin=typed(shares[:2])).code == 4  # of the old key


def test_the_whole_machine_lost(cli, shares, tmp_path):
    backup = tmp_path / "backup.tar"
    assert cli("backup", str(backup)).code == 0
    shutil.rmtree(cli.home)
    cli.key.unlink()
    plain = cli("restore", str(backup), "--reason", "fire")
    assert plain.code == 4
    done = cli("restore", str(backup), "--shares", "--reason", "fire", stdin=typed(shares[1:]))
    assert done.code == 0, done
    assert value(cli) == "sk-value"
    assert "fire" in cli("audit", "tail").out
    assert cli("audit", "verify").code == 0


def test_restore_needs_a_reason_and_a_whole_backup(cli, shares, error, tmp_path):
    backup = tmp_path / "backup"
    cli("backup", str(backup))
    error(7, "restore", str(backup), "--reason", " ")
    error(7, "restore", str(tmp_path / "none"), "--reason", "r")
    assert cli("restore", str(backup), "--reason", "r", "--check").code == 0
    assert not list(cli.home.glob(".before-restore-*"))
    (backup / "credentials/api_keys.enc").unlink()
    error(5, "restore", str(backup), "--reason", "r", "--check")
    error(7, "backup", str(backup))


@pytest.mark.slow
def test_a_passphrase_is_asked_for_once(cli, tmp_path):
    home = ["--home", str(tmp_path / "p"), "--master", "passphrase:fd=0"]
    assert cli(*home, "init", stdin=b"x", home=False).code != 0
    phrase = b"a long passphrase\n"
    for command in (["init"], ["backup", str(tmp_path / "b.tar")], ["status"]):
        done = cli.process(*home, *command, stdin=phrase)
        assert done.code == 0, done


# -- on a terminal -----------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_on_a_terminal_they_are_shown_one_by_one_and_typed_back(cli):
    shown = under_terminal("--home", str(cli.home), "recovery", "export", "-k", "2", "-n", "2")
    written = []
    for number in (1, 2):
        shown.expect(f"Share {number} of 2").expect("it is not shown again")
        pairs = re.findall(r"(\d+) ([a-z]+)", shown.screen.split(f"Share {number} of 2")[1])
        words = {int(n): word for n, word in pairs if len(word) > 3}
        written.append(" ".join(words[n] for n in range(1, 34)))
        shown.type("\n").expect("\x1b[2J\x1b[3J")
    shown.expect("Share 1, 33 words")
    assert not shown.echoes()
    typed_from = len(shown.screen)
    shown.type("academic acid\n").expect("A share has 33 words").expect("(not shown): ")
    shown.type(written[0] + "\n").expect("1 of 2 shares").expect("(not shown): ")
    shown.type(" ".join(word[:4] for word in written[1].split()) + "\n")
    assert shown.end() == 0, shown.screen
    assert "Tried" in shown.screen
    assert written[0].split()[5] not in shown.screen[typed_from:]
    assert cli("status", "--json").json()["recovery"] == "ok"


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_shares_that_were_not_typed_back_do_not_count(cli):
    shown = under_terminal(
        "--home", str(cli.home), "recovery", "export", "-k", "2", "-n", "2", "--qr"
    )
    for number in (1, 2):
        shown.expect(f"Share {number} of 2").expect("it is not shown again")
        shown.type("\n")
    shown.expect("Share 1, 33 words").type("\x03")
    assert shown.end() == 130
    assert cli("status", "--json").json()["recovery"] == "none exists"


# -- secrets -----------------------------------------------------------------------------


def test_shares_and_key_are_nowhere_else(cli, shares, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    master = cli.key.read_bytes().split()[-1]
    cli.seen.clear()
    cli("recovery", "verify", stdin=typed(shares[:2]))
    cli("recovery", "verify", stdin=typed([shares[0], shares[1] + " zebra"]))
    cli("recovery", "verify", shares[0])
    cli("recovery", "list"), cli("recovery", "list", "--json"), cli("status"), cli("doctor")
    cli("backup", str(tmp_path / "backup")), cli("audit", "tail", "--json")
    cli.key.unlink()
    cli("recovery", "restore", stdin=typed(shares[:1]))
    cli("recovery", "reset-master", stdin=typed(shares[:2]))
    words = {" ".join(share.split()[4:8]) for share in shares}
    text = "\n".join([*cli.seen, *(record.getMessage() for record in caplog.records)])
    files = [p for place in (cli.home, tmp_path / "backup") for p in place.rglob("*")]
    data = b"\n".join(path.read_bytes() for path in files if path.is_file())
    for canary in (*words, "sk-value", master.decode()):
        assert canary not in text
        assert canary.encode() not in data


# -- a real keyring ----------------------------------------------------------------------


@pytest.mark.e2e
@pytest.mark.skipif(bool(gnome_keyring_missing()), reason=gnome_keyring_missing() or "-")
def test_the_whole_way_with_a_real_keyring(tmp_path: Path) -> None:
    home, backup = str(tmp_path / "vault"), str(tmp_path / "b.tar")

    def program(env: dict[str, str], *arguments: str, stdin: bytes = b"") -> str:
        command = [*PROGRAM, "--home", home, *arguments]
        done = subprocess.run(command, input=stdin, env=env, capture_output=True, timeout=480)
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout.decode()

    with gnome_keyring() as env:
        program(env, "init")
        program(env, "set", "openai", stdin=b"sk-value")
        out = program(env, "recovery", "export", "--force", "-k", "2", "-n", "3")
        shares = typed([line for line in out.splitlines() if not line.startswith("#")][1:])
        program(env, "backup", backup)
    with gnome_keyring() as env:  # another machine: the same directory, an empty keyring
        program(env, "recovery", "restore", stdin=shares)
        program(env, "list")
    with gnome_keyring() as env:  # and again, with a new key
        program(env, "recovery", "reset-master", stdin=shares)
        assert json.loads(program(env, "status", "--json"))["master_version"] == 2
    shutil.rmtree(home)
    with gnome_keyring() as env:  # a backup of the old key's time
        program(env, "restore", backup, "--shares", "--reason", "test", stdin=shares)
        assert program(env, "get", "openai", "--reveal", "--force") == "sk-value"

"""``migrate``: by itself, by hand, before there is a vault, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Program
from tests.support import old


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(old.VARIABLE, old.ENV[old.VARIABLE])


@pytest.mark.usefixtures("key")
def test_the_next_command_migrates_and_says_so(cli: Program) -> None:
    path = old.fernet_file(cli.home.parent)
    done = cli("list", "--json")
    assert [item["name"] for item in done.json()] == old.NAMES
    assert "Migrated" in done.err
    assert "4 migrated" in done.err
    assert not path.exists()
    assert cli("list").err == ""
    done = cli("migrate", "finish")
    assert (done.code, "Erased" in done.out) == (0, True)
    assert cli("migrate").out.startswith("There is nothing to migrate")


def test_without_the_key_commands_go_on(cli: Program) -> None:
    path = old.fernet_file(cli.home.parent)
    done = cli("list", "--json")
    assert (done.code, done.json()) == (0, [])
    assert "APEX_AGENT_MASTER_KEY" in done.err
    assert path.exists()
    assert cli("migrate").code == 1


@pytest.mark.usefixtures("key")
def test_it_can_be_switched_off(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    old.fernet_file(cli.home.parent)
    assert cli("migrate", "off").code == 0
    assert cli("list", "--json").json() == []
    assert cli("migrate", "on").code == 0
    monkeypatch.setenv("APEX_CREDS_AUTO_MIGRATE", "0")
    assert cli("list", "--json").json() == []


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("command", ["init", "migrate"])
def test_an_installation_at_our_own_paths(bare: Program, command: str) -> None:
    old.install(bare.home, old.box_files(config={"rotation": {"master_key": 400}}))
    assert "apex-creds migrate" in bare("list").err
    done = bare("migrate", "--dry-run", "--json")
    assert (done.code, done.json()["sources"][0]["counts"]) == (0, {"migrated": 4})
    assert not (bare.home / "legacy").exists()
    done = bare(command, "--master", f"file:{bare.key}")
    assert done.code == 0, done
    assert [item["name"] for item in bare("list", "--json").json()] == old.NAMES
    assert bare("rotation", "policy", "master", "--json").json()["interval"] == 400 * 86_400


@pytest.mark.parametrize("command", ["init", "migrate"])
def test_a_key_store_that_does_not_open_stays(bare: Program, command: str) -> None:
    files = old.box_files()
    old.install(bare.home, files)
    done = bare(command, "--master", f"file:{bare.key}")
    assert done.code == 5
    assert "does not open" in done.err
    assert (bare.home / "security/keystore.enc").read_bytes() == files["security/keystore.enc"]
    assert not bare.key.exists()


@pytest.mark.usefixtures("key")
def test_a_conflict_by_hand(cli: Program) -> None:
    cli("set", "openai", stdin=b"new")
    old.fernet_file(cli.home.parent, {"api_keys": {"openai": "old", "bad\x1b[2J": "1"}})
    done = cli("migrate", "--dry-run")
    assert done.code == 1
    assert "\x1b" not in done.out
    assert "conflict    openai" in done.out
    assert cli("migrate").code == 1
    assert cli("migrate", "finish").code == 1
    assert cli("migrate", "--on-conflict", "replace", "--erase-after", "30d").code == 0
    assert cli("get", "openai", "--reveal", "--force").out == "old"


def test_a_dotenv_file_and_errors(cli: Program, tmp_path: Path) -> None:
    path = old.write(tmp_path / "x.env", b"A=1\n")
    done = cli("migrate", "--from", str(path), "--keep", "--json")
    assert (done.code, done.json()["complete"]) == (0, True)
    assert path.exists()
    assert cli("migrate", "--from", str(tmp_path / "none")).code == 1
    assert cli("migrate", "finish", "--from", "x").code == 7
    assert cli("migrate", "nonsense").code == 2


@pytest.mark.usefixtures("key")
def test_nothing_that_is_printed_holds_a_secret(cli: Program) -> None:
    canary = "canary-7f3a9c"
    content = {
        "api_keys": {"a": canary, "b": [canary], "c": "x"},
        "oauth_tokens": {"d": {"access_token": canary, "id_token": canary}},
    }
    old.fernet_file(cli.home.parent, content)
    cli("set", "c", stdin=b"y")
    for arguments in (["--dry-run"], ["--json"], [], ["finish"]):
        cli("migrate", *arguments)
    cli("list")
    printed = "".join(cli.seen)
    assert canary not in printed
    assert old.ENV[old.VARIABLE] not in printed
    for file in (p for p in cli.home.rglob("*") if p.is_file()):
        assert canary.encode() not in file.read_bytes()
        assert old.ENV[old.VARIABLE].encode() not in file.read_bytes()
    assert json.loads(cli("migrate", "--json").out)["complete"] is False


@pytest.mark.usefixtures("key")
def test_finish_keeps_what_could_not_be_read(cli: Program) -> None:
    path = old.fernet_file(cli.home.parent, {"api_keys": {"a": "1", "b": ["sk-unread"]}})
    assert "never erased" in cli("migrate").err
    assert cli("migrate", "--accept-partial").code == 1
    for _ in range(2):
        done = cli("migrate", "finish")
        assert done.code == 1
        assert "(1) that could not be read" in done.err
        assert f"kept {path}.bak" in done.out
    assert cli("migrate", "finish", "--json").json()["kept"] == [f"{path}.bak"]
    assert Path(f"{path}.bak").exists()


@pytest.mark.usefixtures("key")
def test_what_is_left_to_do_for_handles_is_said(cli: Program) -> None:
    old.fernet_file(cli.home.parent, {"api_keys": {"openai": "1", "inhouse": "2"}})
    assert cli("migrate", "off").code == 0
    done = cli("migrate")
    assert "to https://api.openai.com as bearer" in done.out
    assert "May be sent nowhere yet: inhouse." in done.err
    assert "apex-creds edit NAME --origin URL" in done.err

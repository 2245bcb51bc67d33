"""A vault in a database from the command line: init --storage, --join, db, copy."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest


@pytest.fixture
def url(fresh_home: Path) -> str:
    return f"sqlite:///{fresh_home}/vault.db"


@pytest.fixture
def made(bare, url):
    """The program, and a vault in a database."""
    assert bare("init", "--master", f"file:{bare.key}", "--storage", url).code == 0
    return bare


def test_a_vault_in_a_database_is_used_like_any(made):
    assert made("set", "openai", stdin=b"value").code == 0
    assert "openai" in made("list").out
    assert made("get", "openai", "--reveal", "--force").out == "value"
    assert made("status").code == 0
    assert not list((made.home / "credentials").iterdir())


def test_another_home_joins_it(made, url, fresh_home):
    made("set", "openai", stdin=b"value")
    other = str(fresh_home / "other")
    assert made("--home", other, "init", "--join", "--storage", url, home=False).code == 0
    assert "openai" in made("--home", other, "list", home=False).out
    again = made("--home", other, "init", "--join", "--storage", url, home=False)
    assert again.code == 3
    assert "already" in again.err


def test_only_a_vault_that_is_there_is_joined(bare, url):
    assert bare("init", "--join").code == 7
    assert bare("db", "upgrade", "--storage", url).code == 0
    done = bare("init", "--join", "--storage", url)
    assert done.code == 3
    assert "no vault" in done.err
    assert not (bare.home / "security").exists()


def test_a_vault_in_a_database_is_not_made_twice(made, url, fresh_home):
    other, key = str(fresh_home / "other"), f"file:{fresh_home}/other.key"
    new = ["--home", other, "init", "--master", key, "--storage"]
    done = made(*new, url, home=False)
    assert done.code == 3
    assert "--join" in done.err
    assert made(*new, f"{url}?space=new", home=False).code == 0
    assert made("--home", other, "list", home=False).code == 0
    assert len(made("db", "status", "--json").json()["vaults"]) == 2


def test_a_password_on_the_command_line_is_refused(bare):
    said = "postgresql+psycopg://app:canary-password@db.example.org/vault"
    for command in (
        ["init", "--master", f"file:{bare.key}", "--storage", said],
        ["init", "--join", "--storage", said],
        ["db", "status", "--storage", said],
    ):
        done = bare(*command)
        assert done.code == 7, done
        assert "passfile" in done.err
        assert "canary" not in done.err + done.out
    assert not bare.key.exists()


def test_db_says_what_is_there(bare, url):
    assert bare("db", "status").code == 7
    assert bare("db", "upgrade", "--storage", url).out == "Made the tables.\n"
    assert "are current" in bare("db", "upgrade", "--storage", url).out
    facts = bare("db", "status", "--storage", url, "--json").json()
    assert facts["state"] == "current"
    assert facts["tables"] == facts["needed"]
    assert facts["vaults"] == []


def test_tables_of_a_newer_program_are_refused(made, fresh_home):
    with sqlite3.connect(fresh_home / "vault.db") as connection:
        connection.execute("UPDATE apex_schema SET version_num = '9999'")
    connection.close()
    status = made("db", "status", "--json")
    assert (status.code, json.loads(status.out)["state"]) == (1, "newer")
    for command in (["db", "upgrade"], ["list"], ["set", "x"]):
        done = made(*command, stdin=b"v")
        assert done.code == 6, done
        assert "newer" in done.err


def test_copy(cli, url, fresh_home):
    cli("set", "openai", stdin=b"value")
    done = cli("copy", "--to", url, "--json").json()
    assert done["credentials"] == 1
    other = str(fresh_home / "other")
    there = f"{done['database']}?space={done['space']}"
    assert cli("--home", other, "init", "--join", "--storage", there, home=False).code == 0
    get = ["get", "openai", "--reveal", "--force"]
    assert cli("--home", other, *get, home=False).out == "value"
    assert cli("copy", "--to", url, "--json").json()["written"] == 0  # it is a copy still
    cli("set", "later", stdin=b"value")
    assert cli("copy", "--to", url).code == 3
    assert cli("copy", "--to", str(cli.home)).code == 7
    back = str(fresh_home / "back")
    assert cli("--home", other, "copy", "--to", back, home=False).code == 0
    refused = cli("--home", back, *get, home=False)  # the first place's log is longer
    assert refused.code == 5
    accept = ["audit", "accept-rollback", "--reason", "moved"]
    assert cli("--home", back, *accept, home=False).code == 0
    assert cli("--home", back, *get, home=False).out == "value"


def test_a_log_that_is_not_the_one_that_was_copied_is_found(made, fresh_home):
    made("set", "first", stdin=b"value")
    clone = fresh_home / "clone"
    shutil.copytree(made.home, clone)
    (fresh_home / "other").mkdir()
    key = shutil.copy(made.key, fresh_home / "other")  # with an anchor of its own
    other = ("--home", str(clone), "--master", f"file:{key}")
    assert made(*other, "set", "cloned", stdin=b"value", home=False).code == 0
    assert made("set", "second", stdin=b"value").code == 0
    done = made("audit", "verify", "--all")
    assert done.code == 10
    assert "is not what the log of this home itself has" in done.err
    assert made(*other, "audit", "verify", "--all", home=False).code == 0

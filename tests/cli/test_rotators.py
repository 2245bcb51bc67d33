"""edit --rotator, rotate credential and what is shown, by command, on a real PostgreSQL."""

from __future__ import annotations

import json
import time

import pytest

from tests.support.rotators import ADMIN, FIRST, roles

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def database():
    with roles() as running:
        yield running


@pytest.fixture
def server(database, cli):
    database.reset()
    for name, user, password in (("db-admin", "admin", ADMIN), ("db", "app_a", FIRST)):
        pair = f"{user}\n{password}".encode()
        options = ("--kind", "basic", "--origin", database.origin)
        assert cli("set", name, *options, stdin=pair).code == 0
    return database


def test_by_hand(cli, server):
    done = cli("edit", "db", "--rotator", server.two, "--rotate-every", "30d", "--json")
    assert done.json()["rotation"]["every"] == "30d"
    done = cli("rotate", "credential", "db", "--json")
    assert done.code == 0
    assert done.json()["previous_until"]
    shown = cli("show", "db", "--json").json()["rotation"]
    assert (shown["stage"], shown["outcome"]) == ("finish", "ok")
    assert server.lets_in("app_a", FIRST)
    done = cli("rotate", "credential", "db")
    assert (done.code, "--compromised" in done.err) == (6, True)
    assert cli("rotate", "credential", "db", "--compromised").code == 0
    assert not server.lets_in("app_a", FIRST)
    password = cli("get", "db", "--part", "password", "--reveal", "--force").out
    user = cli("get", "db", "--part", "user", "--reveal", "--force").out
    assert server.lets_in(user, password)
    status = cli("rotation", "status", "--json").json()
    assert [(each["name"], each["stage"]) for each in status["credentials"]] == [("db", "idle")]
    assert cli("edit", "db", "--rotator", "none").code == 0
    assert cli("show", "db", "--json").json()["rotation"] is None


def test_when_it_is_due_is_shown(cli, server, monkeypatch):
    def about_db():
        (status,) = cli("rotation", "status", "--json").json()["credentials"]
        (listed,) = (each for each in cli("list", "--json").json() if each["name"] == "db")
        shown = cli("show", "db", "--json").json()["rotation"]
        assert listed["rotation"] == shown == {k: status[k] for k in shown}
        return shown

    cli("edit", "db", "--rotator", server.two)
    assert (about_db()["due"], about_db()["overdue"]) == (None, False)
    cli("edit", "db", "--rotate-every", "30d")
    assert (about_db()["due"] > "2026", about_db()["overdue"]) == (True, False)
    assert "rotated, next 2" in cli("list").out
    assert "next due 2" in cli("rotation", "status").out
    assert cli("status", "--json").json()["rotation_overdue"] == []
    cli("edit", "db", "--rotate-every", "never", "--rotate-cron", "0 3 * * *")
    assert about_db()["due"].endswith("T03:00:00Z")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 2 * 86_400)
    assert about_db()["overdue"] is True
    assert "rotation overdue" in cli("list").out
    status = cli("rotation", "status")
    assert "was due at" in status.out + status.err
    assert cli("status", "--json").json()["rotation_overdue"] == ["db"]


def test_of_a_principal(cli, server):
    pair = f"app_a\n{FIRST}".encode()
    options = ("--kind", "basic", "--origin", server.origin, "--for", "alice")
    assert cli("set", "db", *options, stdin=pair).code == 0
    assert cli("edit", "db", "--for", "alice", "--rotator", server.two).code == 0
    assert cli("show", "db", "--json").json()["rotation"] is None
    assert cli("rotate", "credential", "db").code == 7
    done = cli("rotate", "credential", "db", "--for", "alice", "--json")
    assert (done.code, done.json()["principal"], done.json()["version"]) == (0, "alice", 3)
    assert cli("show", "db", "--json").json()["version"] == 1
    assert "db (of alice): replaced by" in cli("rotation", "status").out


def test_a_rotator_that_is_taken_away_leaves_no_other_value(cli, server):
    cli("edit", "db", "--rotator", server.one, "--rotate-grace", "1h")
    server.server.sql("ALTER ROLE app_a NOLOGIN")
    try:
        assert cli("rotate", "credential", "db").code == 13
        stage = cli("show", "db", "--json").json()["rotation"]["stage"]
        assert stage == "needs_person"
        assert cli("status", "--json").json()["not_rotated"] == ["db"]
        done = cli("edit", "db", "--rotator", "none")
        assert (done.code, "had left were deleted" in done.err) == (0, True)
        part = ("--part", "previous_password", "--reveal", "--force")
        assert cli("get", "db", *part).code != 0
    finally:
        server.server.sql("ALTER ROLE app_a LOGIN")


def test_a_refusal_is_an_error_and_is_shown(cli, server):
    cli("edit", "db", "--rotator", f"{server.two}x")
    done = cli("rotate", "credential", "db", "--json")
    assert done.code == 13
    assert json.loads(done.err)["error"] == "RotatorRefusedError"
    outcomes = [each["rotation"] for each in cli("list", "--json").json()]
    assert [each["outcome"] for each in outcomes if each] == ["refused"]
    assert "failed (refused)" in cli("rotation", "status").out + cli("rotation", "status").err
    assert FIRST not in "".join(cli.seen)
    assert ADMIN not in "".join(cli.seen)


def test_what_is_not_understood(cli, server):
    assert cli("rotate", "credential", "db").code == 7
    assert cli("rotate", "credential").code == 7
    assert cli("rotate", "dek", "db").code == 7
    assert cli("rotate", "credential", "nothing").code == 8
    assert cli("edit", "db", "--rotator", "nothing:https://x").code == 7
    assert cli("edit", "db", "--rotate-every", "30d").code == 7
    assert cli("edit", "db-admin", "--rotator", server.two, "--rotate-cron", "x").code == 7
    cli("set", "key", stdin=b"value")
    assert cli("edit", "key", "--rotator", server.two).code == 7

"""edit --rotator, rotate credential and what is shown, by command, on a real PostgreSQL."""

from __future__ import annotations

import json

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

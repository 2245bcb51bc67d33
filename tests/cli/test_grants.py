"""grant, grants, revoke."""

from __future__ import annotations


def test_a_grant_comes_and_goes(cli):
    done = cli(
        "grant", "demo.x", "openai", "--scope", "a", "--scope", "b", "--until", "2999-01-01",
        "--ahead",
    )  # fmt: skip
    assert done.code == 0
    assert "no credential of that name" in done.err
    done = cli("grant", "demo.y", "openai", "--reveal", "--echoes", "--ahead")
    assert "answers are not searched" in done.out
    made = cli("grants", "--json").json()
    assert [g["echoes"] for g in made] == [False, True]
    assert [(g["plugin"], g["reveal"], g["scopes"], g["until"]) for g in made] == [
        ("demo.x", False, ["a", "b"], "2999-01-01T00:00:00Z"),
        ("demo.y", True, [], None),
    ]
    table = cli("grants").out
    assert "demo.x" in table
    assert "reveal" in table
    assert cli("revoke", "demo.x", "openai").code == 0
    assert [g["plugin"] for g in cli("grants", "--json").json()] == ["demo.y"]
    assert cli("revoke", "--credential", "openai").code == 0
    assert cli("grants", "--json").json() == []


def test_a_grant_on_what_is_not_there_is_made_only_when_told_so(cli):
    done = cli("grant", "demo.x", "opnai")
    assert done.code == 8
    assert "nothing was granted" in done.err
    assert "--ahead" in done.err
    assert cli("grants", "--json").json() == []
    assert cli("grant", "demo.x", "opnai", "--ahead").code == 0
    assert cli("set", "openai", stdin=b"sk-1").code == 0
    assert cli("grant", "demo.x", "openai").code == 0
    assert len(cli("grants", "--json").json()) == 2


def test_a_plugin_loses_all(cli):
    for name in ("a", "b"):
        cli("grant", "p", name, "--ahead")
    done = cli("revoke", "p")
    assert done.out.count("may no longer use") == 2


def test_mistakes(error):
    error(7, "revoke")
    error(8, "revoke", "nobody")
    error(7, "revoke", "p", "a", "--credential", "b")
    error(7, "grant", "p\n", "a", "--ahead")
    error(7, "grant", "p", "a", "--until", "2001-01-01", "--ahead")
    error(2, "grant", "p")

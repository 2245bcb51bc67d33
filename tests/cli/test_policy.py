"""``policy check`` and ``policy explain``, and levels in ``set`` and ``show``."""

from __future__ import annotations

import json

import pytest

POLICY = """\
version = 1

[levels.normal]
decision = "allow"

[[rules]]
id = "reads"
decision = "allow"
plugin = "github.*"
action = "list_*"

[[rules]]
id = "no-writes"
decision = "deny"
scope = "write"

[[rules]]
id = "nights"
decision = "deny"
plugin = "github.issues"
time = { from = "22:00", to = "06:00", zone = "Europe/Berlin" }
"""


@pytest.fixture
def ruled(cli):
    path = cli.home / "security" / "policy.toml"
    path.touch(mode=0o600)
    path.write_text(POLICY)
    done = cli("set", "token", "--origin", "https://api.github.com", stdin=b"secret")
    assert done.code == 0
    return cli


def test_check_says_that_it_is_valid(ruled):
    done = ruled("policy", "check")
    assert done.code == 0
    assert "3 rules, 0 limits" in done.out
    found = ruled("policy", "check", "--json").json()
    assert (found["ok"], found["rules"]) == (True, 3)
    assert found["levels"]["critical"] == {"decision": "ask", "second_factor": "each_lease"}


def test_check_names_the_line(ruled, error, tmp_path):
    path = ruled.home / "security" / "policy.toml"
    path.write_text(POLICY.replace('"write"', '"w*ite"'))
    assert "policy.toml, line 15:" in error(7, "policy", "check")
    done = ruled("policy", "check", "--json")
    assert (done.code, done.json()["line"]) == (7, 15)
    other = tmp_path / "other.toml"
    other.write_text("version = 1\nfoo = 2\n")
    assert "other.toml, line 2:" in error(7, "policy", "check", str(other))
    assert "other2" in error(6, "policy", "check", str(tmp_path / "other2"))
    path.chmod(0o644)
    assert "chmod 600" in error(6, "policy", "check")


def test_check_without_a_file(cli):
    assert "no policy file" in cli("policy", "check").out
    assert not cli("policy", "check", "--json").json()["file"]


def explain(cli, *arguments):
    done = cli("policy", "explain", *arguments, "--json")
    assert done.code == 0
    found = json.loads(done.out)
    return found["outcome"], found["reason"], found["rule"]


NOON = ("--at", "2024-07-01T12:00Z")


def test_explain_names_the_rule(ruled):
    asked = ("github.issues", "token", "list_all")
    assert explain(ruled, *asked, *NOON) == ("allow", "policy_allowed", "reads")
    assert explain(ruled, *asked, "--at", "2024-07-01T20:30Z") == (
        "deny",
        "policy_denied",
        "nights",
    )
    assert explain(ruled, *asked, "--scope", "write", *NOON)[2] == "no-writes"
    assert explain(ruled, "x", "token", "list_all", "--scope", "write") == (
        "deny",
        "policy_denied",
        "no-writes",
    )
    assert explain(ruled, "x", "token", "list_all") == (
        "ask",
        "not_granted",
        "levels.sensitive",
    )
    assert explain(ruled, "x", "nothing", "list_all")[:2] == ("deny", "unknown_credential")


def test_explain_knows_grants_and_levels(ruled):
    assert ruled("grant", "x", "token").code == 0
    assert explain(ruled, "x", "token", "go")[:2] == ("allow", "granted")
    assert ruled("set", "token", "--sensitivity", "critical", stdin=b"2").code == 0
    assert explain(ruled, "x", "token", "go") == (
        "ask",
        "second_factor_needed",
        "levels.critical",
    )
    assert ruled("set", "token", "--sensitivity", "normal", stdin=b"3").code == 0
    assert explain(ruled, "y", "token", "go") == ("allow", "policy_allowed", "levels.normal")


def test_explain_in_words(ruled):
    done = ruled("policy", "explain", "github.issues", "token", "list_all", *NOON)
    assert done.out.splitlines()[0] == "allow (policy_allowed)"
    assert "reads (line 6)" in done.out


def test_levels_are_shown_and_kept(cli, error):
    assert cli("set", "a", "--sensitivity", "critical", stdin=b"1").code == 0
    assert cli("set", "a", stdin=b"2").code == 0
    assert cli("show", "a", "--json").json()["sensitivity"] == "critical"
    assert cli("set", "b", stdin=b"1").code == 0
    assert cli("show", "b", "--json").json()["sensitivity"] == "sensitive"
    error(2, "set", "c", "--sensitivity", "extreme", stdin=b"1")


def test_what_is_no_time_or_scope_is_told(ruled, error):
    error(7, "policy", "explain", "x", "token", "go", "--at", "noon")
    error(7, "policy", "explain", "x", "token", "go", "--origin", "api")
    error(7, "policy", "explain", "x\n", "token", "go")

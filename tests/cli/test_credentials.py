"""set, list, show, get, rm."""

from __future__ import annotations

import base64
import secrets
import time

import pytest

VALUE = "sk-" + secrets.token_hex(16)


def put(cli, name="openai", *options, value=VALUE):
    done = cli("set", name, *options, stdin=value.encode() + b"\n")
    assert done.code == 0, done
    return done


def reveal(cli, name="openai", *options):
    done = cli("get", name, "--reveal", "--force", *options)
    assert done.code == 0, done
    return done.out


def test_what_is_set_comes_back_and_only_by_get(cli):
    put(cli, "openai", "--origin", "https://api.openai.com", "--service", "ai")
    assert reveal(cli) == VALUE
    cli("list"), cli("show", "openai"), cli("list", "--json"), cli("status"), cli("doctor")
    cli("audit", "tail", "--json")
    shown = [text for text in cli.seen if VALUE in text]
    assert len(shown) == 1


def test_options_are_kept(cli):
    put(
        cli,
        "openai",
        *("--service", "ai", "--delivery", "header:X-Api-Key", "--expires", "2999-01-02"),
        *("--origin", "https://a.example", "--origin", "http://localhost:8080"),
    )
    info = cli("show", "openai", "--json").json()
    assert info["service"] == "ai"
    assert info["delivery"] == "header:X-Api-Key"
    assert info["origins"] == ["https://a.example", "http://localhost:8080"]
    assert info["expires"] == "2999-01-02T00:00:00Z"
    assert cli("list", "--json").json() == [info]


def test_a_new_value_is_a_new_version_of_the_same_kind(cli):
    cli("set", "box", "--kind", "basic", stdin=b"user\nold\n")
    done = cli("set", "box", stdin=b"user\nnew\n")
    assert "(basic), version 2" in done.out
    assert reveal(cli, "box") == "new"
    assert reveal(cli, "box", "--part", "user") == "user"


def test_a_key_of_aws_with_its_session_token(cli):
    cli("set", "aws", "--delivery", "aws4:eu-west-1/s3", stdin=b"AKID\nkey/+=\ntoken==\n")
    assert cli("show", "aws", "--json").json()["kind"] == "basic"
    parts = {
        part: reveal(cli, "aws", "--part", part) for part in ("user", "password", "session")
    }
    assert parts == {"user": "AKID", "password": "key/+=", "session": "token=="}
    cli("set", "aws", stdin=b"AKID2\nkey2\n")  # it is one still, now a lasting one
    assert reveal(cli, "aws", "--part", "user") == "AKID2"
    assert cli("get", "aws", "--reveal", "--force", "--part", "session").code != 0


@pytest.mark.parametrize("given", [b"AKID\n", b"AKID\n\n", b"a\nb\nc\nd\n"])
def test_half_a_key_of_aws_is_refused(cli, given):
    refused = cli("set", "aws", "--delivery", "aws4", stdin=given)
    assert refused.code != 0
    assert "two or three lines" in refused.err


def test_parts_of_a_token(cli):
    cli("set", "gh", "--kind", "oauth_token", stdin=b"acc\nref\nrepo user\n")
    assert reveal(cli, "gh") == "acc"
    assert reveal(cli, "gh", "--part", "refresh") == "ref"
    assert cli("show", "gh", "--json").json()["scope"] == "repo user"


def test_generic_keeps_every_byte(cli):
    data = bytes(range(256)) + b"\n"
    assert cli("set", "blob", "--kind", "generic", stdin=data).code == 0
    got = cli("get", "blob", "--reveal", "--force", "--json").json()
    assert got["encoding"] == "base64"
    assert base64.b64decode(got["value"]) == data
    # The raw way, through a real pipe.
    import os
    import subprocess

    from tests.support.commands import PROGRAM

    command = [*PROGRAM, "--home", str(cli.home), "get", "blob", "--reveal", "--force"]
    assert subprocess.run(command, stdout=subprocess.PIPE, env=os.environ).stdout == data


def test_get_wants_to_be_told_and_a_terminal(cli, error):
    put(cli)
    assert "--reveal" in error(7, "get", "openai")
    assert "not a terminal" in error(7, "get", "openai", "--reveal")
    events = cli("audit", "tail", "--json").json()
    assert "expose" not in {event["kind"] for event in events}
    reveal(cli)
    assert cli("audit", "tail", "--json").json()[-1]["kind"] == "expose"


def test_rm_says_what_it_verified(cli, error):
    put(cli)
    assert "--yes" in error(7, "rm", "openai")
    done = cli("rm", "openai", "--yes")
    assert done.code == 0
    assert "shredding    verified" in done.out
    assert "overwriting" in done.out
    error(8, "show", "openai")
    error(8, "rm", "openai", "-y")


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["set", "a"], b""),
        (["set", "a"], b"\n"),
        (["set", "a"], b"\xff\xfe"),
        (["set", "a"], b"x" * 70_000),
        (["set", "a", "--kind", "basic"], b"only-user\n"),
        (["set", "a", "--kind", "basic"], b"a:b\npw\n"),
        (["set", "a", "--kind", "oauth_token"], b"1\n2\n3\n4\n"),
        (["set", "a\x1b[31m"], b"v"),
        (["set", "x" * 10_000], b"v"),
        (["set", ""], b"v"),
        (["set", "a", "--origin", "not an origin"], b"v"),
        (["set", "a", "--delivery", "carrier pigeon"], b"v"),
        (["set", "a", "--expires", "yesterday"], b"v"),
        (["set", "a", "--expires", "2001-01-01"], b"v"),
        (["set", "a", "--service", "b\n"], b"v"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_stored(cli, error, arguments, stdin):
    error(7, *arguments, stdin=stdin)
    assert cli("list", "--json").json() == []


def test_a_value_typed_as_an_argument_is_not_repeated(cli, error):
    text = error(2, "set", "openai", VALUE)
    assert VALUE not in text
    assert "never an argument" in text
    assert VALUE not in error(2, VALUE)
    assert VALUE not in error(2, "set", "openai", f"--value={VALUE}")
    assert VALUE not in error(7, "--master", VALUE, "list")


def test_expired_is_marked(cli, monkeypatch):
    put(cli, "openai", "--expires", "1h")
    later = time.time() + 7200
    monkeypatch.setattr("apex_creds.cli.credential_commands.time.time", lambda: later)
    assert "(expired)" in cli("list").out
    assert cli("show", "openai", "--json").json()["expired"] is True


def test_names_are_shown_as_they_are_without_markup(cli):
    for name in ("[red]x[/red]", "[link=http://e]y", "emoji :bomb:", "ключ"):
        put(cli, name)
        assert name in cli("list").out
        assert name in cli("show", name).out


def test_the_mark_for_challenges(cli, error):
    put(cli, "openai", "--challenge")
    assert cli("show", "openai", "--json").json()["challenge"] is True
    assert "challenge" in cli("list").out
    put(cli, "openai", value="sk-new")  # keeps it
    assert cli("show", "openai", "--json").json()["challenge"] is True
    assert "critical, challenge" in cli("edit", "openai", "--sensitivity", "critical").out
    assert cli("edit", "openai", "--no-challenge").code == 0
    info = cli("show", "openai", "--json").json()
    assert (info["challenge"], info["sensitivity"], info["version"]) == (False, "critical", 2)
    assert reveal(cli) == "sk-new"
    assert "nothing to change" in error(7, "edit", "openai")
    error(8, "edit", "nobody", "--challenge")
    told = [event.get("detail", "") for event in cli("audit", "tail", "--json").json()]
    assert "takes no challenge" in told


def test_where_it_may_be_sent_is_changed_without_the_value(cli, error):
    put(cli, "openai", value="sk-same")
    assert "apex-creds edit openai --origin URL" in cli("grant", "p", "openai").err
    done = cli("edit", "openai", "--origin", "https://a.example", "--delivery", "header:X-Key")
    assert "https://a.example, as header:X-Key" in done.out
    info = cli("show", "openai", "--json").json()
    assert (info["origins"], info["delivery"], info["version"]) == (
        ["https://a.example"], "header:X-Key", 1,
    )  # fmt: skip
    assert reveal(cli) == "sk-same"
    assert cli("grant", "p", "openai").err == ""
    assert cli("edit", "openai", "--origin", "https://b.example").code == 0
    assert cli("show", "openai", "--json").json()["origins"] == ["https://b.example"]
    for wrong in (("--origin", "b.example"), ("--delivery", "by pigeon")):
        error(7, "edit", "openai", *wrong)
    told = [event.get("detail", "") for event in cli("audit", "tail", "--json").json()]
    assert "may be sent to https://a.example; sent as header:X-Key" in told


def test_a_credential_is_somebodys(cli):
    put(cli, "key")
    put(cli, "key", "--for", "alice", value="alices-own-value")
    listed = cli("list", "--json").json()
    assert [(each["name"], each["principal"]) for each in listed] == [
        ("key", None),
        ("key", "alice"),
    ]
    assert len(cli("list", "--for", "alice", "--json").json()) == 1
    assert cli("show", "key", "--for", "alice", "--json").json()["principal"] == "alice"
    shown = cli("get", "key", "--for", "alice", "--reveal", "--force")
    assert shown.out.strip() == "alices-own-value"
    assert cli("show", "key", "--for", "bob").code != 0
    assert cli("show", "key", "--for", "").code != 0  # an empty variable is not the shared one
    assert (
        cli("grant", "demo", "key", "--for", "alice", "--json").json()["principal"] == "alice"
    )
    assert cli("revoke", "demo", "key").code != 0
    assert cli("revoke", "demo", "key", "--for", "alice").code == 0
    assert cli("rm", "key", "--for", "alice", "--yes").code == 0
    assert [each["principal"] for each in cli("list", "--json").json()] == [None]


def test_edit_says_what_it_changed_and_nothing_else(cli):
    cli("set", "openai", "--origin", "https://a.example", stdin=b"sk-1234567890")
    ends = cli("edit", "openai", "--expires", "2199-01-01").out
    assert ends == "openai expires at 2199-01-01T00:00:00Z.\n"
    assert cli("edit", "openai", "--expires", "never").out == "openai never expires.\n"
    sent = cli("edit", "openai", "--delivery", "header:X-Key").out
    assert sent == "openai may be sent to https://a.example, as header:X-Key.\n"
    both = cli("edit", "openai", "--sensitivity", "critical", "--origin", "https://b.example")
    assert both.out.splitlines() == [
        "openai is critical from now on.",
        "openai may be sent to https://b.example, as header:X-Key.",
    ]

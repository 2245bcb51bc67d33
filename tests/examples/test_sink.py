"""The example of a sink: a web hook gets lines as the log has them, each until it is taken."""

from __future__ import annotations

import json

import pytest

from apex_creds.audit.sinks import parse
from apex_creds.errors import InvalidInputError
from tests.support.http_servers import serving


@pytest.fixture
def hook():
    """A server that takes every second request, in the order of events, and keeps the rest."""
    got, refused = [], []

    def answer(_, data):
        take = data in refused
        (got if take else refused).append(data)
        return 204 if take else 503, b"", {}

    with serving(answer) as server:
        server.got = got
        yield server


def test_a_command_posts_what_it_did(install, hook, tmp_path):
    run = install("webhook_sink", "webhook")
    run("init", "--master", f"file:{tmp_path}/m.key")
    to = f"webhook+http://127.0.0.1:{hook.server_port}/in?level=mutations"
    run(
        *("set", "openai", "--origin", "https://api.example.com"),
        stdin=b"sk-made-up-1234", APEX_CREDS_AUDIT_TO=to,
    )  # fmt: skip
    assert [json.loads(data)["kind"] for data in hook.got] == ["put"]
    lines = b"".join(path.read_bytes() for path in (tmp_path / "home/security/audit").iterdir())
    assert all(data + b"\n" in lines for data in hook.got)
    assert b"sk-made-up" not in b"".join(hook.got)


def test_where_no_package_has_the_scheme_it_is_refused(install, tmp_path):
    run = install("webhook_sink", "webhook")
    run("init", "--master", f"file:{tmp_path}/m.key")
    for to in ("web://127.0.0.1/in", "webhook://127.0.0.1/in?colour=red"):
        assert "is not an audit destination" in run("list", APEX_CREDS_AUDIT_TO=to, code=7)


def test_what_a_package_makes_has_to_be_a_sink(monkeypatch):
    monkeypatch.setattr("apex_creds.extensions.make", lambda _group, _url: "no sink")
    with pytest.raises(InvalidInputError, match="not an audit sink"):
        parse("other:")

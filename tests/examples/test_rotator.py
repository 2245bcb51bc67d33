"""The example of a rotator: the suite that is shipped, and by command where it is installed."""

from __future__ import annotations

import pytest

from apex_creds.model import ApiKey
from apex_creds.testing.rotators import Place, RotatorContract
from tests.support.http_servers import serving

FIRST = "acme_first"


class Acme:
    """The API that the example is for."""

    def __init__(self):
        self.keys = {FIRST}

    def respond(self, asked, body):
        key = body.decode()
        status = 204 if asked.headers["authorization"][len("Bearer ") :] in self.keys else 401
        if status == 204 and asked.command == "PUT":
            self.keys.add(key)
        elif status == 204 and asked.command == "DELETE":
            status = 204 if key in self.keys else 404
            self.keys.discard(key)
        return status, b"", {}

    async def takes(self, value):
        return value.parts["value"].decode() in self.keys


@pytest.fixture
def acme():
    made = Acme()
    with serving(made.respond) as server:
        made.origin = server.origin
        yield made


class TestAcmeKeys(RotatorContract):
    @pytest.fixture
    def place(self, acme, load):
        rotator = load("acme_rotator", "acme").AcmeKeys.from_uri(f"acme:{acme.origin}/mine")
        return Place(rotator=rotator, first=ApiKey(FIRST), takes=acme.takes)


@pytest.mark.e2e
def test_by_command_where_it_is_installed(acme, install, tmp_path):
    run = install("acme_rotator", "acme")
    run("init", "--master", f"file:{tmp_path}/master.key")
    run("set", "acme", "--origin", acme.origin, stdin=FIRST.encode())
    run("edit", "acme", "--rotator", f"acme:{acme.origin}/mine", "--rotate-every", "30d")
    said = run("rotate", "credential", "acme", "--compromised")
    assert "not valid any more" in said
    assert len(acme.keys) == 1
    assert FIRST not in acme.keys
    value = run("get", "acme", "--reveal", "--force")
    assert acme.keys == {value}
    del run.env["PYTHONPATH"]
    run("rotate", "credential", "acme", code=7)

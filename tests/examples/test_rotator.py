"""The example of a rotator: the suite that is shipped, and by command where it is installed."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from apex_creds.model import ApiKey
from apex_creds.testing.rotators import Place, RotatorContract

FIRST = "acme_first"


class Acme:
    """The API that the example is for."""

    def __init__(self):
        keys = self.keys = {FIRST}

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self):
                who = self.headers["authorization"].removeprefix("Bearer ")
                body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
                status = 204 if who in keys else 401
                if status == 204 and self.command == "PUT":
                    keys.add(body)
                elif status == 204 and self.command == "DELETE":
                    status = 204 if body in keys else 404
                    keys.discard(body)
                self.send_response(status)
                self.end_headers()

            do_GET = do_PUT = do_DELETE = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    async def takes(self, value):
        return value.parts["value"].decode() in self.keys


@pytest.fixture
def acme():
    made = Acme()
    yield made
    made.close()


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

"""What a hostile server, network or page may try while somebody connects: item by item.

Each ends in an error of ours that says what it was; nothing is stored, no token is in the log.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from apex_creds.errors import ApexCredsError, InvalidInputError, OAuthError
from apex_creds.oauth import Provider, Way, connect
from apex_creds.oauth import provider_presets as providers
from apex_creds.oauth.messages import Pkce
from tests.oauth.test_connect import SCOPE, somebody
from tests.support.worlds import World

pytestmark = pytest.mark.anyio
CANARY = "hostile-token-canary"


class Hostile:
    """Answers whatever a test says; knows what it was sent."""

    def __init__(self) -> None:
        self.status, self.body = 200, b""
        self.headers: dict[str, str] = {}
        self.paths: list[str] = []
        self.endless = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.paths.append(self.path)
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                if not outer.endless:
                    self.send_header("content-length", str(len(outer.body)))
                self.end_headers()
                try:
                    self.wfile.write(outer.body)
                    while outer.endless:
                        self.wfile.write(b" " * 65536)
                except OSError:
                    pass

            do_GET = do_POST = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(
            target=self.server.serve_forever, args=(0.01,), daemon=True
        )
        self.thread.start()

    def close(self) -> None:
        self.endless = False
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    made = Hostile()
    yield made
    made.close()


async def refused(world: World, hostile: Hostile) -> ApexCredsError:
    """Connects; the error. Nothing is stored, and nothing of the answer is anywhere."""
    provider = Provider(name="hostile", token_endpoint=f"{hostile.address}/token")
    before = [info.name for info in await world.vault.list()]
    with pytest.raises(ApexCredsError) as caught:
        await connect(
            world.vault,
            "made",
            provider,
            client_id="desk",
            way=Way.CLIENT,
            show=lambda _: None,
        )
    assert [info.name for info in await world.vault.list()] == before
    world.vault.audit.flush()
    for path in (world.where / "home").rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes()
    assert CANARY not in f"{caught.value} {caught.value.hint}"
    return caught.value


def answer(**changes: object) -> bytes:
    fields = {"access_token": CANARY, "token_type": "Bearer", "expires_in": 300} | changes
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"access_token": ""},
        {"access_token": 5},
        {"access_token": None},
        {"access_token": [CANARY]},
        {"access_token": {"a": CANARY}},
        {"access_token": f"{CANARY}\r\nx: y"},
        {"access_token": f"{CANARY}\u202e"},
        {"refresh_token": 5},
        {"refresh_token": {"a": CANARY}},
        {"token_type": "mac"},
        {"token_type": 5},
        {"scope": ["a"]},
        {"expires_in": -1},
        {"expires_in": "300"},
        {"expires_in": "soon"},
        {"expires_in": True},
        {"expires_in": [300]},
        {"expires_in": 1e308},
        {"error": "invalid_grant"},
        {"error": {"code": CANARY}},
    ],
)
async def test_fields_of_wrong_types(
    world: World, hostile: Hostile, changes: dict[str, object]
) -> None:
    hostile.body = answer(**changes)
    assert isinstance(await refused(world, hostile), OAuthError)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe",
        b"<html>",
        b"[" * 100_000,
        b'{"access_token": NaN}',
        b'{"access_token": "' + b"x" * (1 << 18) + b'"}',
    ],
    ids=repr,
)
async def test_bodies_that_are_none(world: World, hostile: Hostile, body: bytes) -> None:
    hostile.body = body
    assert isinstance(await refused(world, hostile), OAuthError)


async def test_a_huge_body_is_not_read_to_its_end(world: World, hostile: Hostile) -> None:
    hostile.endless = True
    assert "256 KiB" in (await refused(world, hostile)).message


async def test_a_body_that_grows_as_it_is_unpacked(world: World, hostile: Hostile) -> None:
    hostile.headers, hostile.body = {"content-encoding": "gzip"}, b"\x1f\x8b" + b"0" * 100
    assert "compressed" in (await refused(world, hostile)).message


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_elsewhere_is_not_followed(
    world: World, hostile: Hostile, status: int
) -> None:
    hostile.status, hostile.headers = status, {"location": f"{hostile.address}/elsewhere"}
    hostile.body = answer()
    await refused(world, hostile)
    assert hostile.paths == ["/token"]


async def test_an_end_that_is_not_said_is_no_end(world: World, hostile: Hostile) -> None:
    hostile.body = json.dumps({"access_token": CANARY}).encode()
    provider = Provider(name="silent", token_endpoint=f"{hostile.address}/token")
    made = await connect(
        world.vault, "made", provider, client_id="desk", way=Way.CLIENT, show=lambda _: None
    )
    assert made.info.expires is None


@pytest.mark.parametrize(
    "change",
    [
        lambda found, _: found | {"issuer": "https://login.example.com"},
        lambda found, own: found | {"issuer": own + "/"},
        lambda found, _: found | {"token_endpoint": "http://login.example.com/token"},
        lambda found, _: found | {"token_endpoint": "https://user:pw@example.com/token"},
        lambda found, _: found | {"authorization_endpoint": "javascript:alert(1)"},
        lambda found, _: found | {"revocation_endpoint": "http://10.0.0.1/revoke"},
        lambda found, _: found | {"token_endpoint": 5},
        lambda found, _: found | {"code_challenge_methods_supported": ["plain"]},
        lambda _, __: [],
    ],
)
async def test_discovery_that_is_anothers(
    hostile: Hostile, change: Callable[[dict[str, object], str], object]
) -> None:
    own = hostile.address
    found: dict[str, object] = {
        "issuer": own,
        "token_endpoint": f"{own}/token",
        "authorization_endpoint": f"{own}/authorize",
    }
    hostile.body = json.dumps(found).encode()
    assert (await providers.find(own)).token_endpoint == f"{own}/token"
    hostile.body = json.dumps(change(found, own)).encode()
    with pytest.raises(ApexCredsError):
        await providers.find(own)


@pytest.mark.parametrize(
    "address",
    [
        "http://login.example.com/token",
        "http://127.0.0.1.example.com/token",
        "http://localhost.example.com/token",
        "http://127.0.0.1@example.com/token",
        "ftp://127.0.0.1/token",
        "//login.example.com/token",
        "https:///token",
    ],
)
async def test_an_endpoint_in_the_clear(world: World, address: str) -> None:
    with pytest.raises(InvalidInputError):
        await connect(
            world.vault,
            "made",
            Provider(name="clear", token_endpoint=address),
            client_id="desk",
            way=Way.CLIENT,
            show=lambda _: None,
        )
    assert "made" not in [info.name for info in await world.vault.list()]


@pytest.mark.e2e
async def test_a_proof_key_that_does_not_match(
    world: World, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a code of somebody else's authorization came."""
    wrong = Pkce(verifier="v" * 43, challenge=Pkce.fresh().challenge)
    monkeypatch.setattr(Pkce, "fresh", staticmethod(lambda: wrong))
    with pytest.raises(OAuthError) as caught:
        await connect(
            world.vault, "made", provider, client_id="desk", scope=SCOPE, show=somebody()
        )
    assert caught.value.code == "invalid_grant"
    assert "made" not in [info.name for info in await world.vault.list()]

"""How a device asks whether it was allowed (RFC 8628), of a server that says anything."""

from __future__ import annotations

import json

import pytest

from apex_creds.errors import OAuthError, OAuthUnreachableError
from apex_creds.oauth import Provider, flows, messages
from apex_creds.oauth.endpoints import Answer, Client

pytestmark = pytest.mark.anyio
PROVIDER = Provider(
    name="tv",
    token_endpoint="https://login.example.com/token",
    device_endpoint="https://login.example.com/device",
)


def said(status: int, **fields: object) -> Answer:
    return Answer(status, json.dumps(fields).encode())


CODE = {"device_code": "d", "user_code": "AB-CD", "verification_uri": "https://example.com"}
TOKEN = said(200, access_token="token")
PENDING = said(400, error="authorization_pending")
SLOWER = said(400, error="slow_down")
FAILED = Answer(503, b"<html>")
BUSY = Answer(429, b"<html>")
GONE = OAuthUnreachableError("It did not answer.", sent=True)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited = list[float]()

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(flows.anyio, "sleep", sleep)
    return waited


async def asked(
    monkeypatch: pytest.MonkeyPatch, *answers: Answer | OAuthError, **fields: object
) -> messages.Tokens:
    left = iter([said(200, expires_in=600, **CODE, **fields), *answers])

    async def post(*_: object) -> Answer:
        answer = next(left)
        if isinstance(answer, OAuthError):
            raise answer
        return answer

    monkeypatch.setattr(flows.endpoints, "post", post)
    return await flows.authorize_device(PROVIDER, Client(id="tv"), show=lambda _: None)


async def test_a_server_that_fails_for_a_while_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    made = await asked(monkeypatch, PENDING, FAILED, BUSY, GONE, TOKEN, interval=2)
    assert made.access == "token"
    assert waits == [2.0, 2.0, 4.0, 8.0, 16.0]


async def test_it_is_not_asked_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    await asked(monkeypatch, *[GONE] * 9, TOKEN)
    assert max(waits) == 60.0


async def test_who_is_asked_to_slow_down_does(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    await asked(monkeypatch, SLOWER, PENDING, SLOWER, *[GONE] * 9, TOKEN, interval=59)
    assert waits[:4] == [59.0, 64.0, 64.0, 69.0]
    assert set(waits[4:]) == {69.0}


@pytest.mark.parametrize("interval", [0.01, 1e6])
async def test_an_interval_that_is_none(
    monkeypatch: pytest.MonkeyPatch, waits: list[float], interval: float
) -> None:
    await asked(monkeypatch, TOKEN, interval=interval)
    assert 1.0 <= waits[0] <= 60.0


@pytest.mark.parametrize("interval", [0, -1, "5", True, [5]])
async def test_an_interval_of_another_type(
    monkeypatch: pytest.MonkeyPatch, waits: list[float], interval: object
) -> None:
    with pytest.raises(OAuthError):
        await asked(monkeypatch, TOKEN, interval=interval)
    assert waits == []


def test_a_code_is_good_for_an_hour_at_most() -> None:
    body = json.dumps({**CODE, "expires_in": 10 * 365 * 86_400}).encode()
    assert messages.parse_device(200, body).expires_in == 3600.0


@pytest.mark.parametrize("name", ["verification_uri", "verification_uri_complete"])
@pytest.mark.parametrize("uri", ["javascript:alert(1)", "file:///etc/passwd", "http://a.test"])
def test_a_page_that_nobody_is_sent_to(name: str, uri: str) -> None:
    body = json.dumps({**CODE, "expires_in": 600, name: uri}).encode()
    with pytest.raises(OAuthError) as caught:
        messages.parse_device(200, body)
    assert uri not in f"{caught.value} {caught.value.hint}"

"""Answers of authorization servers: what is taken, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.errors import InvalidInputError, OAuthError
from apex_creds.model import (
    Connection,
    ConnectionState,
    CredentialInfo,
    CredentialKind,
    Delivery,
)
from apex_creds.oauth import messages
from apex_creds.oauth import provider_presets as providers
from apex_creds.oauth.messages import Pkce, is_final, is_secure, parse_redirect, parse_tokens
from apex_creds.oauth.refresh import is_due

CANARY = "canary-4711-token"
GOOD = {"access_token": CANARY, "token_type": "Bearer", "expires_in": 3600}


def body(**changes: object) -> bytes:
    answer = {key: value for key, value in {**GOOD, **changes}.items() if value != "absent"}
    return json.dumps(answer).encode()


def test_tokens() -> None:
    found = parse_tokens(200, body(refresh_token="r", scope="a b"))
    assert (found.access, found.refresh, found.expires_in) == (CANARY, "r", 3600.0)
    assert found.scope == "a b"
    assert CANARY not in repr(found)


def test_a_token_in_the_place_of_a_code_is_not_repeated() -> None:
    with pytest.raises(OAuthError) as caught:
        parse_tokens(400, b'{"error": "4f0c9ad177be"}')
    assert caught.value.code == "refused"
    assert "4f0c9ad177be" not in str(caught.value)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
@pytest.mark.parametrize("raw", [b"", b"<html>slow down", b"{}"])
def test_a_server_that_asks_for_patience_ends_no_connection(status: int, raw: bytes) -> None:
    with pytest.raises(OAuthError) as caught:
        parse_tokens(status, raw)
    assert caught.value.code == "server_error"
    assert not is_final(caught.value)


def test_no_end_is_no_error() -> None:
    assert parse_tokens(200, body(expires_in="absent")).expires_in is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"expires_in": "3600"},
        {"expires_in": -1},
        {"expires_in": 0},
        {"expires_in": True},
        {"expires_in": 1e300},
        {"expires_in": [3600]},
        {"access_token": ""},
        {"access_token": 5},
        {"access_token": "a\r\nx: y"},
        {"access_token": "a" * 100_000},
        {"access_token": "absent"},
        {"refresh_token": ["r"]},
        {"refresh_token": "r\n"},
        {"scope": 7},
        {"token_type": "mac"},
        {"token_type": 3},
    ],
)
def test_an_answer_that_does_not_fit(wrong: dict[str, object]) -> None:
    with pytest.raises(OAuthError) as caught:
        parse_tokens(200, body(**wrong))
    assert caught.value.code == "not_understood"
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"null", b"{", b"\xff", b'"x"', b"[" * 100_000, b"<html>", b"\x00"]
)
def test_no_json_object(raw: bytes) -> None:
    with pytest.raises(OAuthError):
        parse_tokens(200, raw)


@pytest.mark.parametrize("status", [301, 302, 307, 100])
def test_a_redirect_is_no_answer(status: int) -> None:
    with pytest.raises(OAuthError):
        parse_tokens(status, body())


@pytest.mark.parametrize(
    ("status", "code", "final"),
    [
        (400, "invalid_grant", True),
        (401, "invalid_client", True),
        (200, "bad_refresh_token", True),  # GitHub refuses with a 200
        (400, "authorization_pending", False),
        (400, "slow_down", False),
        (503, "temporarily_unavailable", False),
    ],
)
def test_a_refusal(status: int, code: str, final: bool) -> None:
    with pytest.raises(OAuthError) as caught:
        parse_tokens(status, json.dumps({"error": code, "error_description": CANARY}).encode())
    assert is_final(caught.value) is final
    assert CANARY not in str(caught.value)


def test_an_error_that_is_no_code_is_not_repeated() -> None:
    for wrong in (CANARY.upper(), "a b", {"x": 1}, "x" * 100, 5):
        with pytest.raises(OAuthError) as caught:
            parse_tokens(400, json.dumps({"error": wrong}).encode())
        assert CANARY.upper() not in str(caught.value)
        assert caught.value.code == "refused"


@given(st.binary(max_size=300), st.integers(0, 999))
def test_any_bytes_are_tokens_or_an_error(raw: bytes, status: int) -> None:
    try:
        parse_tokens(status, raw)
    except OAuthError:
        return
    assert 200 <= status < 300


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "access_token",
                "refresh_token",
                "expires_in",
                "scope",
                "token_type",
                "error",
                "ok",
            ]
        ),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=20) | st.integers(),
            lambda inner: st.lists(inner, max_size=2),
        ),
    )
)
def test_any_object_is_tokens_or_an_error(answer: dict[str, object]) -> None:
    try:
        found = parse_tokens(200, json.dumps(answer).encode())
    except OAuthError:
        return
    assert found.access == answer["access_token"]
    assert found.expires_in is None or found.expires_in > 0


def test_slack_has_the_token_a_level_below() -> None:
    raw = json.dumps({"ok": True, "authed_user": {"access_token": "xoxp-1"}}).encode()
    assert parse_tokens(200, raw).access == "xoxp-1"
    with pytest.raises(OAuthError):
        parse_tokens(200, json.dumps({"ok": False}).encode())


# -- the redirect ----------------------------------------------------------------------


def test_the_code_of_a_redirect() -> None:
    assert parse_redirect("code=abc&state=s", state="s") == "abc"
    assert (
        parse_redirect("code=abc&state=s&iss=https://a", state="s", issuer="https://a") == "abc"
    )


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("code=abc&state=other", "wrong_state"),
        ("code=abc", "wrong_state"),
        ("code=abc&state=", "wrong_state"),
        ("code=abc&state=s&iss=https://evil", "wrong_issuer"),
        ("code=abc&state=s&iss=", "wrong_issuer"),
        ("error=access_denied&state=s", "access_denied"),
        ("error=access_denied&state=other", "wrong_state"),
        ("code=a&code=b&state=s", "not_understood"),
        ("code=&state=s", "not_understood"),
        ("state=s", "not_understood"),
        ("code=%0d%0a&state=s", "not_understood"),
    ],
)
def test_what_is_not_the_answer(query: str, code: str) -> None:
    if "iss=" not in query:
        query += "&iss=https://a"
    with pytest.raises(OAuthError) as caught:
        parse_redirect(query, state="s", issuer="https://a")
    assert caught.value.code == code


def test_who_says_that_it_names_itself_has_to() -> None:
    with pytest.raises(OAuthError) as caught:  # RFC 9207, section 2.4
        parse_redirect("code=abc&state=s", state="s", issuer="https://a")
    assert caught.value.code == "wrong_issuer"


def test_a_proof_key_is_fresh_and_of_s256() -> None:
    one, other = Pkce.fresh(), Pkce.fresh()
    digest = hashlib.sha256(one.verifier.encode()).digest()
    assert base64.urlsafe_b64decode(one.challenge + "=") == digest
    assert len(one.verifier) == 43 != len({one.verifier, other.verifier})
    assert one.verifier not in repr(one)


def test_what_a_browser_is_sent_to() -> None:
    url = messages.authorization_url(
        "https://a.test/auth?tenant=1",
        client_id="me&x=1",
        redirect_uri="http://127.0.0.1:1/callback",
        scope="a b",
        state="s",
        challenge="c",
        extra={"state": "overwritten", "prompt": "consent"},
    )
    fields = parse_qs(urlsplit(url).query)
    assert fields["client_id"] == ["me&x=1"]
    assert fields["state"] == ["s"]
    assert fields["tenant"] == ["1"]
    assert fields["code_challenge_method"] == ["S256"]


# -- addresses and metadata --------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["https://a.test/t", "http://127.0.0.1:80/t", "http://localhost/", "http://[::1]:1/t"],
)
def test_an_address_that_a_secret_is_sent_to(url: str) -> None:
    assert is_secure(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://a.test/t",
        "http://127.0.0.1.evil.test/",
        "http://localhost.evil.test/",
        "https://",
        "https://user@a.test/",
        "https://a.test/#x",
        "ftp://a.test/",
        "file:///etc/passwd",
        "//a.test",
        "http://[::1",
        "https://a.test:99999999/",
        "",
        "https://a.test/" + "x" * 3000,
        "https://a.test/\x1b]0;x\x07",
        "https://a.te\nst/",
        "https://a.test\\.evil.test/",
        "https://\u0430.test/",
        "http://127.\u0660.\u0660.\u0661/",
    ],
)
def test_an_address_that_no_secret_is_sent_to(url: str) -> None:
    assert not is_secure(url)


@pytest.mark.parametrize("origin", ["nonsense", "http://x y", ""])
def test_a_file_with_an_origin_that_is_none_is_refused_before_anybody_is_asked(
    origin: str,
) -> None:
    file = {"name": "a", "token_endpoint": "https://a.test/t", "origins": [origin]}
    with pytest.raises(InvalidInputError):
        providers.parse_file(json.dumps(file).encode())


METADATA = {
    "issuer": "https://a.test",
    "authorization_endpoint": "https://a.test/auth",
    "token_endpoint": "https://a.test/token",
}


def test_metadata() -> None:
    found = providers.parse_metadata(METADATA, issuer="https://a.test")
    assert found.token_endpoint == "https://a.test/token"
    assert found.auth == "basic"


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://evil.test"},
        {"issuer": None},
        {"token_endpoint": "http://a.test/token"},
        {"token_endpoint": 5},
        {"token_endpoint": ""},
        {"revocation_endpoint": "http://a.test/r"},
        {"code_challenge_methods_supported": ["plain"]},
        {"code_challenge_methods_supported": "S256"},
    ],
)
def test_metadata_that_is_not_taken(change: dict[str, object]) -> None:
    with pytest.raises(OAuthError):
        providers.parse_metadata({**METADATA, **change}, issuer="https://a.test")


def test_presets_are_https_and_have_a_way() -> None:
    assert set(providers.PRESETS) == {
        "atlassian",
        "github",
        "google",
        "microsoft",
        "notion",
        "slack",
    }
    for each in providers.PRESETS.values():
        assert providers.checked(each) is each
        assert each.authorization_endpoint.startswith("https://")
        assert each.origins


# -- when a token is renewed ---------------------------------------------------------------


def info_with(expires: float | None, state: str = "connected") -> CredentialInfo:
    return CredentialInfo(
        id="0" * 32,
        name="a",
        service="a",
        kind=CredentialKind.OAUTH_TOKEN,
        version=1,
        delivery=Delivery.parse("bearer"),
        origins=(),
        created=0.0,
        updated=0.0,
        expires=expires,
        connection=Connection(
            provider="p",
            token_endpoint="https://a.test/token",
            client_id="c",
            refreshed=0.0,
            state=ConnectionState(state),
        ),
    )


def test_when_a_token_is_renewed() -> None:
    """In the background some minutes before its end; by need, at its end."""
    hour = info_with(3600.0)
    assert not is_due(hour, 2990)
    assert is_due(hour, 3300)
    assert not hour.has_expired(3589)
    assert hour.has_expired(3590)
    assert not info_with(20.0).has_expired(17)
    assert info_with(20.0).has_expired(18)
    assert not is_due(info_with(None), 1e12)
    assert not info_with(None).has_expired(1e12)
    assert not is_due(info_with(1.0, "needs_reconnect"), 100)


def test_a_token_that_came_while_a_clock_was_far_ahead_is_renewed() -> None:
    ahead = msgspec.structs.replace(
        info_with(1e7 + 3600),
        connection=msgspec.structs.replace(info_with(None).connection, refreshed=1e7),
    )
    assert ahead.has_expired(100)
    assert is_due(ahead, 100)
    assert not ahead.has_expired(1e7 - 3600)  # clocks of machines differ a little

"""What is sent to an authorization server, and what its answers mean; no I/O.

Guarantee: an answer is parsed strictly (types, ranges, sizes), and what does not fit is an
``OAuthError`` that repeats no value of it but a registered error code. Nothing here stores or
sends anything.

RFC 6749 (tokens), 7009 (revocation), 7636 (PKCE), 8628 (devices), 9207 (issuer).
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from apex_creds.errors import OAuthError
from apex_creds.model import MAX_SECRET_BYTES, OAuthToken

Form = dict[str, str]
"""The fields of ``application/x-www-form-urlencoded``."""

_ERROR: Final = re.compile(r"[a-z_]{1,64}", re.ASCII)
"""No digits: no registered code has one, and most tokens do."""
_TOKEN: Final = re.compile(r"[\x21-\x7e]+(?: [\x21-\x7e]+)*", re.ASCII)
_ADDRESS: Final = re.compile(r"[\x21-\x5b\x5d-\x7e]{1,2048}", re.ASCII)
_LONGEST_LIFE: Final = 10 * 366 * 86_400
LONGEST_WAIT: Final = 60.0
"""Seconds between two questions whether a device was allowed."""
_LONGEST_CODE: Final = 3600.0
_USABLE: Final = frozenset(
    {
        "urn:ietf:params:oauth:token-type:access_token",
        "urn:ietf:params:oauth:token-type:jwt",
    }
)
_LATER: Final = (408, 425, 429)
"""Statuses of a server, or of what stands before it, that asks for patience."""
_FINAL: Final = frozenset(
    {
        "access_denied",
        "bad_refresh_token",
        "expired_token",
        "incorrect_client_credentials",
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "invalid_target",
        "token_expired",
        "token_revoked",
        "unauthorized_client",
        "unsupported_grant_type",
    }
)
"""Errors for which a retry is useless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What a token endpoint issued (RFC 6749, section 5.1).

    Attributes:
        expires_in: Seconds that the access token is good for; None: the server did not say.
        refresh: Empty where none came.
    """

    access: str = field(repr=False)
    refresh: str = field(default="", repr=False)
    expires_in: float | None = None
    token_type: str = "Bearer"  # noqa: S105 - a type, not a password
    scope: str = ""

    def secret(self, *, at: float, refresh: str = "", scope: str = "") -> OAuthToken:
        """As the vault stores them.

        Args:
            at: When they came, in Unix seconds.
            refresh: What stays where no refresh token came.
            scope: What was asked for, where the server does not say what it gave.
        """
        return OAuthToken(
            self.access,
            refresh_token=self.refresh or refresh,
            expires_at=None if self.expires_in is None else at + self.expires_in,
            token_type=self.token_type,
            scope=self.scope or scope,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCode:
    """What a person types, and where (RFC 8628, section 3.2)."""

    code: str = field(repr=False)
    user_code: str
    uri: str
    complete_uri: str
    expires_in: float
    interval: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pkce:
    """A proof key for one authorization (RFC 7636): 43 characters, and their S256 challenge."""

    verifier: str = field(repr=False)
    challenge: str

    @classmethod
    def fresh(cls) -> Pkce:
        """A new one, of 256 random bits."""
        verifier = secrets.token_urlsafe(32)
        digest = hashlib.sha256(verifier.encode("ascii")).digest()
        return cls(verifier=verifier, challenge=base64.urlsafe_b64encode(digest)[:-1].decode())


def parse_json(body: bytes) -> Mapping[str, object]:
    """An answer's JSON object.

    Raises:
        OAuthError: It is none.
    """
    try:
        found = msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise not_understood("it is no JSON object") from None
    return found


def parse_tokens(status: int, body: bytes) -> Tokens:
    """The answer of a token endpoint.

    Raises:
        OAuthError: It refused (``code`` says why), or its answer can't be used.
    """
    if status >= 500:
        raise OAuthError(
            f"The authorization server failed ({status}).",
            hint="Try again later.",
            code="server_error",
        )
    try:
        answer = parse_json(body)
    except OAuthError:
        if status not in _LATER:
            raise
        answer = {}  # the page of what stands before the server
    check_refusal(status, answer)
    # Slack: the user's token is a level below.
    user = answer.get("authed_user")
    if "access_token" not in answer and isinstance(user, dict):
        answer = user
    access = _token(answer, "access_token")
    if not access:
        raise not_understood("it has no access token")
    issued = _text(answer, "issued_token_type", most=256)
    if issued and issued not in _USABLE:  # RFC 8693, section 2.2.1
        raise not_understood("what it issued is no access token")
    kind = _text(answer, "token_type", most=64) or "Bearer"
    if kind.lower() not in ("bearer", "user", "bot"):
        raise not_understood("its token is of a type that can't be sent")
    return Tokens(
        access=access,
        refresh=_token(answer, "refresh_token"),
        expires_in=_seconds(answer, "expires_in"),
        token_type="Bearer",  # noqa: S106 - a type
        scope=_text(answer, "scope", most=4096),
    )


def check_refusal(status: int, answer: Mapping[str, object]) -> None:
    """Raises what an endpoint refused with: by its status, or, as some do, with a 200.

    Raises:
        OAuthError: It did.
    """
    found = answer.get("error")
    code = found if isinstance(found, str) and _ERROR.fullmatch(found) else ""
    if found is None and status < 400 and answer.get("ok") is not False:
        if not 200 <= status < 300:
            raise not_understood(f"its status is {status}")
        return
    raise OAuthError(
        f"The authorization server refused: {code or f'status {status}'}.",
        hint=_HINTS.get(code, "Connect again; the server's own log says more."),
        code=code or ("server_error" if status in _LATER else "refused"),
    )


_HINTS: Final = {
    "access_denied": "The person said no.",
    "expired_token": "The code was not entered in time; connect again.",
    "invalid_client": "Check the client id and its secret; then connect again.",
    "invalid_grant": "What the person allowed has ended or was revoked; connect again.",
    "invalid_scope": "Ask for other scopes.",
}


def is_final(error: OAuthError) -> bool:
    """Whether asking again can't help: a person has to."""
    return error.code in _FINAL


def parse_device(status: int, body: bytes) -> DeviceCode:
    """The answer of a device authorization endpoint.

    Raises:
        OAuthError: It refused, or its answer can't be used.
    """
    answer = parse_json(body)
    check_refusal(status, answer)
    uri = _text(answer, "verification_uri") or _text(answer, "verification_url")
    complete = _text(answer, "verification_uri_complete")
    code, shown = _token(answer, "device_code"), _text(answer, "user_code", most=64)
    life = _seconds(answer, "expires_in")
    if not (code and shown and uri and life):
        raise not_understood("it is no device code")
    for each in (uri, complete):
        if each and not is_secure(each):
            raise not_understood("it sends people to a page without https")
    if any(not 32 < ord(char) < 127 for char in shown.replace(" ", "") + uri + complete):
        raise not_understood("it shows characters that can't be typed")
    wait = _seconds(answer, "interval")
    return DeviceCode(
        code=code,
        user_code=shown,
        uri=uri,
        complete_uri=complete,
        expires_in=min(life, _LONGEST_CODE),
        interval=min(5.0 if wait is None else max(wait, 1.0), LONGEST_WAIT),
    )


def parse_redirect(query: str, *, state: str, issuer: str = "") -> str:
    """The code in a redirect back to us (RFC 6749, section 4.1.2).

    Args:
        query: Of the address that the browser asked for.
        state: What was sent.
        issuer: Who is to answer (RFC 9207); empty: not known.

    Raises:
        OAuthError: It is not the answer to what was asked, or a refusal.
    """
    pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=32)
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise not_understood("a field is there twice")
    if not secrets.compare_digest(fields.get("state", "").encode(), state.encode()):
        raise OAuthError(
            "The redirect is not the answer to what was asked (its state is another).",
            hint="Connect again, and follow the address that is shown.",
            code="wrong_state",
        )
    if issuer and fields.get("iss") != issuer:  # who sends it sends it always
        raise OAuthError(
            "Another authorization server answered.", hint="Connect again.", code="wrong_issuer"
        )
    if "error" in fields:
        check_refusal(400, fields)
    code = fields.get("code", "")
    if not _TOKEN.fullmatch(code) or len(code) > 4096:
        raise not_understood("it has no code")
    return code


def authorization_url(
    endpoint: str,
    *,
    client_id: str,
    redirect_uri: str,
    scope: str,
    state: str,
    challenge: str,
    extra: Mapping[str, str],
) -> str:
    """Where a person's browser goes (RFC 6749, section 4.1.1; RFC 7636, section 4.3)."""
    fields = {
        **extra,
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": redirect_uri,
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    if scope:
        fields["scope"] = scope
    return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(fields)}"


def is_secure(url: str) -> bool:
    """Whether it is https, or http to this machine; with a host, and nothing behind ``#``.

    Only what all parsers and terminals take alike: printable ASCII without a backslash.
    """
    if not _ADDRESS.fullmatch(url):
        return False
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    if not host or parts.username is not None or parts.fragment:
        return False
    loopback = host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host)
    return parts.scheme == "https" or (parts.scheme == "http" and bool(loopback))


def not_understood(why: str) -> OAuthError:
    """An answer that nothing is stored of."""
    return OAuthError(
        f"The authorization server's answer can't be used: {why}.",
        hint="Check its address; nothing was stored.",
        code="not_understood",
    )


def _text(answer: Mapping[str, object], name: str, *, most: int = 2048) -> str:
    found = answer.get(name)
    if found is None:
        return ""
    if not isinstance(found, str) or len(found) > most:
        raise not_understood(f"its {name} is no text, or a very long one")
    return found


def _token(answer: Mapping[str, object], name: str) -> str:
    found = _text(answer, name, most=MAX_SECRET_BYTES // 4)
    if found and not _TOKEN.fullmatch(found):
        raise not_understood(f"its {name} has characters that can't be sent")
    return found


def _seconds(answer: Mapping[str, object], name: str) -> float | None:
    found = answer.get(name)
    if found is None:
        return None
    if type(found) not in (int, float):
        raise not_understood(f"its {name} is no number")
    assert isinstance(found, int | float)
    if not 0 < found <= _LONGEST_LIFE or not math.isfinite(found):
        raise not_understood(f"its {name} is no number of seconds above 0")
    return float(found)

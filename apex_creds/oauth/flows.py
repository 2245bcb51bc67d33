"""Getting a token: in a browser, on another device, for a program, or for a signature or token.

Guarantee: a browser's answer is taken only on this machine's loopback address, under a path and
with a state that nobody else knows, for one code; what is not that answer changes nothing. The
code is exchanged with its proof key (PKCE, S256). Of a key that signs (JWT bearer) only a
signature leaves the vault, good for five minutes, one server, and once; a token to exchange is
sent to the token endpoint only. Nothing is stored here.

RFC 8252 (loopback redirects), 8628 (devices), 6749 section 4.4 (client credentials), 7009,
7523 section 2.1 (JWT bearer), 8693 (token exchange).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import anyio

from apex_creds.crypto import jwt
from apex_creds.errors import InvalidInputError, OAuthError, OAuthUnreachableError
from apex_creds.model import Assertion, new_id
from apex_creds.oauth import endpoints, messages
from apex_creds.oauth.endpoints import Client
from apex_creds.oauth.messages import Form, Pkce, Tokens
from apex_creds.oauth.provider_presets import Provider
from apex_creds.vault import Opened

Show = Callable[[str], None]
"""Shows an address (or an address and a code) to a person."""

BROWSER_SECONDS: Final = 300.0
_LONGEST_REQUEST: Final = 1 << 14
_PAGE: Final = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>apex-creds</title>"
    "<body style='font:1.2rem system-ui;margin:4rem;color-scheme:light dark'><p>{}"
)
_DONE: Final = _PAGE.format("That is all. You can close this window and go back.")
_NOT_IT: Final = _PAGE.format("This is not the answer that was asked for. Nothing was changed.")


async def authorize_in_browser(
    provider: Provider,
    client: Client,
    *,
    scope: str = "",
    show: Show,
    port: int = 0,
    seconds: float = BROWSER_SECONDS,
) -> Tokens:
    """Authorization code with PKCE, and a redirect to this machine.

    Args:
        provider: Who is asked.
        client: Who asks.
        scope: What is asked for; the provider's by default.
        show: Is given the address that the person's browser is to open.
        port: Of the redirect, where the client is registered with one; 0: any.
        seconds: How long the person has.

    Raises:
        OAuthError: It was refused, or took too long.
        InvalidInputError: The provider has no such way.
    """
    if not provider.authorization_endpoint:
        raise InvalidInputError(
            f"{provider.name} has no page for a browser.", hint="Use --device."
        )
    pkce, scope = Pkce.fresh(), scope or provider.scope
    # Without it, OpenID Connect (Core, section 11) gives no refresh token.
    consent = {"prompt": "consent"} if "offline_access" in scope.split() else {}
    redirect = _Redirect(issuer=provider.issuer)
    with contextlib.closing(await redirect.listen(port)):
        show(
            messages.authorization_url(
                provider.authorization_endpoint,
                client_id=client.id,
                redirect_uri=redirect.uri,
                scope=scope,
                state=redirect.state,
                challenge=pkce.challenge,
                extra={**consent, **provider.extra},
            )
        )
        try:
            async with asyncio.timeout(seconds):
                code = await redirect.answered
        except TimeoutError:
            raise _too_late() from None
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect.uri,
        "code_verifier": pkce.verifier,
    }
    answer = await endpoints.post(provider.token_endpoint, form, client)
    return messages.parse_tokens(answer.status, answer.body)


class _Redirect:
    """Waits on this machine for a browser that comes back with a code."""

    def __init__(self, *, issuer: str) -> None:
        self.state = secrets.token_urlsafe(32)
        self.uri = ""
        self.answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._issuer = issuer

    async def listen(self, port: int) -> asyncio.Server:
        """The server, on 127.0.0.1 and no other address."""
        try:
            server = await asyncio.start_server(
                self._serve, "127.0.0.1", port, limit=_LONGEST_REQUEST
            )
        except OSError as error:
            raise InvalidInputError(
                f"Port {port} can't be listened on: {error.strerror}.",
                hint="Choose another with --port, and register the client with it.",
            ) from None
        self.uri = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/callback"
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken = False
        with contextlib.closing(writer), contextlib.suppress(OSError):
            with contextlib.suppress(
                ValueError, EOFError, TimeoutError, asyncio.LimitOverrunError
            ):
                async with asyncio.timeout(10):
                    head = await reader.readuntil(b"\r\n\r\n")
                taken = self._take(head.decode("ascii"))
            writer.write(_response(taken=taken))
            await writer.drain()

    def _take(self, head: str) -> bool:
        """Whether a request is the answer; the first one counts.

        Anybody can send a browser here: who does not know the state changes nothing.
        """
        line, *fields = head.split("\r\n")
        method, target, _ = line.split(" ")
        asked, ours = urlsplit(target), urlsplit(self.uri)
        hosts = [f.partition(":")[2].strip() for f in fields if f.lower().startswith("host:")]
        # Another name for this address is somebody else's page (DNS rebinding).
        if method != "GET" or asked.path != ours.path or hosts != [ours.netloc]:
            return False
        try:
            code = messages.parse_redirect(asked.query, state=self.state, issuer=self._issuer)
        except OAuthError as error:
            if error.code in ("wrong_state", "not_understood"):
                return False
            if not self.answered.done():
                self.answered.set_exception(error)
        else:
            if not self.answered.done():
                self.answered.set_result(code)
        return True


def _response(*, taken: bool) -> bytes:
    status = "200 OK" if taken else "400 Bad Request"
    body = (_DONE if taken else _NOT_IT).encode()
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: text/html; charset=utf-8\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\ncache-control: no-store\r\n"
        "referrer-policy: no-referrer\r\n"
        "content-security-policy: default-src 'none'; style-src 'unsafe-inline'\r\n\r\n"
    )
    return head.encode("ascii") + body


async def authorize_device(
    provider: Provider, client: Client, *, scope: str = "", show: Show
) -> Tokens:
    """The device grant (RFC 8628): a person types a code on any machine with a browser.

    Raises:
        OAuthError: It was refused, or took too long.
        InvalidInputError: The provider has no such way.
    """
    if not provider.device_endpoint:
        raise InvalidInputError(
            f"{provider.name} has no device grant.", hint="Connect in a browser."
        )
    asked = {"client_id": client.id}
    if scope or provider.scope:
        asked["scope"] = scope or provider.scope
    answer = await endpoints.post(provider.device_endpoint, asked, client)
    device = messages.parse_device(answer.status, answer.body)
    show(device.complete_uri or f"{device.uri} (code: {device.user_code})")
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
        "device_code": device.code,
    }
    wait = device.interval
    with anyio.move_on_after(device.expires_in):
        while True:
            await anyio.sleep(wait)
            try:
                answer = await endpoints.post(provider.token_endpoint, form, client)
                return messages.parse_tokens(answer.status, answer.body)
            except OAuthError as error:
                if isinstance(error, OAuthUnreachableError) or error.code == "server_error":
                    wait = min(wait * 2, max(wait, messages.LONGEST_WAIT))  # RFC 8628, 3.5
                elif error.code == "slow_down":
                    wait += 5.0
                elif error.code != "authorization_pending":
                    raise
    raise _too_late()


async def for_client(provider: Provider, client: Client, *, scope: str = "") -> Tokens:
    """Client credentials (RFC 6749, section 4.4): a token for the program itself.

    Raises:
        OAuthError: It was refused.
    """
    form = {"grant_type": "client_credentials"}
    if scope or provider.scope:
        form["scope"] = scope or provider.scope
    return await with_form(provider, client, form)


async def with_form(provider: Provider, client: Client, form: messages.Form) -> Tokens:
    """What the token endpoint issues for a form.

    Raises:
        OAuthError: It was refused.
    """
    answer = await endpoints.post(provider.token_endpoint, form, client)
    return messages.parse_tokens(answer.status, answer.body)


async def revoke(endpoint: str, token: str, client: Client, *, hint: str) -> None:
    """Revokes a token (RFC 7009).

    Args:
        endpoint: Where.
        token: Which.
        client: Whose.
        hint: ``access_token`` or ``refresh_token``.

    Raises:
        OAuthError: The server did not do it.
    """
    form = {"token": token, "token_type_hint": hint}
    answer = await endpoints.post(endpoint, form, client)
    if answer.status != 200:
        with contextlib.suppress(OAuthError):
            messages.check_refusal(answer.status, messages.parse_json(answer.body))
        raise OAuthError(
            f"The token was not revoked (status {answer.status}).",
            hint="Revoke it on the provider's own page.",
        )


def _too_late() -> OAuthError:
    return OAuthError("Nobody allowed it in time.", hint="Connect again.", code="expired_token")


JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a type
_LIFE: Final = 300


def form_of(
    grant: str, assertion: Assertion, opened: Opened, *, endpoint: str, scope: str, now: float
) -> Form:
    """What is sent to the token endpoint, but for who asks.

    Args:
        grant: ``JWT_BEARER`` or ``EXCHANGE``.
        assertion: What is asserted.
        opened: The credential that it is asserted with.
        endpoint: Where; it is the audience where none is named.
        scope: What is asked for; may be empty.
        now: Unix seconds.

    Raises:
        InvalidInputError: The key is none, or of another algorithm.
    """
    form: Form = {"grant_type": grant}
    if scope:
        form["scope"] = scope
    if grant == JWT_BEARER:
        claims: dict[str, object] = {
            "iss": assertion.issuer,
            "sub": assertion.subject,
            "aud": assertion.audience or endpoint,
            "iat": int(now),
            "exp": int(now) + _LIFE,
            "jti": new_id(),
        }
        if scope:  # Google reads it here
            claims["scope"] = scope
        form["assertion"] = jwt.mint(
            opened.view(), claims, algorithm=assertion.algorithm, key_id=assertion.key_id
        )
        return form
    try:
        form["subject_token"] = bytes(opened.view()).decode("ascii")
    except UnicodeDecodeError:
        raise InvalidInputError("The credential is no token.", hint="Name another.") from None
    form |= {"subject_token_type": ACCESS_TOKEN, "requested_token_type": ACCESS_TOKEN}
    if assertion.audience:
        form["audience"] = assertion.audience
    return form

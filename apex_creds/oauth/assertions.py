"""Tokens for what the vault has already: a key that signs for somebody, or another token.

Guarantee: the key never leaves the vault, only a signature that is good for five minutes, for
one server, once; a token goes only to the token endpoint that it is exchanged at. Both are
shared, or belong to whom the new token is for.

RFC 7523, section 2.1 (JWT bearer), and RFC 8693 (token exchange).
"""

from __future__ import annotations

from typing import Final

from apex_creds.crypto import jwt
from apex_creds.errors import InvalidInputError
from apex_creds.model import Assertion, new_id
from apex_creds.oauth.messages import Form
from apex_creds.vault import Opened

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

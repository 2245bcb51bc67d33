"""For SDKs on google-auth: a session, or the credentials of a service account.

``session("drive")`` sends an access token of the vault. ``ServiceAccount("robot", email=…)`` is
for any client that takes ``credentials=``: it signs a token for each request with the private
key that the credential ``robot`` is (self-signed JWT, AIP-4111); the plugin's manifest says
``"access": "sign"`` of it.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import AuthorizedSession

from apex_creds.errors import AccessDeniedError, ApexCredsError
from apex_creds.leases.handle import current_credentials
from apex_creds.leases.lease import current_invocation
from apex_creds.sdk.current import Refusal
from apex_creds.sdk.requests import adapter, bound


def session(
    *names: str, scope: str | None = None, refusal: Refusal = "answer"
) -> AuthorizedSession:
    """An ``AuthorizedSession``, which may be made before any invocation.

    Args:
        names: Of credentials; none: all that the invocation has.
        scope: One that the leases must have.
        refusal: ``answer``: a refused request is a 403; ``raise``: it raises our error.
    """
    # The broker renews a token before it is sent: a 401 is the service's answer.
    made = AuthorizedSession(AnonymousCredentials(), refresh_status_codes=())
    return bound(made, adapter(*names, scope=scope, refusal=refusal))


class ServiceAccount(Credentials):
    """Signs with the invocation that sends a request; keeps no key, and no token.

    Args:
        name: Of the credential: the account's ``private_key``, in PEM.
        email: The account's ``client_email``.
        key_id: Its ``private_key_id``.
        audience: What a token is for; by default, the service that a request goes to.
    """

    def __init__(self, name: str, *, email: str, key_id: str = "", audience: str = "") -> None:
        super().__init__()
        self._name, self._email = name, email
        self._key_id, self._audience = key_id, audience

    def refresh(self, request: object) -> None:
        """Nothing is kept, so that nothing gets old."""

    def before_request(
        self, request: Any, method: str, url: str, headers: MutableMapping[str, str]
    ) -> None:
        """Adds a token that is good for this service, for five minutes.

        Raises:
            RefreshError: It was refused.
        """
        del request, method
        parts = urlsplit(url)
        audience = self._audience or f"{parts.scheme}://{parts.netloc}/"
        claims = {"iss": self._email, "sub": self._email, "aud": audience}
        try:
            if current_invocation() is None:
                raise AccessDeniedError(
                    "These credentials sign in an invocation, and there is none here.",
                    hint="Make them anywhere, and use them in a plugin's action.",
                )
            handle = current_credentials()[self._name]
            token = handle.sync_jwt(claims, key_id=self._key_id)
        except ApexCredsError as error:
            raise RefreshError(str(error), retryable=False) from None
        headers["Authorization"] = f"Bearer {token}"

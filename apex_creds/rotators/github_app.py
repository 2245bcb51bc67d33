"""Installation tokens of a GitHub App, which are good for an hour.

``github-app:https://api.github.com/app/installations/ID?app=APP_ID&admin=NAME``

The credential is of kind ``api_key``: the token. ``admin`` is the App's private key in PEM
(``generic``), which signs a JWT (RS256) of ten minutes and is sent nowhere. On GitHub
Enterprise the path begins with ``api/v3/``. ``repositories=A,B`` narrows the token.

Guarantee: a token whose answer was lost ends by itself within the hour, and nobody has it. A
replaced one is revoked when its grace is over.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from apex_creds.crypto import jwt
from apex_creds.errors import InvalidInputError, RotatorError, RotatorRefusedError
from apex_creds.model import ApiKey, CredentialKind, Secret
from apex_creds.rotators.http import Service
from apex_creds.rotators.protocol import Address, Created, Mode, Task, text_of

_MIDDLE: Final = "app/installations/"
_EARLIER: Final = 60
_LATER: Final = 540
_HOUR: Final = 3600.0


class _Token(msgspec.Struct):
    token: str
    expires_at: datetime


class GitHubApp:
    """See the module; ``from_uri`` makes one."""

    mode = Mode.DUAL
    kinds = frozenset({CredentialKind.API_KEY})
    longest_grace = _HOUR

    def __init__(self, address: Address) -> None:
        base, middle, number = address.path.rpartition(_MIDDLE)
        self.origin = address.origin
        self.admin = address.options.get("admin", "")
        self._app = address.options.get("app", "")
        if not (
            middle and number.isdecimal() and number.isascii() and self._app and self.admin
        ):
            raise InvalidInputError(
                "A rotator of a GitHub App needs the installation, app= and admin=.",
                hint="Write github-app:https://api.github.com/app/installations/ID"
                "?app=APP_ID&admin=NAME.",
            )
        self._base = f"/{base}".rstrip("/")
        self._path = f"/{address.path}/access_tokens"
        self._repositories = list(
            filter(None, address.options.get("repositories", "").split(","))
        )
        self._github = Service(
            name="GitHub", origin=address.origin, ca=address.options.get("ca", "")
        )

    async def create(self, task: Task) -> Created:
        """See ``Rotator``."""
        if task.admin is None or "value" not in task.admin.parts:
            raise RotatorRefusedError("The App's private key is a credential of kind generic.")
        now = int(task.now)
        claims = {"iss": self._app, "iat": now - _EARLIER, "exp": now + _LATER}
        key = memoryview(task.admin.parts["value"])
        signed = jwt.mint(key, claims, algorithm="RS256")
        asked = {"repositories": self._repositories} if self._repositories else {}
        answer = await self._github.ask(
            "POST", self._path, headers=_headers(signed), body=msgspec.json.encode(asked)
        )
        found = self._github.read(answer, _Token)
        ends = found.expires_at.timestamp() if found.expires_at.tzinfo else 0.0
        plain = found.token.isascii() and found.token.isprintable() and " " not in found.token
        if not found.token or not plain or not now < ends <= now + 2 * _HOUR:
            raise RotatorError("GitHub answered something that is no token of an hour.")
        return Created(secret=ApiKey(found.token), expires=ends)

    async def set(self, task: Task, new: Secret) -> None:
        """See ``Rotator``: it is valid from the moment that it is made."""

    async def test(self, task: Task, new: Secret) -> None:
        """See ``Rotator``."""
        await self._github.ask(
            "GET",
            f"{self._base}/installation/repositories?per_page=1",
            headers=_headers(text_of(new, "value")),
        )

    async def finish(self, task: Task, old: Secret) -> None:
        """See ``Rotator``; one that has expired is refused, and so is invalid."""
        await self._github.ask(
            "DELETE",
            f"{self._base}/installation/token",
            headers=_headers(text_of(old, "value")),
            fine=(204, 401),
        )


def _headers(token: str) -> dict[str, str]:
    return {
        "authorization": f"Bearer {token}",
        "accept": "application/vnd.github+json",
        "x-github-api-version": "2022-11-28",
        "user-agent": "apex-creds",
    }


def from_uri(uri: str) -> GitHubApp:
    """The rotator of a URI.

    Raises:
        InvalidInputError: It is not understood.
    """
    options = ("app", "repositories", "ca")
    return GitHubApp(Address.parse(uri, schemes=("https", "http"), options=options))

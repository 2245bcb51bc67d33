"""Keys of an API that takes several at once: ``acme:https://api.acme.example/ACCOUNT``.

``PUT /ACCOUNT/keys`` adds a key, ``DELETE /ACCOUNT/keys`` takes it away, both with any valid
key; ``GET /ACCOUNT`` needs one. So the credential rotates itself, and nothing else is needed.
"""

from __future__ import annotations

import secrets

import httpx

from apex_creds import ApiKey
from apex_creds.errors import InvalidInputError, RotatorError, RotatorRefusedError
from apex_creds.model import CredentialKind, Secret
from apex_creds.rotators.protocol import Address, Created, Mode, Task


class AcmeKeys:
    """Two keys at once, of which the old one may stay for a week."""

    mode = Mode.DUAL
    admin = ""
    kinds = frozenset({CredentialKind.API_KEY})
    longest_grace = 7 * 86_400.0

    def __init__(self, address: Address) -> None:
        if not address.path:
            raise InvalidInputError("Which account?", hint="Write acme:https://HOST/ACCOUNT.")
        self.origin = address.origin
        self._account = f"{address.origin}/{address.path}"

    @classmethod
    def from_uri(cls, uri: str) -> AcmeKeys:
        return cls(Address.parse(uri, schemes=("https", "http")))

    async def create(self, task: Task) -> Created:
        """It is stored before it is set: so it is lost in no crash."""
        return Created(secret=ApiKey(f"acme_{secrets.token_urlsafe(32)}"))

    async def set(self, task: Task, new: Secret) -> None:
        await self._ask("PUT", "/keys", task.current, key=new)

    async def test(self, task: Task, new: Secret) -> None:
        await self._ask("GET", "", new)

    async def finish(self, task: Task, old: Secret) -> None:
        """To take away what is not there is fine: the step may be taken twice."""
        await self._ask("DELETE", "/keys", task.current, key=old, fine=(204, 404))

    async def _ask(
        self,
        method: str,
        path: str,
        who: Secret,
        *,
        key: Secret | None = None,
        fine: tuple[int, ...] = (200, 204),
    ) -> None:
        headers = {"authorization": f"Bearer {who.parts['value'].decode()}"}
        body = b"" if key is None else key.parts["value"]
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
                answer = await client.request(
                    method, self._account + path, headers=headers, content=body
                )
        except httpx.HTTPError as error:
            kind = type(error).__name__
        else:
            if answer.status_code in fine:
                return
            if answer.status_code < 500:
                raise RotatorRefusedError(f"Acme refused ({answer.status_code}).")
            kind = str(answer.status_code)
        raise RotatorError(f"Acme did not answer as it should ({kind}).")  # it is tried again

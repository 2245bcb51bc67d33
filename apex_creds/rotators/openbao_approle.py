"""Secret ids of an AppRole of OpenBao (or HashiCorp Vault).

``openbao-approle:https://HOST[:PORT]/MOUNT/ROLE?admin=NAME&namespace=…&ca=FILE``

The credential is of kind ``basic``: the role id and the secret id. ``admin`` is a token that
may ``update`` the role's ``custom-secret-id``, ``secret-id/lookup`` and ``secret-id/destroy``.

Guarantee: the secret id is made here and stored before OpenBao has it, so that none is lost;
setting it again is setting it once. A login to test it ends with its token revoked. Tokens that
a replaced secret id had got live until they expire.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import msgspec

from apex_creds.errors import InvalidInputError, RotatorError
from apex_creds.model import BasicAuth, CredentialKind, Secret
from apex_creds.rotators.http import Service
from apex_creds.rotators.protocol import Address, Created, Mode, Task, random_text, text_of

NO_CONTENT: Final = 204


class _Auth(msgspec.Struct):
    client_token: str


class _Login(msgspec.Struct):
    auth: _Auth


class OpenBaoAppRole:
    """See the module; ``from_uri`` makes one."""

    mode = Mode.DUAL
    kinds = frozenset({CredentialKind.BASIC})
    longest_grace = None

    def __init__(self, address: Address) -> None:
        mount, _, role = address.path.rpartition("/")
        self.origin = address.origin
        self.admin = address.options.get("admin", "")
        if not mount or not role or not self.admin:
            raise InvalidInputError(
                "A rotator of an AppRole needs its mount, its name, and admin=.",
                hint="Write openbao-approle:https://HOST/approle/ROLE?admin=NAME.",
            )
        self._mount, self._role = quote(mount), quote(role)
        self._namespace = address.options.get("namespace", "")
        self._bao = Service(
            name="OpenBao", origin=address.origin, ca=address.options.get("ca", "")
        )

    async def create(self, task: Task) -> Created:
        """See ``Rotator``."""
        return Created(secret=BasicAuth(text_of(task.current, "user"), random_text()))

    async def set(self, task: Task, new: Secret) -> None:
        """See ``Rotator``."""
        if not await self._knows(task, new):
            await self._about(task, "custom-secret-id", new)

    async def test(self, task: Task, new: Secret) -> None:
        """See ``Rotator``."""
        pair = {"role_id": text_of(new, "user"), "secret_id": text_of(new, "password")}
        answer = await self._bao.ask(
            "POST",
            f"/v1/auth/{self._mount}/login",
            headers=self._headers(),
            body=msgspec.json.encode(pair),
        )
        token = self._bao.read(answer, _Login).auth.client_token
        await self._bao.ask("POST", "/v1/auth/token/revoke-self", headers=self._headers(token))

    async def finish(self, task: Task, old: Secret) -> None:
        """See ``Rotator``."""
        if await self._knows(task, old):
            await self._about(task, "secret-id/destroy", old)
            if await self._knows(task, old):
                raise RotatorError("OpenBao still knows the secret id that was destroyed.")

    async def _knows(self, task: Task, value: Secret) -> bool:
        return await self._about(task, "secret-id/lookup", value) != NO_CONTENT

    async def _about(self, task: Task, what: str, value: Secret) -> int:
        token = text_of(task.admin, "value") if task.admin else ""
        answer = await self._bao.ask(
            "POST",
            f"/v1/auth/{self._mount}/role/{self._role}/{what}",
            headers=self._headers(token),
            body=msgspec.json.encode({"secret_id": text_of(value, "password")}),
        )
        return answer.status

    def _headers(self, token: str = "") -> dict[str, str]:
        said = {"x-vault-token": token, "x-vault-namespace": self._namespace}
        return {name: value for name, value in said.items() if value} | {
            "x-vault-request": "true"
        }


def from_uri(uri: str) -> OpenBaoAppRole:
    """The rotator of a URI.

    Raises:
        InvalidInputError: It is not understood.
    """
    return OpenBaoAppRole(
        Address.parse(uri, schemes=("https", "http"), options=("namespace", "ca"))
    )

"""Logins that OpenBao's database engine makes for a while, and takes back.

``openbao-database:https://HOST[:PORT]/MOUNT/creds/ROLE?admin=NAME&namespace=…&ca=FILE``

``admin`` is a token that may ``read`` that path, and ``update`` sys/leases/renew and revoke.

Guarantee: an answer is taken only if it is a login with a lease; a lease that is not known any
more is revoked already. A revocation is over when OpenBao says that the login is gone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import msgspec

from apex_creds.errors import InvalidInputError, RotatorError
from apex_creds.model import BasicAuth, Secret
from apex_creds.rotators.http import Service
from apex_creds.rotators.protocol import Address, text_of

_LEASE: Final = re.compile(r"[\x21-\x7e]{1,512}")
_LONGEST: Final = 32 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A login for a while.

    Attributes:
        lease: OpenBao's id of it.
        seconds: How long it is good if it is not renewed.
    """

    secret: Secret
    lease: str
    seconds: float


class _Login(msgspec.Struct):
    username: str
    password: str


class _Lease(msgspec.Struct):
    lease_id: str
    lease_duration: int


class _Answer(_Lease):
    data: _Login


class OpenBaoDatabase:
    """See the module; ``from_uri`` makes one."""

    def __init__(self, address: Address) -> None:
        self.origin = address.origin
        self.admin = address.options.get("admin", "")
        if "/creds/" not in address.path or not self.admin:
            raise InvalidInputError(
                "OpenBao's database engine needs the path of a role's creds, and admin=.",
                hint="Write openbao-database:https://HOST/database/creds/ROLE?admin=NAME.",
            )
        self._path = f"/v1/{quote(address.path)}"
        self._namespace = address.options.get("namespace", "")
        self._bao = Service(
            name="OpenBao", origin=address.origin, ca=address.options.get("ca", "")
        )

    async def issue(self, admin: Secret) -> Issued:
        """A new login.

        Raises:
            RotatorError: There is none; one whose answer was lost ends by itself.
        """
        answer = await self._bao.ask("GET", self._path, headers=self._headers(admin))
        found = self._bao.read(answer, _Answer)
        seconds = self._checked(found)
        login = found.data
        if not login.username or not login.password or ":" in login.username:
            raise RotatorError("OpenBao answered something that is no login.")
        return Issued(
            secret=BasicAuth(login.username, login.password),
            lease=found.lease_id,
            seconds=seconds,
        )

    async def renew(self, admin: Secret, lease: str) -> float:
        """Seconds for which a login is good from now on."""
        answer = await self._bao.ask(
            "POST",
            "/v1/sys/leases/renew",
            headers=self._headers(admin),
            body=msgspec.json.encode({"lease_id": lease}),
        )
        return self._checked(self._bao.read(answer, _Lease))

    async def revoke(self, admin: Secret, lease: str) -> None:
        """Ends a login; returns when it is gone."""
        await self._bao.ask(
            "POST",
            "/v1/sys/leases/revoke",
            headers=self._headers(admin),
            body=msgspec.json.encode({"lease_id": lease, "sync": True}),
        )

    @staticmethod
    def _checked(found: _Lease) -> float:
        if not _LEASE.fullmatch(found.lease_id) or not 0 < found.lease_duration <= _LONGEST:
            raise RotatorError("OpenBao answered something that is no lease.")
        return float(found.lease_duration)

    def _headers(self, admin: Secret) -> dict[str, str]:
        said = {
            "x-vault-token": text_of(admin, "value"),
            "x-vault-namespace": self._namespace,
            "x-vault-request": "true",
        }
        return {name: value for name, value in said.items() if value}


def from_uri(uri: str) -> OpenBaoDatabase:
    """What issues logins, of a URI.

    Raises:
        InvalidInputError: It is not understood.
    """
    options = ("namespace", "ca")
    return OpenBaoDatabase(Address.parse(uri, schemes=("https", "http"), options=options))

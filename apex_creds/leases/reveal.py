"""Reading a secret: ``handle.reveal()``.

Guarantee: the secret is in locked memory, and wiped when the block ends, when the lease
ends, or at the deadline, whichever is first.
"""

from __future__ import annotations

from typing import final

from apex_creds.crypto.memory import SecretBytes
from apex_creds.leases.broker import LeaseBroker
from apex_creds.leases.lease import Lease, find_lease, forget_revealed
from apex_creds.leases.use import REVEAL, Use
from apex_creds.vault import Opened


@final
class Reveal:
    """What ``handle.reveal()`` returns; enter it once."""

    __slots__ = ("_lease_id", "_part", "_secret", "_use")

    def __init__(self, lease_id: str, *, part: str, scope: str | None) -> None:
        self._lease_id = lease_id
        self._part = part
        self._use = Use(REVEAL, scope=scope)
        self._secret: SecretBytes | None = None

    async def __aenter__(self) -> SecretBytes:
        broker = find_lease(self._lease_id).broker
        lease, _, opened = await broker.redeem(self._lease_id, self._use)
        return self._keep(broker, lease, opened)

    async def __aexit__(self, *_: object) -> None:
        self._wipe()

    def __enter__(self) -> SecretBytes:
        broker = find_lease(self._lease_id).broker
        lease, _, opened = broker.redeem_blocking(self._lease_id, self._use)
        return self._keep(broker, lease, opened)

    def __exit__(self, *_: object) -> None:
        self._wipe()

    def _keep(self, broker: LeaseBroker, lease: Lease, opened: Opened) -> SecretBytes:
        with opened:
            secret = opened.part(self._part)
        secret.on_expose(_Exposure(self._lease_id))
        broker.keep_until_end(lease, secret)
        self._secret = secret
        return secret

    def _wipe(self) -> None:
        secret, self._secret = self._secret, None
        if secret is not None:
            secret.close()
            forget_revealed(self._lease_id, secret)


class _Exposure:
    """Called before a revealed secret leaves locked memory; holds no reference to it."""

    __slots__ = ("_lease_id",)

    def __init__(self, lease_id: str) -> None:
        self._lease_id = lease_id

    def __call__(self) -> None:
        find_lease(self._lease_id).broker.log_exposure(self._lease_id)

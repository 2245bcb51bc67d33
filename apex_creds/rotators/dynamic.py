"""Credentials that are made on demand: a lease here is a lease at the provider.

Guarantee: what is asked of the provider is on record before; so is its lease, before anybody
has the login. A login is renewed while the lease here lasts, and revoked when it ends; what
can't be revoked stays on record, is shown, and is tried again by every worker, also after the
process that had it is gone. A login is in memory alone, sealed under the vault's keys as a
stored credential is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Final, Protocol

import msgspec
from msgspec.structs import replace

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.concurrency import LoopThread, SingleFlight, in_lanes, run_to_completion
from apex_creds.documents.cached import Document
from apex_creds.documents.records import Record, seal_record
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import (
    ApexCredsError,
    ConflictError,
    RotatorError,
    RotatorRefusedError,
    TokenError,
)
from apex_creds.model import CredentialKind, Secret, new_id
from apex_creds.rotators import openbao_database
from apex_creds.rotators.openbao_database import Issued, OpenBaoDatabase
from apex_creds.rotators.protocol import place_of
from apex_creds.vault import Vault
from apex_creds.vault.lookup import dek_label

DOCUMENT: Final = "dynamic"
_UNKNOWN_SECONDS: Final = 3600.0
"""So long a login may live whose answer was lost."""
_CLOSING_SECONDS: Final = 20.0
_FIRST: Final = 1 << 40
"""Versions of what is issued: none that is stored comes near."""


class Login(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One login that was asked for.

    Attributes:
        credential: Whose.
        rotator: The URI that it was asked of.
        lease: The provider's id; empty: it is not known.
        until: Unix seconds at which it ends by itself.
        ending: It is to be revoked.
        failures: To revoke it, so far.
    """

    credential: str
    rotator: str
    lease: str = ""
    until: float = 0.0
    ending: bool = False
    failures: int = 0


class Logins(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document ``dynamic``: the logins that there may be, by a random id."""

    open: dict[str, Login] = {}


class OpenLease(Protocol):
    """A lease of a plugin."""

    @property
    def id(self) -> str:
        """Its id."""

    def close_at_end(self, close: Callable[[], object]) -> None:
        """Has ``close`` called when it ends."""


def logins_document(store: DocumentStore) -> Document[Logins]:
    """The document of a vault."""
    return Document(store, name=DOCUMENT, empty=Logins())


class DynamicCredentials:
    """Makes logins for the leases of one process, and ends them.

    Args:
        vault: Unsealed.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._document = logins_document(vault.store)
        self._flights: SingleFlight[str, Record] = SingleFlight()
        self._records: dict[str, Record] = {}
        self._versions = itertools.count(_FIRST)
        self._thread = LoopThread("apex-creds logins")
        self._ends: set[Future[None]] = set()

    async def record_for(self, lease: OpenLease, record: Record) -> Record:
        """The login of a lease, made when it is first needed.

        Raises:
            TokenError: The provider makes none now.
        """
        found = self._records.get(lease.id)
        failed: ApexCredsError | None = None
        while found is None and failed is None:
            try:
                found = await self._flights.shared(
                    lease.id, lambda: run_to_completion(self._issued(lease, record))
                )
            except ApexCredsError as error:  # its frames hold the admin's token
                failed = TokenError(
                    f"No login could be made for {record.info.name!r}: {error.message}",
                    hint=error.hint,
                )
        if failed is not None:
            raise failed
        assert found is not None
        return found

    async def _issued(self, lease: OpenLease, record: Record) -> Record:
        info = record.info
        assert info.rotation is not None
        provider, number = openbao_database.from_uri(info.rotation.rotator), new_id()
        admin = await self._admin(provider)
        now = self._vault.clock.time()
        asked = Login(
            credential=info.name,
            rotator=info.rotation.rotator,
            until=now + _UNKNOWN_SECONDS,
        )
        await self._put(number, asked)
        try:
            made = await provider.issue(admin)
        except RotatorError as error:
            if isinstance(error, RotatorRefusedError):
                await self._put(number, None)
            self._log("issue", info.name, "refused")
            raise
        await self._put(number, replace(asked, lease=made.lease, until=now + made.seconds))
        self._log("issue", info.name)
        sealed = self._sealed(record, made)
        self._records[lease.id] = sealed
        lease.close_at_end(partial(self._over, lease.id, number))
        self._thread.start(partial(self._keep, lease.id, number, made.seconds))
        return sealed

    def _sealed(self, record: Record, made: Issued) -> Record:
        keystore = self._vault.store.unsealed()
        keyset = keystore.by_label.get(dek_label(record.info))
        if keyset is None:
            raise ConflictError("The credential was changed meanwhile.", hint="Try again.")
        info = msgspec.structs.replace(record.info, version=next(self._versions))
        return seal_record(
            info,
            made.secret,
            vault_id=bytes.fromhex(keystore.header.vault_id),
            keyset=keyset,
            key=keystore.hierarchy.unwrap(keyset, keyset.primary.version),
        )

    # -- while it lasts --------------------------------------------------------------

    async def _keep(self, lease: str, number: str, seconds: float) -> None:
        """Renews a login until its lease ends, or the provider does not renew it."""
        while True:
            await asyncio.sleep(seconds / 2)
            if lease not in self._records:
                return
            login = (await self._document.read()).open.get(number)
            if login is None:
                return
            try:
                provider = openbao_database.from_uri(login.rotator)
                admin = await self._admin(provider)
                seconds = await provider.renew(admin, login.lease)
            except ApexCredsError:
                self._records.pop(lease, None)  # the next use asks for another one
                self._log("renew", login.credential, "refused")
                return
            until = self._vault.clock.time() + seconds
            await self._change(number, partial(replace, until=until))

    def _over(self, lease: str, number: str) -> None:
        if self._records.pop(lease, None) is None:
            return
        done = self._thread.start(partial(self._end, number))
        self._ends.add(done)
        done.add_done_callback(self._ends.discard)

    async def _end(self, number: str) -> None:
        """Revokes a login; what fails is on record."""
        with contextlib.suppress(ApexCredsError):
            await self._change(number, lambda login: replace(login, ending=True))
            await self._revoke(number)

    async def _revoke(self, number: str) -> None:
        login = (await self._document.read()).open.get(number)
        if login is None:
            return
        over = self._vault.clock.time() >= login.until
        try:
            if login.lease:
                provider = openbao_database.from_uri(login.rotator)
                await provider.revoke(await self._admin(provider), login.lease)
            elif not over:
                return
        except ApexCredsError:
            if not over:
                await self._change(
                    number, lambda login: replace(login, failures=login.failures + 1)
                )
                self._log("revoke", login.credential, "refused")
                raise
        await self._put(number, None)
        self._log("revoke", login.credential)

    # -- for workers and people --------------------------------------------------------

    async def logins(self) -> dict[str, Login]:
        """The logins that there may be."""
        return (await self._document.read()).open

    async def revoke_left(self) -> int:
        """Revokes what should have been: of leases that have ended, or processes that have.

        Returns:
            How many could not be revoked.
        """
        now = self._vault.clock.time()

        async def due() -> dict[str, str]:
            found = sorted((await self.logins()).items(), key=lambda each: each[1].failures)
            over = [each for each in found if each[1].ending or now >= each[1].until]
            return {number: place_of(login.rotator) for number, login in over}

        async def revoke(number: str) -> bool:
            try:
                await self._revoke(number)
            except ApexCredsError:
                return False
            return True

        await in_lanes(due, revoke)
        return sum(login.ending for login in (await self.logins()).values())

    async def close(self) -> None:
        """Waits a while for what is being revoked."""
        waits = [asyncio.wrap_future(each) for each in list(self._ends)]
        if waits:
            await asyncio.wait(waits, timeout=_CLOSING_SECONDS)
        self._thread.close(wait=False)

    # -- inside ------------------------------------------------------------------------

    async def _put(self, number: str, login: Login | None) -> None:
        def change(state: Logins) -> Logins:
            kept = {n: each for n, each in state.open.items() if n != number}
            return Logins(open=kept if login is None else {**kept, number: login})

        await self._document.change(change)

    async def _change(self, number: str, change: Callable[[Login], Login]) -> None:
        await self._document.change(
            lambda state: (
                Logins(open={**state.open, number: change(state.open[number])})
                if number in state.open
                else state
            )
        )

    async def _admin(self, provider: OpenBaoDatabase) -> Secret:
        record = (await self._vault.facts(provider.admin)).record
        if record is None or record.info.kind is not CredentialKind.API_KEY:
            raise RotatorRefusedError(
                f"There is no token {provider.admin!r} to ask for logins with.",
                hint="Store it as an API key, or change ?admin= in the URI.",
            )
        self._vault.check_not_marked(record.info, action="issue")
        if provider.origin not in record.info.origins:
            raise RotatorRefusedError(
                f"{record.info.name!r} may not be sent to {provider.origin}.",
                hint=f"Allow it: apex-creds edit NAME --origin {provider.origin}",
            )
        key_id, version = record.key
        event = AuditEvent(
            time=self._vault.clock.time(),
            kind=EventKind.ROTATION,
            action="issue with",
            credential=record.info.name,
            decision="allow",
            key_id=key_id.hex(),
            key_version=version,
        )
        with self._vault.release(record, self._vault.audit.encode(event)) as opened:
            return Secret(record.info.kind, {"value": bytes(opened.view("value"))})

    def _log(self, action: str, credential: str, reason: str = "") -> None:
        self._vault.record(
            EventKind.ROTATION,
            action=f"{action} login",
            credential=credential,
            decision="deny" if reason else "allow",
            reason=reason,
        )

"""The vault: create, unseal, put, get, list, delete, grants; and the exit of plaintext.

Guarantee: what ``put`` acknowledged is durable and stays readable (rule 1); plaintext
leaves only through ``release``, after its audit event is in the log (rule 5); everything
that changes the vault is audited before it happens.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import anyio

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.audit.log import AuditLog
from apex_creds.audit.sinks import Destination
from apex_creds.auth.access_document import AccessStore
from apex_creds.clocks import Ends
from apex_creds.concurrency import ATTEMPTS, BACKGROUND, Lock, off_loop, running_loop
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.keystore import Keystore, MasterKeySource
from apex_creds.documents.records import Messages, Record, open_record
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import (
    ChallengeError,
    ConflictError,
    CredentialNotFoundError,
    InvalidInputError,
    SecretWipedError,
    UnknownKeyError,
    VaultExistsError,
    VaultNotFoundError,
)
from apex_creds.fs.home import CREDENTIALS, SECURITY, guard, resolve_home
from apex_creds.keys import MasterKeyProvider, provider_from_uri
from apex_creds.model import (
    SECTION_NAMES,
    SECTIONS,
    Clock,
    Connection,
    CredentialInfo,
    Delivery,
    OAuthToken,
    Origin,
    Secret,
    Sensitivity,
    SystemClock,
    check_name,
    check_time,
    key_of,
    new_id,
)
from apex_creds.policy.decide import Reason
from apex_creds.policy.display import check_plugin
from apex_creds.policy.grants import Grant, GrantDecision, Grants, Lockdown
from apex_creds.policy.manifest import Manifest
from apex_creds.storage.base import Storage
from apex_creds.telemetry import instruments, semconv, tracing
from apex_creds.vault import create, credential_writes, unfinished
from apex_creds.vault.audit_setup import VaultLog, open_log
from apex_creds.vault.config import ensure_config
from apex_creds.vault.create import note_place, open_documents, storage_at
from apex_creds.vault.grant_store import GrantStore, PeerRevocations, Revoked
from apex_creds.vault.key_gauges import KeyGauges
from apex_creds.vault.lockdown import LockdownControl
from apex_creds.vault.lookup import Deletion, Facts, Lookup, Opened, PutItem, parse_level

T = TypeVar("T")


class Vault:
    """An unsealed vault, an async context manager. Made by ``create`` or ``unseal``.

    It may be used from every asyncio event loop, in every thread, at once.
    """

    def __init__(
        self, *, store: DocumentStore, logged: VaultLog, clock: Clock, home: Path
    ) -> None:
        self._store = store
        self._lookup = Lookup(store)
        self.facts_now = self._lookup.now
        """The grants and the record of a key, as stored now; None: ``refresh`` first."""
        self._logged = logged
        self._audit = logged.log
        self._clock = clock
        self.ends = Ends(clock)
        """The time by which what ends is judged: it is not set back."""
        self._home = home
        guard(home / SECURITY, home / CREDENTIALS)
        self._closing = Lock()
        self._ones: dict[type, object] = {}
        self.access = AccessStore(store, ends=self.ends, record=self.record)
        """The document of second factors, clients and open challenges."""
        self._id = store.unsealed().header.vault_id
        self._id_bytes = bytes.fromhex(self._id)
        self._messages = Messages()
        self._lockdown = LockdownControl(
            store, access=self.access, record=self.record, home=home
        )
        self.notify_revoked = self._lockdown.notify_revoked
        """Ends what is open in this process: of a plugin, a credential, both, or all."""
        self._grants = GrantStore(store, record=self.record, on_revoked=self.notify_revoked)
        self._peers = store.shared and PeerRevocations(store, store.shared, self.notify_revoked)

    # -- life --------------------------------------------------------------------

    @classmethod
    async def create(
        cls,
        home: str | os.PathLike[str] | None = None,
        *,
        master: str | MasterKeyProvider = "keyring:",
        storage: Storage | str | None = None,
        hashed_names: bool = False,
        use_existing_key: bool = False,
        clock: Clock | None = None,
        audit_to: Iterable[Destination] = (),
    ) -> Self:
        """Makes a vault and a master key for it; returns it unsealed.

        Args:
            home: The directory; ``$APEX_CREDS_HOME`` or ``~/.apex_agent`` by default.
            master: Where the master key is kept: a provider or its URI.
            storage: Has the documents, and is closed with the vault; or the URL of a
                database (see docs/SQL.md); files in the home, by default.
            hashed_names: Files of sections are named by keyed hashes; see docs/FORMAT.md.
            use_existing_key: Use the key that is in the file already; it is never deleted.
            clock: Stamps what is written.
            audit_to: Where audit events go beside the log's own file.

        Raises:
            EventLoopError: It is not asyncio that runs here.
            VaultExistsError: There is one already, or another process was first.
            MasterKeyError: The provider can't make a key, or has one already.
            StorageError: The directory can't be used.
        """
        running_loop()
        clock = clock or SystemClock()
        provider = provider_from_uri(master) if isinstance(master, str) else master
        path = resolve_home(home)
        place = storage_at(path, storage)
        async with unfinished.making(path, elsewhere=storage is not None) as begun:
            key = None
            try:
                if not await create.is_unfinished(
                    place, begun, provider=provider, hashed_names=hashed_names
                ):
                    await note_place(path, place)
                    key = await create.create_vault(
                        place,
                        provider=provider,
                        hashed_names=hashed_names,
                        now=clock.time(),
                        begun=begun,
                        use_existing_key=use_existing_key,
                    )
                await ensure_config(path)
            except BaseException:
                if key is not None:
                    key.close()
                with anyio.CancelScope(shield=True):
                    await place.close()
                raise
            with key or nullcontext():
                made = await cls._unseal(
                    path, provider, clock, EventKind.INIT, key, audit_to=audit_to, storage=place
                )
            begun.clear()
            return made

    @classmethod
    async def unseal(
        cls,
        home: str | os.PathLike[str] | None = None,
        *,
        master: str | MasterKeyProvider | None = None,
        storage: Storage | str | None = None,
        clock: Clock | None = None,
        accept_rollback: str = "",
        audit_to: Iterable[Destination] = (),
    ) -> Self:
        """Opens an existing vault.

        Args:
            home: See ``create``.
            master: Where the master key is; as the vault itself says, by default.
            storage: See ``create``; where the home says, by default.
            clock: See ``create``.
            accept_rollback: Why an older state is opened on purpose; the log records it.
            audit_to: See ``create``.

        Raises:
            EventLoopError: It is not asyncio that runs here.
            VaultNotFoundError: There is none.
            MasterKeyError: The master key can't be had, or is the wrong one.
            IntegrityError: The key store is not what was written.
            RollbackDetectedError: The log or a document is older than it was.
            ForeignVaultError: The home had another vault, with the same master key, before.
            AuditUnavailableError: The log can't be written.
        """
        running_loop()
        provider = provider_from_uri(master) if isinstance(master, str) else master
        return await cls._unseal(
            resolve_home(home),
            provider,
            clock or SystemClock(),
            EventKind.UNSEAL,
            accept_rollback=accept_rollback,
            audit_to=audit_to,
            storage=storage,
        )

    @classmethod
    async def open_or_create(
        cls,
        home: str | os.PathLike[str] | None = None,
        *,
        master: str | MasterKeyProvider | None = None,
        storage: str | None = None,
        clock: Clock | None = None,
        audit_to: Iterable[Destination] = (),
    ) -> Self:
        """Opens the vault, or makes one where there is none and nothing of one.

        Args:
            home: See ``create``.
            master: Where the master key is; as the vault itself says, by default, and
                ``keyring:`` for a new one.
            storage: The URL of a database, see ``create``.
            clock: See ``create``.
            audit_to: See ``create``.

        Raises:
            ApexCredsError: As ``unseal`` and ``create`` do. A vault whose key store is gone
                is not made anew.
        """
        destinations = tuple(audit_to)
        unseal = partial(
            cls.unseal, home, master=master, storage=storage, clock=clock, audit_to=destinations
        )
        with suppress(VaultNotFoundError):
            return await unseal()
        try:
            return await cls.create(
                home,
                master=master or "keyring:",
                storage=storage,
                clock=clock,
                audit_to=destinations,
            )
        except VaultExistsError as error:
            exists = error
        with suppress(VaultNotFoundError):  # or there are parts of one: then that is the error
            return await unseal()
        raise exists

    @classmethod
    async def _unseal(
        cls,
        home: os.PathLike[str],
        provider: MasterKeyProvider | None,
        clock: Clock,
        kind: EventKind,
        first_key: SecretBytes | None = None,
        *,
        accept_rollback: str = "",
        audit_to: Iterable[Destination] = (),
        storage: Storage | str | None = None,
    ) -> Self:
        path = resolve_home(home)
        with tracing.step(semconv.UNSEAL) if tracing.on() else nullcontext() as step:
            place = storage_at(path, storage)
            masters = MasterKeySource(provider, first=first_key, home=path)
            store = await open_documents(path, place, clock=clock, masters=masters)
            try:
                try:
                    keystore = await store.unseal()
                except VaultNotFoundError:
                    if store.shared is not None:
                        raise
                    raise unfinished.not_found(path) from None
                unfinished.clear(path)  # what interrupted work left beside it
                create.map_names(place, keystore)
                logged = await open_log(
                    path,
                    store=store,
                    provider=masters.provider,
                    clock=clock,
                    made=kind is EventKind.INIT,
                    accept_rollback=accept_rollback,
                    destinations=audit_to,
                )
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await store.close()
                raise
            vault = cls(store=store, logged=logged, clock=clock, home=path)
            instruments.watch_keys(vault, KeyGauges(store))
            try:
                vault.record(kind, detail=logged.noted)
                await logged.begun()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await vault.close()
                raise
            if step is not None:
                step.set(semconv.VAULT, vault.vault_id)
                step.set(semconv.AUDIT_SIZE, vault.audit.seq)
            return vault

    async def close(self) -> None:
        """Seals the vault: wipes every key, makes the log durable; idempotent.

        From any event loop. What is under way in others fails with ``VaultSealedError``, or
        with a ``StorageError`` where the storage was closed under it.
        """
        with anyio.CancelScope(shield=True):
            async with self._closing.held():
                try:
                    if self._store.shared is not None:  # which takes the last of the log
                        await self._logged.close()
                finally:
                    if self._peers is not None:
                        self._peers.close()
                    await self._store.close()
                await self._logged.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def vault_id(self) -> str:
        """32 hexadecimal digits."""
        return self._id

    @property
    def home(self) -> Path:
        """The vault's directory."""
        return self._home

    @property
    def clock(self) -> Clock:
        """The vault's clock."""
        return self._clock

    @property
    def store(self) -> DocumentStore:
        """The vault's documents; for the layers above, never for plugins."""
        return self._store

    @property
    def audit(self) -> AuditLog:
        """The vault's audit log."""
        return self._audit

    # -- credentials -------------------------------------------------------------

    async def put(
        self,
        name: str,
        secret: Secret,
        *,
        service: str | None = None,
        delivery: str | Delivery | None = None,
        origins: Iterable[str | Origin] | None = None,
        expires: float | None = None,
        sensitivity: str | Sensitivity | None = None,
        challenge: bool | None = None,
        connection: Connection | None = None,
        principal: str = "",
    ) -> CredentialInfo:
        """Stores a credential, or a new version of it; durable on return.

        Args:
            name: 1 to 256 bytes, unique in the vault, or among the principal's.
            secret: What to keep.
            service: Chooses the DEK keyset; ``name`` by default.
            delivery: ``bearer``, ``header:NAME``, ``query:NAME`` or ``basic``.
            origins: Where it may be sent, ``https://host[:port]``; nowhere by default.
            expires: Unix seconds.
            sensitivity: ``normal``, ``sensitive`` (the default) or ``critical``.
            challenge: Whether each use takes a nonce that a client has signed.
            connection: How the token is renewed, as ``apex_creds.oauth`` made it.
            principal: Whose it is, as a user's id; nobody else's calls use it. Empty: shared.

        Raises:
            InvalidInputError: A name, origin, delivery or level is not acceptable.
            CredentialExistsError: The name is taken by a credential of another kind.
        """
        item = PutItem(
            name=name,
            secret=secret,
            service=service,
            delivery=Delivery.parse(delivery) if isinstance(delivery, str) else delivery,
            origins=None if origins is None else tuple(map(Origin.parse, map(str, origins))),
            expires=expires,
            sensitivity=None if sensitivity is None else parse_level(sensitivity),
            challenge=challenge,
            connection=connection,
            principal=principal,
        )
        return (await self.put_many([item]))[0]

    async def put_many(self, items: Iterable[PutItem]) -> Sequence[CredentialInfo]:
        """Stores several credentials, with one commit for each section concerned.

        Raises:
            InvalidInputError, CredentialExistsError: As ``put``; then none is stored.
        """
        batch = list(items)
        written: dict[str, CredentialInfo] = {}
        for section, chosen in (await credential_writes.check(self._store, batch)).items():
            async for item in credential_writes.in_turns(chosen):
                self.record(EventKind.PUT, credential=item.key)
            written |= await credential_writes.put(
                self._store, section, chosen, clock=self._clock
            )
        return await off_loop(len(batch), lambda: [written[item.key] for item in batch])

    async def edit(
        self,
        name: str,
        *,
        challenge: bool | None = None,
        sensitivity: str | Sensitivity | None = None,
        origins: Iterable[str | Origin] | None = None,
        delivery: str | Delivery | None = None,
        expires: float | None = None,
        principal: str = "",
    ) -> CredentialInfo:
        """Changes what is known of a credential, not its value; None leaves it as it is.

        It counts from the next lease and redeem on, in every process. Where the secret may
        not be sent any more, a lease that is open does not send it either.

        Args:
            name: The credential's.
            challenge: Whether each use takes a nonce that a client has signed.
            sensitivity: ``normal``, ``sensitive`` or ``critical``.
            origins: Where it may be sent from now on, ``https://host[:port]``.
            delivery: ``bearer``, ``header:NAME``, ``query:NAME`` or ``basic``.
            expires: Until when it is good, in Unix seconds; infinite: without end.
            principal: Whose it is; empty: the shared one.

        Raises:
            CredentialNotFoundError: There is none of that name.
            InvalidInputError: There is no such level, origin, delivery or time.
        """
        if expires != math.inf:
            check_time(expires, what="end of the credential")
        key = key_of(name, principal)
        section = SECTIONS[(await self._find(key)).info.kind]
        changes = credential_writes.Edit(
            challenge=challenge,
            sensitivity=None if sensitivity is None else parse_level(sensitivity),
            origins=None if origins is None else tuple(map(Origin.parse, map(str, origins))),
            delivery=Delivery.parse(delivery) if isinstance(delivery, str) else delivery,
            expires=expires,
        )
        self.record(EventKind.PUT, credential=key, detail=str(changes))
        return await credential_writes.edit(
            self._store, section, key, changes, clock=self._clock
        )

    async def renew(
        self, before: CredentialInfo, token: OAuthToken, *, connection: Connection
    ) -> CredentialInfo:
        """Replaces a token by the one that its provider issued for it.

        Raises:
            CredentialChangedError: It is not at the version of ``before`` any more.
        """
        item = PutItem(
            name=before.name,
            secret=token,
            connection=connection,
            replaces=before.version,
            principal=before.principal,
        )
        return (await self.put_many([item]))[0]

    async def note_connection(
        self, before: CredentialInfo, connection: Connection
    ) -> CredentialInfo:
        """Puts on record what is known of a token's connection; its value stays.

        Raises:
            CredentialChangedError: It is not at the version of ``before`` any more.
        """
        changes = credential_writes.Edit(connection=connection, replaces=before.version)
        return await credential_writes.edit(
            self._store, SECTIONS[before.kind], before.key, changes, clock=self._clock
        )

    async def get(self, name: str, *, principal: str = "") -> CredentialInfo:
        """A credential's metadata; a principal's, or the shared one of that name.

        Raises:
            CredentialNotFoundError: There is none of that name.
        """
        return (await self.find(name, principal=principal)).info

    async def list(self, *, principal: str | None = None) -> list[CredentialInfo]:
        """The metadata of credentials, sorted by name.

        Args:
            principal: Whose; empty: the shared ones; None: all.
        """
        sections = await self._store.sections.read_all(SECTION_NAMES)
        every = (record.info for section in sections for record in section.records.values())
        found = (info for info in every if principal in (None, info.principal))
        return sorted(found, key=lambda info: (info.name, info.principal))

    async def delete(self, name: str, *, principal: str = "") -> Deletion:
        """Deletes a credential by crypto-shredding, and overwrites what it can.

        Every other credential of the same service is re-encrypted under a new DEK
        version and the old one destroyed: the cost grows with their number. Where there
        is none of that name, what an interrupted deletion left is destroyed.

        Raises:
            CredentialNotFoundError: There is none of that name, and nothing was left.
        """
        key = key_of(name, principal)
        try:
            section = SECTIONS[(await self._find(key)).info.kind]
        except CredentialNotFoundError:
            finished = await credential_writes.finish_removals(self._store, clock=self._clock)
            if finished is None:
                raise
            self.record(EventKind.DELETE, credential=key, detail="finished")
            return Deletion(name=name, shredded=finished, overwritten="unverifiable")
        self.record(EventKind.DELETE, credential=key)
        if gone := await credential_writes.remove(self._store, section, key, clock=self._clock):
            return gone
        raise _not_found()

    @asynccontextmanager
    async def open(
        self,
        name: str,
        *,
        action: str = "open",
        for_program: bool = False,
        principal: str = "",
    ) -> AsyncIterator[Opened]:
        """The secret itself, for the operator; audited, wiped on exit.

        A program (``for_program``) does not get what takes a signed challenge.

        Raises:
            CredentialNotFoundError: There is none of that name.
            LockedDownError: The vault is locked down.
            ChallengeError: It takes one, and a program asks.
            AuditUnavailableError: The event could not be written first.
        """
        await self.check_not_locked_down()
        # By way of the facts: the key store in memory is sure to have the record's key.
        record = (await self.facts(key_of(name, principal))).record
        if record is None:
            raise _not_found()
        if for_program:
            self.check_not_marked(record.info, action=action)
        key_id, version = record.key
        event = AuditEvent(
            time=self._clock.time(),
            kind=EventKind.EXPOSE,
            action=action,
            credential=record.info.key,
            decision="allow",
            reason="operator",
            key_id=key_id.hex(),
            key_version=version,
        )
        with self.release(record, self._audit.encode(event)) as opened:
            yield opened

    # -- grants ------------------------------------------------------------------

    async def grants(self) -> Grants:
        """All grants."""
        return await self._grants.read()

    async def grant(
        self,
        plugin: str,
        credential: str,
        *,
        scopes: Iterable[str] = (),
        reveal: bool = False,
        echoes: bool = False,
        sign: bool = False,
        until: float | None = None,
        decision: GrantDecision = GrantDecision.ALLOW,
        manifest: Manifest | None = None,
        created_by: str = "",
        since_mark: int | None = None,
        principal: str = "",
    ) -> Grant:
        """Permits a plugin the use of a credential; replaces the pair's earlier grant.

        Args:
            plugin: The plugin's id.
            credential: The credential's name; it need not exist yet.
            scopes: The scopes it may ask for.
            reveal: Whether it may read the secret, if its manifest asks for that.
            echoes: Whether answers of services go on to it as they come, not searched for
                the secret, likewise.
            sign: Whether it may have signatures made with it, likewise.
            until: Unix seconds; without end by default.
            decision: ``deny`` refuses it, and nobody is asked again.
            manifest: What the plugin is; by default, the grant is bound to what it turns
                out to be when it is used first.
            created_by: Who decided.
            since_mark: ``Grants.mark`` of when they were asked; what was revoked since,
                by any process, or locked down, is not granted.
            principal: Whose credential; empty: the shared one.

        Raises:
            GrantVoidError: A revocation after ``since_mark``, or a lockdown, was first;
                nothing was stored, and the log says so.
            LockedDownError: The vault is locked down.
        """
        allows = decision is GrantDecision.ALLOW
        made = Grant(
            id=new_id(),
            plugin=check_plugin(plugin) if allows else check_name(plugin, what="plugin id"),
            credential=check_name(credential, what="credential name"),
            scopes=tuple(check_name(scope, what="scope") for scope in scopes),
            reveal=reveal,
            echoes=echoes,
            sign=sign,
            created=self._clock.time(),
            until=check_time(until, what="end of the grant"),
            decision=decision,
            manifest=manifest.digest if manifest else "",
            checksum=manifest.checksum if manifest else "",
            created_by=created_by,
            principal=principal and check_name(principal, what="principal"),
        )
        await self._grants.add(made, manifest=manifest, since_mark=since_mark)
        return made

    async def pin(self, manifest: Manifest) -> None:
        """Binds what was granted of what a plugin declares, and is not bound yet, to it."""
        await self._grants.pin(manifest)

    async def revoke(
        self,
        *,
        plugin: str | None = None,
        credential: str | None = None,
        keep_denials: bool = False,
        principal: str = "",
    ) -> tuple[Grant, ...]:
        """Takes back what was allowed to a plugin, on a credential, or to the pair.

        Grants are removed; what was allowed for a session only is void, in all processes.
        It only narrows, so that it works in a lockdown too.

        Args:
            plugin: Its id.
            credential: Its name.
            keep_denials: What was denied, and not to be asked again, stays so.
            principal: Whose that credential is; empty: it is the shared one.

        Returns:
            The grants that were removed.

        Raises:
            InvalidInputError: Neither is given.
            MasterKeyError: A lockdown wiped the keys, and they can't be had again.
        """
        if principal and credential is None:
            raise InvalidInputError(
                "A principal's grants are taken back one by one.", hint="Name the credential."
            )
        key = None if credential is None else key_of(credential, principal)
        return await self._grants.revoke(
            plugin=plugin, credential=key, keep_denials=keep_denials
        )

    def watch_revocations(self, notify: Revoked) -> None:
        """Has ``notify`` called, at once, when this process revokes something."""
        self._lockdown.watchers.append(notify)

    def unwatch_revocations(self, notify: Revoked) -> None:
        """Takes ``watch_revocations`` back."""
        with suppress(ValueError):
            self._lockdown.watchers.remove(notify)

    def check_not_marked(self, info: CredentialInfo, *, action: str, plugin: str = "") -> None:
        """Returns if a program may have a credential without a signed challenge.

        Raises:
            ChallengeError: It may not; the log says so.
        """
        if not info.challenge:
            return
        self.record(
            EventKind.DENIAL,
            plugin=plugin,
            action=action,
            credential=info.key,
            decision="deny",
            reason=Reason.CHALLENGE_NEEDED.value,
        )
        raise ChallengeError(
            "Each use of this credential takes a signed challenge.",
            hint="Use it through a handle; see docs/CHALLENGE.md.",
        )

    # -- lockdown ----------------------------------------------------------------

    async def lockdown(self, *, reason: str = "", keep_grants: bool = False) -> Lockdown:
        """Ends everything that is in use, and releases nothing until ``unlock``.

        What was allowed is void for good, grants too; what was denied stays denied. In a
        lockdown it is a second one, for its own reason; an unlocking under way is void.

        Args:
            reason: For the log.
            keep_grants: Grants have no force meanwhile, and are in force again afterwards.

        Raises:
            AuditUnavailableError: It could not be logged; the vault is locked down.
        """
        return await self._lockdown.begin(reason=reason, keep_grants=keep_grants)

    async def unlock(self, code: str | None = None) -> bool:
        """Ends a lockdown; returns whether there was one.

        Second factors that were shown before it, open challenges and questions are void.

        Args:
            code: Of the operator's second factor (or a recovery code), if there is one.

        Raises:
            SecondFactorError: It is needed and missing, or not right.
            LockedDownError: The vault was locked down again meanwhile, and stays so.
        """
        return await self._lockdown.end(code)

    async def check_not_locked_down(self) -> None:
        """Returns if the vault is not locked down.

        Raises:
            LockedDownError: It is.
        """
        await self._lockdown.check_not_locked_down()

    def obey_lockdown(self) -> None:
        """From now on no key is kept while the vault is locked down."""
        self._lockdown.obey()

    # -- for the layers above ----------------------------------------------------

    async def find(self, name: str, *, principal: str = "") -> Record:
        """The record of that name, a principal's or the shared one, as stored now.

        Raises:
            CredentialNotFoundError: There is none.
        """
        return await self._find(key_of(name, principal))

    async def _find(self, key: str) -> Record:
        for section in SECTION_NAMES:
            found = (await self._store.sections.read(section)).records.get(key)
            if found is not None:
                return found
        raise _not_found()

    def one_of(self, kind: type[T], make: Callable[[Self], T]) -> T:
        """What a layer above has one of for each vault, made when it is first asked for."""
        found = self._ones.get(kind)
        if found is None:
            found = self._ones.setdefault(kind, make(self))
        assert isinstance(found, kind)
        return found

    async def refresh(self) -> None:
        """Brings the key store and every section in memory up to date."""
        await self._store.keystore()
        await self._store.sections.read_all(SECTION_NAMES)

    async def facts(self, key: str) -> Facts:
        """As ``facts_now``, as of some moment after the call."""
        return await self._lookup.fresh(key)

    def release(self, record: Record, event: bytes) -> Opened:
        """The only exit of plaintext: writes ``event``, then decrypts into locked memory.

        Args:
            record: What to open.
            event: An audit event, encoded.

        Raises:
            AuditUnavailableError: The event could not be written; nothing was decrypted.
            IntegrityError: The record does not open.
        """
        keystore = self._store.unsealed()
        self._audit.append_encoded(event)
        return self._opened(record, keystore)

    def reopen(self, record: Record) -> Opened:
        """Opens again what an earlier ``release`` in the same invocation opened.

        For the redaction of that invocation's output and nothing else: the log has the
        release already.

        Raises:
            IntegrityError: It does not open any more.
        """
        return self._opened(record, self._store.unsealed())

    def _opened(self, record: Record, keystore: Keystore) -> Opened:
        """The plaintext of a record, which may have been read a while ago.

        If its key was destroyed since, or is right now by another thread, the same version
        of the credential under its present key is opened; if its key is newer than the key
        store in memory, with the present one.
        """
        for _ in range(ATTEMPTS):
            try:
                find, known = keystore.dek, self._messages
                whole = open_record(record, vault_id=self._id_bytes, find_key=find, known=known)
                return Opened(whole, record.info.kind, known.layout(record, whole))
            except (UnknownKeyError, SecretWipedError) as error:
                key = record.info.key
                facts = self.facts_now(key) or BACKGROUND.call(partial(self.facts, key))
                present = facts.record
                if present is None or present.info != record.info:  # deleted, or replaced
                    raise
                before, keystore = keystore, self._store.unsealed()
                same = present is record and keystore is before
                if same and isinstance(error, UnknownKeyError):
                    raise
                record = present
        raise ConflictError("Other writers keep changing that credential.", hint="Try again.")

    def record(
        self,
        kind: EventKind,
        *,
        action: str = "",
        decision: str = "",
        reason: str = "",
        plugin: str = "",
        principal: str = "",
        credential: str = "",
        detail: str = "",
    ) -> None:
        """Writes an event to the log.

        Raises:
            AuditUnavailableError: It could not be written.
        """
        self._audit.append(
            AuditEvent(
                time=self._clock.time(),
                kind=kind,
                action=action,
                decision=decision,
                reason=reason,
                plugin=plugin,
                principal=principal,
                credential=credential,
                detail=detail,
            )
        )


def _not_found() -> CredentialNotFoundError:
    return CredentialNotFoundError(
        "There is no credential of that name.", hint="See: apex-creds list"
    )

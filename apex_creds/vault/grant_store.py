"""Grants and revocations of a vault: what a person decided, as stored.

Guarantee: every change is audited before it happens and durable on return; a revocation
reaches the leases of this process before the caller goes on, and those of others at their
next redeem. While a vault is locked down, no grant has any force. Each revocation of another
process is passed on in this one once, after the key store that has it is in memory.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import msgspec

from apex_creds.audit.events import EventKind
from apex_creds.auth.access_document import Record
from apex_creds.concurrency import soon
from apex_creds.documents.grant_set import PluginGrants, of_plugin
from apex_creds.documents.keystore import Keystore, KeystoreBody
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import (
    ApexCredsError,
    GrantVoidError,
    InvalidInputError,
    LockedDownError,
)
from apex_creds.keys.hierarchy import UNLOCK
from apex_creds.policy.grants import (
    Grant,
    GrantDecision,
    Grants,
    SeenManifest,
    with_revocation,
)
from apex_creds.policy.manifest import Manifest
from apex_creds.storage.base import KEYSTORE, SharedStorage

Revoked = Callable[[str | None, str | None], object]
"""Called on a revocation with the plugin and the credential; None: all of them."""
Plugins = Mapping[str, PluginGrants]


class GrantStore:
    """The grants of one vault, as stored.

    Args:
        store: The vault's documents.
        record: Writes audit events.
        on_revoked: Called with plugin and credential (None: all) when something was taken back.
    """

    def __init__(self, store: DocumentStore, *, record: Record, on_revoked: Revoked) -> None:
        self._store = store
        self._record = record
        self._on_revoked = on_revoked

    async def read(self) -> Grants:
        """All grants."""
        return await self._store.grants.read()

    async def add(
        self, made: Grant, *, manifest: Manifest | None, since_mark: int | None
    ) -> None:
        """Stores a grant in place of the pair's earlier one; see ``Vault.grant``."""
        plugin, credential = made.plugin, made.key
        allows = made.decision is GrantDecision.ALLOW
        self._record(
            EventKind.GRANT,
            plugin=plugin,
            credential=credential,
            decision=made.decision.value,
            detail=made.created_by,
        )

        def change(plugins: Plugins, keystore: Keystore) -> tuple[Plugins, KeystoreBody]:
            body, before = keystore.body, plugins.get(plugin, PluginGrants(plugin=plugin))
            if since_mark is None and body.lockdown and allows:
                raise locked_down()
            if since_mark is not None:
                marks = Grants(revocations=body.revocations)
                if body.lockdown or marks.revoked_since(since_mark, plugin, credential):
                    raise GrantVoidError("What was to be granted was revoked meanwhile.")
            others = (grant for grant in before.grants if grant.key != credential)
            return {plugin: _with(before, [*others, made], manifest)}, body

        try:
            await self._store.grants.commit(change)
        except (GrantVoidError, LockedDownError):
            self._record(
                EventKind.GRANT,
                plugin=plugin,
                credential=credential,
                decision=GrantDecision.DENY.value,
                detail="not granted: it was revoked, or the vault locked down, meanwhile",
            )
            raise
        if not allows:
            self._on_revoked(plugin, credential)

    async def pin(self, manifest: Manifest) -> None:
        """Binds what was granted of what a plugin declares, and is not bound yet, to it."""
        declared = {need.name for need in manifest.needs}
        digest, checksum = manifest.digest, manifest.checksum

        def pinned(grant: Grant) -> Grant:
            bound = grant.manifest or grant.credential not in declared
            if bound or grant.plugin != manifest.plugin:
                return grant
            return msgspec.structs.replace(grant, manifest=digest, checksum=checksum)

        def change(plugins: Plugins, keystore: Keystore) -> tuple[Plugins, KeystoreBody]:
            before = plugins.get(manifest.plugin, PluginGrants(plugin=manifest.plugin))
            after = tuple(map(pinned, before.grants))
            if after == before.grants:
                return {}, keystore.body
            return {manifest.plugin: _with(before, after, manifest)}, keystore.body

        self._record(EventKind.GRANT, plugin=manifest.plugin, detail=f"bound to {digest}")
        await self._store.grants.commit(change)

    async def revoke(
        self,
        *,
        plugin: str | None = None,
        credential: str | None = None,
        keep_denials: bool = False,
    ) -> tuple[Grant, ...]:
        """Takes grants back; see ``Vault.revoke``."""
        if plugin is None and credential is None:
            raise InvalidInputError(
                "A revocation of nothing.", hint="Name a plugin, a credential, or both."
            )
        removed: tuple[Grant, ...] = ()

        def is_kept(grant: Grant) -> bool:
            denied = keep_denials and grant.decision is GrantDecision.DENY
            meant = plugin in (None, grant.plugin) and credential in (None, grant.key)
            return denied or not meant

        def change(plugins: Plugins, keystore: Keystore) -> tuple[Plugins, KeystoreBody]:
            nonlocal removed
            chosen = plugins if plugin is None else {plugin} & plugins.keys()
            gone = {
                name: [grant for grant in plugins[name].grants if not is_kept(grant)]
                for name in chosen
            }
            removed = tuple(grant for some in gone.values() for grant in some)
            changed = {
                name: _with(plugins[name], filter(is_kept, plugins[name].grants))
                for name, some in gone.items()
                if some
            }
            marks = with_revocation(
                keystore.body.revocations, plugin=plugin or "", credential=credential or ""
            )
            return changed, msgspec.structs.replace(keystore.body, revocations=marks)

        self._record(EventKind.REVOKE, plugin=plugin or "", credential=credential or "")
        async with self._store.holding():
            await self._store.grants.commit(change)
        self._on_revoked(plugin, credential)
        return removed


def locked_down() -> LockedDownError:
    """The refusal while a vault is locked down."""
    return LockedDownError("The vault is locked down.", hint=UNLOCK)


def _with(
    before: PluginGrants, grants: Iterable[Grant], manifest: Manifest | None = None
) -> PluginGrants:
    """A plugin's grants, and the manifests that they are bound to."""
    seen = {item.digest: item for item in before.manifests}
    if manifest is not None:
        digest = manifest.digest
        seen[digest] = SeenManifest(digest=digest, needs=manifest.needs)
    return of_plugin(before.plugin, grants, seen)


class PeerRevocations:
    """The revocations of other processes.

    Args:
        store: The documents of an unsealed vault.
        storage: Where they are, shared with those processes.
        notify: Called with plugin and credential; None for all.
    """

    def __init__(self, store: DocumentStore, storage: SharedStorage, notify: Revoked) -> None:
        self._store = store
        self._storage = storage
        self._notify = notify
        self._passed_on = store.unsealed().grants.mark
        self._own: set[int] = set()
        self._lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        self._again = False
        store.on_keystore_commit.append(self._own_revocations)
        self._end = storage.subscribe(self._moved)

    def close(self) -> None:
        """Passes nothing on any more."""
        self._end()
        task, self._task = self._task, None
        if task is not None:
            soon(task.get_loop(), task.cancel)

    def _own_revocations(self, before: Keystore, body: KeystoreBody) -> None:
        """What this process is about to write, it passes on itself."""
        mark = before.grants.mark
        with self._lock:
            self._own.update(item.seq for item in body.revocations if item.seq > mark)

    # -- in the storage's loop -----------------------------------------------------

    def _moved(self) -> None:
        async def follow() -> None:
            while self._again:
                self._again = False
                with suppress(ApexCredsError):
                    found = (await self._store.keystore()).body.revocations
                    for item in [each for each in found if each.seq > self._passed_on]:
                        self._passed_on = item.seq
                        if item.seq not in self._own:
                            self._notify(item.plugin or None, item.credential or None)
                    with self._lock:
                        self._own = {seq for seq in self._own if seq > self._passed_on}

        with suppress(ApexCredsError):
            token = self._store.unsealed().token
            if self._storage.change_token(KEYSTORE) == token:
                return
            self._again = True
            if self._task is None or self._task.done():
                self._task = asyncio.ensure_future(follow())

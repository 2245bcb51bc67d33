"""Grants and revocations of a vault: what a person decided, as stored.

Guarantee: every change is audited before it happens and durable on return; a revocation
reaches the leases of this process before the caller goes on, and those of others at their
next redeem. While a vault is locked down, no grant has any force.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.concurrency import soon
from apex_creds.documents.grant_set import PluginGrants, of_plugin
from apex_creds.documents.keystore import Keystore, KeystoreBody
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import (
    ApexCredsError,
    ChallengeError,
    GrantVoidError,
    InvalidInputError,
    LockedDownError,
)
from apex_creds.keys.hierarchy import UNLOCK
from apex_creds.model import Clock, CredentialInfo, check_name, check_time, new_id
from apex_creds.policy.decide import Reason
from apex_creds.policy.display import check_plugin
from apex_creds.policy.grants import (
    Grant,
    GrantDecision,
    Grants,
    SeenManifest,
    with_revocation,
)
from apex_creds.policy.manifest import Manifest
from apex_creds.storage.base import KEYSTORE, SharedStorage

if TYPE_CHECKING:
    from apex_creds.audit.log import AuditLog


Revoked = Callable[[str | None, str | None], object]
"""Told of a revocation: the plugin and the credential; None: all of them."""
Watchers = list[Revoked]
Plugins = Mapping[str, PluginGrants]


class Granting:
    """The part of a vault that keeps what was decided."""

    _store: DocumentStore
    _clock: Clock
    _audit: AuditLog

    def record(
        self,
        kind: EventKind,
        *,
        plugin: str = "",
        credential: str = "",
        decision: str = "",
        detail: str = "",
    ) -> None:
        """Writes an event of the operator's to the log."""
        raise NotImplementedError

    @property
    def _watchers(self) -> Watchers:
        raise NotImplementedError

    async def grants(self) -> Grants:
        """All grants."""
        return await self._store.grants.read()

    async def grant(
        self,
        plugin: str,
        credential: str,
        *,
        scopes: Iterable[str] = (),
        reveal: bool = False,
        until: float | None = None,
        decision: GrantDecision = GrantDecision.ALLOW,
        manifest: Manifest | None = None,
        created_by: str = "",
        since_mark: int | None = None,
    ) -> Grant:
        """Permits a plugin the use of a credential; replaces the pair's earlier grant.

        Args:
            plugin: The plugin's id.
            credential: The credential's name; it need not exist yet.
            scopes: The scopes it may ask for.
            reveal: Whether it may read the secret, if its manifest asks for that.
            until: Unix seconds; without end by default.
            decision: ``deny`` refuses it, and nobody is asked again.
            manifest: What the plugin is; by default, the grant is bound to what it turns
                out to be when it is used first.
            created_by: Who decided.
            since_mark: ``Grants.mark`` of when they were asked; what was revoked since,
                by any process, or locked down, is not granted.

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
            created=self._clock.time(),
            until=check_time(until, what="end of the grant"),
            decision=decision,
            manifest=manifest.digest if manifest else "",
            checksum=manifest.checksum if manifest else "",
            created_by=created_by,
        )
        self.record(
            EventKind.GRANT,
            plugin=plugin,
            credential=credential,
            decision=decision.value,
            detail=created_by,
        )

        def change(plugins: Plugins, keystore: Keystore) -> tuple[Plugins, KeystoreBody]:
            body, before = keystore.body, plugins.get(plugin, PluginGrants(plugin=plugin))
            if since_mark is None and body.lockdown and allows:
                raise locked_down()
            if since_mark is not None and _is_void(body, since_mark, plugin, credential):
                raise GrantVoidError("What was to be granted was revoked meanwhile.")
            others = (grant for grant in before.grants if grant.credential != credential)
            return {plugin: _with(before, [*others, made], manifest)}, body

        try:
            await self._store.grants.commit(change)
        except (GrantVoidError, LockedDownError):
            self.record(
                EventKind.GRANT,
                plugin=plugin,
                credential=credential,
                decision=GrantDecision.DENY.value,
                detail="not granted: it was revoked, or the vault locked down, meanwhile",
            )
            raise
        if decision is GrantDecision.DENY:
            self.notify_revoked(plugin, credential)
        return made

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

        self.record(EventKind.GRANT, plugin=manifest.plugin, detail=f"bound to {digest}")
        await self._store.grants.commit(change)

    async def revoke(
        self,
        *,
        plugin: str | None = None,
        credential: str | None = None,
        keep_denials: bool = False,
    ) -> tuple[Grant, ...]:
        """Takes back what was allowed to a plugin, on a credential, or to the pair.

        Grants are removed; what was allowed for a session only is void, in all processes.
        It only narrows, so that it works in a lockdown too.

        Args:
            plugin: Its id.
            credential: Its name.
            keep_denials: What was denied, and not to be asked again, stays so.

        Returns:
            The grants that were removed.

        Raises:
            InvalidInputError: Neither is given.
            MasterKeyError: A lockdown wiped the keys, and they can't be had again.
        """
        if plugin is None and credential is None:
            raise InvalidInputError(
                "A revocation of nothing.", hint="Name a plugin, a credential, or both."
            )
        removed: tuple[Grant, ...] = ()

        def is_kept(grant: Grant) -> bool:
            denied = keep_denials and grant.decision is GrantDecision.DENY
            meant = plugin in (None, grant.plugin) and credential in (None, grant.credential)
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

        self.record(EventKind.REVOKE, plugin=plugin or "", credential=credential or "")
        async with self._store.holding():
            await self._store.grants.commit(change)
        self.notify_revoked(plugin, credential)
        return removed

    # -- in this process ---------------------------------------------------------

    def watch_revocations(self, told: Revoked) -> None:
        """Has ``told`` called, at once, when this process revokes something."""
        self._watchers.append(told)

    def unwatch_revocations(self, told: Revoked) -> None:
        """Takes ``watch_revocations`` back."""
        if told in self._watchers:
            self._watchers.remove(told)

    def notify_revoked(self, plugin: str | None, credential: str | None) -> None:
        """Ends what is open in this process: of a plugin, a credential, both, or all."""
        raise NotImplementedError

    def check_not_marked(self, info: CredentialInfo, *, action: str, plugin: str = "") -> None:
        """Returns if a program may have a credential without a signed challenge.

        Raises:
            ChallengeError: It may not; the log says so.
        """
        if not info.challenge:
            return
        self._audit.append(
            AuditEvent(
                time=self._clock.time(),
                kind=EventKind.DENIAL,
                plugin=plugin,
                action=action,
                credential=info.name,
                decision="deny",
                reason=Reason.CHALLENGE_NEEDED.value,
            )
        )
        raise ChallengeError(
            "Each use of this credential takes a signed challenge.",
            hint="Use it through a handle; see docs/CHALLENGE.md.",
        )


def locked_down() -> LockedDownError:
    """The refusal while a vault is locked down."""
    return LockedDownError("The vault is locked down.", hint=UNLOCK)


def _is_void(body: KeystoreBody, mark: int, plugin: str, credential: str) -> bool:
    grants = Grants(revocations=body.revocations)
    return body.lockdown is not None or grants.revoked_since(mark, plugin, credential)


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
        with suppress(ApexCredsError):
            token = self._store.unsealed().token
            if self._storage.change_token(KEYSTORE) == token:
                return
            self._again = True
            if self._task is None or self._task.done():
                self._task = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        while self._again:
            self._again = False
            with suppress(ApexCredsError):
                self._pass_on(await self._store.keystore())

    def _pass_on(self, keystore: Keystore) -> None:
        new = [item for item in keystore.body.revocations if item.seq > self._passed_on]
        for item in new:
            self._passed_on = item.seq
            if item.seq not in self._own:
                self._notify(item.plugin or None, item.credential or None)
        with self._lock:
            self._own = {seq for seq in self._own if seq > self._passed_on}

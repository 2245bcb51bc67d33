"""The vault's log: its key, its pseudonyms, its anchor, opened and closed with the vault.

Guarantee: a log or document that is behind the anchor stops the unsealing, or, where the
operator accepts it with a reason, is recorded in the log before anything else happens. The
signing key lives from the first event to the last, and is wiped after it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from apex_creds.audit.checkpoint import CheckpointFile, LogKey
from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.audit.log import AuditLog
from apex_creds.audit.sinks import Destination, Destinations, open_destinations
from apex_creds.concurrency import BoundedCache, off_loop
from apex_creds.crypto import kdf
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.public_key import SigningKey
from apex_creds.documents.cached import recommit
from apex_creds.documents.document import Header, check_mac, parse
from apex_creds.documents.grant_set import grant_shards, is_shard
from apex_creds.documents.keystore import BRANCH, KeystoreBody, root_key
from apex_creds.documents.sections import documents_of, section_of
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import ApexCredsError, IntegrityError, RollbackDetectedError
from apex_creds.fs.home import audit_directory
from apex_creds.keys import MasterKeyProvider
from apex_creds.keys.keyset import KeyState
from apex_creds.model import Clock
from apex_creds.storage.base import GRANTS, KEYSTORE
from apex_creds.storage.portal import StoragePortal
from apex_creds.vault import credential_writes
from apex_creds.vault.anchor import Anchor, Anchored, check_home, open_signing_key
from apex_creds.vault.config import home_config, make_node
from apex_creds.vault.log_replication import Shipper

__all__ = ["Pseudonyms", "VaultLog", "open_log", "root_key"]

PATIENCE: Final = 5.0
"""Seconds that a revocation waits for its anchor to be written."""
_logger = logging.getLogger("apex_creds.vault")
_MARK: Final = "~"
_DIGITS: Final = 32
_MANY: Final = 8192
_HINT: Final = (
    "Put the newest copy back. After a restore on purpose: "
    "apex-creds audit accept-rollback --reason …"
)


class Pseudonyms:
    """Keyed pseudonyms: ``~`` and 32 hexadecimal digits of HMAC-SHA256 over the name.

    Args:
        root: The vault's root key, which they are derived from.
    """

    def __init__(self, root: SecretBytes) -> None:
        self._key = kdf.derive(root, kdf.Purpose.AUDIT_PSEUDONYM)
        self._known: BoundedCache[str, str] = BoundedCache(_MANY)

    def __call__(self, name: str) -> str:
        """The pseudonym of ``name``."""
        found = self._known.get(name)
        if found is None:
            encoded = name.encode(errors="backslashreplace")
            digest = kdf.hmac_sha256(self._key, encoded).hex()
            found = self._known.remember(name, _MARK + digest[:_DIGITS])
        return found

    def close(self) -> None:
        """Wipes the key."""
        self._key.close()
        self._known.clear()


@dataclass(slots=True)
class VaultLog:
    """An open log with what belongs to it."""

    log: AuditLog
    anchor: Anchor
    signer: SigningKey
    pseudonyms: Pseudonyms
    signed_before: bool
    shipper: Shipper | None = None
    closed: bool = False
    anchored: bool = True
    noted: str = ""

    async def begun(self) -> None:
        """Has the vault's first event of this process signed: no log is without checkpoint.

        The first checkpoint of all is there on return.
        """
        if not self.signed_before:
            with suppress(ApexCredsError):
                await anyio.to_thread.run_sync(self.log.sign)
                return
        self.log.sign_soon()

    def follow(self, store: DocumentStore) -> None:
        """Has what a store commits and reads anchored: soon, or at once where it asks."""
        if self.anchor.keeps:
            store.anchor, store.rollback.on_raised = self.keep_anchor, self.log.notify_soon

    async def keep_anchor(self) -> None:
        """Anchors what was authenticated, before what took it away is acknowledged.

        Where that can't be done, what was done is in force all the same: it is said once,
        and tried again with each checkpoint. A keyring that waits for its user is not
        waited for.
        """
        kept = False
        with suppress(ApexCredsError), anyio.move_on_after(PATIENCE):
            await anyio.to_thread.run_sync(self.anchor.keep, abandon_on_cancel=True)
            kept = True
        if not kept and self.anchored:
            _logger.warning(
                "The anchor beside the master key could not be written: until it can, an "
                "older copy of the vault would not be noticed"
            )
        self.anchored = kept

    async def close(self) -> None:
        """Signs, anchors and closes the log, then wipes its keys; idempotent."""
        if self.closed:
            return
        self.closed = True
        try:
            await anyio.to_thread.run_sync(self.log.close)
            if self.shipper is not None:
                await self.shipper.finish()
        finally:
            self.signer.close()
            self.pseudonyms.close()


async def open_log(
    home: Path,
    *,
    store: DocumentStore,
    provider: Callable[[str], MasterKeyProvider],
    clock: Clock,
    made: bool = False,
    accept_rollback: str = "",
    destinations: Iterable[Destination] = (),
) -> VaultLog:
    """Opens the log of a vault that was just unsealed, and compares with the anchor.

    Args:
        home: The vault's directory.
        store: Its documents.
        provider: Finds the master key provider of a URI.
        clock: Dates what the log itself records.
        made: The vault was just made: it is the one that its home is to have.
        accept_rollback: Why what is behind the anchor is accepted.
        destinations: Where events go beside the log's own file.

    Raises:
        RollbackDetectedError: The log or a document is behind; says which, by how much.
        IntegrityError: The anchor was not signed by this vault.
        ForeignVaultError: The home had another vault before.
        AuditTamperedError: The log is not what was written.
        AuditUnavailableError: It can't be opened.
    """
    keystore = store.unsealed()
    signer = open_signing_key(keystore)
    pseudonyms = Pseudonyms(root_key(keystore))
    hub: Destinations | None = None
    try:
        # Where several homes share the vault, each has a log with another id.
        alone = keystore.header.vault_id if store.shared is None else ""
        key = LogKey(alone or await anyio.to_thread.run_sync(make_node, home), signer)
        keeper = provider(keystore.root_header.master.uri)
        pin = partial(check_home, keeper, home, keystore.header.vault_id)
        accept = bool(accept_rollback)
        noted = await anyio.to_thread.run_sync(partial(pin, accept=made or accept))
        anchor = Anchor(keeper, key=key, store=store, home=home)
        anchored, behind = await _compare(anchor, accept=accept)
        if anchored is not None and not accept_rollback:
            store.sections.require(anchored.documents)
            store.rollback.require(anchored.documents)
        config = (await home_config(home)).audit
        directory = audit_directory(home)
        hub = await open_destinations(destinations, config.to, clock=clock)
        signed_before = CheckpointFile(directory, vault_id=key.vault_id).is_there()
        log = AuditLog(
            directory,
            vault_id=key.vault_id,
            clock=clock,
            durable_within=config.durable_ms / 1000,
            key=key,
            cadence=config.cadence,
            anchors=() if anchored is None else (anchored.checkpoint,),
            accept_rollback=accept_rollback,
            on_checkpoint=anchor.keep if anchor.keeps else None,
            pseudonym=pseudonyms if config.pseudonyms else None,
            observer=hub,
        )
        if hub is not None:
            hub.bind(log)
    except BaseException:
        if hub is not None:
            hub.close()
        signer.close()
        pseudonyms.close()
        raise
    shipper = (
        Shipper(store.shared, keystore, node=key.vault_id, directory=directory)
        if isinstance(store.shared, StoragePortal)
        else None
    )
    opened = VaultLog(log, anchor, signer, pseudonyms, signed_before, shipper)
    opened.noted = "" if made else noted
    opened.follow(store)
    try:
        if accept_rollback:
            known = anchored.documents.get(KEYSTORE, 0) if anchored else 0
            await _accept(
                opened, store, behind, known, reason=accept_rollback, now=clock.time()
            )
        elif anchored is None and anchor.keeps and signed_before:
            log.append(AuditEvent(clock.time(), EventKind.RECOVERED, detail=_NO_ANCHOR))
    except BaseException:
        with anyio.CancelScope(shield=True):
            await opened.close()
        raise
    if shipper is not None:
        shipper.start(log)
    return opened


_NO_ANCHOR: Final = (
    "no anchor was kept for this log: it was removed, or not written before a crash; "
    "a rollback before this event would not be noticed"
)


async def _compare(anchor: Anchor, *, accept: bool) -> tuple[Anchored | None, list[str]]:
    """What is anchored, and which documents are behind it."""
    try:
        anchored = await anchor.read()
    except IntegrityError:
        if not accept:
            raise
        return None, ["the anchor was not signed by this vault"]
    behind = [] if anchored is None else await anchor.behind(anchored)
    if behind and not accept:
        raise RollbackDetectedError(
            f"The vault was rolled back: {'; '.join(behind)}.", hint=_HINT
        )
    return anchored, behind


async def _accept(
    opened: VaultLog,
    store: DocumentStore,
    behind: list[str],
    known: int,
    *,
    reason: str,
    now: float,
) -> None:
    """Records that older documents are accepted, and has the key store expect them.

    Only those that are authentic: what a forged header claims is neither expected nor
    anchored. Those under a retired key are sealed again, under the primary. Where one is
    behind, all are written again, as a new branch after the generation ``known``: see
    ``BRANCH``. How rotations at providers go on is left to a person then.
    """
    opened.anchor.replace()
    store.recovering = True
    keystore = store.unsealed()
    newest = max(known, keystore.header.generation)
    store.branch = (newest // BRANCH + 1) * BRANCH if behind else 0
    detail = "; ".join(behind) or "accepted; no document is behind"
    opened.log.append(AuditEvent(now, EventKind.ROLLBACK, reason=reason, detail=detail))
    names = (*keystore.body.sections, *documents_of(keystore), *grant_shards())
    found = await _authentic(store, dict.fromkeys(names))
    reached = {name: header.generation for name, header in found.items()}

    def lowered(body: KeystoreBody) -> KeystoreBody:
        floors = {name: min(at, reached.get(name, at)) for name, at in body.sections.items()}
        if floors == body.sections and not behind:
            return body
        return msgspec.structs.replace(body, sections=floors)

    keystore = await store.commit_keystore(lowered)
    old = [n for n, header in found.items() if keystore.key_state(header) is KeyState.RETIRED]
    await recommit(store, *old)
    if behind:
        parts: dict[str, list[str]] = {}
        for name in found:
            whole = GRANTS if is_shard(name) else section_of(name) or name
            parts.setdefault(whole, []).append(name)
        for part in parts.values():
            with suppress(IntegrityError):  # what does not open is an error when it is read
                await recommit(store, *part)
        await credential_writes.mark_rotations_uncertain(store)
    await opened.keep_anchor()
    store.recovering = False


async def _authentic(store: DocumentStore, names: Collection[str]) -> dict[str, Header]:
    """The headers of the documents that are the vault's own, however old they are.

    For an older state that is accepted on purpose. What does not open is left out, and is an
    error when it is read.
    """
    found: dict[str, Header] = {}
    token = store.storage.change_token
    for name in names:
        stored = None if token(name) is None else await store.storage.read(name)
        if stored is None:
            continue
        with suppress(IntegrityError):
            packed = parse(stored.data, section=name, vault_id=store.unsealed().header.vault_id)
            keys = await store.keys_for(packed.header)
            await off_loop(len(stored.data) >> 9, partial(check_mac, packed, keys))
            found[name] = packed.header
            store.rollback.register(name, (packed.header.generation, packed.mac))
    return found

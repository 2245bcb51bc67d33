"""The vault's anchor: what the log and the documents must at least have reached.

Guarantee: an anchor is signed by the vault and kept with the master key, outside the
vault's directory. It states only what was authenticated, and durable before it was written,
so a crash leaves it behind the vault, never ahead; its numbers only grow, in all processes.
At unseal, a log that was cut or written anew and a document of an older generation are
named, with how far they are behind.

What a process has committed, or read, is anchored with each checkpoint; a commit that took
something away (see ``takes_away`` of ``Document``), before it returns.

An anchor is a signed note (c2sp.org/signed-note): the checkpoint's three lines under their
own origin, then one line ``document generation`` for each document.

A home's vault is pinned there, too, when it is made or first opened: the home opens with the
same master key only as the same vault, until a person accepts another. So a directory that was
replaced by that of another vault, made with the same key, is noticed. A home is known by its
path, links resolved: one that was moved, copied or restored elsewhere is new. A pin is one
line, ``apex-creds-home-v1 VAULT``. It is not signed: who can write it could remove it as well,
and then the next opening is a first one, which the log says.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio.to_thread
import msgspec

from apex_creds.audit import note as notes
from apex_creds.audit.checkpoint import Checkpoint, LogKey
from apex_creds.audit.tree import Frontier
from apex_creds.crypto import kdf
from apex_creds.crypto.public_key import SigningKey
from apex_creds.documents.document import without_body
from apex_creds.documents.grant_set import is_shard
from apex_creds.documents.keystore import Keystore
from apex_creds.documents.rollback import describe, primaries
from apex_creds.documents.sections import section_of
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import (
    ApexCredsError,
    ForeignVaultError,
    IntegrityError,
    MasterKeyUnavailableError,
)
from apex_creds.fs.home import CREDENTIALS, SECURITY
from apex_creds.fs.lock import WriteLock
from apex_creds.fs.private_files import Folder, translated
from apex_creds.keys import MasterKeyProvider
from apex_creds.keys.head_anchor import AnchorStore, PinStore
from apex_creds.model import SECTION_NAMES
from apex_creds.storage.base import KEYSTORE, STATE_DOCUMENTS

_SHARED: Final = frozenset({KEYSTORE, *STATE_DOCUMENTS})
_SECTIONS: Final = frozenset(SECTION_NAMES)
_ACCEPTED: Final = "rollbacks.accepted"
"""No document has a dot in its name."""
_LOCK_NAME: Final = ".anchor.lock"
_LOCK_SECONDS: Final = 10.0
_SUFFIX: Final = "/anchor"
_DASH: Final = "— "
"""Begins a signature."""


def open_signing_key(keystore: Keystore) -> SigningKey:
    """The key that signs the vault's checkpoints and anchors; the caller closes it."""
    root = keystore.hierarchy.unwrap(keystore.body.root, keystore.body.root.primary.version)
    with kdf.derive(root, kdf.Purpose.SIGNING) as seed:
        return SigningKey.from_seed(seed)


@dataclass(frozen=True, slots=True)
class Anchored:
    """What an anchor says.

    Attributes:
        checkpoint: The log's size and root.
        documents: Generations by document.
        accepted: How many rollbacks were accepted; none but the last is gone back behind.
    """

    checkpoint: Checkpoint
    documents: Mapping[str, int]
    accepted: int = 0


class _Peek(msgspec.Struct):
    generation: int


class Anchor:
    """The anchor of one vault, as one process keeps it. Threads may share it.

    Args:
        provider: Keeps it, if it can.
        key: Signs it.
        store: The documents, and what was authenticated of them.
        home: The vault's directory.
    """

    def __init__(
        self,
        provider: MasterKeyProvider,
        *,
        key: LogKey,
        store: DocumentStore,
        home: Path,
    ) -> None:
        self._keeper = provider if isinstance(provider, AnchorStore) else None
        self._key = key
        self._store = store
        self._home = home
        self._lock = WriteLock(timeout=_LOCK_SECONDS, name=_LOCK_NAME)
        self._accepted = 0
        self._replace = False
        self._signed: Checkpoint | None = None

    # -- reading ---------------------------------------------------------------------

    async def read(self) -> Anchored | None:
        """Returns what is anchored; None if nothing is, or the provider keeps no anchors.

        Raises:
            IntegrityError: What is kept was not signed by this vault.
            MasterKeyUnavailableError: It can't be read.
        """
        keeper, vault_id = self._keeper, self._key.vault_id
        if keeper is None:
            return None
        text = await anyio.to_thread.run_sync(lambda: keeper.read_anchor(vault_id=vault_id))
        found = None if text is None else self._parse(text)
        self._accepted = found.accepted if found else 0
        return found

    async def behind(self, anchored: Anchored) -> list[str]:
        """Returns which stored documents are older than anchored, by how much.

        Headers are compared and not checked: one that was forged makes its document fail
        its MAC when it is read. So nothing of them is remembered.
        """
        if self._store.shared is not None:
            await self._store.shared.refresh()
        # Read after the anchor: another process may have rotated, and anchored that, meanwhile.
        keystore = await self._store.keystore()
        found = [
            f"the key store is under {describe(name)} {at}; {anchored.documents[name]} was "
            "anchored"
            for name, at in primaries(keystore.header).items()
            if at < anchored.documents.get(name, 0)
        ]
        # Of a section that is shared, each shard is compared when it is read.
        compared = _SHARED if self._store.shared is not None else _SHARED | _SECTIONS
        for name in compared & anchored.documents.keys():
            stored, known = await self._store.storage.read(name), anchored.documents[name]
            if stored is None:  # an error when it is read, as is one that is malformed
                continue
            try:
                at = msgspec.json.decode(without_body(stored.data), type=_Peek).generation
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            if 0 < at < known:
                stands = f"the document {name!r} is at generation {at}"
                found.append(f"{stands}; {known} was anchored, {known - at} more")
        return sorted(found)

    @property
    def keeps(self) -> bool:
        """Whether the provider keeps anchors at all."""
        return self._keeper is not None

    # -- writing ---------------------------------------------------------------------

    def keep(self, checkpoint: Checkpoint | None = None) -> None:
        """Anchors a checkpoint, and every generation that was authenticated; may block.

        Of any number of processes that do, each adds what it knows: no number gets lower.
        Nothing is written where nothing is new, and none by a process that was open when
        another accepted a rollback: what it has seen is void.

        Raises:
            MasterKeyUnavailableError: It could not be kept.
            StorageError: The vault's directory can't be used.
        """
        keeper, folder = self._keeper, self._home / SECURITY
        if keeper is None:
            return
        with (
            translated(folder / _LOCK_NAME, writing=True),
            Folder(self._home, outer=True) as root,
            Folder(folder, within=root) as security,
            self._lock.held(security),
        ):
            text, accepted = keeper.read_anchor(vault_id=self._key.vault_id), self._accepted
            kept = None
            with suppress(ApexCredsError):  # what is damaged is replaced
                kept = None if text is None else self._parse(text)
            if self._replace:
                accepted = max(accepted, kept.accepted if kept else 0) + 1
            elif kept is not None and kept.accepted != accepted:
                return
            base = None if self._replace else kept
            # Noted before it is seen: not of a newer key store.
            noted, seen = self._store.rollback.noted, self._store.rollback.generations()
            known = base.documents if base else {}
            newest = {**known, **{n: max(known.get(n, 0), at) for n, at in seen.items()}}
            documents = {n: at for n, at in newest.items() if self._states(n, at, noted)}
            signed = (base.checkpoint if base else None, self._signed, checkpoint)
            last = max(filter(None, signed), key=lambda each: each.size, default=None)
            last = last or Checkpoint.make(0, Frontier().root(), key=self._key)
            made = Anchored(last, documents, accepted)
            if made != base:
                self._sync()
                note = notes.sign(self._text(made), name=self._name, key=self._key.signer)
                # As ASCII: some stores take plain text only.
                text = str(note).replace(_DASH, "-- ")
                keeper.write_anchor(vault_id=self._key.vault_id, text=text)
            self._accepted, self._replace = accepted, False
            self._signed = checkpoint or self._signed
            self._store.rollback.require(documents)

    def replace(self) -> None:
        """Has the next anchor replace what is kept, after a rollback was accepted."""
        self._replace = True

    def _states(self, name: str, generation: int, noted: Mapping[str, int]) -> bool:
        """Whether an anchor has a line for a document.

        What the key store notes of a shard is anchored with the key store. A section's line
        is, where shards are shared, an older program's: the sum of them. Of the shards of
        grants, the first document says it, which is anchored.
        """
        if is_shard(name):
            return False
        files = self._store.shared is None
        if name in _SHARED or name in _SECTIONS or (files and section_of(name) is None):
            return files or name in _SHARED
        return generation > max(1, noted.get(name, 0))

    def _sync(self) -> None:
        """What another process has renamed may not be durable yet."""
        if os.name != "posix" or self._store.shared is not None:
            return
        for name in (SECURITY, CREDENTIALS):
            with suppress(FileNotFoundError), Folder(self._home / name) as folder:
                folder.sync()

    # -- its text --------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self._key.origin + _SUFFIX

    def _text(self, made: Anchored) -> str:
        root = notes.base64_of(made.checkpoint.root)
        numbers = dict(made.documents)
        if made.accepted:
            numbers[_ACCEPTED] = made.accepted
        lines = [self._name, str(made.checkpoint.size), root]
        lines += [f"{name} {numbers[name]}" for name in sorted(numbers)]
        return "".join(f"{line}\n" for line in lines)

    def _parse(self, text: str) -> Anchored:
        try:
            note = notes.parse(text.replace("\n-- ", f"\n{_DASH}"))
            note.check(notes.VerifierKey(self._name, self._key.signer.public))
        except IntegrityError as error:
            raise IntegrityError(
                "The anchor beside the master key is damaged, or another vault's: whether this "
                "vault is an older copy can't be checked.",
                hint="Put the anchor back from a copy. If the vault is the newest one: "
                "apex-creds audit accept-rollback.",
            ) from error
        name, size, root, *documents = note.text.splitlines()
        if name != self._name:
            raise IntegrityError("The anchor is of another vault.")
        made = Checkpoint(int(size), notes.bytes_of(root), note)
        pairs = (line.partition(" ") for line in documents)
        numbers = {each: int(at) for each, _, at in pairs}
        accepted = numbers.pop(_ACCEPTED, 0)
        return Anchored(made, numbers, accepted)


_PREFIX: Final = "apex-creds-home-v1 "
_DIGITS: Final = 32


def home_id(home: Path) -> str:
    """What a home is known by where its pin is kept: 32 hexadecimal digits."""
    return hashlib.sha256(os.fsencode(os.path.realpath(home))).hexdigest()[:_DIGITS]


def check_home(
    provider: MasterKeyProvider, home: Path, vault_id: str, *, accept: bool = False
) -> str:
    """Compares a home's vault with its pin, and makes one where there is none; may block.

    Args:
        provider: Keeps the pin, if it can.
        home: The directory.
        vault_id: Of the vault that is in it, authenticated.
        accept: A person wants it there, whatever was there before.

    Returns:
        What is worth recording, in words; empty if nothing is.

    Raises:
        ForeignVaultError: Another vault was there before.
        MasterKeyUnavailableError: The pin can't be read.
    """
    if not isinstance(provider, PinStore):
        return ""
    pin, mine = provider.read_pin(home=home_id(home)), f"{_PREFIX}{vault_id}\n"
    if pin == mine:
        return ""
    if pin is not None and not accept:
        before = pin.removeprefix(_PREFIX).strip()
        raise ForeignVaultError(
            f"{home} has the vault {vault_id} now; before, it had {ascii(before)[:66]}.",
            hint="Put the right directory back. If it is meant to be there: "
            "apex-creds audit accept-rollback --reason …",
        )
    try:
        provider.write_pin(home=home_id(home), text=mine)
    except MasterKeyUnavailableError:
        return "this vault could not be pinned to its directory beside the master key"
    if pin is not None:
        return "another vault was in this directory before"
    return "first opened in this directory with this master key, and pinned to it"

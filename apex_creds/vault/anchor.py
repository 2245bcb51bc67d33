"""The vault's anchor: what the log and the documents must at least have reached.

Guarantee: an anchor is signed by the vault and kept with the master key, outside the
vault's directory. It states only what was durable before it was written, so a crash leaves
it behind the vault, never ahead. At unseal, a log that was cut or written anew and a
document of an older generation are named, with how far they are behind.

An anchor is a signed note (c2sp.org/signed-note): the checkpoint's three lines under an
origin of its own, then one line ``document generation`` for each document.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio.to_thread
import msgspec

from apex_creds.audit import note as notes
from apex_creds.audit.checkpoint import Checkpoint, LogKey
from apex_creds.audit.note import Note
from apex_creds.crypto import kdf
from apex_creds.crypto.signing import SigningKey
from apex_creds.errors import ApexCredsError, IntegrityError
from apex_creds.keys import MasterKeyProvider
from apex_creds.keys.anchor import AnchorStore
from apex_creds.model import SECTIONS
from apex_creds.storage.base import KEYSTORE, STATE_DOCUMENTS, Storage, Token, shared
from apex_creds.vault.document import without_body
from apex_creds.vault.keystore import Keystore

__all__ = ["Anchor", "Anchored", "open_signing_key"]

_SHARED: Final = (KEYSTORE, *STATE_DOCUMENTS)
_DOCUMENTS: Final = (*_SHARED, *dict.fromkeys(SECTIONS.values()))
_SUFFIX: Final = "/anchor"


def open_signing_key(keystore: Keystore) -> SigningKey:
    """The key that signs the vault's checkpoints and anchors; the caller closes it."""
    root = keystore.hierarchy.unwrap(keystore.body.root, keystore.body.root.primary.version)
    with kdf.derive(root, kdf.Purpose.SIGNING) as seed:
        return SigningKey.from_seed(seed)


@dataclass(frozen=True, slots=True)
class Anchored:
    """What an anchor says: the log's size and root, and generations by document."""

    checkpoint: Checkpoint
    documents: Mapping[str, int]


class _Peek(msgspec.Struct):
    generation: int


class Anchor:
    """The anchor of one vault.

    Args:
        provider: Keeps it, if it can.
        key: Signs it.
        storage: Has the documents.
        root: Their directory.
        reached: Says what else was reached, beside the documents that it looks at.
    """

    def __init__(
        self,
        provider: MasterKeyProvider,
        *,
        key: LogKey,
        storage: Storage,
        root: Path,
        reached: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._keeper = provider if isinstance(provider, AnchorStore) else None
        self._key = key
        self._storage = storage
        self._several = shared(storage)
        # Of a section that is shared, the key store has each document's floor.
        self._documents = _DOCUMENTS if self._several is None else _SHARED
        self._root = root
        self._reached = reached
        self._seen: dict[str, tuple[Token | None, int]] = {}
        self._replace = False
        self._told: Checkpoint | None = None

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
        return None if text is None else self._parse(text)

    async def look(self) -> dict[str, int]:
        """Returns the generation of each document that is stored, as of a durable state.

        A header is not authenticated here: one that was forged makes its document fail
        its MAC when it is read.
        """
        if self._several is not None:
            await self._several.look()
        for name in self._documents:
            token = self._storage.change_token(name)
            if self._seen.get(name, (None, 0))[0] != token:
                self._seen[name] = (token, await self._generation(name))
        await anyio.to_thread.run_sync(self._sync)
        return {name: generation for name, (_, generation) in self._seen.items() if generation}

    async def _generation(self, name: str) -> int:
        stored = await self._storage.read(name)
        if stored is None:
            return 0
        try:
            return msgspec.json.decode(without_body(stored.data), type=_Peek).generation
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return 0  # whoever reads it gets the error

    def _sync(self) -> None:
        """What another process has renamed may not be durable yet."""
        if os.name != "posix" or self._several is not None:
            return
        for folder in ("security", "credentials"):
            fd = os.open(self._root / folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def behind(self, anchored: Anchored) -> list[str]:
        """Returns which documents are older than anchored, by how much; after ``look``."""
        return list(_behind(anchored.documents, self._seen))

    @property
    def keeps(self) -> bool:
        """Whether the provider keeps anchors at all."""
        return self._keeper is not None

    def tell(self, checkpoint: Checkpoint) -> None:
        """Anchors a checkpoint with the generations seen last; for the log's thread.

        Raises:
            MasterKeyUnavailableError: It could not be kept.
        """
        if self._keeper is None:
            return
        self._keep(checkpoint, self._stored())
        self._told = checkpoint

    def settle(self) -> None:
        """Anchors the generations seen since the last checkpoint, where none came after it.

        Does nothing if what is kept is not that checkpoint: another process was further,
        or the vault was replaced.

        Raises:
            MasterKeyUnavailableError: It could not be kept.
        """
        told, documents = self._told, self._stored()
        newest = None if told is None else self._newest()
        if told is None or newest is None:
            return
        kept = newest.checkpoint
        same = (kept.size, kept.root) == (told.size, told.root)
        if same and any(at > newest.documents.get(n, 0) for n, at in documents.items()):
            self._keep(told, documents)

    def _stored(self) -> dict[str, int]:
        looked = {name: at for name, (_, at) in self._seen.items() if at}
        return looked | {name: at for name, at in self._reached().items() if at}

    def _keep(self, checkpoint: Checkpoint, documents: Mapping[str, int]) -> None:
        assert self._keeper is not None
        vault_id = self._key.vault_id
        newest = self._newest()
        if newest is not None and newest.checkpoint.size > checkpoint.size:
            return  # another process was further
        known = newest.documents if newest is not None else {}
        merged = {n: max(documents.get(n, 0), known.get(n, 0)) for n in {*documents, *known}}
        text = self._text(checkpoint, merged)
        note = notes.sign(text, name=self._name, key=self._key.signer)
        self._keeper.write_anchor(vault_id=vault_id, text=_ascii(note))

    def _newest(self) -> Anchored | None:
        """What is kept now, perhaps by another process; None where it is to be replaced."""
        assert self._keeper is not None
        if self._replace:
            self._replace = False
            return None
        text = self._keeper.read_anchor(vault_id=self._key.vault_id)
        try:
            return None if text is None else self._parse(text)
        except ApexCredsError:
            return None

    def replace(self) -> None:
        """Has the next anchor replace what is kept, after a rollback was accepted."""
        self._replace = True

    # -- its text --------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self._key.origin + _SUFFIX

    def _text(self, checkpoint: Checkpoint, documents: Mapping[str, int]) -> str:
        root = notes.base64_of(checkpoint.root)
        lines = [self._name, str(checkpoint.size), root]
        lines += [f"{name} {documents[name]}" for name in sorted(documents)]
        return "".join(f"{line}\n" for line in lines)

    def _parse(self, text: str) -> Anchored:
        note = notes.parse(_restored(text))
        note.check(notes.VerifierKey(self._name, self._key.signer.public))
        name, size, root, *documents = note.text.splitlines()
        if name != self._name:
            raise IntegrityError("The anchor is of another vault.")
        made = Checkpoint(int(size), notes.bytes_of(root), note)
        pairs = (line.partition(" ") for line in documents)
        return Anchored(made, {each: int(at) for each, _, at in pairs})


def _behind(
    anchored: Mapping[str, int], seen: Mapping[str, tuple[Token | None, int]]
) -> Iterable[str]:
    for name, known in anchored.items():
        _, at = seen.get(name, (None, 0))
        # One that is missing or malformed is an error of its own to whoever reads it.
        if 0 < at < known:
            stands = f"the document {name!r} is at generation {at}"
            yield f"{stands}; {known} was anchored, {known - at} more"


_DASH: Final = "— "


def _ascii(note: Note) -> str:
    """For stores that take plain text only."""
    return str(note).replace(_DASH, "-- ")


def _restored(text: str) -> str:
    return text.replace("\n-- ", "\n" + _DASH)

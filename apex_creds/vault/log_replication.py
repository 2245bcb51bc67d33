"""Copies of the audit logs of all homes, in the storage that they share.

Guarantee: what is in a home's log is in the storage within a second or two, encrypted and
bound to its place, and only what is durable in the home; so what survives there was in the
log, and the log of a home that is lost verifies as far as it had come. Nothing waits for
it. A stream is only added to: a log that was cut or written anew is not copied over it.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from apex_creds.audit.checkpoint import LogKey
from apex_creds.audit.replication import Piece, Source, differs_at, restore
from apex_creds.audit.verify import Report, check
from apex_creds.crypto import aead, kdf
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.keystore import Keystore, root_key
from apex_creds.errors import (
    ApexCredsError,
    AuditTamperedError,
    AuditUnavailableError,
    ConflictError,
    CorruptDocumentError,
    StorageError,
)
from apex_creds.storage.portal import StoragePortal
from apex_creds.vault.anchor import open_signing_key

if TYPE_CHECKING:
    from concurrent.futures import Future

    from apex_creds.audit.log import AuditLog
    from apex_creds.storage.base import SharedStorage

__all__ = ["Shipper", "copies", "verify_copy"]

_PERIOD: Final = 0.5
_LAST: Final = 3.0
_TRIES: Final = 3
_BATCH: Final = 64
_PREFIX: Final = "audit_"
_DOMAIN: Final = b"apex-creds/v1/audit-copy\0"
_OTHER: Final = "is not what the log of this home itself has there"
_log: Final = logging.getLogger(__name__)


class _Stream:
    """The copy of one log."""

    def __init__(self, storage: SharedStorage, node: str, key: SecretBytes) -> None:
        self.storage, self.name, self._key = storage, _PREFIX + node, key

    async def count(self) -> int:
        return (await self.storage.streams()).get(self.name, 0)

    async def add(self, first: int, pieces: list[Piece]) -> None:
        rows = [
            aead.seal(self._key, msgspec.msgpack.encode(piece), aad=self._aad(n))
            for n, piece in enumerate(pieces, first)
        ]
        await self.storage.append_lines(self.name, rows, first=first)

    async def read(self, first: int, *, limit: int = _BATCH) -> list[Piece]:
        rows = await self.storage.read_lines(self.name, first=first, limit=limit)
        opened = [
            aead.open_bytes(self._key, row, aad=self._aad(n))
            for n, row in enumerate(rows, first)
        ]
        try:
            return [msgspec.msgpack.decode(data, type=Piece) for data in opened]
        except msgspec.MsgspecError:
            raise CorruptDocumentError("The copy of an audit log is malformed.") from None

    def _aad(self, number: int) -> bytes:
        return _DOMAIN + self.name.encode() + b"\0" + number.to_bytes(8, "big")


class Shipper:
    """Copies one home's log while it is written.

    Args:
        storage: Where to; its thread does the work.
        keystore: Has the key.
        node: See ``node``.
        directory: The log's.
    """

    def __init__(
        self, storage: StoragePortal, keystore: Keystore, *, node: str, directory: Path
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._key = kdf.derive(root_key(keystore), kdf.Purpose.AUDIT_COPY)
        self._stream = _Stream(storage, node, self._key)
        self._source: Source | None = None
        self._count = 0
        self._running: Future[None] | None = None
        self._trouble = ""

    def start(self, log: AuditLog) -> None:
        """Copies what is there and what comes, until ``finish``."""
        self._running = self._storage.start(partial(self._run, log))

    async def finish(self) -> None:
        """Copies what came last, if that can be done soon, and stops."""
        running, self._running = self._running, None

        async def ship() -> None:
            async with asyncio.timeout(_LAST):
                for _ in range(_TRIES):  # another process of this home may be first
                    await self._ship(None)

        try:
            if running is not None:
                running.cancel()
                with suppress(ApexCredsError, TimeoutError):
                    await asyncio.wrap_future(self._storage.start(ship))
        finally:
            self._key.close()

    async def _run(self, log: AuditLog) -> None:
        while True:
            try:
                await self._ship(log)
                self._trouble = ""
            except AuditTamperedError as error:
                self._say(error)
                return  # it would not be better another time
            except (StorageError, AuditUnavailableError) as error:
                self._say(error)
            except ApexCredsError as error:
                self._say(error)
                return
            await asyncio.sleep(_PERIOD)

    async def _ship(self, log: AuditLog | None) -> None:
        source = self._source
        if source is None:  # the log's files, from where the stream ends
            self._count = await self._stream.count()
            last: dict[bool, Piece] = {}
            upto = self._count
            while upto and len(last) < 2:
                first = max(0, upto - _BATCH)
                for piece in await self._stream.read(first, limit=upto - first):
                    last[piece.segment == 0] = piece
                upto = first
            source = Source(self._directory)
            await asyncio.to_thread(source.resume, list(last.values()))
        pieces = await asyncio.to_thread(lambda: list(source.pieces()))
        if not pieces:
            return
        if log is not None:  # what was read before it is durable after it
            await asyncio.to_thread(log.sync)
        self._source = None  # until it is known how far it came
        for start in range(0, len(pieces), _BATCH):
            batch = pieces[start : start + _BATCH]
            try:
                await self._stream.add(self._count, batch)
            except ConflictError:  # another process of this home was first
                return
            self._count += len(batch)
            for piece in batch:
                source.sent(piece)
        self._source = source

    def _say(self, error: ApexCredsError) -> None:
        name = type(error).__name__
        if self._trouble != name:
            self._trouble = name
            _log.warning("The audit log is not copied to the storage now: %s", error)


# -- reading the copies ---------------------------------------------------------------


async def copies(storage: SharedStorage) -> list[str]:
    """The homes of whose logs there are copies."""
    return sorted(n.removeprefix(_PREFIX) for n in await storage.streams() if _PREFIX in n)


async def verify_copy(
    storage: SharedStorage, keystore: Keystore, node: str, *, log: Path | None = None
) -> Report:
    """Checks the copy of a home's log as ``audit.verify`` checks a log.

    Args:
        storage: Has the copy.
        keystore: Has its key.
        node: The home.
        log: The directory of the log itself, where it is at hand: all that the copy has
            must be in it. The copy may be behind.

    Raises:
        AuditTamperedError: There is none.
        IntegrityError: A row is not what was written there.
    """
    with (
        kdf.derive(root_key(keystore), kdf.Purpose.AUDIT_COPY) as key,
        open_signing_key(keystore) as signer,
        tempfile.TemporaryDirectory(prefix="apex-creds-") as place,
    ):
        found, stream = 0, _Stream(storage, node, key)
        while pieces := await stream.read(found):
            found += len(pieces)
            await asyncio.to_thread(restore, pieces, Path(place))
        if not found:
            raise AuditTamperedError("There is no copy of such a log.", hint="See db status.")
        verifier = LogKey(node, signer).verifier
        report = await asyncio.to_thread(
            partial(check, Path(place), vault_id=node, keys=(verifier,))
        )
        if log is None or not report.ok:
            return report
        event = await asyncio.to_thread(differs_at, Path(place), log)
        bad = {"bad_line": event, "how": _OTHER} if event else {}
        return msgspec.structs.replace(report, **bad)

"""What every storage backend promises; the layers above know only this.

Guarantee: a document is read whole or not at all, a write happens only if the document
is still the version that the writer has seen, and a write that returned is durable.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Final,
    Literal,
    NamedTuple,
    NewType,
    Protocol,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

from apex_creds.concurrency import Event
from apex_creds.errors import InvalidNameError, StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

KEYSTORE: Final = "keystore"
CONFIG: Final = "config"
GRANTS: Final = "grants"
STATE_DOCUMENTS: Final = (
    "access",
    "audit_state",
    "dynamic",
    GRANTS,
    "limits",
    "migration",
    "recovery",
    "rotation",
)
"""What the layers above keep beside the key store and the sections."""
MAX_DOCUMENT_BYTES: Final = 1 << 30
"""A document is never larger; a larger one is refused before it is read."""

Token = NewType("Token", tuple[int | str, ...])
"""Names one version of one document. Opaque: compare for equality, hash, nothing else."""

Data: TypeAlias = bytes | memoryview
"""What is written. A backend that keeps it longer than the call makes a copy."""

Shredded = Literal["no", "overwritten", "unverifiable"]
"""What became of the replaced bytes.

``no``: nobody asked, or there were none. ``overwritten``: zeros were written over them in
place, read back, on a file system that overwrites in place. ``unverifiable``: tried as
far as the backend can, but copies may remain (copy-on-write, snapshots, hard links).
"""

_NAME: Final = re.compile(r"[a-z0-9_]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of a document: its bytes (not shown by ``repr``) and its token."""

    data: bytes = field(repr=False)
    token: Token


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What a write did: the token of the new version, and what became of the old one."""

    token: Token
    shredded: Shredded = "no"


@dataclass(frozen=True, slots=True)
class Write:
    """One of several writes that happen together; see ``Storage.write_many``.

    Attributes:
        name: The document.
        data: All its bytes. None is a tie: nothing is written to the document, but it must
            exist at ``expected`` when the others are written, and stay there until they
            are; the result is ``expected`` again.
        expected: See ``Storage.write``.
        remove: The document is removed, with the others; for a storage that ``Divides``.
    """

    name: str
    data: Data | None = field(repr=False)
    expected: Token | None
    remove: bool = False


class Stamp(NamedTuple):
    """What several documents were seen at: a counter of writes, and until when it counts."""

    counted: int
    until: float


@runtime_checkable
class Stamped(Protocol):
    """A storage that says in one step that nothing has changed since."""

    def change_tokens(self, names: Iterable[str]) -> list[Token | None]:
        """``change_token`` of each."""

    def stamp(self, names: Iterable[str]) -> Stamp | None:
        """For what ``change_token`` said last of these; None: it can't be had."""

    def stands(self, stamp: Stamp) -> bool:
        """Whether ``change_token`` would say the same of all of them."""


@runtime_checkable
class Storage(Protocol):
    """Documents by name. Names are ``keystore``, ``config``, and those of sections.

    All methods raise ``InvalidNameError`` for a name that is not ``[a-z0-9_]{1,64}``,
    and ``StorageError`` (or a subclass) when the backend fails. A failed write leaves
    the previous version. A cancelled write either happens or not, never half.

    A vault calls it from whatever event loops and threads it is used in, at the same time;
    a ``SharedStorage`` from one loop, in a separate thread.
    """

    def change_token(self, name: str) -> Token | None:
        """The token of the version stored now, or None; in microseconds, no round trip."""

    async def prepare(self) -> None:
        """Makes ready what the first write needs; does nothing the second time."""

    async def read(self, name: str) -> Stored | None:
        """The document as it is now, or None where there is none."""

    async def write(
        self, name: str, data: Data, *, expected: Token | None, shred: bool = False
    ) -> WriteResult:
        """Replaces the version ``expected`` (None: there must be none); durable on return.

        Args:
            name: The document.
            data: All its bytes, at most ``MAX_DOCUMENT_BYTES``.
            expected: The token that the caller's changes are based on.
            shred: Overwrite the replaced version once the new one is durable.

        Raises:
            ConflictError: The document is not at ``expected`` any more.
        """

    async def read_many(self, names: Iterable[str]) -> dict[str, Stored]:
        """Those of the documents that exist, each as of some moment after the call."""

    async def write_many(
        self, writes: Sequence[Write], *, shred: bool = False
    ) -> list[WriteResult]:
        """Writes all or nothing; durable on return. Every name at most once.

        A storage that is not shared, and is no ``Divides``, need take only one write with
        data at a time, and any number of ties; it raises a ``StorageError`` for more.

        Args:
            writes: What is written, and what must stand still meanwhile.
            shred: See ``write``.

        Raises:
            ConflictError: One of them is not at its ``expected`` any more.
        """

    async def delete(self, name: str, *, expected: Token, shred: bool = False) -> Shredded:
        """Removes the version ``expected``; durable on return.

        Raises:
            ConflictError: The document is not at ``expected`` any more.
        """

    async def names(self) -> list[str]:
        """The names of the documents that exist, sorted."""

    async def close(self) -> None:
        """Lets go of every resource; idempotent. Stored documents stay."""


AnyStorage = TypeVar("AnyStorage", bound=Storage)


@asynccontextmanager
async def closing(storage: AnyStorage) -> AsyncIterator[AnyStorage]:
    """Closes a storage at the end of the block."""
    try:
        yield storage
    finally:
        await storage.close()


class Leadership:
    """Whether this process leads in something; true while it does.

    Once lost it is never had again: ask ``SharedStorage.leader`` anew.
    """

    __slots__ = ("_ended",)

    def __init__(self, *, held: bool) -> None:
        self._ended = Event()
        if not held:
            self._ended.set()

    def __bool__(self) -> bool:
        return not self._ended.is_set()

    def lose(self) -> None:
        """Says that it is over; idempotent."""
        self._ended.set()

    async def ended(self) -> None:
        """Returns when this process is not the leader (any more); in any event loop."""
        await self._ended.wait()


@runtime_checkable
class Leads(Protocol):
    """A storage in which, of several processes, one leads at a time."""

    def leader(self, what: str) -> AbstractAsyncContextManager[Leadership]:
        """Whether this caller leads in ``what`` during the block; never waits for it.

        Of all callers in all processes at most one does. It is lost with the connection,
        or the process, that it was had on, however that ends.

        Args:
            what: 1 to 64 of a-z, 0-9 and underscore.
        """


@asynccontextmanager
async def leading(storage: Storage, what: str) -> AsyncIterator[Leadership]:
    """As ``Leads.leader``; of a storage that elects nobody, each caller leads."""
    if not isinstance(storage, Leads):
        yield Leadership(held=True)
        return
    async with storage.leader(what) as lead:
        yield lead


@runtime_checkable
class SharedStorage(Storage, Leads, Protocol):
    """A storage that several processes on several machines share.

    ``change_token`` answers from a map of what was there at the last ``refresh()`` (and of
    what this storage read or wrote itself since), so that it costs no round trip.
    """

    staleness: float
    """Seconds for which the map may be used while the storage can't be reached."""

    @property
    def shards(self) -> int:
        """In how many documents the layer above keeps a section; 0: this is not shared."""

    async def refresh(self) -> None:
        """Brings the map up to date; callers at the same time share one round trip.

        It sees every write that had returned, in any process, when it was called. Where
        the storage can't be reached it returns without having looked, as long as
        ``stale_for()`` is within ``staleness``.

        Raises:
            StorageStaleError: Not reachable, and the map is too old to be used.
        """

    def stale_for(self) -> float:
        """Seconds since the last good refresh began; 0.0 while they succeed."""

    def change_count(self) -> int:
        """Grows whenever a token in the map changes: equal means that all still hold."""

    def subscribe(self, call: Callable[[], None]) -> Callable[[], None]:
        """Calls ``call`` on the event loop after the map changed, for whatever reason.

        Returns:
            What ends that.
        """

    async def read_many(self, names: Iterable[str]) -> dict[str, Stored]:
        """See ``Storage``; all as they were at one moment."""

    async def write_many(
        self, writes: Sequence[Write], *, shred: bool = False
    ) -> list[WriteResult]:
        """See ``Storage``; takes any number of writes."""

    def claim(
        self, names: Iterable[str], *, limit: int
    ) -> AbstractAsyncContextManager[list[str]]:
        """Up to ``limit`` of ``names`` that nobody else has claimed, until the block ends.

        A claim only shares out work. It does not keep anybody from writing a document.
        """

    async def append_lines(self, stream: str, lines: Sequence[bytes], *, first: int) -> None:
        """Adds to an append-only stream of lines; durable on return, all or nothing.

        Args:
            stream: Its name, such as a document's.
            lines: Opaque, without their line ends.
            first: The number of the first of them; the stream has exactly as many now.

        Raises:
            ConflictError: The stream has another number of lines.
        """

    async def read_lines(self, stream: str, *, first: int = 0, limit: int) -> list[bytes]:
        """At most ``limit`` lines of a stream, from number ``first`` (the first is 0)."""

    async def streams(self) -> dict[str, int]:
        """The streams that there are, and how many lines each has."""


@runtime_checkable
class Divides(Protocol):
    """A storage of one home whose ``write_many`` takes any number of writes, and removes."""

    @property
    def division(self) -> int:
        """In how many documents the layer above keeps a section that is large."""


@runtime_checkable
class HidesNames(Protocol):
    """A storage that can keep documents under keyed hashes of their names."""

    def map_names(
        self, stem_of: Callable[[str], str], *, candidates: Iterable[str] | None = None
    ) -> None:
        """From now on, document ``name`` is kept as ``stem_of(name)``; see ``FileStorage``."""


def shared(storage: Storage) -> SharedStorage | None:
    """``storage`` where several processes may share it; None for files and the like."""
    return storage if isinstance(storage, SharedStorage) and storage.shards else None


def tie_result(tie: Write) -> WriteResult:
    """What a tie that held comes to; for storages.

    Raises:
        StorageError: It names no version, so there is nothing to hold.
    """
    if tie.expected is None:
        raise StorageError("What a write is tied to must exist.")
    return WriteResult(tie.expected)


def check_document_name(name: str) -> str:
    """Returns ``name`` if a document can have it.

    Raises:
        InvalidNameError: Not 1 to 64 of a-z, 0-9 and underscore.
    """
    if not _NAME.fullmatch(name):
        raise InvalidNameError(
            "The document name is not acceptable.",
            hint="Use 1 to 64 lower-case letters, digits and underscores.",
        )
    return name

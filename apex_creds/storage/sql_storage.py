"""Documents in a database: SQLite for one machine, PostgreSQL for many.

Guarantee: what ``SharedStorage`` promises. The database sees random version numbers, sizes
and times; the names of documents are keyed hashes once the layer above gave it the key. A
statement that failed is repeated where that can do no harm, for a limited time; a write
whose answer was lost is recognized by the random version that it carried.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from apex_creds.concurrency import running_loop
from apex_creds.errors import (
    ConflictError,
    EventLoopError,
    InvalidInputError,
    StorageError,
    StorageUncertainError,
    VaultNotFoundError,
)
from apex_creds.model import SECTION_NAMES
from apex_creds.storage.base import (
    CONFIG,
    KEYSTORE,
    MAX_DOCUMENT_BYTES,
    STATE_DOCUMENTS,
    Data,
    Shredded,
    Stored,
    Token,
    Write,
    WriteResult,
    check_document_name,
)
from apex_creds.storage.database_url import NEW_SPACE, parse_target
from apex_creds.storage.sql_retry import StatementError, WriteOutcome, entered, retried
from apex_creds.storage.sql_schema import RowWrite, SchemaStatus
from apex_creds.storage.version_map import Refresher, VersionMap

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Callable,
        Collection,
        Coroutine,
        Iterable,
        Sequence,
    )

    from apex_creds.storage.base import Leadership
    from apex_creds.storage.sql_schema import Changes, Dialect

SHARDS: Final = 256
"""In how many documents a section is kept."""
_CLEAR: Final = frozenset({KEYSTORE, CONFIG})
_LARGEST: Final = min(MAX_DOCUMENT_BYTES, 900_000_000)  # below what both databases take

T = TypeVar("T")


class SqlStorage:
    """The database backend of ``Storage``; for one event loop, see ``StoragePortal``.

    Args:
        url: Where the database is; see docs/SQL.md.
        space: Which of the vaults in it, where the URL does not say.
        staleness: See ``SharedStorage``.
        patience: Seconds for which a statement is repeated while the server is away.
        shards: See ``SharedStorage``.

    Raises:
        InvalidInputError: The URL can't be used.
    """

    def __init__(
        self,
        url: str,
        *,
        space: str | None = None,
        staleness: float = 5.0,
        patience: float = 15.0,
        shards: int = SHARDS,
    ) -> None:
        self.target = parse_target(url)
        self.staleness = staleness
        self._patience = patience
        self._shards = shards
        self._space = space or self.target.space
        self._dialect: Dialect
        if self.target.path is not None:
            from apex_creds.storage.sqlite import SqliteDialect

            self._dialect = SqliteDialect(self.target.path)
        else:
            from apex_creds.storage.postgresql import PostgresDialect

            self._dialect = PostgresDialect(self.target)
        self._versions = VersionMap()
        self._refresher = Refresher(self._ask)
        self._names = _Names()
        self._ready = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readying = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None
        self._notified = False
        self._closed = False

    @property
    def url(self) -> str:
        """Where it is; there is no password in it."""
        return self.target.text

    @property
    def space(self) -> str | None:
        """Which of the vaults in the database, once that is known."""
        return None if self._space == NEW_SPACE else self._space

    @property
    def shards(self) -> int:
        """See ``SharedStorage``."""
        return self._shards

    def map_names(
        self, stem_of: Callable[[str], str], *, candidates: Iterable[str] | None = None
    ) -> None:
        """From now on, what is called ``name`` here is ``stem_of(name)`` in the database.

        The key store and the configuration keep their names: see ``FileStorage``.

        Args:
            stem_of: A keyed hash; 1 to 64 of a-z, 0-9 and underscore.
            candidates: What ``names()`` can find, beside what was used here before.
        """
        self._names.map(stem_of, candidates)

    # -- one document ----------------------------------------------------------------

    def change_token(self, name: str) -> Token | None:
        """See ``Storage``."""
        stem = self._names.known.get(name) or self._names.stem(name)
        if self._dialect.exact and self._ready:
            self._poll()
        return self._versions.get(stem)

    async def prepare(self) -> None:
        """Makes the tables and the space where they are missing.

        Raises:
            StorageSchemaError: The tables are of another version.
        """
        if self._ready:
            return
        async with self._readying:
            if not self._ready:
                await self._retried(partial(self._dialect.make_tables, fresh_only=True))
                await self._get_ready(make=True)
        await self.refresh()

    async def read(self, name: str) -> Stored | None:
        """See ``Storage``."""
        check_document_name(name)
        return (await self.read_many([name])).get(name)

    async def write(
        self, name: str, data: Data, *, expected: Token | None, shred: bool = False
    ) -> WriteResult:
        """See ``Storage``.

        The bytes that it replaced may remain in the database's files, log and backups.

        Raises:
            StorageUncertainError: The server went away, and the write may have happened.
        """
        return (await self.write_many([Write(name, data, expected)], shred=shred))[0]

    async def delete(self, name: str, *, expected: Token, shred: bool = False) -> Shredded:
        """See ``Storage``; raises what ``write`` raises."""
        change = RowWrite(self._names.stem(name), _version(expected), _random(), None)
        await self._apply([change], [name])
        self._note_own([(change.name, None)])
        return "unverifiable" if shred else "no"

    async def names(self) -> list[str]:
        """See ``Storage``; with mapped names, those that can be known."""
        await self._usable()
        await self.refresh()
        return self._names.of(self._versions.known())

    async def close(self) -> None:
        """See ``Storage``."""
        self._closed = True
        self._ready = False
        await self._refresher.stop()
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        await self._dialect.close()

    # -- several ---------------------------------------------------------------------

    async def read_many(self, names: Iterable[str]) -> dict[str, Stored]:
        """See ``SharedStorage``."""
        stems = {self._names.stem(name): name for name in names}
        if not stems:
            return {}
        space = await self._usable()
        asked, before = self._versions.asked(), self._versions.changes
        found = await self._retried(partial(self._dialect.read, space, list(stems)))
        for stem in stems:
            row = found.get(stem)
            self._versions.learn(stem, _token(row.version) if row else None, asked=asked)
        self._versions.notify(since=before)
        return {stems[s]: Stored(row.data, _token(row.version)) for s, row in found.items()}

    async def write_many(
        self, writes: Sequence[Write], *, shred: bool = False
    ) -> list[WriteResult]:
        """See ``SharedStorage``; raises what ``write`` raises."""
        changes = [self._change(write) for write in writes]
        if not changes:
            return []
        await self._apply(changes, [write.name for write in writes])
        tokens = [(c.name, _token(c.new)) for c in changes if c.new is not None]
        self._note_own(tokens)
        return [
            WriteResult(
                _token(change.new or change.old or 0),  # one that is only held stays
                "unverifiable" if shred and change.new and change.old is not None else "no",
            )
            for change in changes
        ]

    # -- what others did -------------------------------------------------------------

    async def refresh(self) -> None:
        """See ``SharedStorage``."""
        # Nothing is in between that could be away for a while: a file is there or not.
        await self._refresher.refresh(staleness=0.0 if self._dialect.exact else self.staleness)

    def stale_for(self) -> float:
        """See ``SharedStorage``."""
        return self._refresher.stale_for()

    def change_count(self) -> int:
        """See ``SharedStorage``."""
        if self._dialect.exact and self._ready:
            self._poll()
        return self._versions.changes

    def subscribe(self, call: Callable[[], None]) -> Callable[[], None]:
        """See ``SharedStorage``."""
        return self._versions.watch(call)

    # -- sharing work ----------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def leader(self, what: str) -> AsyncIterator[Leadership]:
        """See ``SharedStorage``."""
        check_document_name(what)
        space = await self._usable()
        async with entered(self._dialect.lead(space, what)) as lead:
            yield lead

    @contextlib.asynccontextmanager
    async def claim(self, names: Iterable[str], *, limit: int) -> AsyncIterator[list[str]]:
        """See ``SharedStorage``."""
        stems = {self._names.stem(name): name for name in names}
        space = await self._usable()
        async with entered(self._dialect.claim(space, list(stems), limit)) as ours:
            yield [stems[stem] for stem in ours]

    # -- streams ---------------------------------------------------------------------

    async def append_lines(self, stream: str, lines: Sequence[bytes], *, first: int) -> None:
        """See ``SharedStorage``."""
        check_document_name(stream)
        space = await self._usable()
        given = [bytes(line) for line in lines]
        done = await self._retried(partial(self._dialect.append, space, stream, given, first))
        if not done and await self.read_lines(stream, first=first, limit=len(given)) != given:
            raise ConflictError(
                f"The stream {stream!r} does not have {first} lines.",
                hint="Ask how many it has, and go on from there.",
            )

    async def read_lines(self, stream: str, *, first: int = 0, limit: int) -> list[bytes]:
        """See ``SharedStorage``."""
        check_document_name(stream)
        space = await self._usable()
        return await self._retried(partial(self._dialect.lines, space, stream, first, limit))

    async def streams(self) -> dict[str, int]:
        """See ``SharedStorage``."""
        space = await self._usable()
        return await self._retried(partial(self._dialect.streams, space))

    # -- the tables ------------------------------------------------------------------

    async def schema(self) -> SchemaStatus:
        """The version of the tables that are there."""
        return SchemaStatus(await self._retried(self._dialect.schema))

    async def upgrade(self) -> SchemaStatus:
        """Brings the tables to this program's version; returns what was there before.

        Raises:
            StorageSchemaError: A newer program made them.
        """
        upgrade = partial(self._dialect.make_tables, fresh_only=False)
        return SchemaStatus(await self._retried(upgrade))

    async def spaces(self) -> list[str]:
        """The vaults in this database."""
        return await self._retried(self._dialect.spaces)

    # -- inside: names and versions --------------------------------------------------

    def _change(self, write: Write) -> RowWrite:
        stem = self._names.stem(write.name)
        old = None if write.expected is None else _version(write.expected)
        if write.remove:
            raise StorageError("In a database, no document is removed with others.")
        if write.data is None:
            if old is None:
                raise StorageError("What is only held must exist.")
            return RowWrite(stem, old, None, None)
        if len(write.data) > _LARGEST:
            raise StorageError(f"The document {write.name!r} is too large for a database.")
        return RowWrite(stem, old, _random(), bytes(write.data))

    def _note_own(self, tokens: Sequence[tuple[str, Token | None]]) -> None:
        before = self._versions.changes
        for stem, token in tokens:
            self._versions.put(stem, token)
        self._dialect.notify_peers()
        self._versions.notify(since=before)

    def _poll(self) -> None:
        asked, before = self._versions.asked(), self._versions.changes
        seen = self._dialect.poll()
        if seen is not None:
            self._learn(seen, asked)
            if self._versions.changes != before and self._loop is not None:
                with contextlib.suppress(RuntimeError):  # closed just now
                    notify = partial(self._versions.notify, since=before)
                    self._loop.call_soon_threadsafe(notify)

    def _learn(self, seen: Changes, asked: int) -> None:
        found = dict(seen.rows)
        gone = set(self._versions.known()) - found.keys() if seen.whole else ()
        found.update(dict.fromkeys(gone))
        believed = [
            self._versions.learn(stem, None if v is None else _token(v), asked=asked)
            for stem, v in found.items()
        ]
        if not all(believed):
            self._dialect.invalidate()

    async def _ask(self) -> None:
        space = await self._usable(patient=False)
        asked, before = self._versions.asked(), self._versions.changes
        try:
            seen = await self._dialect.refresh(space)
        except StatementError as failure:
            raise failure.error from failure
        self._learn(seen, asked)
        self._versions.notify(since=before)

    def _on_notify(self) -> None:
        """Somebody may have written."""
        if self._dialect.exact:
            self._poll()
            return
        self._notified = True

        async def refresh() -> None:
            while self._notified:
                self._notified = False
                with contextlib.suppress(StorageError):  # a caller that relies on it gets it
                    await self.refresh()

        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(refresh())

    # -- inside: the database --------------------------------------------------------

    async def _usable(self, *, patient: bool = True) -> str:
        """The space, when tables and space were found to be there."""
        here = running_loop()
        if self._loop not in (None, here):
            raise EventLoopError(
                "A storage of a database belongs to the event loop that used it first.",
                hint="Give each loop one, or use it through storage.portal.StoragePortal.",
            )
        self._loop = here
        if not self._ready:
            async with self._readying:
                if not self._ready:
                    await self._get_ready(make=False, patient=patient)
        return self._space or ""

    async def _get_ready(self, *, make: bool, patient: bool = True) -> None:
        if self._closed:
            raise StorageError("The storage is closed.", hint="Open it again.")
        SchemaStatus(await self._retried(self._dialect.schema, patient=patient)).check()
        if self._space in (None, NEW_SPACE):
            self._space = await self._choose(make=make, patient=patient)
        if make:
            await self._retried(partial(self._dialect.add_space, self._space))
        self._dialect.subscribe(self._space, self._on_notify)
        self._ready = True

    async def _choose(self, *, make: bool, patient: bool) -> str:
        found = await self._retried(self._dialect.spaces, patient=patient)
        if make and (self._space == NEW_SPACE or not found):
            return secrets.token_hex(8)
        if len(found) == 1:
            return found[0]
        if not found:
            raise VaultNotFoundError(
                "There is no vault in that database.",
                hint="Make one: apex-creds init --storage URL",
            )
        raise InvalidInputError(
            f"There are {len(found)} vaults in that database.",
            hint="Say which with ?space=, as the vault's config.json does.",
        )

    async def _apply(self, changes: Sequence[RowWrite], names: Sequence[str]) -> None:
        """Makes all changes, or raises; what is there instead is known then."""
        outcome = WriteOutcome()
        try:
            space = await self._usable()
            work = partial(self._dialect.apply, space, changes)
            if await self._retried(partial(outcome.of, work)):
                return
            rows = [change.name for change in changes]
            found = await self._retried(partial(self._dialect.versions, space, rows))
        except StorageError as error:  # whatever the last try failed for
            if not outcome.unknown:
                raise
            raise StorageUncertainError(
                f"A write was cut off, and may have happened. {error.message}",
                hint="See that the database can be reached, and look whether it did.",
            ) from error
        written = [change for change in changes if change.new is not None]
        if outcome.unknown and written:
            # One transaction: of rows that others may have written since, one speaks for all.
            rows_now = [(change, found.get(change.name, (0, False))) for change in written]
            if any(now == (change.new, change.data is not None) for change, now in rows_now):
                return
            if not any(
                version == change.old if exists else change.old is None
                for change, (version, exists) in rows_now
            ):
                raise StorageUncertainError(
                    f"The write of {names[0]!r} was cut off, may have happened, and others "
                    "have written since.",
                    hint="Look whether it did before you do it again.",
                )
        before = self._versions.changes
        for change in changes:
            version, exists = found.get(change.name, (0, False))
            self._versions.put(change.name, _token(version) if exists else None)
        self._versions.notify(since=before)
        raise ConflictError(
            f"The document {names[0]!r} was changed meanwhile.",
            hint="Read it again and retry.",
        )

    async def _retried(
        self, work: Callable[[], Coroutine[object, object, T]], *, patient: bool = True
    ) -> T:
        return await retried(work, patience=self._patience if patient else 0.0)


class _Names:
    """What documents are called in the database.

    The key store and the configuration keep their names, which are needed before there is a
    key; all others have a keyed hash, once the layer above has given one.
    """

    __slots__ = ("_candidates", "_stem", "known")

    def __init__(self) -> None:
        self._stem: Callable[[str], str] | None = None
        self._candidates: tuple[str, ...] = (*SECTION_NAMES, *STATE_DOCUMENTS)
        self.known: dict[str, str] = {name: name for name in _CLEAR}
        """Those that were asked for."""

    def map(self, stem_of: Callable[[str], str], candidates: Iterable[str] | None) -> None:
        """See ``SqlStorage.map_names``."""
        self._stem = stem_of
        self.known = {name: name for name in _CLEAR}
        if candidates is not None:
            names = dict.fromkeys(check_document_name(name) for name in candidates)
            self._candidates = (*names, *STATE_DOCUMENTS)

    def stem(self, name: str) -> str:
        """What a document is called in the database.

        Raises:
            InvalidNameError: No document can be called ``name``.
        """
        stem = self.known.get(name)
        if stem is None:
            check_document_name(name)
            stem = name if self._stem is None else check_document_name(self._stem(name))
            self.known[name] = stem
        return stem

    def of(self, stems: Collection[str]) -> list[str]:
        """The names that ``stems`` are of, as far as they can be known; sorted."""
        if self._stem is None:
            return sorted(stems)
        there, known = set(stems), {*self.known, *self._candidates}
        return sorted(name for name in known if self.stem(name) in there)


def _random() -> int:
    return secrets.randbits(62) + 1


def _token(version: int) -> Token:
    return Token(("sql", version))


def _version(token: Token) -> int:
    """The version that a token names; 0, which none has, for a token of something else."""
    match token:
        case ("sql", int(version)):
            return version
        case _:
            return 0

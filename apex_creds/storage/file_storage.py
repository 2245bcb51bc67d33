"""Documents as files, in the layout that ApexAgent expects.

Guarantee: after a crash at any instant a document is its old or its new version, whole;
two processes never lose each other's writes; nothing is read from or written through a
link, a foreign owner's file, or one that others can open. Refusals change nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import aiofiles
from anyio import to_thread

from apex_creds.concurrency import run_to_completion
from apex_creds.errors import ConflictError, CorruptDocumentError, StorageError
from apex_creds.fs.home import CREDENTIALS, SECURITY, make_folders
from apex_creds.fs.lock import HeldLock, WriteLock, lock_file
from apex_creds.fs.private_files import (
    Folder,
    NotDurableError,
    durable_name,
    overwrite,
    storage_error,
    sync_file,
    translated,
    write_all,
)
from apex_creds.model import SECTION_NAMES
from apex_creds.storage import journal
from apex_creds.storage.base import (
    CONFIG,
    GRANTS,
    KEYSTORE,
    MAX_DOCUMENT_BYTES,
    STATE_DOCUMENTS,
    Data,
    Leadership,
    Shredded,
    Stamp,
    Stored,
    Token,
    Write,
    WriteResult,
    check_document_name,
    tie_result,
)
from apex_creds.storage.change_counter import ChangeCounter, Moved

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Callable,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

DIVISION: Final = 64
_FIXED: Final = {
    KEYSTORE: (SECURITY, "keystore.enc"),
    CONFIG: (SECURITY, "config.json"),
    **{name: (SECURITY, f"{name}.enc") for name in STATE_DOCUMENTS},
}
_SUFFIX: Final = ".enc"
_SECTION: Final = re.compile(r"([a-z0-9_]{1,64})\.enc", re.ASCII)
_GRANT_SHARD: Final = re.compile(rf"{GRANTS}_[0-9a-f]{{2,}}", re.ASCII)
"""A plugin's grants are beside the key store."""
_TEMPORARY: Final = re.compile(r"\.[a-z0-9_]{1,64}\.(?:enc|json)\.[0-9a-f]{16}\.tmp", re.ASCII)
_READ_ATTEMPTS: Final = 64
_LOOK_EVERY: Final = 0.1
_MOST_PINS: Final = 64
_CAN_PIN: Final = sys.platform != "win32"  # there, an open file can't be replaced
_monotonic: Final = time.monotonic


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a document is: its name, its folder under the root, its file, its full path."""

    name: str
    folder: str
    file: str
    path: str


class _Seen(NamedTuple):
    """A token, and the value of the counter and the time up to which it holds."""

    counted: int
    token: Token | None
    until: float


class _OwnWrites(NamedTuple):
    """The last writes, while they were all of this storage: what they left alone still holds.

    Each write moves the counter, so that every document would have to be looked at again.

    Attributes:
        first: The counter's value before them.
        last: Its value after them.
        at: Its value after the last one of each document that they replaced.
    """

    first: int
    last: int
    at: Mapping[str, int]

    def after(self, moved: Moved, names: Iterable[str]) -> _OwnWrites:
        """With one more; the lock is held, so that no other is between its two values."""
        ours = dict.fromkeys(names, moved.after)
        if self.last != moved.before:  # another has written before it
            return _OwnWrites(moved.before, moved.after, ours)
        return self._replace(last=moved.after, at={**self.at, **ours})

    def left(self, name: str, *, seen: int, standing: int | None) -> bool:
        """Whether a document is still as it was at ``seen``."""
        return self.first <= seen <= self.last == standing and self.at.get(name, 0) <= seen


class _MovedError(Exception):
    """The file was replaced while it was read."""


class FileStorage:
    """The file backend of ``Storage``.

    Args:
        root: The vault's home, such as ``~/.apex_agent``; ``prepare()`` makes it.
        lock_timeout: Seconds that a write waits for other writers.
    """

    def __init__(self, root: Path, *, lock_timeout: float = 10.0) -> None:
        self.root = Path(root).absolute()
        self._lock = WriteLock(timeout=lock_timeout)
        self._pins = InodePins()
        self._places: dict[str, _Place] = {}
        self._stem: Callable[[str], str] | None = None
        self._candidates: tuple[str, ...] = SECTION_NAMES
        self._counter = ChangeCounter()
        self._seen: dict[str, _Seen] = {}
        self._own = _OwnWrites(0, -1, {})
        self._attach_again = 0.0
        self._journal = self.root / SECURITY / journal.JOURNAL

    @property
    def division(self) -> int:
        """See ``Divides``."""
        return DIVISION

    def map_names(
        self, stem_of: Callable[[str], str], *, candidates: Iterable[str] | None = None
    ) -> None:
        """From now on, section ``name`` is in ``credentials/<stem_of(name)>.enc``.

        The key store and the configuration stay where they are: they are needed before
        a key for hashing names can be had.

        Args:
            stem_of: Gives a stem of 1 to 64 of a-z, 0-9 and underscore; never the same
                for two names (a keyed hash).
            candidates: What ``names()`` can find, since a hash can't be turned back;
                the sections of ``model.SECTIONS`` when not given.
        """
        self._stem = stem_of
        if candidates is not None:
            names = dict.fromkeys(check_document_name(name) for name in candidates)
            self._candidates = tuple(name for name in names if name not in _FIXED)
        self._places = {}
        self._seen = {}

    def change_token(self, name: str) -> Token | None:
        """See ``Storage``.

        While the shared counter stands, what was seen before is true without a system
        call. A file that was replaced without telling the counter (restored by hand, say)
        is noticed within 0.1 seconds.
        """
        standing = self._counter.standing()
        seen = self._seen.get(name)
        if seen is not None and seen.counted == standing and _monotonic() < seen.until:
            return seen.token
        return self._look(name, standing)

    def change_tokens(self, names: Iterable[str]) -> list[Token | None]:
        """See ``Stamped``."""
        standing, now, known = self._counter.standing(), _monotonic(), self._seen
        return [
            seen.token
            if (seen := known.get(name)) and seen.counted == standing and now < seen.until
            else self._look(name, standing)
            for name in names
        ]

    def stamp(self, names: Iterable[str]) -> Stamp | None:
        """See ``Stamped``."""
        seen = [self._seen.get(name) for name in names]
        first = seen[0]
        if first is None or any(each is None or each.counted != first.counted for each in seen):
            return None
        return Stamp(first.counted, min(each.until for each in seen if each is not None))

    def stands(self, stamp: Stamp) -> bool:
        """See ``Stamped``."""
        counted, until = stamp
        return self._counter.standing() == counted and _monotonic() < until

    def _look(self, name: str, standing: int | None) -> Token | None:
        now, seen = _monotonic(), self._seen.get(name)
        if seen is not None and now < seen.until:
            own = self._own
            if own.left(name, seen=seen.counted, standing=standing):
                self._seen[name] = seen._replace(counted=own.last)
                return seen.token
        place = self._places.get(name) or self._place(name)
        try:
            token = _token_at(place)
        except OSError as error:
            raise storage_error(error, place.path) from error
        if standing is not None:
            self._seen[name] = _Seen(standing, token, now + _LOOK_EVERY)
        if now >= self._attach_again:
            self._attach_again = now + _LOOK_EVERY
            with contextlib.suppress(OSError, StorageError), self._folder(SECURITY) as security:
                self._counter.attach(security)
        return token

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps all writers out for the block; a commit that was cut off is finished first.

        Raises:
            StorageLockedError: Another writer held the lock for too long.
        """
        with translated(self.root / SECURITY, writing=True), self._writing_all():
            yield

    async def prepare(self) -> None:
        """Makes the directories, 0700 and durable; those that exist are only checked.

        Raises:
            UnsafePathError: One is a link, or somebody else's.
            UnsafePermissionsError: One is open to others.
            StorageReadOnlyError: They can't be made there.
        """
        await to_thread.run_sync(make_folders, self.root)

    async def read(self, name: str) -> Stored | None:
        """See ``Storage``; a commit that was cut off is finished before the key store is read.

        Raises:
            UnsafePathError: A link or somebody else's file is in the document's place.
            UnsafePermissionsError: The file, or a directory above it, is open to others.
        """
        place = self._place(name)
        if name == KEYSTORE and self._interrupted():
            await to_thread.run_sync(self._finish_interrupted)
        for _ in range(_READ_ATTEMPTS):
            try:
                with translated(place.path):
                    return await run_to_completion(self._read_once(place))
            except _MovedError:
                continue
        raise StorageError(f"{place.path} is replaced all the time.", hint="Retry.")

    async def _read_once(self, place: _Place) -> Stored | None:
        opener = partial(self._open_for_reading, place)
        try:
            async with aiofiles.open(place.path, "rb", opener=opener) as file:
                before = os.fstat(file.fileno())
                _check_size(place.path, before.st_size)
                data = await file.read(before.st_size + 1)
                return Stored(data, self._pinned(place, file.fileno(), before, len(data)))
        except FileNotFoundError:
            return None

    def _read(self, place: _Place) -> Stored | None:
        """As ``read``, in a worker thread."""
        for _ in range(_READ_ATTEMPTS):
            with translated(place.path), contextlib.suppress(_MovedError):
                try:
                    fd = self._open_for_reading(place, "", 0)
                except FileNotFoundError:
                    return None
                with open(fd, "rb") as file:
                    before = os.fstat(fd)
                    _check_size(place.path, before.st_size)
                    data = file.read(before.st_size + 1)
                    return Stored(data, self._pinned(place, fd, before, len(data)))
        raise StorageError(f"{place.path} is replaced all the time.", hint="Retry.")

    def _open_for_reading(self, place: _Place, _path: str, _flags: int) -> int:
        with self._folder(place.folder) as folder:
            return folder.open(place.file)

    def _pinned(self, place: _Place, fd: int, before: os.stat_result, length: int) -> Token:
        """The token of what was read; a file that lost its name may have been shredded."""
        after = os.fstat(fd)
        token = _token(before)
        if after.st_nlink == 0 or length != before.st_size or _token(after) != token:
            raise _MovedError
        self._pins.hold(place.name, os.dup(fd))
        return token

    async def write(
        self, name: str, data: Data, *, expected: Token | None, shred: bool = False
    ) -> WriteResult:
        """See ``Storage``. Runs to its end in a thread even if the caller is cancelled.

        Raises:
            ConflictError: The document is not at ``expected`` any more.
            StorageLockedError: Another writer held the lock for too long.
            StorageFullError: No space; the previous version is intact.
            StorageUncertainError: It was written, but the disk may not keep it.
            StorageReadOnlyError: The place can't be written.
            UnsafePathError: As for ``read``.
            UnsafePermissionsError: As for ``read``.
        """
        return (await self.write_many([Write(name, data, expected)], shred=shred))[0]

    async def read_many(self, names: Iterable[str]) -> dict[str, Stored]:
        """See ``Storage``; raises what ``read`` raises."""
        places = [self._place(name) for name in names]
        if len(places) == 1:
            found = [await self.read(places[0].name)]
        else:
            found = await to_thread.run_sync(lambda: [self._read(place) for place in places])
        pairs = zip(places, found, strict=True)
        return {place.name: stored for place, stored in pairs if stored is not None}

    async def write_many(
        self, writes: Sequence[Write], *, shred: bool = False
    ) -> list[WriteResult]:
        """See ``Storage``. Raises what ``write`` raises.

        All documents are written under one lock, so what a write is tied to stands still
        while it is compared and the others are replaced.
        """
        for write in writes:
            _check_size(self._place(write.name).path, len(write.data or b""))
        results = {tie.name: tie_result(tie) for tie in writes if tie.data is None}
        made = [write for write in writes if write.data is not None or write.remove]
        ties = [write for write in writes if write.data is None and not write.remove]
        work = self._write_together if len(made) > 1 else self._write
        if made:
            written = await to_thread.run_sync(partial(work, made, ties=ties, shred=shred))
            results |= {write.name: r for write, r in zip(made, written, strict=True)}
        return [results[write.name] for write in writes]

    async def delete(self, name: str, *, expected: Token, shred: bool = False) -> Shredded:
        """See ``Storage``; raises what ``write`` raises."""
        place = self._place(name)
        return await to_thread.run_sync(partial(self._delete, place, expected, shred=shred))

    async def names(self) -> list[str]:
        """See ``Storage``; with mapped names, only candidates are found."""
        return await to_thread.run_sync(self._names)

    @contextlib.asynccontextmanager
    async def leader(self, what: str) -> AsyncIterator[Leadership]:
        """See ``Leads``; the lock is the kernel's, and ends with the process.

        Raises:
            StorageError: The lock file can't be made or locked.
        """
        name = f".{check_document_name(what)}.lock"

        def lead() -> HeldLock | None:
            place = self.root / SECURITY / name
            with translated(place, writing=True), self._folder(SECURITY) as security:
                return lock_file(security, name)

        lock = await to_thread.run_sync(lead)
        try:
            yield Leadership(held=lock is not None)
        finally:
            if lock is not None:
                lock.close()

    async def close(self) -> None:
        """See ``Storage``."""
        self._pins.close()
        self._counter.detach()

    # -- in worker threads -------------------------------------------------------

    def _write(
        self, writes: Sequence[Write], *, ties: Sequence[Write], shred: bool
    ) -> list[WriteResult]:
        [write] = writes
        if write.remove:
            gone = self._delete(self._place(write.name), write.expected, ties, shred=shred)
            return [replace(tie_result(write), shredded=gone)]
        place, data = self._place(write.name), write.data or b""
        with self._writing(place) as folder, _opened(folder, place, for_shred=shred) as old:
            self._compare(place, None if old is None else _token(os.fstat(old)), write.expected)
            self._compare_ties(ties)
            _sweep(folder)
            token = self._replace(folder, place, data, newer_than=_modified(old))
            return [WriteResult(token, overwrite(old) if shred and old is not None else "no")]

    def _write_together(
        self, writes: Sequence[Write], *, ties: Sequence[Write], shred: bool
    ) -> list[WriteResult]:
        """Replaces several: see ``journal``. The key store, which names the others, is last."""
        ordered = sorted(writes, key=lambda write: (write.remove, write.name == KEYSTORE))
        places = [self._place(write.name) for write in ordered]
        with contextlib.ExitStack() as stack:
            stack.enter_context(translated(self.root / SECURITY, writing=True))
            folders = stack.enter_context(self._writing_all())
            old: list[int | None] = []
            for write, place in zip(ordered, places, strict=True):
                opened = _opened(folders[place.folder], place, for_shred=shred)
                old.append(fd := stack.enter_context(opened))
                self._compare(
                    place, None if fd is None else _token(os.fstat(fd)), write.expected
                )
            self._compare_ties(ties)
            for name in {place.folder for place in places}:
                _sweep(folders[name])
            made = self._made(folders, ordered, places, old, stack)
            with self._moving(*(place.name for place in places)), durable_name():
                if not journal.take(folders, [step for step, _ in made]):
                    raise ConflictError(
                        f"{self.root} is written without its lock.",
                        hint="Look which program does it.",
                    )
            results = {}
            for write, place, fd, (_, new) in zip(ordered, places, old, made, strict=True):
                if new is None:
                    token = tie_result(write).token
                    self._pins.release(place.name)
                else:
                    token = _token(os.fstat(new))
                    self._pins.hold(place.name, os.dup(new))
                gone = overwrite(fd) if shred and fd is not None else "no"
                results[write.name] = WriteResult(token, gone)
        return [results[write.name] for write in writes]

    def _made(
        self,
        folders: journal.Folders,
        writes: Sequence[Write],
        places: Sequence[_Place],
        old: Sequence[int | None],
        stack: contextlib.ExitStack,
    ) -> list[tuple[journal.Step, int | None]]:
        """The steps, written down, and the new versions, open until the stack is left."""
        made: list[tuple[journal.Step, int | None]] = []
        try:
            for write, place, before in zip(writes, places, old, strict=True):
                was = None if before is None else journal.version_of(os.fstat(before))
                name = "" if write.data is None else journal.new_name(place.file)
                made.append((journal.Step(_folder(place), place.file, name, was), None))
                if write.data is not None:
                    fd = folders[place.folder].create(name)
                    stack.callback(os.close, fd)
                    made[-1] = (made[-1][0], fd)
                    write_all(fd, write.data)
                    _stamp(fd, _modified(before))
            files = [new for _, new in made if new is not None]
            journal.begin(folders, [step for step, _ in made], files)
        except NotDurableError:
            raise
        except BaseException:
            journal.give_up(folders, [step for step, _ in made])
            raise
        return made

    def _interrupted(self) -> bool:
        return os.path.lexists(self._journal)

    def _finish_interrupted(self) -> None:
        """Finishes a commit that was cut off; left to a writer where it can't be written."""
        with (
            contextlib.suppress(StorageError, CorruptDocumentError),  # a writer gets these
            self.exclusive(),
        ):
            pass

    def _compare_ties(self, ties: Sequence[Write]) -> None:
        for tie in ties:  # nobody writes it meanwhile: all writers hold the one lock
            tied = self._place(tie.name)
            self._compare(tied, _token_at(tied), tie.expected)

    def _compare(self, place: _Place, current: Token | None, expected: Token | None) -> None:
        if current == expected:
            return
        self._seen.pop(place.name, None)  # so that the next read gets this one
        raise ConflictError(
            f"{place.path} was changed meanwhile.", hint="Read it again and retry."
        )

    def _replace(self, folder: Folder, place: _Place, data: Data, *, newer_than: int) -> Token:
        temporary = f".{place.file}.{secrets.token_hex(8)}.tmp"
        fd = folder.create(temporary)
        try:
            write_all(fd, data)
            _stamp(fd, newer_than)
            sync_file(fd)
            with self._moving(place.name):
                folder.replace(temporary, place.file)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                folder.unlink(temporary)
            raise
        with durable_name():
            token = _token(os.fstat(fd))
            self._pins.hold(place.name, fd)
            folder.sync()
        return token

    def _delete(
        self,
        place: _Place,
        expected: Token | None,
        ties: Sequence[Write] = (),
        *,
        shred: bool = False,
    ) -> Shredded:
        with self._writing(place) as folder, _opened(folder, place, for_shred=shred) as old:
            self._compare(place, None if old is None else _token(os.fstat(old)), expected)
            self._compare_ties(ties)
            _sweep(folder)
            with self._moving(place.name):
                folder.unlink(place.file)
            with durable_name():
                folder.sync()
            self._pins.release(place.name)
            return overwrite(old) if shred and old is not None else "no"

    def _names(self) -> list[str]:
        found = [name for name in _FIXED if self.change_token(name) is not None]
        with (
            translated(self.root / SECURITY),
            contextlib.suppress(FileNotFoundError),
            self._folder(SECURITY) as folder,
        ):
            stems = (entry.removesuffix(_SUFFIX) for entry in folder.entries())
            found += [stem for stem in stems if _GRANT_SHARD.fullmatch(stem)]
        if self._stem is not None:
            found += [name for name in self._candidates if self.change_token(name) is not None]
            return sorted(found)
        with (
            translated(self.root / CREDENTIALS),
            contextlib.suppress(FileNotFoundError),
            self._folder(CREDENTIALS) as folder,
        ):
            stems = (m[1] for entry in folder.entries() if (m := _SECTION.fullmatch(entry)))
            found += [stem for stem in stems if stem not in _FIXED]
        return sorted(found)

    @contextlib.contextmanager
    def _writing(self, place: _Place) -> Iterator[Folder]:
        """The document's folder, with the write lock held."""
        with translated(place.path, writing=True), self._writing_all() as folders:
            yield folders[place.folder]

    @contextlib.contextmanager
    def _writing_all(self) -> Iterator[journal.Folders]:
        """The folders, with the write lock held, and no commit cut off in them."""
        with (
            Folder(self.root, outer=True) as root,
            Folder(self.root / SECURITY, within=root) as security,
            self._lock.held(security),
            Folder(self.root / CREDENTIALS, within=root) as credentials,
        ):
            self._counter.attach(security, write=True)
            folders = {CREDENTIALS: credentials, SECURITY: security}
            if steps := journal.unfinished(security):
                with self._counter.moving(), durable_name():
                    journal.finish(folders, steps)
            yield folders

    @contextlib.contextmanager
    def _moving(self, *names: str) -> Iterator[None]:
        """Marks the block in which documents are replaced, of which no others are touched."""
        with self._counter.moving() as moved:
            yield
        if moved is not None:
            self._own = self._own.after(moved, names)

    @contextlib.contextmanager
    def _folder(self, name: str) -> Iterator[Folder]:
        with (
            Folder(self.root, outer=True) as root,
            Folder(self.root / name, within=root) as folder,
        ):
            yield folder

    def _place(self, name: str) -> _Place:
        place = self._places.get(name)
        if place is not None:
            return place
        if _GRANT_SHARD.fullmatch(check_document_name(name)):
            folder, file = SECURITY, name + _SUFFIX
        elif name in _FIXED:
            folder, file = _FIXED[name]
        else:
            stem = name if self._stem is None else check_document_name(self._stem(name))
            folder, file = CREDENTIALS, stem + _SUFFIX
        place = _Place(name, folder, file, str(self.root / folder / file))
        self._places[name] = place
        return place


class InodePins:
    """One open descriptor for each document name; safe to use from several threads.

    While a version's descriptor is pinned its inode is not freed, so no later version of the
    document can have the same device and inode (no ABA in tokens). Of many documents those
    seen last have one; for the others it rests on the time, which no two versions share.
    """

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()
        self._closed = False

    def hold(self, name: str, fd: int) -> None:
        """Takes ownership of ``fd``, and lets go of the one held for ``name`` before."""
        with self._lock:
            if self._closed or not _CAN_PIN:
                old: int | None = fd
            else:
                old = self._held.pop(name, None)
                self._held[name] = fd
                if len(self._held) > _MOST_PINS:
                    old = self._held.pop(next(iter(self._held)))
        if old is not None:
            os.close(old)

    def release(self, name: str) -> None:
        """Lets go of what is held for ``name``."""
        with self._lock:
            old = self._held.pop(name, None)
        if old is not None:
            os.close(old)

    def close(self) -> None:
        """Lets go of everything, now and from now on; idempotent."""
        with self._lock:
            self._closed = True
            held, self._held = self._held, {}
        for fd in held.values():
            os.close(fd)


def _token(status: os.stat_result) -> Token:
    return Token(
        (
            status.st_dev,
            status.st_ino,
            status.st_mtime_ns,
            status.st_size,
            status.st_ctime_ns,  # moves when modes do, so a chmod is noticed by the next read
        )
    )


def _folder(place: _Place) -> Literal["security", "credentials"]:
    return "security" if place.folder == SECURITY else "credentials"


def _check_size(path: str, size: int) -> None:
    if size > MAX_DOCUMENT_BYTES:
        raise StorageError(
            f"{path} is larger than 1 GiB.", hint="No vault document is: look what it is."
        )


def _token_at(place: _Place) -> Token | None:
    try:
        return _token(os.lstat(place.path))
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _opened(folder: Folder, place: _Place, *, for_shred: bool) -> Iterator[int | None]:
    """The version that is there, checked; writable if it is to be overwritten later."""
    fd: int | None = None
    with contextlib.suppress(FileNotFoundError):
        if for_shred:
            with contextlib.suppress(PermissionError):  # 0400: replaced, but not overwritten
                fd = folder.open(place.file, os.O_RDWR)
        fd = folder.open(place.file) if fd is None else fd
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _modified(fd: int | None) -> int:
    return 0 if fd is None else os.fstat(fd).st_mtime_ns


def _stamp(fd: int, newer_than: int) -> None:
    """Two versions never share a modification time, however coarse the kernel's clock."""
    if os.utime in os.supports_fd:
        moment = max(time.time_ns(), newer_than + 1)
        os.utime(fd, ns=(moment, moment))


def _sweep(folder: Folder) -> None:
    """Removes what dead writers left; the lock is held, so no living one is at work."""
    for entry in folder.entries():
        if entry[0] == "." and (_TEMPORARY.fullmatch(entry) or journal.NEW.fullmatch(entry)):
            folder.unlink(entry)

"""Which storage a vault has: its home's own files, or another one that the home names.

Guarantee: ``security/config.json`` of a home says where the vault is, never with a password;
a home that says nothing has its vault in files, and needs no library for databases. Other
packages add storages by entry point (see docs/EXTENDING.md).
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Protocol, runtime_checkable

import anyio.to_thread
import msgspec
from msgspec import Meta

from apex_creds import extensions
from apex_creds.errors import CorruptDocumentError, InvalidInputError, NotInstalledError
from apex_creds.fs.home import SECURITY
from apex_creds.fs.private_files import Folder, read_small, translated
from apex_creds.storage.base import CONFIG, KEYSTORE, Storage, closing
from apex_creds.storage.file_storage import FileStorage

if TYPE_CHECKING:
    from apex_creds.storage.sql_storage import SqlStorage

CONFIG_FILE: Final = "config.json"
_LARGEST: Final = 1 << 20
_DATABASE: Final = re.compile(r"sqlite|postgres", re.IGNORECASE)
_NEEDED: Final = frozenset({"psycopg", "tenacity"})


class StoragePlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where the documents of a vault are that is not in its home's files.

    Attributes:
        url: The database, or another package's storage; there is no password in it.
        space: Which of the vaults in a database.
        staleness: Seconds for which what is in memory is used while the database can't be
            reached.
    """

    url: str
    space: str | None = None
    staleness: Annotated[float, Meta(ge=0, le=3600)] = 5.0


class _Part(msgspec.Struct, frozen=True):
    """Only this key matters here; the rest is the vault's, or an older program's."""

    storage: msgspec.Raw = msgspec.Raw(b"null")


def configured(home: Path) -> StoragePlace | None:
    """What ``home`` says about a database; None: the vault is in its own files.

    Raises:
        CorruptDocumentError: What it says is not understood.
        StorageError: It can't be read safely.
    """
    path = Path(home) / SECURITY / CONFIG_FILE
    with translated(path):
        try:  # not checked yet: a file of an older program says nothing of a storage
            found = _said(read_small(path, limit=_LARGEST, follow=True))
        except (FileNotFoundError, NotADirectoryError):
            found = None
        if found is None:
            return None
        with (
            Folder(path.parent.parent, outer=True) as root,
            Folder(path.parent, within=root) as security,
            os.fdopen(security.open(CONFIG_FILE), "rb") as file,
        ):
            found = _said(file.read(_LARGEST))  # it counts: it must be only ours
    try:
        return None if found is None else msgspec.json.decode(found, type=StoragePlace)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptDocumentError(
            f"What security/config.json says of the storage is not understood: {error}.",
            hint="Correct it as docs/SQL.md describes.",
        ) from None


def storage_for(home: Path, *, url: str | None = None) -> Storage:
    """The storage of the vault at ``home``, or the one that a new vault is to have.

    Args:
        home: The vault's directory.
        url: Where it is, where the home says nothing yet.

    Raises:
        InvalidInputError: The URL can't be used.
        NotInstalledError: The extra ``apex-creds[sql]`` is missing, or another package.
    """
    if url is not None:
        return open_place(StoragePlace(url))
    found = configured(home)
    return FileStorage(home) if found is None else open_place(found)


def open_place(place: StoragePlace) -> Storage:
    """The storage that a URL names: a database, or what another package has for its scheme.

    Raises:
        InvalidInputError: Nobody has its scheme, or it can't be used.
        NotInstalledError: As ``storage_for``.
    """
    scheme = place.url.partition(":")[0]
    if _DATABASE.match(scheme):
        return open_sql(place)
    storage = extensions.make(extensions.STORAGES, place.url)
    if storage is None:
        return open_sql(place)
    if not isinstance(storage, Storage):
        raise InvalidInputError(
            f"What a package has for {scheme}: is no storage.", hint="See docs/EXTENDING.md."
        )
    return storage


def open_sql(config: StoragePlace) -> SqlStorage:
    """The storage in a database.

    Raises:
        InvalidInputError, NotInstalledError: As ``storage_for``.
    """
    try:
        from apex_creds.storage.sql_storage import SqlStorage

        return SqlStorage(config.url, space=config.space, staleness=config.staleness)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        raise NotInstalledError(
            "A vault in a database needs an optional part of the program.",
            hint="Install it: pip install 'apex-creds[sql]'",
        ) from None


async def remember(home: Path, config: StoragePlace) -> None:
    """Writes into ``security/config.json`` where the vault of ``home`` is.

    Raises:
        CorruptDocumentError: There is a configuration that is not understood.
        StorageError: It can't be written.
    """
    files = FileStorage(home)
    try:
        await files.prepare()
        stored = await files.read(CONFIG)
        before = b"{}" if stored is None else stored.data
        try:
            keys = msgspec.json.decode(before, type=dict[str, msgspec.Raw])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise CorruptDocumentError(
                "security/config.json is not understood.", hint="Correct or remove it."
            ) from None
        keys["storage"] = msgspec.Raw(msgspec.json.encode(config))
        data = msgspec.json.format(msgspec.json.encode(keys), indent=2) + b"\n"
        await files.write(CONFIG, data, expected=stored.token if stored else None)
    finally:
        await files.close()


@runtime_checkable
class Located(Protocol):
    """A storage that a home can name: what has its scheme makes it again from the URL."""

    @property
    def url(self) -> str:
        """Where it is; there is no password in it."""


def place_of(storage: Located) -> StoragePlace:
    """What a home says of a storage; of a database also which vault in it."""
    space, staleness = getattr(storage, "space", None), getattr(storage, "staleness", None)
    place = StoragePlace(storage.url, space=space if isinstance(space, str) else None)
    if not isinstance(staleness, int | float):
        return place
    return msgspec.structs.replace(place, staleness=float(staleness))


async def remember_storage(home: Path, storage: Storage) -> None:
    """As ``remember``, for a storage that is open; does nothing for files and the like."""
    if isinstance(storage, Located):
        await remember(home, place_of(storage))


async def has_vault(home: Path) -> bool:
    """Whether there is a key store where ``home`` says that its vault is."""
    found = await anyio.to_thread.run_sync(configured, home)
    if found is None:
        return FileStorage(home).change_token(KEYSTORE) is not None
    async with closing(open_place(found)) as storage:
        return await storage.read(KEYSTORE) is not None


def _said(data: bytes) -> msgspec.Raw | None:
    """The object under ``storage``; an older program may have had something else there."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raw = msgspec.json.decode(data, type=_Part).storage
        return raw if bytes(raw).lstrip().startswith(b"{") else None
    return None

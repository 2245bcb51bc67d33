"""A copy of the whole vault, taken while work goes on.

Guarantee: the copy is the vault of one instant: every document as it was at the same
moment, the audit log of then or a little later. It has its place only after it was opened
as a vault is (each MAC, each record, the log), and is signed by the vault. It is 0600, with
nothing in clear that is not in clear in the vault, and never the master key. Files are
streamed, a MiB at a time, in worker threads: one hand-off for each step, none for each piece.

A copy is a directory (or a tar file of one) with the vault's own layout, and a manifest:
``backup.json``, one line of JSON, and a line with its Ed25519 signature in base64.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from apex_creds.admin.archive import (
    KeystoreInMemory,
    copy_log,
    pack,
    partial_copy,
    put_file,
    verified_log,
)
from apex_creds.audit.checkpoint import LogKey
from apex_creds.audit.events import EventKind
from apex_creds.concurrency import off_loop
from apex_creds.crypto import public_key
from apex_creds.documents.document import parse
from apex_creds.documents.grant_set import grant_shards
from apex_creds.documents.keystore import Keystore, MasterKeySource
from apex_creds.documents.records import open_record
from apex_creds.documents.sections import Section, documents_of
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import (
    ConflictError,
    CorruptDocumentError,
    InvalidInputError,
)
from apex_creds.fs.home import CREDENTIALS, SECURITY, audit_directory
from apex_creds.fs.private_files import Folder, sync_directory, translated
from apex_creds.keys import MasterKeyProvider
from apex_creds.keys.hierarchy import KEYSTORE
from apex_creds.model import SECTION_NAMES, Clock
from apex_creds.scheduler import kek_rotation
from apex_creds.storage.base import CONFIG, STATE_DOCUMENTS, Storage, closing
from apex_creds.storage.file_storage import FileStorage
from apex_creds.vault import create
from apex_creds.vault.anchor import open_signing_key
from apex_creds.vault.unfinished import KEYSTORE_FILE
from apex_creds.vault.vault import Vault

__all__ = ["MANIFEST", "Manifest", "backup", "examine", "read_manifest"]

MANIFEST: Final = "backup.json"
FORMAT: Final = "apex-creds/backup"
POLICY: Final = "policy.toml"

_OPTIMISTIC: Final = 5
_SIGNED: Final = b"apex-creds backup v1\n"
_LONGEST: Final = 16 << 20
_CHUNK: Final = 1 << 20


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a copy."""

    size: int
    sha256: str


class Contents(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a copy was found to hold when it was opened.

    Attributes:
        vault_id: Of which vault it is.
        master_version: The master key that opens it.
        documents: Generation by document.
        credentials: How many there are; each was opened.
        events: How many the log has.
        head: Root of the log's tree.
    """

    vault_id: str
    master_version: int
    documents: dict[str, int]
    credentials: int
    events: int
    head: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a backup says of itself, signed."""

    format: str = FORMAT
    version: int = 1
    made: float
    contents: Contents
    files: dict[str, File]


async def backup(vault: Vault, destination: Path, *, provider: MasterKeyProvider) -> Manifest:
    """Copies the vault to a new directory, or to a new file whose name ends with ``.tar``.

    Args:
        vault: Unsealed; other processes may go on with it.
        destination: Must not exist; its parent must.
        provider: Has the master key, to open the copy.

    Raises:
        InvalidInputError: There is something already, or no place for it.
        IntegrityError: The copy does not open, so nothing was left there.
        StorageError: It can't be read or written.
        AuditUnavailableError: The event could not be written.
    """
    if vault.store.shared is not None:
        raise InvalidInputError(
            "This vault is in a database, and backups are of files.",
            hint="Back up the database, or first: apex-creds copy --to DIRECTORY",
        )
    destination = _place(destination, vault.home)
    vault.record(EventKind.BACKUP, action="backup", detail=f"to {destination.name}")
    await anyio.to_thread.run_sync(vault.audit.sign)
    with contextlib.ExitStack() as stack:
        making = partial(stack.enter_context, partial_copy(destination))
        where = await anyio.to_thread.run_sync(making)
        try:
            keystore = await _copy(vault, where)
            manifest = await _sealed(vault, where, keystore, provider)
            # In a thread: a large vault takes a while to pack and to make durable.
            place = partial(_put_in_place, where, destination, keystore, manifest)
            await anyio.to_thread.run_sync(place)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(stack.close)
    return manifest


def _place(destination: Path, home: Path) -> Path:
    destination = Path(os.path.abspath(destination))
    if os.path.lexists(destination):
        raise InvalidInputError(
            f"{destination} exists already.", hint="A backup is never overwritten."
        )
    if not destination.parent.is_dir():
        raise InvalidInputError(f"There is no directory {destination.parent}.")
    inside = (home / SECURITY, home / CREDENTIALS)
    if any(destination.is_relative_to(folder) for folder in inside):
        raise InvalidInputError(
            "That is inside the vault.", hint="Keep backups on another disk."
        )
    return destination


# -- copying -----------------------------------------------------------------------------


async def _copy(vault: Vault, where: Path) -> bytes:
    """Copies all but the key store, which is returned."""
    keystore = await vault.store.keystore()
    async with closing(FileStorage(where)) as copy:
        await copy.prepare()
        create.map_names(copy, keystore)
        storage = vault.store.storage
        # All documents as of one instant: none moved while they were read.
        for attempt in range(_OPTIMISTIC + 1):
            with contextlib.ExitStack() as alone:
                # Writers may be quicker than we are: they wait for the last read.
                if attempt == _OPTIMISTIC and isinstance(storage, FileStorage):
                    await anyio.to_thread.run_sync(alone.enter_context, storage.exclusive())
                names = _names(storage, await vault.store.keystore())
                before = _tokens(storage, names)
                found = await _read_all(storage, names)
                if before == _tokens(storage, names):
                    break
        else:
            raise ConflictError("The vault keeps changing.", hint="Try again.")
        held = found.pop(KEYSTORE)
        for name, data in found.items():
            await copy.write(name, data, expected=None)
    await anyio.to_thread.run_sync(copy_policy, vault.home, where)
    log = audit_directory(vault.home)
    await anyio.to_thread.run_sync(copy_log, log, audit_directory(where))
    return held


def copy_policy(home: Path, where: Path) -> None:
    """Copies a home's policy, if it has one, into another home that has none.

    Raises:
        StorageError: One of them can't be used, or not safely.
    """
    with translated(home / SECURITY / POLICY), contextlib.suppress(FileNotFoundError):
        with Folder(home, outer=True) as root, Folder(home / SECURITY, within=root) as folder:
            fd = folder.open(POLICY)
        with open(fd, "rb") as file:
            put_file(where / SECURITY / POLICY, iter(lambda: file.read(_CHUNK), b""))


def _names(storage: Storage, keystore: Keystore) -> list[str]:
    shards = [name for name in grant_shards() if storage.change_token(name) is not None]
    return [KEYSTORE, CONFIG, *documents_of(keystore), *STATE_DOCUMENTS, *shards]


def _tokens(storage: Storage, names: list[str]) -> list[object]:
    return [storage.change_token(name) for name in names]


async def _read_all(storage: Storage, names: list[str]) -> dict[str, bytes]:
    found = {name: await storage.read(name) for name in names}
    return {name: stored.data for name, stored in found.items() if stored is not None}


# -- opening the copy --------------------------------------------------------------------


@contextlib.asynccontextmanager
async def unsealed(
    storage: FileStorage, provider: MasterKeyProvider, clock: Clock
) -> AsyncIterator[tuple[DocumentStore, Keystore]]:
    """The documents of a copy, with its key store; closed at the end of the block."""
    store = DocumentStore(storage, clock=clock, masters=MasterKeySource(provider))
    try:
        yield store, await store.unseal()
    finally:
        with anyio.CancelScope(shield=True):
            await store.close()


async def examine(
    storage: FileStorage, *, provider: MasterKeyProvider, clock: Clock
) -> Contents:
    """Opens a copy as a vault is opened, and everything in it; changes nothing in it.

    Args:
        storage: The copy; closed afterwards.
        provider: Has its master key.
        clock: The time.

    Raises:
        MasterKeyError: The master key of the copy can't be had.
        IntegrityError: A document, key or record is not what the vault wrote.
        AuditTamperedError: The log does not verify.
    """
    async with unsealed(storage, provider, clock) as (store, keystore):
        vault_id = keystore.header.vault_id
        create.map_names(storage, keystore)
        await kek_rotation.scan(store)

        def open_all(section: Section) -> None:
            for record in section.records.values():
                opened = open_record(
                    record, vault_id=bytes.fromhex(vault_id), find_key=keystore.dek
                )
                opened.close()

        count = 0
        for section in [await store.sections.read(name) for name in SECTION_NAMES]:
            await off_loop(len(section.records), partial(open_all, section))
            count += len(section.records)
        with open_signing_key(keystore) as signer:
            key = LogKey(vault_id, signer)
            verify = partial(verified_log, audit_directory(storage.root), key=key)
            events, head = await anyio.to_thread.run_sync(verify)
        documents: dict[str, int] = {}
        for name in _names(storage, keystore):
            stored = await storage.read(name) if name != CONFIG else None
            if stored is not None:
                header = parse(stored.data, section=name, vault_id=None).header
                documents[name] = header.generation
        return Contents(
            vault_id=vault_id,
            master_version=keystore.root_header.master.version,
            documents=documents,
            credentials=count,
            events=events,
            head=head,
        )


# -- the manifest ------------------------------------------------------------------------


async def _sealed(
    vault: Vault, where: Path, keystore: bytes, provider: MasterKeyProvider
) -> Manifest:
    """Opens the copy, and writes what it holds, signed, into its manifest."""
    copy = KeystoreInMemory(where, keystore)
    contents = await examine(copy, provider=provider, clock=vault.clock)
    files = await anyio.to_thread.run_sync(files_of, where)
    files[KEYSTORE_FILE] = File(len(keystore), hashlib.sha256(keystore).hexdigest())
    made = Manifest(made=vault.clock.time(), contents=contents, files=files)
    text = msgspec.json.encode(made)
    with open_signing_key(await vault.store.keystore()) as signer:
        signature = base64.b64encode(signer.sign(_SIGNED + text))
    lines = [text, b"\n", signature, b"\n"]
    await anyio.to_thread.run_sync(put_file, where / MANIFEST, lines)
    return made


def files_of(where: Path) -> dict[str, File]:
    """The files of a copy, with their sizes and hashes; not the storage's lock and counter.

    Raises:
        StorageError: One can't be read.
    """
    with translated(where):
        found = [path for path in sorted(where.rglob("*")) if path.is_file()]
    files: dict[str, File] = {}
    for path in found:
        if not path.name.startswith("."):
            with translated(path), path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
            files[path.relative_to(where).as_posix()] = File(size, digest)
    return files


def read_manifest(where: Path) -> tuple[Manifest, bytes, bytes]:
    """The manifest of a copy, the bytes that are signed, and the signature; not checked.

    Raises:
        CorruptDocumentError: There is none, or it is malformed.
    """
    with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError, RecursionError):
        with (where / MANIFEST).open("rb") as file:
            text, signature = file.read(_LONGEST).splitlines()
        made = msgspec.json.decode(text, type=Manifest)
        if (made.format, made.version) == (FORMAT, 1):
            return made, text, base64.b64decode(signature, validate=True)
    raise CorruptDocumentError(
        "That is no backup that this program made.", hint="Name another one."
    )


async def check_signature(where: Path, *, provider: MasterKeyProvider, clock: Clock) -> None:
    """Returns if the manifest was signed by the vault that the copy is of.

    Raises:
        IntegrityError: It was not.
    """
    _, text, signature = read_manifest(where)
    async with unsealed(FileStorage(where), provider, clock) as (_, keystore):
        with open_signing_key(keystore) as signer:
            public_key.verify(signer.public, _SIGNED + text, signature)


def _put_in_place(copy: Path, destination: Path, keystore: bytes, made: Manifest) -> None:
    with translated(destination, writing=True):
        for own in (".lock", ".epoch"):
            (copy / SECURITY / own).unlink(missing_ok=True)
        put_file(copy / KEYSTORE_FILE, [keystore])
        if destination.suffix == ".tar":
            names = sorted(made.files, key=lambda name: (name == KEYSTORE_FILE, name))
            pack(copy, destination, [MANIFEST, *names])
        else:
            os.rename(copy, destination)
        with contextlib.suppress(PermissionError):  # a parent that is not ours
            sync_directory(destination.parent, renamed=True)


__all__ += ["Contents", "File", "check_signature", "files_of", "unsealed"]

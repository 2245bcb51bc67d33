"""The vault's configuration that is no secret, its shared counts, and its homes' numbers.

Guarantee: what is not in ``security/config.json`` has its default; what is not understood is an
error. It is not authenticated: who can write the directory can change it, and nothing here
makes a secret readable.

Of homes that share a vault each has one number of 128 bits for good, from its first process
on; it names the home's audit log, which no other home writes. It is no secret: a home that
takes another number has an empty log of that number, which the vault's database shows.

The document ``limits`` has the counts of limits that outlive the process. It is apart from the
others, so that a use that is counted rewrites nothing but the counts.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from apex_creds.audit.maintenance import Cadence
from apex_creds.audit.segment import MAX_SEGMENT
from apex_creds.documents.cached import Document
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import ConflictError, CorruptDocumentError
from apex_creds.fs.home import SECURITY
from apex_creds.fs.private_files import Folder, create_exclusive, translated
from apex_creds.storage.base import CONFIG, Storage, closing
from apex_creds.storage.file_storage import FileStorage
from apex_creds.storage.storage_factory import StoragePlace

if TYPE_CHECKING:
    from apex_creds.policy.rate_limits import LimitState

FORMAT: Final = "apex-creds/config"
# Far below what audit.verify takes for a sign of tampering.
_MOST_EVENTS: Final = 10_000
_LONGEST: Final = 60.0


class AuditConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the audit log is kept.

    Attributes:
        pseudonyms: Credentials and principals are named by keyed pseudonyms.
        durable_ms: Milliseconds from an event to its fsync; 0 makes each one wait.
        checkpoint_events: A checkpoint after that many events at the latest.
        checkpoint_seconds: A checkpoint that long after an event at the latest.
        segment_bytes: A segment of that length is sealed.
        to: Where events go beside the log's own file; see docs/OBSERVABILITY.md.
    """

    pseudonyms: bool = False
    durable_ms: Annotated[int, Meta(ge=0, le=60_000)] = 100
    checkpoint_events: Annotated[int, Meta(ge=1)] = 1000
    checkpoint_seconds: Annotated[float, Meta(gt=0)] = 10.0
    segment_bytes: Annotated[int, Meta(ge=8192, le=MAX_SEGMENT)] = 4 << 20
    to: tuple[str, ...] = ()

    @property
    def cadence(self) -> Cadence:
        """The three before ``to``, as far as a verifier accepts them."""
        return Cadence(
            events=min(self.checkpoint_events, _MOST_EVENTS),
            seconds=min(self.checkpoint_seconds, _LONGEST),
            segment_bytes=self.segment_bytes,
        )


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All of it.

    Attributes:
        audit: How the log is kept.
        storage: Where the vault is, where it is not in the home's own files; only in the
            file of a home, never in the database.
        format: What this is.
        version: Of that.
    """

    audit: AuditConfig = AuditConfig()
    storage: StoragePlace | None = None
    format: Literal["apex-creds/config"] = FORMAT
    version: Literal[1] = 1


async def read_config(storage: Storage) -> Config:
    """The configuration as stored; the defaults where there is none.

    Raises:
        CorruptDocumentError: It is not understood.
    """
    stored = await storage.read(CONFIG)
    if stored is None:
        return Config()
    try:
        return msgspec.json.decode(stored.data, type=Config)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptDocumentError(
            f"security/config.json is not understood: {error}.",
            hint="Correct it as docs/AUDIT.md describes, or remove it.",
        ) from None


async def home_config(home: Path) -> Config:
    """As ``read_config``, of a home's own file, which is let go of again."""
    async with closing(FileStorage(home)) as storage:
        return await read_config(storage)


async def write_config(storage: Storage, config: Config) -> None:
    """Replaces the configuration, durably.

    Raises:
        ConflictError: Another process was first.
    """
    stored = await storage.read(CONFIG)
    what = {"format": config.format, "version": config.version}
    text = msgspec.json.encode(what | msgspec.to_builtins(config))
    data = msgspec.json.format(text) + b"\n"
    await storage.write(CONFIG, data, expected=stored.token if stored else None)


async def ensure_config(home: Path) -> None:
    """Gives a home a configuration that says nothing but what it is, where it has none.

    Raises:
        StorageError: It can't be written.
    """
    async with closing(FileStorage(home)) as storage:
        await storage.prepare()
        if await storage.read(CONFIG) is None:
            with suppress(ConflictError):  # another process was first
                await write_config(storage, Config())


LIMITS: Final = "limits"


def limit_document(store: DocumentStore) -> Document[LimitState]:
    """The document; a new object each time, to be used in one event loop."""
    from apex_creds.policy.rate_limits import LimitState

    return Document(store, name=LIMITS, empty=LimitState())


NODE: Final = "node"
_NUMBER: Final = re.compile(rb"[0-9a-f]{32}\n", re.ASCII)


def node_of(home: Path) -> str | None:
    """The number of a home; None for one whose vault is in its own files.

    Raises:
        CorruptDocumentError: The file that says it was altered.
        UnsafePathError, UnsafePermissionsError: It is not ours alone.
    """
    with translated(home / SECURITY / NODE):
        try:
            with (
                Folder(home, outer=True) as root,
                Folder(home / SECURITY, within=root) as folder,
            ):
                return _read(folder, home)
        except FileNotFoundError:
            return None


def make_node(home: Path) -> str:
    """As ``node_of``, for a vault that is elsewhere; the first process of a home chooses.

    Raises:
        StorageError: It can't be written.
    """
    found = node_of(home)
    if found is not None:
        return found
    with (
        translated(home / SECURITY / NODE, writing=True),
        Folder(home, outer=True) as root,
        Folder(home / SECURITY, within=root) as folder,
    ):
        with contextlib.suppress(FileExistsError):  # another process was first
            create_exclusive(folder.path / NODE, [secrets.token_hex(16).encode(), b"\n"])
        return _read(folder, home)


def log_id(home: Path, vault_id: str) -> str:
    """Whose log is in a home: the vault's, or, where homes share it, the home's own."""
    return node_of(home) or vault_id


def _read(folder: Folder, home: Path) -> str:
    with open(folder.open(NODE), "rb") as file:
        data = file.read(64)
    if not _NUMBER.fullmatch(data):
        raise CorruptDocumentError(
            f"{home / SECURITY / NODE} is not what was written there.",
            hint="Restore it: it has the name of this home's audit log.",
        )
    return data.decode().strip()

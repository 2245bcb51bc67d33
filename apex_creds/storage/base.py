"""What every storage backend promises; the layers above know only this.

Guarantee: a document is read whole or not at all, a write happens only if the document
is still the version that the writer has seen, and a write that returned is durable.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal, NewType, Protocol, TypeAlias, runtime_checkable

from apex_creds.errors import InvalidNameError

KEYSTORE: Final = "keystore"
CONFIG: Final = "config"
STATE_DOCUMENTS: Final = (
    "access",
    "audit_state",
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


@runtime_checkable
class Storage(Protocol):
    """Documents by name. Names are ``keystore``, ``config``, and those of sections.

    All methods raise ``InvalidNameError`` for a name that is not ``[a-z0-9_]{1,64}``,
    and ``StorageError`` (or a subclass) when the backend fails. A failed write leaves
    the previous version. A cancelled write either happens or not, never half.
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

    async def delete(self, name: str, *, expected: Token, shred: bool = False) -> Shredded:
        """Removes the version ``expected``; durable on return.

        Raises:
            ConflictError: The document is not at ``expected`` any more.
        """

    async def names(self) -> list[str]:
        """The names of the documents that exist, sorted."""

    async def close(self) -> None:
        """Lets go of every resource; idempotent. Stored documents stay."""


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

"""What was redeemed lately, for output that belongs to no invocation any more.

Guarantee: sealed records and keyed hashes only, never plaintext; at most ``MANY``,
the oldest go first.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.records import Record
from apex_creds.leases.invocation import Invocation

MANY: Final = 256

Key = tuple[str, int]
"""A credential's name and version."""


class Redeemed(NamedTuple):
    """One version of a credential, and where it was redeemed last.

    Attributes:
        record: Sealed.
        plugin: The plugin's id.
        version: The plugin's version.
        action: What it was doing.
        invocation: Its id.
    """

    record: Record
    plugin: str
    version: str
    action: str
    invocation: str


class Recent:
    """The last ``MANY`` versions of credentials that one broker released."""

    __slots__ = ("_found", "marks", "salt", "told")

    def __init__(self) -> None:
        self._found: dict[Key, Redeemed] = {}
        self.told: dict[Key, str] = {}
        """Of which invocation a leak of it was audited already."""
        self.marks: dict[Key, frozenset[int]] = {}
        """Hashes, under the salt, that a text with it has; made by whoever searches."""
        self.salt = SecretBytes.random(8)

    def __bool__(self) -> bool:
        return bool(self._found)

    def note(self, key: Key, record: Record, invocation: Invocation) -> None:
        """A redeem happened; the caller holds the broker's lock."""
        found, manifest = self._found, invocation.manifest
        found.pop(key, None)
        found[key] = Redeemed(
            record, manifest.plugin, manifest.version, invocation.action, invocation.id
        )
        if len(found) > MANY:
            self.drop(next(iter(found)))

    def drop(self, key: Key) -> None:
        """It is not looked for any more."""
        self._found.pop(key, None)
        self.told.pop(key, None)
        self.marks.pop(key, None)

    def all(self) -> dict[Key, Redeemed]:
        """As it is now."""
        return self._found.copy()

    def close(self) -> None:
        """Nothing is looked for any more."""
        for table in (self._found, self.told, self.marks):
            table.clear()
        self.salt.close()

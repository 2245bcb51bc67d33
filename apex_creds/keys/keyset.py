"""Keysets: the versions of one logical key and the states they go through.

Guarantee: a ``Keyset`` that exists is valid. It has exactly one primary (rule 2), at most
one pending version, strictly increasing version numbers that are never used twice, and
key material in every version that is not destroyed and in none that is. Values are
immutable; each method returns a changed copy or raises, and does nothing in between.
No method reads a clock or makes randomness.
"""

from __future__ import annotations

import math
import re
from enum import StrEnum
from itertools import pairwise
from typing import Final

import msgspec

from apex_creds.errors import KeyStateError, UnknownKeyError

__all__ = ["MAX_VERSION", "KeyState", "KeyVersion", "Keyset", "grace_over"]

MAX_VERSION: Final = 2**32 - 1
"""The envelope has 32 bits for a key version."""

_KEY_ID: Final = re.compile(r"[0-9a-f]{32}")
_ALTERED_HINT: Final = "The key store was altered or written by a faulty program; restore it."


class KeyState(StrEnum):
    """Where a version is on its one-way road.

    ``active`` still decrypts and never encrypts; ``retired`` decrypts for recovery only.
    """

    PENDING = "pending"
    PRIMARY = "primary"
    ACTIVE = "active"
    RETIRED = "retired"
    DESTROYED = "destroyed"


class KeyVersion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One version of a key.

    Attributes:
        version: From 1; fits 32 bits.
        created: Unix seconds.
        material: For a DEK its wrapped envelope, for a KEK its 32-byte salt; empty once
            destroyed.
        parent: The KEK version that wraps a DEK, the master version under a KEK.
        compromised: Shortens every later step.
        changed: Unix seconds of the last change of state (or of ``compromised``).
    """

    version: int
    state: KeyState
    created: float
    material: bytes
    parent: int
    compromised: bool = False
    changed: float

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            KeyStateError: A number out of range, or material that does not fit the state.
        """
        if not (1 <= self.version <= MAX_VERSION and 1 <= self.parent <= MAX_VERSION):
            raise _invalid("has a version number out of range")
        if not (math.isfinite(self.created) and math.isfinite(self.changed)):
            raise _invalid("has a time that is not a number")
        if (self.state is KeyState.DESTROYED) is bool(self.material):
            raise _invalid("has key material that does not fit its state")

    def __repr__(self) -> str:
        return f"KeyVersion({self.version}, {self.state.value}, parent={self.parent})"


class Keyset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All versions of one logical key, oldest first.

    Attributes:
        id: 32 lower-case hexadecimal digits.
        label: What the key is for; a service, for a DEK.
    """

    id: str
    label: str
    versions: tuple[KeyVersion, ...]

    def __post_init__(self) -> None:
        """Checks what the module guarantees.

        Raises:
            KeyStateError: The versions are not a keyset.
        """
        if _KEY_ID.fullmatch(self.id) is None:
            raise _invalid("has an id that is not 32 hexadecimal digits")
        numbers = [v.version for v in self.versions]
        if any(a >= b for a, b in pairwise(numbers)):
            raise _invalid("has versions out of order")
        states = [v.state for v in self.versions]
        if states.count(KeyState.PRIMARY) != 1:
            raise _invalid("does not have exactly one primary")
        if states.count(KeyState.PENDING) > 1:
            raise _invalid("has more than one pending version")

    @classmethod
    def new(
        cls,
        *,
        id: str,  # noqa: A002
        label: str,
        material: bytes,
        parent: int,
        now: float,
    ) -> Keyset:
        """A keyset whose version 1 is primary.

        Raises:
            KeyStateError: The id is not 32 hexadecimal digits, or the material is empty.
        """
        first = _fresh(1, KeyState.PRIMARY, material=material, parent=parent, now=now)
        return cls(id=id, label=label, versions=(first,))

    @property
    def primary(self) -> KeyVersion:
        """The only version that encrypts."""
        return next(v for v in self.versions if v.state is KeyState.PRIMARY)

    @property
    def pending(self) -> KeyVersion | None:
        """The version that a rotation has added and not yet promoted, if any."""
        return next((v for v in self.versions if v.state is KeyState.PENDING), None)

    def get(self, version: int) -> KeyVersion:
        """The version of that number, in whatever state.

        Raises:
            UnknownKeyError: There is none.
        """
        for found in self.versions:
            if found.version == version:
                return found
        raise UnknownKeyError(
            f"Key {self.id} has no version {version}.",
            hint="Restore the key store that belongs to this data.",
        )

    def add_pending(self, *, material: bytes, parent: int, now: float) -> Keyset:
        """Adds the next version, which encrypts nothing until it is promoted.

        Raises:
            KeyStateError: One is pending already, the material is empty, or the numbers
                are used up.
        """
        if self.pending is not None:
            raise _illegal(self, self.pending, "is pending already", "Promote or abandon it.")
        number = self.versions[-1].version + 1
        added = _fresh(number, KeyState.PENDING, material=material, parent=parent, now=now)
        return msgspec.structs.replace(self, versions=(*self.versions, added))

    def promote(self, version: int, *, now: float) -> Keyset:
        """Makes a pending version the primary and the old primary active, in one step.

        Raises:
            KeyStateError: The version is not pending, or is compromised.
            UnknownKeyError: There is none.
        """
        chosen = self._expect(version, KeyState.PENDING)
        if chosen.compromised:
            raise _illegal(self, chosen, "is compromised", "Abandon it and add another.")
        raised = _moved(chosen, KeyState.PRIMARY, now)
        return self._with(raised, _moved(self.primary, KeyState.ACTIVE, now))

    def retire(self, version: int, *, now: float) -> Keyset:
        """Makes an active version retired; nothing may refer to it any more.

        Raises:
            KeyStateError: The version is not active (the primary is not).
            UnknownKeyError: There is none.
        """
        chosen = self._expect(version, KeyState.ACTIVE)
        return self._with(_moved(chosen, KeyState.RETIRED, now))

    def destroy(self, version: int, *, now: float) -> Keyset:
        """Empties a retired version's material (crypto-shredding). Its number stays.

        Raises:
            KeyStateError: The version is not retired.
            UnknownKeyError: There is none.
        """
        chosen = self._expect(version, KeyState.RETIRED)
        return self._with(_moved(chosen, KeyState.DESTROYED, now))

    def abandon(self, version: int, *, now: float | None = None) -> Keyset:
        """Gives up a pending version; it stays as destroyed, so its number is not reused.

        Raises:
            KeyStateError: The version is not pending.
            UnknownKeyError: There is none.
        """
        chosen = self._expect(version, KeyState.PENDING)
        when = chosen.changed if now is None else now
        return self._with(_moved(chosen, KeyState.DESTROYED, when))

    def mark_compromised(self, version: int, *, now: float) -> Keyset:
        """Sets the flag, in any state; does nothing when it is set.

        Raises:
            UnknownKeyError: There is no such version.
        """
        chosen = self.get(version)
        if chosen.compromised:
            return self
        return self._with(msgspec.structs.replace(chosen, compromised=True, changed=now))

    def rewrap(self, version: int, *, material: bytes, parent: int) -> Keyset:
        """Replaces the wrapping of a version: the same key under another parent.

        Raises:
            KeyStateError: The version is destroyed, or the material is empty.
            UnknownKeyError: There is none.
        """
        chosen = self.get(version)
        if chosen.state is KeyState.DESTROYED:
            raise _illegal(self, chosen, "is destroyed", "There is nothing left to rewrap.")
        return self._with(msgspec.structs.replace(chosen, material=material, parent=parent))

    def _expect(self, version: int, state: KeyState) -> KeyVersion:
        found = self.get(version)
        if found.state is not state:
            raise _illegal(
                self,
                found,
                f"is {found.state.value}",
                f"The version must be {state.value} for this step.",
            )
        return found

    def _with(self, *changed: KeyVersion) -> Keyset:
        by_number = {v.version: v for v in changed}
        versions = tuple(by_number.get(v.version, v) for v in self.versions)
        return msgspec.structs.replace(self, versions=versions)


def grace_over(since: float, *, before: float, now: float) -> bool:
    """Whether what was left behind at ``since`` is not kept any more.

    That is so if it was before ``before``. A time from as far ahead, or further, was written
    while the clock was wrong: it keeps nothing for years.
    """
    return since <= before or since - now > now - before


def _fresh(
    version: int, state: KeyState, *, material: bytes, parent: int, now: float
) -> KeyVersion:
    return KeyVersion(
        version=version, state=state, created=now, material=material, parent=parent, changed=now
    )


def _moved(version: KeyVersion, state: KeyState, now: float) -> KeyVersion:
    material = b"" if state is KeyState.DESTROYED else version.material
    return msgspec.structs.replace(version, state=state, material=material, changed=now)


def _invalid(what: str) -> KeyStateError:
    return KeyStateError(f"A key of the key store {what}.", hint=_ALTERED_HINT)


def _illegal(keyset: Keyset, version: KeyVersion, what: str, hint: str) -> KeyStateError:
    return KeyStateError(f"Version {version.version} of key {keyset.id} {what}.", hint=hint)

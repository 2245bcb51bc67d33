"""What a rotator is: four steps that replace a secret at its provider.

Guarantee: each step may be taken again, by another process, after any crash, and comes to the
same; the vault has on record which one is next before it is taken. A rotator keeps nothing.
It sends secrets to its ``origin`` alone, and says in an error what is wrong and nothing that
it sent or got.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, runtime_checkable
from urllib.parse import parse_qsl, unquote

from apex_creds.errors import InvalidInputError
from apex_creds.model import CredentialKind, Origin, Secret

_RANDOM_BYTES: Final = 32


class Mode(StrEnum):
    """How many values the provider takes at a time."""

    DUAL = "dual"
    """Two: the old one stays valid until ``finish``."""
    SWAP = "swap"
    """One: the old one ends with ``set``, and comes back if the new one fails its test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a step is about.

    Attributes:
        credential: Its name.
        attempt: Names this rotation: the same for each step, and each time that it is taken.
        begun: Unix seconds, by the vault's clock, from before the first step.
        now: Unix seconds, by the vault's clock.
        current: The value that plugins get now.
        others: The other values that may be valid: the next one, or the replaced one.
        admin: What the rotator logs in with; None: with the credential itself.
        resumed: The step may have been taken before, by somebody who did not live to say so.
        lost: What is replaced may be in wrong hands: what is open with it is ended, too.
    """

    credential: str
    attempt: str
    begun: float
    now: float
    current: Secret
    others: tuple[Secret, ...] = ()
    admin: Secret | None = None
    resumed: bool = True
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """The next value.

    Attributes:
        expires: Unix seconds; None: it does not end by itself.
    """

    secret: Secret
    expires: float | None = None


@runtime_checkable
class Rotator(Protocol):
    """Replaces the secret of one credential at its provider.

    ``apex_creds.testing.rotators.RotatorContract`` tests an implementation. Each step raises
    ``RotatorRefusedError`` where the provider refuses and would again, and ``RotatorError``
    where it is worth another try; what else it raises is taken for the latter.

    Attributes:
        mode: How many values the provider takes at a time.
        origin: Where it sends secrets. The credential that it logs in with must have it
            among its origins.
        admin: The credential that it logs in with; empty: the one that is rotated.
        kinds: Of credentials that it can rotate.
        longest_grace: Seconds that a replaced value is valid at most; None: without end.
    """

    mode: Mode
    origin: Origin
    admin: str
    kinds: Collection[CredentialKind]
    longest_grace: float | None

    async def create(self, task: Task) -> Created:
        """Makes the next value, of the kind of the current one.

        Where the provider makes it, what an earlier call of the same attempt had made, and
        nobody got, is removed.
        """

    async def set(self, task: Task, new: Secret) -> None:
        """Makes ``new`` valid at the provider; it may be already."""

    async def test(self, task: Task, new: Secret) -> None:
        """Uses ``new``; returns if it is valid."""

    async def finish(self, task: Task, old: Secret) -> None:
        """Makes ``old`` invalid, for good; it may be already. ``task.current`` stays valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A rotator's URI: ``KIND:ADDRESS/PATH?NAME=VALUE&…``.

    Attributes:
        origin: Of the address.
        path: Behind it, unescaped, without slashes around it.
        options: What comes after the question mark.
    """

    origin: Origin
    path: str
    options: Mapping[str, str]

    @classmethod
    def parse(
        cls, uri: str, *, schemes: Collection[str], options: Collection[str] = ()
    ) -> Address:
        """Reads the URI of a rotator.

        Args:
            uri: The URI.
            schemes: Of the address.
            options: Those that there are, beside ``admin``.

        Raises:
            InvalidInputError: It is not of this form. Nothing of it is repeated, as it may
                be a secret in the wrong place.
        """
        kind, _, rest = uri.partition(":")
        address, mark, query = rest.partition("?")
        scheme, slashes, place = address.partition("://")
        host, _, path = place.partition("/")
        pairs = parse_qsl(query, keep_blank_values=True)
        found = dict(pairs)
        known = {"admin", *options}
        if (
            scheme not in schemes
            or not slashes
            or "@" in host
            or "#" in uri
            or len(found) != len(pairs)
            or not found.keys() <= known
            or (mark and not pairs)
        ):
            raise InvalidInputError(
                f"The address of the rotator {kind[:40]} is not understood.",
                hint=f"Write {kind[:40]}:{next(iter(schemes))}://HOST[:PORT]/…, then ? and "
                f"any of {', '.join(sorted(known))}; no user, and no secret.",
            )
        origin = Origin.parse(f"{scheme}://{host}")
        if origin.scheme == "http" and not origin.here:
            raise InvalidInputError(
                "A rotator sends secrets over https, or http to this machine.",
                hint="Write https://.",
            )
        return cls(origin=origin, path=unquote(path).strip("/"), options=found)


def place_of(uri: str) -> str:
    """The provider in a rotator's URI: its host and port; the whole URI where there is none."""
    _, _, place = uri.partition("://")
    return place.partition("/")[0].partition("?")[0] or uri


def random_text() -> str:
    """A new password: 43 characters of ``A-Z``, ``a-z``, ``0-9``, ``-`` and ``_``."""
    return secrets.token_urlsafe(_RANDOM_BYTES)


def text_of(secret: Secret, part: str) -> str:
    """A part of a value as text; empty where it has none.

    Raises:
        InvalidInputError: It is no text.
    """
    try:
        return secret.parts.get(part, b"").decode()
    except UnicodeDecodeError:
        raise InvalidInputError("The credential's value is no text.") from None

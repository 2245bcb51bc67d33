"""Signed notes of the C2SP: text with Ed25519 signatures by named keys.

Guarantee: what ``sign`` and ``cosign`` make is a note of c2sp.org/signed-note (signature
types 0x01, and 0x04 of c2sp.org/tlog-cosignature), byte for byte; ``parse`` takes one
canonical form and nothing else; a signature counts only under a key that the caller trusts.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from hashlib import sha256
from typing import Final, Protocol

from apex_creds.crypto import public_key
from apex_creds.errors import IntegrityError, InvalidInputError

__all__ = [
    "Algorithm",
    "Note",
    "Signature",
    "Signer",
    "VerifierKey",
    "base64_of",
    "bytes_of",
    "cosign",
    "parse",
    "sign",
]

MAX_NOTE: Final = 64 * 1024
_DASH: Final = "— "
_ID_BYTES: Final = 4
_TIME_BYTES: Final = 8
_MAX_TIME: Final = 2**63 - 1


class Signer(Protocol):
    """An Ed25519 key; ``crypto.public_key.SigningKey`` is one."""

    @property
    def public(self) -> bytes:
        """32 bytes."""

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""


class Algorithm(IntEnum):
    """The signature types in use here."""

    ED25519 = 1
    COSIGNATURE = 4


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with the name it signs under, as its text form ``vkey`` has them.

    Attributes:
        name: Not empty, without white space and plus signs.
        public: 32 bytes.
        algorithm: What its signatures are made over.
    """

    name: str
    public: bytes
    algorithm: Algorithm = Algorithm.ED25519

    def __post_init__(self) -> None:
        if not _is_name(self.name) or len(self.public) != public_key.PUBLIC_BYTES:
            raise InvalidInputError(
                "The name or the length of a verifier key is not acceptable.",
                hint="A name is like example.com/w1: no spaces, no plus sign.",
            )

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Reads ``<name>+<id>+<base64>``.

        Raises:
            InvalidInputError: It is malformed, or of an algorithm not known here.
        """
        name, _, rest = text.partition("+")
        key_id, _, encoded = rest.partition("+")
        data = bytes_of(encoded)
        if data and data[0] in tuple(Algorithm) and len(data) == 1 + public_key.PUBLIC_BYTES:
            key = cls(name, data[1:], Algorithm(data[0]))
            if key.id.hex() == key_id:
                return key
        raise InvalidInputError(
            "That is not a verifier key.", hint="Write NAME+ID+BASE64, as it was given to you."
        )

    @property
    def id(self) -> bytes:
        """The key id, 4 bytes."""
        named = self.name.encode() + b"\n" + bytes([self.algorithm]) + self.public
        return sha256(named).digest()[:_ID_BYTES]

    def __str__(self) -> str:
        data = bytes([self.algorithm]) + self.public
        return f"{self.name}+{self.id.hex()}+{base64_of(data)}"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature line: a name, a key id (4 bytes), and what that key made."""

    name: str
    id: bytes
    data: bytes

    def is_by(self, key: VerifierKey) -> bool:
        """Whether it says that it is by ``key``."""
        return (self.name, self.id) == (key.name, key.id)


@dataclass(frozen=True, slots=True)
class Note:
    """A text, which ends in a newline, and its signatures."""

    text: str
    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        lines = (f"{_DASH}{s.name} {base64_of(s.id + s.data)}\n" for s in self.signatures)
        return f"{self.text}\n{''.join(lines)}"

    def check(self, key: VerifierKey) -> None:
        """Returns if a signature by ``key`` is there and every one of them is right.

        Raises:
            IntegrityError: There is none, or one is wrong.
        """
        found = [each for each in self.signatures if each.is_by(key)]
        if not found:
            raise IntegrityError(
                f"The note is not signed by {key.name}.", hint="Check the verifier key."
            )
        for each in found:
            message, data = self.text.encode(), each.data
            if key.algorithm is Algorithm.COSIGNATURE:
                time = int.from_bytes(data[:_TIME_BYTES], "big")
                message, data = _cosigned(self.text, time), data[_TIME_BYTES:]
            public_key.verify(key.public, message, data)

    def with_signatures(self, more: Iterable[Signature]) -> Note:
        """Returns the note with signatures that it does not have yet."""
        new = tuple(each for each in more if each not in self.signatures)
        return replace(self, signatures=(*self.signatures, *new))


def sign(text: str, *, name: str, key: Signer) -> Note:
    """Returns a note of ``text`` with one signature.

    Raises:
        InvalidInputError: The text or the name can't be in a note.
    """
    named = VerifierKey(name, key.public)
    if not text.endswith("\n") or not _is_text(text):
        raise InvalidInputError("A note is text of whole lines, without control characters.")
    return Note(text, (Signature(name, named.id, key.sign(text.encode())),))


def cosign(note: Note, *, name: str, key: Signer, time: int) -> Signature:
    """Returns a witness's signature of a checkpoint, as of Unix second ``time``.

    Raises:
        InvalidInputError: The name or the time is not acceptable.
    """
    named = VerifierKey(name, key.public, Algorithm.COSIGNATURE)
    if not 0 <= time <= _MAX_TIME:
        raise InvalidInputError("The time of a cosignature is out of range.")
    made = key.sign(_cosigned(note.text, time))
    return Signature(name, named.id, time.to_bytes(_TIME_BYTES, "big") + made)


def parse(data: str | bytes) -> Note:
    """Reads a note; no signature is checked.

    Raises:
        IntegrityError: It is not one, or not in its canonical form.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
    except UnicodeDecodeError:
        raise _malformed() from None
    body, separator, tail = text.rpartition("\n\n")
    signatures: list[Signature] = []
    for line in tail.splitlines():
        name, _, encoded = line.removeprefix(_DASH).partition(" ")
        data = bytes_of(encoded)
        if not line.startswith(_DASH) or not _is_name(name) or len(data) <= _ID_BYTES:
            raise _malformed()
        signatures.append(Signature(name, data[:_ID_BYTES], data[_ID_BYTES:]))
    note = Note(body + "\n", tuple(signatures))
    # Its own text again: whole lines, in the one form that there is.
    whole = bool(separator) and bool(signatures) and str(note) == text
    if not whole or not _is_text(text) or len(text) > MAX_NOTE:
        raise _malformed()
    return note


def _cosigned(text: str, time: int) -> bytes:
    return f"cosignature/v1\ntime {time}\n{text}".encode()


def _is_name(name: str) -> bool:
    return bool(name) and name.isprintable() and not any(c.isspace() or c == "+" for c in name)


def _is_text(text: str) -> bool:
    """Whether it is Unicode (no half of a surrogate pair) without control characters."""
    return all((c >= " " and not "\ud800" <= c <= "\udfff") or c == "\n" for c in text)


def base64_of(data: bytes) -> str:
    """Returns standard base64 (RFC 4648, section 4)."""
    return base64.b64encode(data).decode()


def bytes_of(text: str) -> bytes:
    """Returns what base64 stands for; nothing where it is not in its canonical form."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return data if base64_of(data) == text else b""


def _malformed() -> IntegrityError:
    return IntegrityError(
        "That is not a signed note.", hint="It was altered or cut; get it again."
    )

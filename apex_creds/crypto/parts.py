"""The plaintext inside a credential's envelope: a few named byte strings.

Guarantees: one canonical form (names in ascending order, nothing trailing), parsed
strictly; no value is ever turned into ``bytes`` here: ``layout`` tells where it lies.
The bytes are specified in docs/FORMAT.md, "Credential parts".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Final

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import CorruptDocumentError, InvalidInputError

__all__ = ["encode", "layout"]

MAX_PARTS: Final = 255
_NAME: Final = re.compile(rb"[a-z0-9_]{1,64}")
_SIZE: Final = struct.Struct(">I")


def encode(parts: Mapping[str, bytes]) -> SecretBytes:
    """Lays the parts out in locked memory: the count, the table, then the values.

    Raises:
        InvalidInputError: No part, too many, or a name that is not 1 to 64 of ``a-z``,
            ``0-9`` and ``_``.
    """
    if not 0 < len(parts) <= MAX_PARTS:
        raise InvalidInputError("A credential has 1 to 255 parts.")
    ordered = sorted((_encoded_name(name), value) for name, value in parts.items())
    table = bytes([len(ordered)]) + b"".join(_entry(name, value) for name, value in ordered)
    secret = SecretBytes.allocate(len(table) + sum(len(value) for _, value in ordered))
    with secret._mutable() as target:
        end = len(table)
        target[:end] = table
        for _, value in ordered:
            start, end = end, end + len(value)
            target[start:end] = value
    return secret


def layout(view: memoryview) -> dict[str, tuple[int, int]]:
    """Returns where each part lies: name to (offset, length).

    Raises:
        CorruptDocumentError: ``view`` is not in the canonical form.
    """
    sizes: dict[str, int] = {}
    at, last = 1, b""
    for _ in range(view[0] if len(view) else 0):
        name, size, at = _read_entry(view, at)
        if name <= last:
            raise _corrupt()
        sizes[name.decode("ascii")] = size
        last = name
    if not sizes or at + sum(sizes.values()) != len(view):
        raise _corrupt()
    return _placed(sizes, at)


def _placed(sizes: dict[str, int], at: int) -> dict[str, tuple[int, int]]:
    places: dict[str, tuple[int, int]] = {}
    for name, size in sizes.items():
        places[name] = (at, size)
        at += size
    return places


def _read_entry(view: memoryview, at: int) -> tuple[bytes, int, int]:
    stop = at + 1 + view[at] if at < len(view) else at
    if stop == at or stop + _SIZE.size > len(view):
        raise _corrupt()
    name = bytes(view[at + 1 : stop])
    if not _NAME.fullmatch(name):
        raise _corrupt()
    return name, _SIZE.unpack_from(view, stop)[0], stop + _SIZE.size


def _encoded_name(name: str) -> bytes:
    encoded = name.encode("utf-8", "replace")
    if not _NAME.fullmatch(encoded):
        raise InvalidInputError("A part's name is 1 to 64 of a-z, 0-9 and _.")
    return encoded


def _entry(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + _SIZE.pack(len(value))


def _corrupt() -> CorruptDocumentError:
    return CorruptDocumentError(
        "The decrypted credential is malformed.", hint="Restore it from a backup."
    )

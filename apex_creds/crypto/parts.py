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
# layout() is on the way of every redeem: the commonest credential has a short cut, and
# the usual names need no check.
_SINGLE: Final = memoryview(b"\x01\x05value")
_SINGLE_END: Final = len(_SINGLE)
_SINGLE_START: Final = _SINGLE_END + _SIZE.size
_USUAL: Final = {n.encode(): n for n in ("value", "access", "refresh", "user", "password")}


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
    if view[:_SINGLE_END] == _SINGLE and len(view) >= _SINGLE_START:
        (size,) = _SIZE.unpack_from(view, _SINGLE_END)
        if _SINGLE_START + size == len(view):
            return {"value": (_SINGLE_START, size)}
    places: dict[str, tuple[int, int]] = {}
    table, total = _read_table(view)
    at = total - sum(size for _, size in table)
    for name, size in table:
        places[name] = (at, size)
        at += size
    return places


def _read_table(view: memoryview) -> tuple[list[tuple[str, int]], int]:
    """The names and sizes, and the length of all; the sizes add up to what is there."""
    total = len(view)
    table: list[tuple[str, int]] = []
    at, last, promised = 1, b"", 0
    for _ in range(view[0] if total else 0):
        stop = at + 1 + view[at] if at < total else total
        if stop + _SIZE.size > total:
            raise _corrupt()
        name, (size,) = bytes(view[at + 1 : stop]), _SIZE.unpack_from(view, stop)
        if name <= last:
            raise _corrupt()
        table.append((_USUAL.get(name) or _checked(name), size))
        at, last, promised = stop + _SIZE.size, name, promised + size
    if not table or at + promised != total:
        raise _corrupt()
    return table, total


def _checked(name: bytes) -> str:
    if not _NAME.fullmatch(name):
        raise _corrupt()
    return name.decode("ascii")


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

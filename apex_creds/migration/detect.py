"""What a file is, told by its bytes and never by its name.

Guarantee: pure; a document of this project, whole, damaged or of a newer version, is never
taken for one of an older program: those are noise to whoever has no key, and a document is
text.
"""

from __future__ import annotations

import io
import re
from typing import Final

from apex_creds.migration.entries import Format

OURS: Final = b"apex-creds/document"

_FERNET: Final = re.compile(rb"gAAAAA[A-Za-z0-9_-]{60,}={0,2}")
_BOX_OVERHEAD: Final = 24 + 16
_TEXT: Final = frozenset(b"\t\n\r" + bytes(range(0x20, 0x7F)))
_TEXT_SHARE: Final = 0.7
"""Of random bytes, 38 in 100 are printable; of a damaged document nearly all."""


def is_ours(data: bytes) -> bool:
    """Whether this is a document of this project, or what is left of one."""
    return OURS in data or is_text(data)


def is_text(data: bytes) -> bool:
    """Whether most of it is printable ASCII."""
    sample = data[: 64 * 1024]
    return bool(sample) and sum(byte in _TEXT for byte in sample) > _TEXT_SHARE * len(sample)


def detect(data: bytes) -> Format | None:
    """The format of a file's bytes; None for one that is not known.

    A vault's document is ``VAULT``; a ``SECRETBOX`` is only what can be one.
    """
    stripped = data.strip()
    if not stripped:
        return Format.EMPTY
    if OURS in data[:4096]:
        return Format.VAULT
    if _FERNET.fullmatch(stripped):
        return Format.FERNET
    if is_dotenv(data):
        return Format.DOTENV
    if len(data) >= _BOX_OVERHEAD and not is_text(data):
        return Format.SECRETBOX
    return None


def is_dotenv(data: bytes) -> bool:
    """Whether it reads as a .env file: UTF-8, and more assignments than mistakes."""
    from dotenv.parser import parse_stream

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    if "\0" in text or text.lstrip().startswith(("{", "[", "<")):
        return False
    good = bad = 0
    for binding in parse_stream(io.StringIO(text)):
        good += binding.key is not None and binding.value is not None
        bad += binding.error
    return good > bad

"""Reads the first SecretBox format: a key store, two files of credentials, a configuration.

Guarantee: pure. Every entry is told, with its secret or with why it did not open. Each
ciphertext is tried with every key of the key store, since that program chose its newest
key by the order of strings (``v9`` after ``v10``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from apex_creds.errors import CorruptDocumentError, DecryptionError
from apex_creds.migration.beside import KEYSTORE_FILE
from apex_creds.migration.config import read_config
from apex_creds.migration.entries import Entry, Problem, Reading
from apex_creds.migration.fernet import load_object, no_key, open_token
from apex_creds.migration.layouts import (
    KINDS,
    Deks,
    decoded,
    may_hold_secret,
    not_understood,
    read_layouts,
    told_apart,
)
from apex_creds.model import CredentialKind

SECTION_FILES: Final = tuple(f"{name}.enc" for name in KINDS)
_KEYSTORE_PARTS: Final = ("key_encryption_keys", "data_encryption_keys", "metadata")
_KEY_BYTES: Final = 32
_DIGITS: Final = re.compile(r"([0-9]{1,9})\Z", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxFiles:
    """The files' bytes; sections by file name, the configuration empty where there is none."""

    keystore: bytes = field(repr=False)
    sections: Mapping[str, bytes] = field(repr=False)
    config: bytes = field(default=b"", repr=False)


def open_keystore(data: bytes, keys: Iterable[bytes]) -> dict[str, object]:
    """The key store's content.

    Raises:
        DecryptionError: No key opens it: they are wrong, or it is damaged.
        CorruptDocumentError: It opens, and is not what that program wrote.
    """
    opened = Deks(keys).opened(data)
    if opened is None:
        raise no_key("The old key store")
    found = load_object(opened, what="The old key store")
    if not isinstance(found.get("data_encryption_keys"), dict):
        raise CorruptDocumentError(
            "The old key store holds no data encryption keys.",
            hint="It was left as it is. Restore an older copy of it.",
        )
    return found


def read_secretbox(files: BoxFiles, keys: Iterable[bytes]) -> Reading:
    """Everything in the files.

    Args:
        files: Their bytes.
        keys: Master keys to try, 32 bytes each.

    Raises:
        DecryptionError: The key store does not open.
        CorruptDocumentError: It opens, and is not what that program wrote.
    """
    masters = tuple(keys)
    keystore = open_keystore(files.keystore, masters)
    entries: list[Entry] = []
    for section, kind in KINDS.items():
        data = files.sections.get(f"{section}.enc", b"")
        if data:
            deks = Deks(_deks(keystore, section), current=_current(keystore, section))
            entries += _section(section, kind, data, deks, masters)
    entries += _others(files, keystore, Deks(_deks(keystore, "")))
    permissions, intervals, notes = read_config(files.config, keystore.get("metadata"))
    return Reading(
        entries=tuple(told_apart(entries)),
        permissions=permissions,
        intervals=intervals,
        notes=notes,
    )


def _deks(keystore: Mapping[str, object], section: str) -> Iterator[bytes]:
    """All DEKs, those of the section first, the newest first by their number."""
    groups = keystore["data_encryption_keys"]
    assert isinstance(groups, dict)
    for group in sorted(groups, key=lambda name: name != section):
        named = groups[group]
        if isinstance(named, dict):
            for name in sorted(named, key=_number, reverse=True):
                key = decoded(named[name])
                if key is not None and len(key) == _KEY_BYTES:
                    yield key


def _current(keystore: Mapping[str, object], section: str) -> bytes | None:
    """The key that the old manager used: its newest, by the order of strings."""
    groups = keystore["data_encryption_keys"]
    named = groups.get(section) if isinstance(groups, dict) else None
    return decoded(named[max(named)]) if isinstance(named, dict) and named else None


def _number(name: str) -> tuple[int, str]:
    digits = _DIGITS.search(name)
    return (int(digits[1]) if digits else -1, name)


def _section(
    section: str, kind: CredentialKind, data: bytes, deks: Deks, keys: Iterable[bytes]
) -> list[Entry]:
    plaintext = deks.opened(data)
    if plaintext is None:
        plaintext = _from_fernet(data, keys)
    if plaintext is None:
        return [_whole(section, kind, "does not open under any key of the old key store")]
    if not plaintext.strip():
        return []
    try:
        document = load_object(plaintext, what=f"{section}.enc")
    except CorruptDocumentError as error:
        return [_whole(section, kind, error.message)]
    return read_layouts(document, kind, deks)


def _from_fernet(data: bytes, keys: Iterable[bytes]) -> bytes | None:
    """A section that the manager took over from its predecessor, and never wrote again."""
    try:
        return open_token(data.strip(), keys)
    except DecryptionError:
        return None


def _others(files: BoxFiles, keystore: Mapping[str, object], deks: Deks) -> Iterator[Entry]:
    """What is not known: files, sections that have keys, parts of the key store."""
    kind = CredentialKind.API_KEY
    for name in sorted(set(files.sections) - set(SECTION_FILES)):
        if files.sections[name]:
            opens = deks.opened(files.sections[name]) is not None
            detail = "is of no section that is known" if opens else "does not open"
            yield not_understood(name, kind, detail)
    groups = keystore["data_encryption_keys"]
    assert isinstance(groups, dict)
    for group, named in groups.items():
        # Who stored no token has no file of them. Where there is none at all, it is elsewhere.
        expected = group not in KINDS or not files.sections
        if expected and may_hold_secret(named) and f"{group}.enc" not in files.sections:
            yield not_understood(group, kind, "has keys, and no file")
    for part, value in keystore.items():
        if part not in _KEYSTORE_PARTS and may_hold_secret(value):
            yield not_understood(f"{KEYSTORE_FILE}: {part}", kind)


def _whole(section: str, kind: CredentialKind, detail: str) -> Entry:
    return Entry(
        service=f"({section}.enc)", kind=kind, problem=Problem.UNREADABLE, detail=detail
    )

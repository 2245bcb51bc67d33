"""Reads the first SecretBox format: a key store, two files of credentials, a configuration.

Guarantee: pure. Every entry is told, with its secret or with why it did not open. Each
ciphertext is tried with every key of the key store, since that program chose its newest
key by the order of strings (``v9`` after ``v10``).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from apex_creds.crypto.decrepit import secretbox_decrypt
from apex_creds.errors import CorruptDocumentError, DecryptionError
from apex_creds.migration.config import read_config
from apex_creds.migration.entries import (
    ENTRY,
    Entry,
    Problem,
    Reading,
    api_key_entry,
    token_entry,
)
from apex_creds.migration.fernet import load_object, no_key
from apex_creds.model import CredentialKind

_SECTIONS: Final[dict[str, CredentialKind]] = {
    "api_keys": CredentialKind.API_KEY,
    "oauth_tokens": CredentialKind.OAUTH_TOKEN,
}
SECTION_FILES: Final = tuple(f"{name}.enc" for name in _SECTIONS)
_KEY_BYTES: Final = 32
_DIGITS: Final = re.compile(r"([0-9]{1,9})\Z", re.ASCII)
_MAKERS: Final[dict[CredentialKind, Callable[..., Entry]]] = {
    CredentialKind.API_KEY: api_key_entry,
    CredentialKind.OAUTH_TOKEN: token_entry,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxFiles:
    """The files' bytes; sections by file name, the configuration empty where there is none."""

    keystore: bytes = field(repr=False)
    sections: Mapping[str, bytes] = field(repr=False)
    config: bytes = field(default=b"", repr=False)


class Deks:
    """The DEKs of a key store; the one that opened something last is tried first."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._keys = list(dict.fromkeys(keys))

    def opened(self, box: bytes) -> bytes | None:
        """The content of a box; None where no key opens it."""
        for place, key in enumerate(self._keys):
            try:
                found = secretbox_decrypt(key, box)
            except DecryptionError:
                continue
            self._keys.insert(0, self._keys.pop(place))
            return found
        return None


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
    keystore = open_keystore(files.keystore, keys)
    entries: list[Entry] = []
    for section, kind in _SECTIONS.items():
        data = files.sections.get(f"{section}.enc", b"")
        if data:
            entries += _section(section, kind, data, Deks(_deks(keystore, section)))
    permissions, intervals, notes = read_config(files.config, keystore.get("metadata"))
    return Reading(
        entries=tuple(entries), permissions=permissions, intervals=intervals, notes=notes
    )


def _deks(keystore: Mapping[str, object], section: str) -> Iterator[bytes]:
    """All DEKs, those of the section first, the newest first by their number."""
    groups = keystore["data_encryption_keys"]
    assert isinstance(groups, dict)
    for group in sorted(groups, key=lambda name: name != section):
        named = groups[group]
        if isinstance(named, dict):
            for name in sorted(named, key=_number, reverse=True):
                key = _decoded(named[name])
                if key is not None and len(key) == _KEY_BYTES:
                    yield key


def _number(name: str) -> tuple[int, str]:
    digits = _DIGITS.search(name)
    return (int(digits[1]) if digits else -1, name)


def _section(section: str, kind: CredentialKind, data: bytes, deks: Deks) -> list[Entry]:
    plaintext = deks.opened(data)
    if plaintext is None:
        return [_whole(section, kind, "does not open under any key of the old key store")]
    if not plaintext.strip():
        return []
    try:
        document = load_object(plaintext, what=f"{section}.enc")
    except CorruptDocumentError as error:
        return [_whole(section, kind, error.message)]
    listed = document.get("keys")
    if isinstance(listed, list):
        return list(_listed(listed, kind, deks))
    return [_MAKERS[kind](service, value) for service, value in document.items()]


def _whole(section: str, kind: CredentialKind, detail: str) -> Entry:
    return Entry(
        service=f"({section}.enc)", kind=kind, problem=Problem.UNREADABLE, detail=detail
    )


def _listed(items: list[object], kind: CredentialKind, deks: Deks) -> Iterator[Entry]:
    services = Counter(_service(item) for item in items)
    seen: Counter[tuple[str, str]] = Counter()
    for number, item in enumerate(items, 1):
        service = _service(item)
        if not isinstance(item, dict):
            yield _bad(f"(entry {number})", kind, "", "is not an entry")
            continue
        label = _label(item) if services[service] > 1 else ""
        seen[service, label] += 1
        if seen[service, label] > 1:
            label = f"{label} {seen[service, label]}".strip()
        yield _item(item, kind, deks, service or f"(entry {number})", label)


def _item(
    item: dict[str, object], kind: CredentialKind, deks: Deks, service: str, label: str
) -> Entry:
    sealed = item.get("encrypted_key")
    if sealed is None or sealed == "":
        return Entry(service=service, kind=kind, problem=Problem.PLACEHOLDER, label=label)
    box = _decoded(sealed)
    opened = deks.opened(box) if box is not None else None
    if opened is None:
        return _bad(service, kind, label, "does not open", Problem.UNREADABLE)
    try:
        text = opened.decode()
    except UnicodeDecodeError:
        return _bad(service, kind, label, "is not text")
    extra = {name: value for name, value in item.items() if name != "encrypted_key"}
    if kind is CredentialKind.API_KEY:
        return api_key_entry(service, text, label=label, extra=extra)
    return token_entry(service, _token(text), label=label, extra={ENTRY: extra})


def _token(text: str) -> object:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text


def _service(item: object) -> str:
    if not isinstance(item, dict):
        return ""
    metadata = item.get("metadata")
    named = metadata.get("name") if isinstance(metadata, dict) else None
    candidates = (item.get("provider_type"), named, item.get("id"))
    return next((text for text in candidates if isinstance(text, str) and text), "")


def _label(item: dict[str, object]) -> str:
    """What tells it from others of its service."""
    metadata = item.get("metadata")
    named = metadata.get("name") if isinstance(metadata, dict) else None
    candidates = (item.get("id"), named)
    return next((text for text in candidates if isinstance(text, str) and text), "")


def _decoded(text: object) -> bytes | None:
    if not isinstance(text, str):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _bad(
    service: str,
    kind: CredentialKind,
    label: str,
    detail: str,
    problem: Problem = Problem.INVALID,
) -> Entry:
    return Entry(service=service, kind=kind, problem=problem, detail=detail, label=label)

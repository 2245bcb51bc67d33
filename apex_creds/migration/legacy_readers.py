"""Reads what the older programs stored: master keys, Fernet files, SecretBox stores.

Guarantee: every entry is reported, with its secret or with why it did not open; a source that
no key opens is an error, and nothing in it is changed. Old master keys are only read, and only
to open old files; a key is never logged, stored or shown.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import anyio.to_thread

from apex_creds.crypto.legacy import fernet_decrypt, secretbox_decrypt
from apex_creds.errors import CorruptDocumentError, DecryptionError
from apex_creds.migration.entries import (
    ENTRY,
    Entry,
    Problem,
    Reading,
    api_key_entry,
    token_entry,
)
from apex_creds.migration.legacy_files import KEYSTORE_FILE
from apex_creds.migration.progress import read_config
from apex_creds.model import CredentialKind

# -- master keys ----------------------------------------------------------------------------


VARIABLE: Final = "APEX_AGENT_MASTER_KEY"
KEYRING_SERVICE: Final = "ApexAgent"
KEYRING_USER: Final = "master_key"

_KEY_BYTES: Final = 32
_LONGEST: Final = 64
_TO_STANDARD: Final = str.maketrans("-_", "+/")
_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyMasters:
    """Keys to try, 32 bytes each, and why a place gave none."""

    keys: tuple[bytes, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()


def decode_master(text: str) -> bytes | None:
    """32 bytes in base64 of either alphabet; None for anything else."""
    stripped = text.strip().rstrip("=").translate(_TO_STANDARD)
    if not stripped or len(stripped) > _LONGEST or not stripped.isascii():
        return None
    try:
        key = base64.b64decode(stripped + "=" * (-len(stripped) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == _KEY_BYTES else None


async def find_masters(environ: Mapping[str, str] | None = None) -> LegacyMasters:
    """The keys of both places, the variable's first.

    Args:
        environ: Instead of the process's environment.
    """
    keys: list[bytes] = []
    notes: list[str] = []
    given = (os.environ if environ is None else environ).get(VARIABLE)
    entry = await keyring_text(KEYRING_SERVICE, KEYRING_USER)
    kept = f"The keyring's entry {KEYRING_SERVICE!r} for {KEYRING_USER!r}"
    for text, place in ((given, VARIABLE), (entry, kept)):
        if not text:
            continue
        key = decode_master(text)
        if key is None:
            notes.append(f"{place} is not 32 bytes in base64.")
        else:
            keys.append(key)
    return LegacyMasters(keys=tuple(dict.fromkeys(keys)), notes=tuple(notes))


async def keyring_text(service: str, user: str | None) -> str | None:
    """An entry of the OS keyring; None where there is none, or no keyring.

    Args:
        service: The entry's service.
        user: The entry's user; None: whichever there is.
    """

    def read() -> str | None:
        import keyring  # finding its backends takes a while, and most programs never ask

        try:
            if user is not None:
                return keyring.get_password(service, user)
            found = keyring.get_credential(service, None)
        except Exception:  # noqa: BLE001 - backends raise what they like, secrets included
            return None
        return None if found is None else found.password

    with anyio.move_on_after(_SECONDS):  # it may be waiting for its user to unlock it
        return await anyio.to_thread.run_sync(read, abandon_on_cancel=True)
    return None


# -- layouts --------------------------------------------------------------------------------


KINDS: Final[dict[str, CredentialKind]] = {
    "api_keys": CredentialKind.API_KEY,
    "oauth_tokens": CredentialKind.OAUTH_TOKEN,
}
"""The sections, which are also the names of mappings in older files."""

_MAKERS: Final[dict[CredentialKind, Callable[..., Entry]]] = {
    CredentialKind.API_KEY: api_key_entry,
    CredentialKind.OAUTH_TOKEN: token_entry,
}
_WRAPPER: Final = "credentials"
_WRAPPERS: Final = (_WRAPPER, *KINDS)
_ABOUT: Final = "metadata"
_LIST: Final = "keys"
_ABOUT_FIELDS: Final = frozenset({"encrypted_at", "dek_id", "credential_type"})
_ITEM_FIELDS: Final = frozenset({"id", "provider_type", "created_at", "last_used"})
_DESCRIPTIONS: Final = _ITEM_FIELDS | {_ABOUT, ENTRY}
_ITEM_TEXTS: Final = frozenset({"name", "description"})
_DEPTH: Final = 8


class Deks:
    """The DEKs of a section; the one that opened something last is tried first.

    Args:
        keys: All that may have sealed something.
        current: The one that the old manager used.
    """

    def __init__(self, keys: Iterable[bytes] = (), *, current: bytes | None = None) -> None:
        self._keys = list(dict.fromkeys(keys))
        self._current = current

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

    def is_current(self, box: bytes) -> bool:
        """Whether the old manager opened the box, which tried no other key."""
        current = () if self._current is None else (self._current,)
        return Deks(current).opened(box) is not None


def read_layouts(
    document: Mapping[str, object], kind: CredentialKind, deks: Deks
) -> list[Entry]:
    """All entries of a section.

    Args:
        document: The section.
        kind: What it holds.
        deks: Open the items of a list.
    """
    return list(_walk(document, kind, deks, depth=0))


def read_parts(document: Mapping[str, object]) -> list[Entry]:
    """All entries of a file that has its sections side by side."""
    found: list[Entry] = []
    for part, value in document.items():
        kind = KINDS.get(part)
        if kind is not None and isinstance(value, dict):
            found += read_layouts(value, kind, Deks())
        elif may_hold_secret(value) or (kind is not None and value is not None):
            found.append(not_understood(part, kind or CredentialKind.API_KEY))
    return found


def not_understood(what: str, kind: CredentialKind, detail: str = "is not understood") -> Entry:
    """An entry for a part of a file that is no credential."""
    return Entry(service=f"({what})", kind=kind, problem=Problem.INVALID, detail=detail)


def may_hold_secret(value: object) -> bool:
    """Whether there is a text in a value, or a list, which may be of bytes."""
    if isinstance(value, dict):
        return any(map(may_hold_secret, value.values()))
    return isinstance(value, str | list) and bool(value)


def only_describe(fields: Mapping[str, object]) -> bool:
    """Whether the fields beside a secret say what it is, and none could be another one."""
    others = [value for name, value in fields.items() if name not in _DESCRIPTIONS]
    about, entry = fields.get(_ABOUT), fields.get(ENTRY)
    texts = about if isinstance(about, dict) else {"": about}
    others += [value for name, value in texts.items() if name not in _ITEM_TEXTS]
    around = only_describe(entry) if isinstance(entry, dict) else not entry
    return around and not any(map(may_hold_secret, others))


def made_distinct(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Numbers the entries that nothing else distinguishes: each is stored and reported."""
    seen: Counter[str] = Counter()
    for entry in entries:
        distinct, first = entry, entry.key
        while seen[distinct.key]:
            seen[first] += 1
            distinct = replace(entry, label=f"{entry.label} {seen[first]}".strip())
        seen[distinct.key] += 1
        yield distinct


def _walk(
    document: Mapping[str, object], kind: CredentialKind, deks: Deks, *, depth: int
) -> Iterator[Entry]:
    """Lists first: who wrote one beside something else handed out what is in the list."""
    left = dict(document)
    listed = left.get(_LIST)
    if isinstance(listed, list):
        del left[_LIST]
        yield from _listed(listed, kind, deks)
    found = {name: _container(name, left, kind) for name in _WRAPPERS}
    wrapped = {name: inner for name, inner in found.items() if inner is not None}
    about = left.get(_ABOUT)
    if isinstance(about, dict) and not _is_token(about) and (wrapped or _has_marks(about)):
        del left[_ABOUT]
        for name, inner in about.items():
            if name not in _ABOUT_FIELDS and may_hold_secret(inner):
                yield not_understood(f"{_ABOUT}.{name}", kind)
    for name, services in wrapped.items():
        del left[name]
        if depth < _DEPTH:
            yield from _walk(services, KINDS.get(name, kind), deks, depth=depth + 1)
        elif may_hold_secret(services):
            yield not_understood(name, kind, "is nested too deep")
    for service, value in left.items():
        yield _MAKERS[kind](service, value)


def _container(
    name: str, document: Mapping[str, object], kind: CredentialKind
) -> dict[str, object] | None:
    """The services that a name stands for, which may be a service's as well."""
    value = document.get(name)
    if not isinstance(value, dict):
        return None
    marked = name == _WRAPPER and _has_marks(document.get(_ABOUT))
    # No mapping is an API key; one of mappings is no token.
    if kind is CredentialKind.API_KEY or marked:
        return value
    if KINDS.get(name) is CredentialKind.API_KEY:
        return None if _is_token(value) else value
    return value if all(isinstance(inner, dict) for inner in value.values()) else None


def _has_marks(value: object) -> bool:
    return isinstance(value, dict) and bool(_ABOUT_FIELDS & set(value))


def _is_token(value: Mapping[str, object]) -> bool:
    return any(isinstance(value.get(n), str) for n in ("access_token", "refresh_token"))


def _listed(items: list[object], kind: CredentialKind, deks: Deks) -> Iterator[Entry]:
    # By service, the number of the item that the old manager handed out: the first one that
    # opens under its newest key. If it opened none, the first that any key opens.
    current: dict[str, int] = {}
    opened: dict[str, int] = {}
    for number, item in enumerate(items, 1):
        service = _service(item)
        box = decoded(item.get("encrypted_key")) if isinstance(item, dict) else None
        if not service or box is None or service in current:
            continue
        if deks.is_current(box):
            current[service] = number
        elif service not in opened and deks.opened(box) is not None:
            opened[service] = number
    first = opened | current
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            yield not_understood(f"entry {number}", kind, "is not an entry")
            continue
        service = _service(item)
        is_first = not service or first.get(service, number) == number
        label = "" if is_first else _first_text(item.get("id"), _name(item))
        yield _item(item, kind, deks, service or f"(entry {number})", label)


def _item(
    item: dict[str, object], kind: CredentialKind, deks: Deks, service: str, label: str
) -> Entry:
    def bad(problem: Problem, detail: str = "") -> Entry:
        return Entry(service=service, kind=kind, problem=problem, detail=detail, label=label)

    sealed = item.get("encrypted_key")
    if sealed is None or sealed == "":
        if only_describe(item):
            return bad(Problem.PLACEHOLDER)
        return bad(Problem.INVALID, "has no encrypted_key, but other fields")
    box = decoded(sealed)
    opened = deks.opened(box) if box is not None else None
    if opened is None:
        return bad(Problem.UNREADABLE, "does not open")
    try:
        text = opened.decode()
    except UnicodeDecodeError:
        return bad(Problem.INVALID, "is not text")
    extra = {name: value for name, value in item.items() if name != "encrypted_key"}
    if kind is CredentialKind.API_KEY:
        made = api_key_entry(service, text, label=label, extra=extra)
    else:
        try:
            token = json.loads(text)
        except (ValueError, RecursionError):
            token = text
        token = token if isinstance(token, dict) else text
        made = token_entry(service, token, label=label, extra={ENTRY: extra})
    if made.problem in (Problem.EMPTY, Problem.PLACEHOLDER) and not only_describe(extra):
        return bad(Problem.INVALID, "has an empty key, but other fields")
    title = _first_text(_name(item)).encode("utf-8", "replace").decode()
    return replace(made, title=title)


def _service(item: object) -> str:
    if not isinstance(item, dict):
        return ""
    return _first_text(item.get("provider_type"), _name(item), item.get("id"))


def _name(item: dict[str, object]) -> object:
    about = item.get(_ABOUT)
    return about.get("name") if isinstance(about, dict) else None


def _first_text(*candidates: object) -> str:
    return next((text for text in candidates if isinstance(text, str) and text), "")


def decoded(text: object) -> bytes | None:
    """The bytes of a text in base64; None where it is none."""
    if not isinstance(text, str):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


# -- Fernet ---------------------------------------------------------------------------------


def read_fernet(data: bytes, keys: Iterable[bytes]) -> Reading:
    """Everything in the file.

    Args:
        data: The file's bytes; may be empty.
        keys: Master keys to try, 32 bytes each.

    Raises:
        DecryptionError: No key opens it: they are wrong, or it is damaged.
        CorruptDocumentError: It opens, and is not what that program wrote.
    """
    token = data.strip()
    if not token:
        return Reading()
    plaintext = open_token(token, keys)
    if not plaintext.strip():
        return Reading()
    return Reading(
        entries=tuple(made_distinct(read_parts(load_object(plaintext, what="The Fernet file"))))
    )


def load_object(plaintext: bytes, *, what: str) -> dict[str, object]:
    """A JSON object, as Python's own ``json`` reads it: so it was written.

    Raises:
        CorruptDocumentError: It is none.
    """

    def whole(pairs: list[tuple[str, object]]) -> dict[str, object]:
        """Nothing is lost: the last of a name counts; what it would hide gets another name."""
        kept: dict[str, object] = {}
        for name, value in pairs:
            hidden, number = kept.pop(name, value), 1
            if hidden != value:
                while (another := f"{name} (hidden {number})") in kept:
                    number += 1
                kept[another] = hidden
            kept[name] = value
        return kept

    try:
        found = json.loads(plaintext, object_pairs_hook=whole)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    raise CorruptDocumentError(
        f"{what} opens, and holds something else than the old program wrote.",
        hint="It was left as it is. Open it with that program.",
    )


def open_token(token: bytes, keys: Iterable[bytes]) -> bytes:
    """What is in a Fernet token.

    Raises:
        DecryptionError: No key opens it.
    """
    for key in keys:
        try:
            return fernet_decrypt(base64.urlsafe_b64encode(key), token)
        except DecryptionError:
            continue
    raise no_key("The Fernet file")


def no_key(what: str) -> DecryptionError:
    """The error for a source that none of the keys opens."""
    return DecryptionError(
        f"{what} does not open: the master key is missing or wrong, or it is damaged.",
        hint="Set APEX_AGENT_MASTER_KEY to the old program's key and run: "
        "apex-creds migrate. Nothing was changed.",
    )


# -- SecretBox ------------------------------------------------------------------------------


SECTION_FILES: Final = tuple(f"{name}.enc" for name in KINDS)
_KEYSTORE_PARTS: Final = ("key_encryption_keys", "data_encryption_keys", "metadata")
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
        entries=tuple(made_distinct(entries)),
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
            numbered = [(int(at[1]) if (at := _DIGITS.search(n)) else -1, n) for n in named]
            for _, name in sorted(numbered, reverse=True):
                key = decoded(named[name])
                if key is not None and len(key) == _KEY_BYTES:
                    yield key


def _current(keystore: Mapping[str, object], section: str) -> bytes | None:
    """The key that the old manager used: its newest, by the order of strings."""
    groups = keystore["data_encryption_keys"]
    named = groups.get(section) if isinstance(groups, dict) else None
    return decoded(named[max(named)]) if isinstance(named, dict) and named else None


def _section(
    section: str, kind: CredentialKind, data: bytes, deks: Deks, keys: Iterable[bytes]
) -> list[Entry]:
    plaintext = deks.opened(data)
    if plaintext is None:
        try:  # one that the manager took over from its predecessor, and never wrote again
            plaintext = open_token(data.strip(), keys)
        except DecryptionError:
            detail = "does not open under any key of the old key store"
            return [_whole(section, kind, detail)]
    if not plaintext.strip():
        return []
    try:
        document = load_object(plaintext, what=f"{section}.enc")
    except CorruptDocumentError as error:
        return [_whole(section, kind, error.message)]
    return read_layouts(document, kind, deks)


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

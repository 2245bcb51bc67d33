"""What an opened section of an old file holds, in whichever layout it was written.

Three builds of the old manager wrote three layouts, and each keeps what it does not know, so
that one file may have several at once:

- flat: ``{SERVICE: VALUE, …}``;
- wrapped: ``{"credentials": {SERVICE: VALUE, …}, "metadata": {"dek_id": …, …}}``;
- a list: ``{"keys": [{"id": …, "provider_type": SERVICE, "encrypted_key": …, …}, …]}``.

Guarantee: pure. Whatever could be a secret becomes an entry: with its secret, or with why it
was not understood. Only what can't hold one (times, numbers, the names of keys) is passed
over. The entry that the old manager handed out for a service is the one without a label.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from apex_creds.crypto.decrepit import secretbox_decrypt
from apex_creds.errors import DecryptionError
from apex_creds.migration.entries import ENTRY, Entry, Problem, api_key_entry, token_entry
from apex_creds.model import CredentialKind

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


def told_apart(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Numbers the entries that nothing else tells apart: each is stored and reported."""
    seen: Counter[str] = Counter()
    for entry in entries:
        told, first = entry, entry.key
        while seen[told.key]:
            seen[first] += 1
            told = replace(entry, label=f"{entry.label} {seen[first]}".strip())
        seen[told.key] += 1
        yield told


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
        yield from _about(about, kind)
    for name, inner in wrapped.items():
        del left[name]
        if depth < _DEPTH:
            yield from _walk(inner, KINDS.get(name, kind), deks, depth=depth + 1)
        elif may_hold_secret(inner):
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


def _about(value: Mapping[str, object], kind: CredentialKind) -> Iterator[Entry]:
    for name, inner in value.items():
        if name not in _ABOUT_FIELDS and may_hold_secret(inner):
            yield not_understood(f"{_ABOUT}.{name}", kind)


def _listed(items: list[object], kind: CredentialKind, deks: Deks) -> Iterator[Entry]:
    first = _handed_out(items, deks)
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            yield not_understood(f"entry {number}", kind, "is not an entry")
            continue
        service = _service(item)
        label = "" if not service or first.get(service, number) == number else _label(item)
        yield _item(item, kind, deks, service or f"(entry {number})", label)


def _handed_out(items: Iterable[object], deks: Deks) -> dict[str, int]:
    """By service, the number of the item that the old manager handed out.

    That is the first one that opens under its newest key. If it opened none, the first that
    any key opens.
    """
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
    return opened | current


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
        made = token_entry(service, _token(text), label=label, extra={ENTRY: extra})
    if made.problem in (Problem.EMPTY, Problem.PLACEHOLDER) and not only_describe(extra):
        return bad(Problem.INVALID, "has an empty key, but other fields")
    title = _first_text(_name(item)).encode("utf-8", "replace").decode()
    return replace(made, title=title)


def _token(text: str) -> object:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text


def _service(item: object) -> str:
    if not isinstance(item, dict):
        return ""
    return _first_text(item.get("provider_type"), _name(item), item.get("id"))


def _label(item: dict[str, object]) -> str:
    """What tells it from others of its service."""
    return _first_text(item.get("id"), _name(item))


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

"""Reads what an old ``security/config.json`` says about rotation and permissions.

Guarantee: pure, and never an error: that file held no secrets, so what is not understood
is told as a note. An interval or a permission is taken only in the form described.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

LEVELS: Final = ("master_key", "key_encryption_keys", "data_encryption_keys")
"""The names that the old manager gives the levels of keys."""
MAX_DAYS: Final = 36_500

_PERMISSIONS: Final = ("plugin_permissions", "permissions")
_DAYS: Final = ("rotation_interval_days", "interval_days", "rotation_interval", "days")
_DEPTH: Final = 6

Permissions = dict[str, tuple[str, ...]]


def read_config(
    data: bytes, metadata: object = None
) -> tuple[Permissions, dict[str, int], tuple[str, ...]]:
    """Permissions by plugin, days by level, notes.

    Args:
        data: The file's bytes; empty where there is none.
        metadata: The key store's ``metadata``, which may have intervals too.
    """
    notes: list[str] = []
    try:
        document = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError):
        document = {}
        notes.append("config.json is not JSON: its intervals and permissions are not taken.")
    permissions: Permissions = {}
    intervals: dict[str, int] = {}
    for name, value in (*_walk(metadata), *_walk(document)):
        if name in LEVELS and (days := _days(value)) is not None:
            intervals[name] = days
        if name in _PERMISSIONS and isinstance(value, dict):
            permissions |= _permitted(value)
    return permissions, intervals, tuple(notes)


def _walk(value: object, depth: int = 0) -> Iterator[tuple[str, object]]:
    if not isinstance(value, dict) or depth > _DEPTH:
        return
    for name, inner in value.items():
        yield name, inner
        yield from _walk(inner, depth + 1)


def _days(value: object) -> int | None:
    if isinstance(value, dict):
        value = next((value[name] for name in _DAYS if name in value), None)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 1 <= value <= MAX_DAYS else None


def _permitted(value: dict[str, object]) -> Permissions:
    found: Permissions = {}
    for plugin, services in value.items():
        if isinstance(services, list):
            found[plugin] = tuple(text for text in services if isinstance(text, str))
    return found

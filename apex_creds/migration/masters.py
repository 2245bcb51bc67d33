"""The old programs' master keys: an environment variable, or one entry of the OS keyring.

Guarantee: both are only read, and only to open old files; a key is never logged, stored or
shown, and nothing here tells more of it than whether there is one.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import anyio.to_thread

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
    for text, place in ((given, VARIABLE), await _from_keyring()):
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
    with anyio.move_on_after(_SECONDS):  # it may be waiting for its user to unlock it
        return await anyio.to_thread.run_sync(_get_entry, service, user, abandon_on_cancel=True)
    return None


async def _from_keyring() -> tuple[str | None, str]:
    place = f"The keyring's entry {KEYRING_SERVICE!r} for {KEYRING_USER!r}"
    return await keyring_text(KEYRING_SERVICE, KEYRING_USER), place


def _get_entry(service: str, user: str | None) -> str | None:
    # Looking for its backends takes a while, and most programs never ask.
    import keyring

    try:
        if user is not None:
            return keyring.get_password(service, user)
        found = keyring.get_credential(service, None)
    except Exception:  # noqa: BLE001 - backends raise what they like, secrets included
        return None
    return None if found is None else found.password

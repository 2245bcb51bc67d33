"""Reads the Fernet file, ``~/.apex_agent_api_keys.enc``.

Guarantee: pure. Either the token opens and every entry in it is told, or a
``DecryptionError`` or ``CorruptDocumentError`` says that nothing could be read.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable

from apex_creds.crypto.decrepit import fernet_decrypt
from apex_creds.errors import CorruptDocumentError, DecryptionError
from apex_creds.migration.entries import Reading
from apex_creds.migration.layouts import read_parts, told_apart


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
        entries=tuple(told_apart(read_parts(load_object(plaintext, what="The Fernet file"))))
    )


def load_object(plaintext: bytes, *, what: str) -> dict[str, object]:
    """A JSON object, as Python's own ``json`` reads it: so it was written.

    Raises:
        CorruptDocumentError: It is none.
    """
    try:
        found = json.loads(plaintext, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    raise CorruptDocumentError(
        f"{what} opens, and holds something else than the old program wrote.",
        hint="It was left as it is. Look at it with that program.",
    )


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object of which nothing is lost: the last of a name counts, as for Python.

    What it would have hidden gets a name that is its own.
    """
    found: dict[str, object] = {}
    for name, value in pairs:
        hidden, number = found.pop(name, value), 1
        if hidden != value:
            while (another := f"{name} (hidden {number})") in found:
                number += 1
            found[another] = hidden
        found[name] = value
    return found


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

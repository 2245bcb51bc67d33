"""Writes tests/vectors/document, from docs/FORMAT.md and without apex_creds.

Only the standard library and PyNaCl's public bindings are used, so that the vectors check the
implementation instead of repeating it. ``python -m tests.vectors.make_document``, by hand: the
files are part of the format and do not change. A document stands after the empty line, to the
end of its file.
"""

from __future__ import annotations

import base64
import hmac
import json
import struct
from typing import Any

from tests.vectors import flat
from tests.vectors.make_envelope import aad, seal
from tests.vectors.read_vault import derived

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
VAULT_ID = bytes(range(0x10, 0x20))
KEY_ID = bytes(range(0x30, 0x40))
KEY_VERSION = 3
NONCE = bytes(range(0x40, 0x58))
SECTION = "api_keys"
BODY = b"\x82\xa7records\x90\xa4uses\x90"


def body(
    plaintext: bytes = BODY,
    *,
    key: bytes = KEY,
    section: str = SECTION,
    generation: int = 7,
    record: bytes = bytes(16),
) -> bytes:
    """The envelope of a document's body."""
    place = {
        "vault_id": VAULT_ID, "section": section, "record_id": record,
        "record_version": generation,
    }  # fmt: skip
    head = b"APXC\x01\x01" + KEY_ID + struct.pack(">I", KEY_VERSION)
    data = aad(place, key_id=KEY_ID, key_version=KEY_VERSION)
    return head + seal(derived(key, "file-body", SECTION.encode()), plaintext, NONCE, data)


def document(*, sealed: bytes | None = None, key: bytes = KEY, **changed: Any) -> bytes:
    """A document whose MAC is right, of whatever it says."""
    fields = {
        "format": "apex-creds/document", "version": 2, "vault_id": VAULT_ID.hex(),
        "section": SECTION, "generation": 7, "key_id": KEY_ID.hex(),
        "key_version": KEY_VERSION, "written": 1700000000.5, "keys_used": [[KEY_ID.hex(), 1]],
        "root": None, "body": base64.b64encode(body() if sealed is None else sealed).decode(),
    } | changed  # fmt: skip
    kept = {name: value for name, value in fields.items() if value is not ...}
    signed = json.dumps(kept, separators=(",", ":")).encode()[:-1]
    mac = hmac.digest(derived(key, "file-mac", SECTION.encode()), signed, "sha256").hex()
    return signed + b',"mac":"' + mac.encode() + b'"}'


OPENED = {"no records": BODY, "an empty body": b"", "1000 bytes": b"x" * 1000}


def _refused() -> list[tuple[str, bytes, str]]:
    good, sealed = document(), body()
    older = {"key_id": ..., "key_version": ..., "kek_id": KEY_ID.hex(), "kek_version": 3}
    corrupt, foreign, newer = (
        "CorruptDocumentError", "ForeignDocumentError", "UnsupportedFormatError",
    )  # fmt: skip
    undecipherable = "DecryptionError"
    return [
        ("empty", b"", corrupt),
        ("no JSON", good[1:], corrupt),
        ("cut before its end", good[:-1], corrupt),
        ("cut in the body", good[:400], corrupt),
        ("one byte trailing", good + b"\n", corrupt),
        ("white space", good.replace(b',"mac":', b', "mac":'), corrupt),
        ("another format", document(format="apex-creds/other"), corrupt),
        ("version 0", document(version=0), newer),
        ("version 4", document(version=4), newer),
        ("the fields of version 1", document(**older), corrupt),
        ("version 1 with the fields of version 2", document(version=1), corrupt),
        ("an unknown field", document(more=1), corrupt),
        ("no generation", document(generation=...), corrupt),
        ("generation 0", document(generation=0), corrupt),
        ("a key id of 15 bytes", document(key_id=KEY_ID.hex()[2:]), corrupt),
        ("key version 0", document(key_version=0), corrupt),
        ("another vault", document(vault_id=bytes(16).hex()), foreign),
        ("another section", document(section="generic"), foreign),
        ("an altered field", good.replace(b'"generation":7', b'"generation":8'), corrupt),
        ("an altered body", good.replace(b'"body":"QVBY', b'"body":"QVBZ'), corrupt),
        ("an altered MAC", good[:-3] + bytes([good[-3] ^ 1]) + b'"}', corrupt),
        ("a MAC in capitals", good[:-66] + good[-66:].upper(), corrupt),
        ("a MAC under another key", document(key=OTHER_KEY), corrupt),
        ("a body under another key", document(sealed=body(key=OTHER_KEY)), "CommitmentError"),
        ("a body of another generation", document(sealed=body(generation=6)), undecipherable),
        ("a body of another section", document(sealed=body(section="generic")), undecipherable),
        ("a record for a body", document(sealed=body(record=KEY_ID)), undecipherable),
        ("a body cut", document(sealed=sealed[:-1]), undecipherable),
        ("a body too short", document(sealed=sealed[:97]), corrupt),
    ]  # fmt: skip


def vectors() -> dict[str, str]:
    """Every file, by its case."""
    keys = {
        "document_key": KEY, "vault_id": VAULT_ID, "section": SECTION,
        "body_key": derived(KEY, "file-body", SECTION.encode()),
        "mac_key": derived(KEY, "file-mac", SECTION.encode()),
    }  # fmt: skip
    opened = {
        name: flat.text_of(
            "success", keys | {"body": plain}, document(sealed=body(plain)).decode()
        )
        for name, plain in OPENED.items()
    }
    refused = {name: flat.text_of(error, keys, at.decode()) for name, at, error in _refused()}
    return opened | refused


if __name__ == "__main__":
    flat.write("document", vectors())

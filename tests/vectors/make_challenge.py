"""Writes tests/vectors/challenge, from docs/CHALLENGE.md alone, without apex-creds.

``python -m tests.vectors.make_challenge``. ``scopes`` are parted by spaces.
"""

from __future__ import annotations

import hashlib
import struct

from nacl.signing import SigningKey

from tests.vectors import flat

SEED = bytes(range(32))
VAULT = bytes(range(0x10, 0x20))
NONCE = bytes(range(0x40, 0x60))
EXPIRES = 1_700_000_060_000
KEY = SigningKey(SEED)
PUBLIC = bytes(KEY.verify_key)
CLIENT = hashlib.sha256(b"apex-creds/v1/client\0" + PUBLIC).digest()[:16]


def sized(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def message(**changed: bytes | list[bytes]) -> bytes:
    fields: dict[str, bytes | list[bytes]] = {
        "domain": b"apex-creds/v1/challenge",
        "vault": VAULT,
        "client": CLIENT,
        "nonce": NONCE,
        "credential": b"openai",
        "plugin": b"summarise",
        "scopes": [b"chat", b"embed"],
        "expires": struct.pack(">Q", EXPIRES),
    }
    fields |= changed
    scopes = fields["scopes"]
    if isinstance(scopes, list):
        fields["scopes"] = b"".join(map(sized, scopes))
    return b"".join(sized(field) for field in fields.values())


def valid(*, credential: str, plugin: str, scopes: list[str]) -> str:
    made = message(
        credential=credential.encode(),
        plugin=plugin.encode(),
        scopes=[scope.encode() for scope in scopes],
    )
    fields = {
        "seed": SEED,
        "public": PUBLIC,
        "vault_id": VAULT,
        "client": CLIENT,
        "nonce": NONCE,
        "credential": credential,
        "plugin": plugin,
        "scopes": " ".join(scopes),
        "expires": EXPIRES,
        "message": made,
        "answer": NONCE + KEY.sign(made).signature,
    }
    return flat.text_of("success", fields)


def cases() -> dict[str, str]:
    """Every file, by the name of its case."""
    found = {
        "usual": valid(credential="openai", plugin="summarise", scopes=["chat", "embed"]),
        "no scopes": valid(credential="openai", plugin="summarise", scopes=[]),
        "not ASCII": valid(credential="schlüssel", plugin="程序", scopes=["é", "𝄞"]),
    }
    good = message()
    refused = {
        "empty": b"",
        "another domain": message(domain=b"apex-creds/v1/challengf"),
        "no domain": good[4 + 23 :],
        "vault id of 15 bytes": message(vault=VAULT[:15]),
        "client id of 17 bytes": message(client=CLIENT + b"\0"),
        "nonce of 31 bytes": message(nonce=NONCE[:31]),
        "empty credential": message(credential=b""),
        "credential is not UTF-8": message(credential=b"\xff"),
        "credential with a line break": message(credential=b"a\nb"),
        "empty plugin": message(plugin=b""),
        "scopes not sorted": message(scopes=[b"embed", b"chat"]),
        "scope twice": message(scopes=[b"chat", b"chat"]),
        "empty scope": message(scopes=[b""]),
        "scopes cut short": message(scopes=sized(b"chat")[:-1]),
        "65 scopes": message(scopes=[b"%03d" % n for n in range(65)]),
        "expires of 7 bytes": message(expires=struct.pack(">Q", EXPIRES)[1:]),
        "a field more": good + sized(b""),
        "a byte more": good + b"\0",
    }
    refused |= {f"truncated to {n} bytes": good[:n] for n in range(0, len(good), 7) if n}
    return found | {
        name: flat.text_of("ChallengeError", {"message": data})
        for name, data in refused.items()
    }


if __name__ == "__main__":
    flat.write("challenge", cases())

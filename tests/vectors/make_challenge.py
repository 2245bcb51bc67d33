"""Makes challenge_v1.json from docs/CHALLENGE.md alone, without apex-creds.

Run: python tests/vectors/make_challenge.py > tests/vectors/challenge_v1.json
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys

from nacl.signing import SigningKey

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


def valid(name: str, *, credential: str, plugin: str, scopes: list[str]) -> dict[str, object]:
    made = message(
        credential=credential.encode(),
        plugin=plugin.encode(),
        scopes=[scope.encode() for scope in scopes],
    )
    signature = KEY.sign(made).signature
    return {
        "name": name,
        "seed": SEED.hex(),
        "public": PUBLIC.hex(),
        "vault_id": VAULT.hex(),
        "client": CLIENT.hex(),
        "nonce": NONCE.hex(),
        "credential": credential,
        "plugin": plugin,
        "scopes": scopes,
        "expires": EXPIRES,
        "message": made.hex(),
        "answer": (NONCE + signature).hex(),
    }


def invalid() -> list[dict[str, str]]:
    good = message()
    cases = {
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
    cases |= {f"truncated to {n} bytes": good[:n] for n in range(0, len(good), 7) if n}
    return [{"name": name, "message": data.hex()} for name, data in cases.items()]


def main() -> None:
    vectors = {
        "valid": [
            valid("usual", credential="openai", plugin="summarise", scopes=["chat", "embed"]),
            valid("no scopes", credential="openai", plugin="summarise", scopes=[]),
            valid("not ASCII", credential="schlüssel", plugin="程序", scopes=["é", "𝄞"]),
        ],
        "invalid": invalid(),
    }
    json.dump(vectors, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()

"""Writes tests/vectors/anchor, from docs/FORMAT.md, without apex-creds.

``python -m tests.vectors.make_anchor``.
"""

from __future__ import annotations

import base64
import hashlib

from nacl.signing import SigningKey

from tests.vectors import flat

SEED = bytes(range(32))
VAULT = "101112131415161718191a1b1c1d1e1f"
EMPTY = base64.b64encode(hashlib.sha256().digest()).decode()


def anchor(vault: str, size: int, root: str, *lines: str, seed: bytes = SEED) -> str:
    """As it is kept: in ASCII."""
    name = f"apex-creds.invalid/{vault}/anchor"
    text = "".join(f"{line}\n" for line in (name, str(size), root, *lines))
    key = SigningKey(seed)
    public = bytes(key.verify_key)
    hint = hashlib.sha256(f"{name}\n".encode() + b"\x01" + public).digest()[:4]
    signature = base64.b64encode(hint + key.sign(text.encode()).signature).decode()
    return f"{text}\n-- {name} {signature}\n"


def cases() -> dict[str, str]:
    """Every file, by the name of its case: the anchor is what follows the fields."""
    root = base64.b64encode(hashlib.sha256(b"\x00event").digest()).decode()
    documents = ("api_keys 3", "keystore 12", "rotation 2")
    present = (
        "api_keys 3", "keystore 12", "keystore.kek 2", "keystore.master 1",
        "rollbacks.accepted 1", "rotation 2",
    )  # fmt: skip
    now = anchor(VAULT, 1, root, *present)
    good = {
        "of an older program": anchor(VAULT, 1, root, *documents),
        "as written now": now,
        "before the first checkpoint": anchor(VAULT, 0, EMPTY, *present),
    }
    bad = {
        "another key": anchor(VAULT, 1, root, *present, seed=bytes(32)),
        "another vault": anchor(VAULT[::-1], 1, root, *present),
        "a number altered": now.replace("kek 2", "kek 1"),
        "a line removed": now.replace("rotation 2\n", ""),
    }
    of = {"seed": SEED, "vault_id": VAULT}
    found = {name: flat.text_of("IntegrityError", of, text) for name, text in bad.items()}
    for name, text in good.items():
        _, size, root, *lines = text.partition("\n\n")[0].split("\n")
        fields = {**of, "size": size, "root": root, "documents": ", ".join(lines)}
        found[name] = flat.text_of("success", fields, text)
    return found


if __name__ == "__main__":
    flat.write("anchor", cases())

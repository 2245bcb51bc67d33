"""Makes anchor_v1.json from docs/FORMAT.md, without apex-creds: ``python make_anchor.py``."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from nacl.signing import SigningKey

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


def main() -> None:
    """Writes the file beside this one."""
    root = base64.b64encode(hashlib.sha256(b"\x00event").digest()).decode()
    documents = ("api_keys 3", "keystore 12", "rotation 2")
    present = (
        "api_keys 3", "keystore 12", "keystore.kek 2", "keystore.master 1",
        "rollbacks.accepted 1", "rotation 2",
    )  # fmt: skip
    good = [
        {"name": "of an older program", "text": anchor(VAULT, 1, root, *documents)},
        {"name": "as written now", "text": anchor(VAULT, 1, root, *present)},
        {"name": "before the first checkpoint", "text": anchor(VAULT, 0, EMPTY, *present)},
    ]
    for case in good:
        lines = case["text"].partition("\n\n")[0].split("\n")
        numbers = dict(line.split(" ") for line in lines[3:])
        case["accepted"] = int(numbers.pop("rollbacks.accepted", 0))
        case["documents"] = {name: int(at) for name, at in numbers.items()}
        case["size"], case["root"] = int(lines[1]), lines[2]
    other = VAULT[::-1]
    bad = [
        {"name": "another key", "text": anchor(VAULT, 1, root, *present, seed=bytes(32))},
        {"name": "another vault", "text": anchor(other, 1, root, *present)},
        {"name": "a number altered", "text": good[1]["text"].replace("kek 2", "kek 1")},
        {"name": "a line removed", "text": good[1]["text"].replace("rotation 2\n", "")},
    ]
    made = {"seed": SEED.hex(), "vault_id": VAULT, "good": good, "bad": bad}
    path = Path(__file__).with_name("anchor_v1.json")
    path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Writes tests/vectors/log, from docs/AUDIT.md and the RFCs it names, without apex-creds.

``python -m tests.vectors.make_log``. Each has the files of a log after its fields: ``bad`` is
the number of the first event that does not verify, or is not known to. ``key`` is the log's
verifier key, as an auditor has it from the vault's owner.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence

from nacl.signing import SigningKey

from tests.vectors import flat

VAULT = "101112131415161718191a1b1c1d1e1f"
ORIGIN = f"apex-creds.invalid/{VAULT}"
KEY = SigningKey(bytes(range(32)))
OTHER = SigningKey(bytes(32))
FIRST, SECOND, CHECKPOINTS = "000001.jsonl", "000002.jsonl", "checkpoints"
SEALED = 4  # events of the first segment
COUNT = 7


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def leaf(entry: str) -> bytes:
    """RFC 9162, section 2.1.1."""
    return hashlib.sha256(b"\0" + entry.encode()).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162, section 2.1.1: split at the largest power of two below the length."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root(leaves[:split]) + root(leaves[split:])).digest()


def edge(leaves: Sequence[bytes]) -> list[str]:
    """The roots of the perfect subtrees, largest first."""
    found = []
    while leaves:
        size = 1 << len(leaves).bit_length() - 1
        found.append(root(leaves[:size]).hex())
        leaves = leaves[size:]
    return found


def entry(seq: int, detail: str = "") -> str:
    said = detail or f"event {seq}"
    return compact({"v": 1, "seq": seq, "time": 1.5 * seq, "kind": "lease", "detail": said})


def line(one: str, hashed: bytes | None = None) -> str:
    return f'{one[:-1]},"hash":"{(hashed or leaf(one)).hex()}"}}\n'


def key_hint(name: str, key: SigningKey) -> bytes:
    public = b"\1" + bytes(key.verify_key)
    return hashlib.sha256(f"{name}\n".encode() + public).digest()[:4]


def verifier_key(key: SigningKey = KEY) -> str:
    """c2sp.org/signed-note: name, hint and key."""
    shown = base64.b64encode(b"\1" + bytes(key.verify_key)).decode()
    return f"{ORIGIN}+{key_hint(ORIGIN, key).hex()}+{shown}"


def checkpoint(leaves: Sequence[bytes], key: SigningKey = KEY, origin: str = ORIGIN) -> str:
    """c2sp.org/tlog-checkpoint."""
    text = f"{origin}\n{len(leaves)}\n{base64.b64encode(root(leaves)).decode()}\n"
    signature = key_hint(origin, key) + key.sign(text.encode()).signature
    return f"{text}\n— {origin} {base64.b64encode(signature).decode()}\n"


def header(number: int, leaves: Sequence[bytes], vault: str = VAULT) -> str:
    return (
        compact(
            {
                "v": 1,
                "segment": number,
                "vault": vault,
                "first": len(leaves) + 1,
                "edge": edge(leaves),
            }
        )
        + "\n"
    )


def log() -> dict[str, str]:
    """Two segments, and a checkpoint after the second event, the fourth and the last."""
    entries = [entry(seq) for seq in range(1, COUNT + 1)]
    leaves = [leaf(one) for one in entries]
    first = header(1, []) + "".join(map(line, entries[:SEALED]))
    return {
        FIRST: first + compact({"v": 1, "sealed": 1, "last": SEALED}) + "\n",
        SECOND: header(2, leaves[:SEALED]) + "".join(map(line, entries[SEALED:])),
        CHECKPOINTS: "".join(checkpoint(leaves[:size]) for size in (2, SEALED, COUNT)),
        "vkeys": verifier_key() + "\n",
    }


def cases() -> dict[str, str]:
    """Every file, by the name of its case."""
    good = log()
    events = good[FIRST].splitlines(keepends=True)[1:-1]
    changed = entry(3, "something else")
    leaves = [leaf(entry(seq)) for seq in range(1, COUNT + 1)]

    def other(name: str, old: str, new: str) -> dict[str, str]:
        assert old in good[name]
        return {**good, name: good[name].replace(old, new, 1)}

    def signed_as(last: str) -> dict[str, str]:
        before = good[CHECKPOINTS].rindex(f"{ORIGIN}\n{COUNT}\n")
        return {**good, CHECKPOINTS: good[CHECKPOINTS][:before] + last}

    bad: dict[str, tuple[int, dict[str, str]]] = {
        "a byte of an event": (3, other(FIRST, "event 3", "event E")),
        "a hash": (2, other(FIRST, leaves[1].hex(), leaves[2].hex())),
        "an event and its hash": (3, other(FIRST, events[2], line(changed))),
        "two events in another order": (
            2,
            other(FIRST, events[1] + events[2], events[2] + events[1]),
        ),
        "an event twice": (3, other(FIRST, events[1], events[1] * 2)),
        "an event removed": (3, other(FIRST, events[2], "")),
        "the last signed event removed": (
            COUNT,
            other(SECOND, line(entry(COUNT)), ""),
        ),
        "a line that is not JSON": (
            2,
            other(FIRST, events[1], events[1].replace('{"v"', '["v"')),
        ),
        "a line without its end": (
            COUNT,
            other(SECOND, line(entry(COUNT)), line(entry(COUNT))[:-1]),
        ),
        "a space after a colon": (3, other(FIRST, '"seq":3', '"seq": 3')),
        "another edge": (SEALED + 1, other(SECOND, edge(leaves[:SEALED])[0], leaves[0].hex())),
        "another first event": (SEALED + 1, other(SECOND, '"first":5', '"first":6')),
        "another last event": (SEALED + 1, other(FIRST, '"last":4', '"last":3')),
        "a segment missing": (SEALED + 1, {n: t for n, t in good.items() if n != SECOND}),
        "another vault's segment": (1, other(FIRST, VAULT, VAULT[::-1])),
        "a checkpoint of another tree": (
            SEALED + 1,
            signed_as(checkpoint([*leaves[:-1], leaves[0]])),
        ),
        "a checkpoint by another key": (COUNT, signed_as(checkpoint(leaves, key=OTHER))),
        "a checkpoint without its signature": (
            1,
            signed_as(checkpoint(leaves).partition("\n\n")[0] + "\n"),
        ),
        "a checkpoint of more events": (COUNT + 1, signed_as(checkpoint([*leaves, leaves[0]]))),
    }
    found = {
        name: _case("AuditTamperedError", files, bad=at) for name, (at, files) in bad.items()
    }
    sizes = {"size": COUNT, "unsigned": 0, "root": root(leaves)}
    found["as it was written"] = _case("success", good, **sizes)
    later = entry(COUNT + 1)
    files = {**good, SECOND: good[SECOND] + line(later)}
    sizes |= {"unsigned": 1, "root": root([*leaves, leaf(later)])}
    found["an event that is not signed yet"] = _case("success", files, **sizes)
    return found


def _case(expect: str, files: dict[str, str], **fields: object) -> str:
    more = "".join(f"-- {name} --\n{text}" for name, text in files.items())
    fields = {"vault_id": VAULT, "key": verifier_key(), **fields}
    return flat.text_of(expect, fields, more)


if __name__ == "__main__":
    flat.write("log", cases())

"""The worked examples of docs/FORMAT.md are what the code computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apex_creds.crypto import envelope, kdf, sodium
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.records import encode_parts, parts_layout

PAGE = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text(encoding="utf-8")


def _example(name: str) -> dict[str, bytes]:
    block = re.search(rf"<!-- example: {name} -->\n```text\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    joined = re.sub(r"\n +", "", block[1])
    lines = (line.split() for line in joined.splitlines() if line)
    return {field: bytes.fromhex(value) for field, value in lines}


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


@pytest.fixture
def example() -> dict[str, bytes]:
    return _example("envelope")


def _context(example: dict[str, bytes]) -> envelope.Context:
    return envelope.Context(
        example["vault_id"],
        example["section"].decode(),
        example["record_id"],
        _number(example["record_version"]),
    )


def test_the_associated_data(example: dict[str, bytes]) -> None:
    made = envelope.canonical_aad(
        _context(example),
        key_id=example["key_id"],
        key_version=_number(example["key_version"]),
    )
    assert made == example["aad"]


def test_the_sealed_message(example: dict[str, bytes]) -> None:
    with SecretBytes.from_bytes(example["key"]) as key:
        sealed = sodium.seal_committed(
            key,
            example["nonce"],
            example["plaintext"],
            aad=example["aad"],
            personal=b"apex-creds aead1",
        )
    fields = ("nonce", "commitment", "ciphertext", "tag")
    assert sealed == b"".join(example[field] for field in fields)


def test_the_subkey(example: dict[str, bytes]) -> None:
    import hashlib

    pair = hashlib.blake2b(
        example["nonce"], key=example["key"], digest_size=64, person=b"apex-creds aead1"
    ).digest()
    assert pair == example["subkey"] + example["commitment"]


def test_the_envelope_opens(example: dict[str, bytes]) -> None:
    sealed = example["envelope"]
    assert envelope.header(sealed) == (example["key_id"], _number(example["key_version"]))
    with (
        SecretBytes.from_bytes(example["key"]) as key,
        envelope.decrypt(lambda *_: key, sealed, context=_context(example)) as opened,
    ):
        assert opened.expose_bytes() == example["plaintext"]
        (at, length) = parts_layout(opened.view())["value"]
        assert opened.view()[at : at + length] == b"sk-test-123"


def test_the_derived_key() -> None:
    example = _example("kdf")
    with SecretBytes.from_bytes(example["key"]) as key:
        made = kdf.derive(key, kdf.Purpose.KEK_WRAP)
    assert made.expose_bytes() == example["kek-wrap"]


def test_every_purpose_is_listed() -> None:
    listed = re.findall(
        r"^\| `([a-z-]+)` \|", PAGE.split("## KDF")[1].split("## ")[0], re.MULTILINE
    )
    assert listed == [purpose.value for purpose in kdf.Purpose]


def test_the_parts() -> None:
    example = _example("parts")
    with encode_parts({k: example[k] for k in ("user", "password")}) as encoded:
        assert encoded.expose_bytes() == example["parts"]

"""The documents of tests/vectors/document_v2.json open, or fail as docs/FORMAT.md says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apex_creds import errors
from apex_creds.crypto import kdf
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.document import pack, parse, unpack
from apex_creds.keys.hierarchy import DocumentKeys
from tests.vectors import make_document

FILE = Path(make_document.__file__).with_name("document_v2.json")
VECTORS: dict[str, Any] = json.loads(FILE.read_text())


@pytest.fixture
def keys() -> Iterator[DocumentKeys]:
    context = VECTORS["section"].encode()
    with SecretBytes.copy_of(bytes.fromhex(VECTORS["document_key"])) as key:
        made = DocumentKeys(
            kdf.derive(key, kdf.Purpose.FILE_BODY, context=context),
            kdf.derive(key, kdf.Purpose.FILE_MAC, context=context),
        )
        yield made
    for each in made:
        each.close()


def opened(case: dict[str, str], keys: DocumentKeys) -> bytes:
    data, vault_id = case["document"].encode(), VECTORS["vault_id"]
    return bytes(unpack(parse(data, section=VECTORS["section"], vault_id=vault_id), keys))


def test_they_are_what_the_page_says() -> None:
    assert make_document.vectors() == VECTORS


def test_the_keys_of_a_document(keys: DocumentKeys) -> None:
    assert keys.body.expose_bytes().hex() == VECTORS["body_key"]
    assert keys.mac.expose_bytes().hex() == VECTORS["mac_key"]


@pytest.mark.parametrize("case", VECTORS["opened"], ids=lambda case: case["name"])
def test_it_opens(case: dict[str, str], keys: DocumentKeys) -> None:
    assert opened(case, keys).hex() == case["body"]


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["name"])
def test_it_is_refused(case: dict[str, str], keys: DocumentKeys) -> None:
    with pytest.raises(errors.ApexCredsError) as caught:
        opened(case, keys)
    assert type(caught.value).__name__ == case["error"]


def test_what_is_written_has_the_same_header(keys: DocumentKeys) -> None:
    data = VECTORS["opened"][0]["document"].encode()
    packed = parse(data, section=VECTORS["section"], vault_id=None)
    again = bytes(pack(packed.header, b"other", keys))
    assert again[: again.index(b',"body":')] == data[: data.index(b',"body":')]

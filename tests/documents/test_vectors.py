"""The documents of tests/vectors/document open, or fail as docs/FORMAT.md says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from apex_creds import errors
from apex_creds.crypto import kdf
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.document import pack, parse, unpack
from apex_creds.keys.hierarchy import DocumentKeys
from tests.vectors import flat, make_document

FILES = flat.load("document")
GIVEN, _ = flat.parse(FILES["no-records.txt"])


@pytest.fixture
def keys() -> Iterator[DocumentKeys]:
    context = GIVEN["section"].encode()
    with SecretBytes.copy_of(bytes.fromhex(GIVEN["document_key"])) as key:
        made = DocumentKeys(
            kdf.derive(key, kdf.Purpose.FILE_BODY, context=context),
            kdf.derive(key, kdf.Purpose.FILE_MAC, context=context),
        )
        yield made
    for each in made:
        each.close()


def test_they_are_what_the_page_says() -> None:
    made = make_document.vectors()
    assert {flat.file_name(name): text for name, text in made.items()} == FILES
    assert len(made) == len(FILES)


def test_the_keys_of_a_document(keys: DocumentKeys) -> None:
    assert keys.body.expose_bytes().hex() == GIVEN["body_key"]
    assert keys.mac.expose_bytes().hex() == GIVEN["mac_key"]


@pytest.mark.parametrize("name", FILES)
def test_it_opens_or_is_refused(name: str, keys: DocumentKeys) -> None:
    case, text = flat.parse(FILES[name])
    try:
        packed = parse(text.encode(), section=case["section"], vault_id=case["vault_id"])
        found = ("success", bytes(unpack(packed, keys)).hex())
    except errors.ApexCredsError as error:
        found = (type(error).__name__, None)
    assert found == (case["expect"], case.get("body"))


def test_what_is_written_has_the_same_header(keys: DocumentKeys) -> None:
    data = flat.parse(FILES["no-records.txt"])[1].encode()
    packed = parse(data, section=GIVEN["section"], vault_id=None)
    again = bytes(pack(packed.header, b"other", keys))
    assert again[: again.index(b',"body":')] == data[: data.index(b',"body":')]

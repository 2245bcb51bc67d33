"""Bodies in pieces: the same as in one call, whatever the records hold."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.document import Header, pack, parse, unpack
from apex_creds.documents.records import Counts, Record, _Body, decode_body, encode_body
from apex_creds.errors import CorruptDocumentError, IntegrityError
from apex_creds.keys.hierarchy import DocumentKeys
from apex_creds.model import CredentialInfo, CredentialKind, Delivery

MARK = "APXC\x01\x01"
SIZES = (0, 1, 90, 240, 255, 256, 300, 60_000, 70_000)


def record(number: int, *, size: int = 120, note: str = "") -> Record:
    info = CredentialInfo(
        id=f"{number:032x}",
        name=f"name {number}",
        service=note,
        kind=CredentialKind.API_KEY,
        version=1,
        delivery=Delivery.parse("bearer"),
        origins=(),
        created=1.5,
        updated=2.5,
        scope=note,
    )
    return Record(info, MARK.encode() + bytes(size))


def body(records: list[Record], uses: Counts = ()) -> bytes:
    return b"".join(encode_body(records, uses))


def whole(plaintext: bytes) -> tuple[list[Record], Counts]:
    found = msgspec.msgpack.decode(plaintext, type=_Body)
    return found.records, found.uses


def flat(plaintext: bytes) -> tuple[list[Record], Counts]:
    pieces, uses = decode_body(plaintext)
    return [each for piece in pieces for each in piece], uses


def test_a_large_body_comes_in_pieces() -> None:
    plaintext = body([record(n) for n in range(5_000)], (("ab" * 16, 1, 5_000),))
    pieces, _ = decode_body(plaintext)
    assert len(pieces) > 3
    assert flat(plaintext) == whole(plaintext)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(SIZES), st.sampled_from(["", "x", MARK, f"\xc4{MARK}\xc5"])),
        min_size=1,
        max_size=20,
    ),
    st.integers(0, 3_000),
)
def test_pieces_say_what_one_call_says(drawn: list[tuple[int, str]], more: int) -> None:
    """Also where the records hold what an envelope begins with."""
    made = [record(n, size=size, note=note) for n, (size, note) in enumerate(drawn)]
    made += [record(n) for n in range(more)]
    plaintext = body(made, (("ab" * 16, 1, 5),))
    assert flat(plaintext) == whole(plaintext) == (made, (("ab" * 16, 1, 5),))


@pytest.mark.parametrize("cut", [1, 40, 100, 300_000])
def test_a_body_that_is_cut_off_is_refused(cut: int) -> None:
    plaintext = body([record(n) for n in range(3_000)])
    for damaged in (plaintext[:-cut], plaintext + bytes(cut), plaintext[:40] + plaintext[41:]):
        with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
            decode_body(damaged)


# -- the document around a large one -------------------------------------------------


@pytest.fixture(scope="module")
def keys() -> DocumentKeys:
    return DocumentKeys(SecretBytes.random(32), SecretBytes.random(32))


HEADER = Header(
    vault_id="ab" * 16,
    section="api_keys",
    generation=3,
    key_id="cd" * 16,
    key_version=1,
    written=1.0,
    keys_used=(("ef" * 16, 1),),
)


def opened(data: bytes, keys: DocumentKeys) -> bytes:
    return bytes(unpack(parse(data, section="api_keys", vault_id="ab" * 16), keys))


@pytest.mark.parametrize("size", [0, 5, (1 << 20) - 400, 1 << 20, (3 << 20) + 1, (3 << 20) + 2])
def test_a_document_of_any_size_opens(keys: DocumentKeys, size: int) -> None:
    plaintext = bytes(range(256)) * (size // 256 + 1)
    data = bytes(pack(HEADER, plaintext[:size], keys))
    assert opened(data, keys) == plaintext[:size]
    assert parse(data, section="api_keys", vault_id=None).header == HEADER
    assert msgspec.json.decode(data)["section"] == "api_keys"


def test_a_large_document_damaged_anywhere(keys: DocumentKeys) -> None:
    data = bytes(pack(HEADER, bytes(3 << 20), keys))
    places = [*range(420), *range(1_000, len(data), 500_009), *range(len(data) - 90, len(data))]
    for at in places:
        damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(IntegrityError):
            opened(damaged, keys)


def test_a_large_document_in_another_spelling(keys: DocumentKeys) -> None:
    data = bytes(pack(HEADER, bytes(3 << 20), keys))
    for old, new in (
        (b',"body":"', b', "body":"'),
        (b',"body":"', b',"body":"","body":"'),
        (b',"section"', b',"more":1,"section"'),
        (b'","mac"', b'=","mac"'),
    ):
        with pytest.raises(CorruptDocumentError):
            opened(data.replace(old, new, 1), keys)
    with pytest.raises(CorruptDocumentError):
        opened(data + b" ", keys)

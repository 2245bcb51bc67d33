"""Envelope v1: the published vectors, every byte, and every place it can be moved to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds import errors
from apex_creds.crypto import aead, envelope
from apex_creds.crypto.envelope import Context
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    CommitmentError,
    CorruptDocumentError,
    DecryptionError,
    IntegrityError,
    InvalidInputError,
    SecretWipedError,
    UnknownKeyError,
    UnsupportedFormatError,
)
from tests.support.slots import open_slots
from tests.vectors import flat, make_envelope

VECTORS = {name: flat.parse(text)[0] for name, text in flat.load("envelope").items()}
PLACE = Context(b"v" * 16, "api_keys", b"r" * 16, 1)
ID = b"k" * 16


def _finder(case: dict[str, str]) -> Callable[[bytes, int], SecretBytes]:
    def find(key_id: bytes, version: int) -> SecretBytes:
        if f"{key_id.hex()}/{version}" not in case["known_as"].split():
            raise UnknownKeyError("No such key.")
        return SecretBytes.from_bytes(bytes.fromhex(case["key"]))

    return find


def _context(case: dict[str, str]) -> Context:
    vault_id, record_id = (bytes.fromhex(case[name]) for name in ("vault_id", "record_id"))
    return Context(vault_id, case["section"], record_id, int(case["record_version"]))


@pytest.mark.parametrize("case", VECTORS.values(), ids=VECTORS)
def test_the_vectors(case: dict[str, str]) -> None:
    sealed, context, find = bytes.fromhex(case["envelope"]), _context(case), _finder(case)
    if case["expect"] == "success":
        assert envelope.decrypt_bytes(find, sealed, context=context).hex() == case["plaintext"]
        with envelope.decrypt(find, sealed, context=context) as secret:
            assert secret.expose_bytes().hex() == case["plaintext"]
        return
    for opener in (envelope.decrypt, envelope.decrypt_bytes):
        with pytest.raises(IntegrityError) as caught:
            opener(find, sealed, context=context)
        assert type(caught.value) is getattr(errors, case["expect"])


def test_the_vectors_are_what_their_generator_makes() -> None:
    made = {flat.file_name(name): text for name, text in make_envelope.cases().items()}
    assert made == flat.load("envelope")


def test_the_associated_data_is_the_published_one() -> None:
    place, version = make_envelope.PLACE, make_envelope.KEY_VERSION
    made = envelope.canonical_aad(
        Context(**place), key_id=make_envelope.KEY_ID, key_version=version
    )
    assert made == make_envelope.aad(place, key_id=make_envelope.KEY_ID, key_version=version)


@pytest.fixture
def key() -> SecretBytes:
    return SecretBytes.random(32)


@given(
    data=st.binary(max_size=3000),
    section=st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=64),
    ids=st.lists(st.binary(min_size=16, max_size=16), min_size=3, max_size=3),
    record=st.integers(1, 2**63 - 1),
    version=st.integers(1, 2**32 - 1),
)
def test_round_trip(
    data: bytes, section: str, ids: list[bytes], record: int, version: int
) -> None:
    context = Context(ids[0], section, ids[1], record)
    with SecretBytes.random(32) as key, SecretBytes.from_bytes(data) as plaintext:
        sealed = envelope.encrypt(
            key, plaintext, context=context, key_id=ids[2], key_version=version
        )
        assert envelope.header(sealed) == (ids[2], version)
        assert len(sealed) == envelope.MIN_BYTES + len(data)
        for shape in (sealed, bytearray(sealed), memoryview(sealed)):
            with envelope.decrypt(lambda *_: key, shape, context=context) as opened:
                assert opened.equals(data)


def _sealed(key: SecretBytes, context: Context = PLACE) -> bytes:
    return envelope.encrypt(key, b"secret", context=context, key_id=ID, key_version=1)


def test_no_single_bit_can_be_changed(key: SecretBytes) -> None:
    sealed = _sealed(key)
    for at in range(len(sealed)):
        for bit in range(8):
            altered = bytearray(sealed)
            altered[at] ^= 1 << bit
            with pytest.raises(IntegrityError):
                envelope.decrypt(lambda *_: key, altered, context=PLACE)


def test_every_truncation_is_refused(key: SecretBytes) -> None:
    sealed = _sealed(key)
    for end in range(len(sealed)):
        with pytest.raises((CorruptDocumentError, DecryptionError)):
            envelope.decrypt(lambda *_: key, sealed[:end], context=PLACE)


def test_a_section_and_an_id_can_not_trade_bytes(key: SecretBytes) -> None:
    contexts = [
        Context(b"a" * 16, "a" * n, b"a" * 16, version) for n in (1, 2, 5) for version in (1, 2)
    ]
    made = {envelope.canonical_aad(c, key_id=ID, key_version=1) for c in contexts}
    assert len(made) == len(contexts)


def test_noise_is_refused_without_looking_for_a_key() -> None:
    def never(_id: bytes, _version: int) -> SecretBytes:
        raise AssertionError

    for noise in (b"", b"APXC", bytes(200), b"APXC\x01\x01" + bytes(200), b"{}" * 60):
        with pytest.raises(CorruptDocumentError):
            envelope.decrypt(never, noise, context=PLACE)
    with pytest.raises(UnsupportedFormatError):
        envelope.decrypt(never, b"APXC\x02" + bytes(200), context=PLACE)


@pytest.mark.parametrize(
    "fields",
    [
        (b"v" * 15, "a", b"r" * 16, 1),
        (b"v" * 16, "a", b"r" * 17, 1),
        (b"v" * 16, "", b"r" * 16, 1),
        (b"v" * 16, "a" * 65, b"r" * 16, 1),
        (b"v" * 16, "A", b"r" * 16, 1),
        (b"v" * 16, "é", b"r" * 16, 1),
        (b"v" * 16, "../x", b"r" * 16, 1),
        (b"v" * 16, "a", b"r" * 16, 0),
        (b"v" * 16, "a", b"r" * 16, -1),
        (b"v" * 16, "a", b"r" * 16, 2**63),
    ],
)
def test_a_place_is_checked(fields: tuple[bytes, str, bytes, int]) -> None:
    with pytest.raises(InvalidInputError):
        Context(*fields)


@pytest.mark.parametrize(
    ("key_id", "version"), [(b"", 1), (b"k" * 17, 1), (ID, 0), (ID, -1), (ID, 2**32)]
)
def test_a_key_reference_is_checked(key: SecretBytes, key_id: bytes, version: int) -> None:
    with pytest.raises(InvalidInputError):
        envelope.encrypt(key, b"", context=PLACE, key_id=key_id, key_version=version)


def test_a_document_sealed_with_the_same_key_is_not_an_envelope(key: SecretBytes) -> None:
    body = aead.seal(key, b"document", aad=b"apex-creds/v1/document")
    forged = _sealed(key)[: envelope.HEADER_BYTES] + body
    with pytest.raises(DecryptionError) as caught:
        envelope.decrypt(lambda *_: key, forged, context=PLACE)
    assert not isinstance(caught.value, CommitmentError)


def test_a_wiped_key_is_said_to_be_wiped(key: SecretBytes) -> None:
    sealed = _sealed(key)
    key.close()
    with pytest.raises(SecretWipedError):
        envelope.decrypt(lambda *_: key, sealed, context=PLACE)


def test_failures_leave_no_slot_behind(key: SecretBytes) -> None:
    before = open_slots()
    elsewhere = Context(b"v" * 16, "api_keys", b"r" * 16, 2)
    for _ in range(50):
        with pytest.raises(DecryptionError):
            envelope.decrypt(lambda *_: key, _sealed(key), context=elsewhere)
    assert open_slots() == before

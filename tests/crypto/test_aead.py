"""seal and open: round trips, one key and one place only, nonces that nobody picks."""

from __future__ import annotations

import hashlib
import inspect
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings

from apex_creds.crypto import aead, memory, sodium
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    CommitmentError,
    DecryptionError,
    InvalidInputError,
    SecretWipedError,
)
from tests.support.slots import open_slots

KEY = bytes(range(32))
AAD = b"where it lies"
# Made with hashlib.blake2b and PyNaCl's bindings: nonce of zeros, "attack at dawn".
KNOWN = (
    "000000000000000000000000000000000000000000000000802e9e41d873b2bf43dacdd80ae72862"
    "a0f02bb9c5a7a67b8381956f44b8e104f9ddab25cec8179c2d89eea7fc4991904c367ac61c16556c"
    "4d5f081a85b5"
)


@pytest.fixture
def key() -> SecretBytes:
    return SecretBytes.from_bytes(KEY)


def _reference_open(key: bytes, sealed: bytes, aad: bytes) -> bytes:
    """The format again, from hashlib and PyNaCl's public bindings."""
    nonce, commitment, body = sealed[:24], sealed[24:56], sealed[56:]
    pair = hashlib.blake2b(nonce, key=key, digest_size=64, person=b"apex-creds aead1").digest()
    assert pair[32:] == commitment
    return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(body, aad, nonce, pair[:32])


@given(
    st.binary(max_size=6000),
    st.binary(min_size=1, max_size=300),
    st.binary(min_size=32, max_size=32),
)
def test_round_trip_and_agreement_with_the_reference(
    data: bytes, aad: bytes, raw: bytes
) -> None:
    with SecretBytes.from_bytes(raw) as key, SecretBytes.from_bytes(data) as secret:
        for plaintext in (data, bytearray(data), memoryview(data), secret):
            sealed = aead.seal(key, plaintext, aad=aad)
            assert len(sealed) == len(data) + aead.OVERHEAD
            assert _reference_open(raw, sealed, aad) == data
            assert aead.open_bytes(key, sealed, aad=aad) == data
            for shape in (sealed, bytearray(sealed), memoryview(sealed)):
                with aead.open_into(key, shape, aad=aad) as opened:
                    assert opened.expose_bytes() == data


def test_a_known_answer(key: SecretBytes) -> None:
    sealed = sodium.seal_committed(
        key, bytes(24), b"attack at dawn", aad=AAD, personal=b"apex-creds aead1"
    )
    assert sealed.hex() == KNOWN


def test_every_single_byte_counts(key: SecretBytes) -> None:
    sealed = aead.seal(key, b"plaintext", aad=AAD)
    for at in range(len(sealed)):
        altered = bytearray(sealed)
        altered[at] ^= 0x01
        expected = CommitmentError if at < 56 else DecryptionError
        for opener in (aead.open_into, aead.open_bytes):
            with pytest.raises(DecryptionError) as caught:
                opener(key, altered, aad=AAD)
            assert type(caught.value) is expected


def test_every_truncation_and_extension_is_refused(key: SecretBytes) -> None:
    sealed = aead.seal(key, b"plaintext", aad=AAD)
    for cut in (*(sealed[:n] for n in range(len(sealed))), sealed + b"\0"):
        for opener in (aead.open_into, aead.open_bytes):
            with pytest.raises(DecryptionError):
                opener(key, cut, aad=AAD)


def test_another_key_fails_at_the_commitment(key: SecretBytes) -> None:
    sealed = aead.seal(key, b"plaintext", aad=AAD)
    with SecretBytes.from_bytes(KEY[::-1]) as other, pytest.raises(CommitmentError):
        aead.open_into(other, sealed, aad=AAD)


@pytest.mark.parametrize("aad", [AAD + b"!", AAD[:-1], b"x"])
def test_another_place_fails_at_the_tag(key: SecretBytes, aad: bytes) -> None:
    sealed = aead.seal(key, b"plaintext", aad=AAD)
    with pytest.raises(DecryptionError) as caught:
        aead.open_into(key, sealed, aad=aad)
    assert not isinstance(caught.value, CommitmentError)


def test_nonces_are_fresh_and_no_parameter_takes_one(key: SecretBytes) -> None:
    nonces = {aead.seal(key, b"same", aad=AAD)[:24] for _ in range(1000)}
    assert len(nonces) == 1000
    assert set(inspect.signature(aead.seal).parameters) == {"key", "plaintext", "aad"}


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_key_of_another_length_is_refused(size: int) -> None:
    with SecretBytes.allocate(size) as key:
        with pytest.raises(InvalidInputError):
            aead.seal(key, b"x", aad=AAD)
        with pytest.raises(InvalidInputError):
            aead.open_into(key, bytes(80), aad=AAD)


def test_associated_data_is_required(key: SecretBytes) -> None:
    with pytest.raises(InvalidInputError):
        aead.seal(key, b"x", aad=b"")
    with pytest.raises(InvalidInputError):
        aead.open_into(key, aead.seal(key, b"x", aad=AAD), aad=b"")


def test_wiped_keys_and_plaintexts_are_refused(key: SecretBytes) -> None:
    sealed = aead.seal(key, b"x", aad=AAD)
    gone = SecretBytes.from_bytes(b"gone")
    gone.close()
    with pytest.raises(SecretWipedError):
        aead.seal(key, gone, aad=AAD)
    key.close()
    with pytest.raises(SecretWipedError):
        aead.seal(key, b"x", aad=AAD)
    with pytest.raises(SecretWipedError):
        aead.open_into(key, sealed, aad=AAD)


def test_nothing_stays_open_whatever_happens(key: SecretBytes) -> None:
    before = open_slots()
    sealed = aead.seal(key, b"x", aad=AAD)
    aead.open_into(key, sealed, aad=AAD).close()
    for altered in (sealed[:-1], bytes(80), sealed[:56] + bytes(17)):
        with pytest.raises(DecryptionError):
            aead.open_into(key, altered, aad=AAD)
    assert open_slots() == before


def _seal_until_wiped(key: SecretBytes, made: list[bytes], started: threading.Event) -> None:
    try:
        while True:
            made.append(aead.seal(key, b"x" * 40, aad=AAD))
            started.set()
    except SecretWipedError:
        started.set()


def test_a_key_closed_by_another_thread_never_seals_under_a_wiped_key() -> None:
    """Whatever seal() returns opens under the true key; else it raises."""
    before, keep = sys.getswitchinterval(), SecretBytes.from_bytes(KEY)
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(60):
            key, made, started = SecretBytes.from_bytes(KEY), [], threading.Event()
            thread = threading.Thread(target=_seal_until_wiped, args=(key, made, started))
            thread.start()
            started.wait()
            key.close()
            with SecretBytes.from_bytes(bytes(32)):  # takes the slot of the key
                thread.join()
            for sealed in made[-3:]:
                aead.open_into(keep, sealed, aad=AAD).close()
    finally:
        sys.setswitchinterval(before)


# -- opened often --------------------------------------------------------------------------


def test_what_is_opened_often_is_opened_no_less_strictly(key: SecretBytes) -> None:
    sealed = aead.seal(key, b"attack at dawn", aad=AAD)
    message = aead.take_apart(sealed)
    end, other = sealed[-1] ^ 1, aead.seal(key, b"another", aad=AAD)
    altered = aead.take_apart(sealed[:-1] + bytes([end]))
    uncommitted = aead.take_apart(sealed[:24] + other[24:56] + sealed[56:])
    for _ in range(3):
        with aead.open_parts(key, message, AAD) as opened:
            assert opened.expose_bytes() == b"attack at dawn"
        with pytest.raises(CommitmentError):
            aead.open_parts(key, uncommitted, AAD)
        for wrong, place in ((altered, AAD), (message, b"elsewhere")):
            with pytest.raises(DecryptionError):
                aead.open_parts(key, wrong, place)


def test_a_key_keeps_few_subkeys_and_they_are_wiped_with_it(key: SecretBytes) -> None:
    before = open_slots()
    message = aead.take_apart(aead.seal(key, b"x", aad=AAD))
    with pytest.raises(DecryptionError):
        aead.open_parts(key, message, b"elsewhere")
    assert open_slots() == before
    for _ in range(3):
        aead.open_parts(key, message, AAD).close()
        assert open_slots() == before
        assert len(key._subkeys) == 1
    lying = [memory.ffi.buffer(slot.pointer, 64) for slot in key._subkeys.values()]
    assert any(bytes(lying[0]))
    for number in range(40):
        aead.open_into(key, aead.seal(key, b"once", aad=AAD), aad=AAD).close()
        often = aead.take_apart(aead.seal(key, b"%d" % number, aad=AAD))
        for _ in range(2):
            assert aead.open_parts(key, often, AAD).expose_bytes() == b"%d" % number
    assert open_slots() == before
    assert len(key._subkeys) == 16
    key.close()
    assert open_slots() == before - 1
    assert not any(bytes(lying[0]))
    assert not key._subkeys
    with pytest.raises(SecretWipedError):
        aead.open_parts(key, message, AAD)


def test_a_key_closed_by_another_thread_opens_rightly_or_not_at_all() -> None:
    before, keep = sys.getswitchinterval(), SecretBytes.from_bytes(KEY)
    message = aead.take_apart(aead.seal(keep, b"x" * 4000, aad=AAD))
    slots = open_slots()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(60):
            key, started, wrong = SecretBytes.from_bytes(KEY), threading.Event(), []

            def open_until_wiped(key=key, started=started, wrong=wrong) -> None:
                try:
                    while not wrong:
                        with aead.open_parts(key, message, AAD) as opened:
                            if not opened.equals(b"x" * 4000):
                                wrong.append("other bytes")
                        started.set()
                except SecretWipedError:
                    started.set()
                except Exception as error:
                    wrong.append(repr(error))

            threads = [threading.Thread(target=open_until_wiped) for _ in range(2)]
            for thread in threads:
                thread.start()
            started.wait()
            key.close()
            with SecretBytes.from_bytes(bytes(64)):  # takes the slot of its subkey
                for thread in threads:
                    thread.join()
            assert wrong == []
            assert open_slots() == slots
    finally:
        sys.setswitchinterval(before)


# -- many at once, under another key -----------------------------------------------------


@given(st.lists(st.binary(max_size=5000), max_size=6), st.binary(max_size=30))
def test_many_move_to_another_key(plaintexts: list[bytes], head: bytes) -> None:
    old, new = SecretBytes.from_bytes(KEY), SecretBytes.from_bytes(KEY[::-1])
    messages = [
        (b"front" + aead.seal(old, text, aad=b"a%d" % n), b"a%d" % n, b"b%d" % n)
        for n, text in enumerate(plaintexts)
    ]
    made = aead.reseal(messages, old, new, start=5, head=head)
    for n, (text, whole) in enumerate(zip(plaintexts, made, strict=True)):
        assert whole is not None
        assert whole.startswith(head)
        sealed = whole[len(head) :]
        assert _reference_open(KEY[::-1], sealed, b"b%d" % n) == text
    nonces = {whole[len(head) : len(head) + 24] for whole in made if whole}
    assert len(nonces) == len(plaintexts)


def test_what_does_not_open_is_not_moved_and_the_others_are(key: SecretBytes) -> None:
    other = SecretBytes.from_bytes(KEY[::-1])
    good = aead.seal(key, b"attack at dawn", aad=AAD)
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    foreign = aead.seal(other, b"attack at dawn", aad=AAD)
    messages = [
        (good, AAD, AAD),
        (flipped, AAD, AAD),
        (good, b"elsewhere", AAD),
        (foreign, AAD, AAD),
        (good[:71], AAD, AAD),
        (b"", AAD, AAD),
        (good, AAD, AAD),
    ]
    made = aead.reseal(messages, key, other, start=0, head=b"")
    assert [each is None for each in made] == [False, True, True, True, True, True, False]
    assert made[0] is not None
    assert _reference_open(KEY[::-1], made[0], AAD) == b"attack at dawn"


def test_keys_and_additional_data_are_checked_for_many(key: SecretBytes) -> None:
    other = SecretBytes.from_bytes(KEY[::-1])
    good = aead.seal(key, b"attack at dawn", aad=AAD)
    for pair in (
        (SecretBytes.from_bytes(b"short"), other),
        (key, SecretBytes.from_bytes(b"s")),
    ):
        with pytest.raises(InvalidInputError):
            aead.reseal([(good, AAD, AAD)], *pair, start=0, head=b"")
    for aads in ((b"", AAD), (AAD, b"")):
        with pytest.raises(InvalidInputError):
            aead.reseal([(good, *aads)], key, other, start=0, head=b"")
    slots = open_slots()
    assert aead.reseal([], key, other, start=0, head=b"") == []
    aead.reseal([(good, AAD, AAD)], key, other, start=0, head=b"")
    assert open_slots() == slots  # what passed through is wiped
    for closed in (key, other):
        closed.close()
        with pytest.raises(SecretWipedError):
            aead.reseal([(good, AAD, AAD)], key, other, start=0, head=b"")


def test_nothing_is_returned_that_was_made_while_a_key_was_closed(
    key: SecretBytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, encrypt = SecretBytes.from_bytes(KEY[::-1]), sodium._encrypt

    def closes(*args: object) -> object:
        other.close()
        return encrypt(*args)

    sealed = aead.seal(key, b"attack at dawn", aad=AAD)
    monkeypatch.setattr(sodium, "_encrypt", closes)
    with pytest.raises(SecretWipedError):
        aead.reseal([(sealed, AAD, AAD)] * 2, key, other, start=0, head=b"")

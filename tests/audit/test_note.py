"""Signed notes: vectors from the Go and C2SP texts, round trips, strictness."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.audit import note as notes
from apex_creds.audit.note import Algorithm, VerifierKey
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.public_key import SigningKey
from apex_creds.errors import IntegrityError, InvalidInputError

# From the documentation of golang.org/x/mod/sumdb/note.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdng"
    "otpRZb6KE6RyyBwJnAM=\n"
)
# From c2sp.org/tlog-cosignature.
COSIGNED = (
    "example.com/behind-the-sofa\n"
    "20852163\n"
    "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    "\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Z"
    "hcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJ"
    "sX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)


@pytest.fixture
def key() -> SigningKey:
    with SecretBytes.from_bytes(bytes(range(32))) as seed:
        return SigningKey.from_seed(seed)


def test_the_note_of_the_go_documentation_verifies() -> None:
    key = VerifierKey.parse(GO_KEY)
    assert str(key) == GO_KEY
    note = notes.parse(GO_NOTE)
    note.check(key)
    assert str(note) == GO_NOTE


def test_the_checkpoint_of_the_c2sp_text_parses() -> None:
    note = notes.parse(COSIGNED.encode())
    log, witness = note.signatures
    assert (log.name, witness.name) == ("example.com/behind-the-sofa", "witness.example.com/w1")
    assert int.from_bytes(witness.data[:8], "big") == 1679315147
    assert (len(log.data), len(witness.data)) == (64, 72)
    assert str(note) == COSIGNED


def test_key_ids_follow_the_text(key: SigningKey) -> None:
    from hashlib import sha256

    plain = VerifierKey("a/b", key.public)
    witness = VerifierKey("a/b", key.public, Algorithm.COSIGNATURE)
    assert plain.id == sha256(b"a/b\n\x01" + key.public).digest()[:4]
    assert witness.id == sha256(b"a/b\n\x04" + key.public).digest()[:4]
    assert VerifierKey.parse(str(witness)) == witness


def test_signing_and_cosigning(key: SigningKey) -> None:
    note = notes.sign("one\n\ntwo\n", name="log", key=key)
    note = note.with_signatures([notes.cosign(note, name="w", key=key, time=1679315147)])
    assert note.with_signatures(note.signatures) == note
    read = notes.parse(str(note))
    assert read == note
    read.check(VerifierKey("log", key.public))
    read.check(VerifierKey("w", key.public, Algorithm.COSIGNATURE))
    for other in (VerifierKey("log", bytes(32)), VerifierKey("w", key.public)):
        with pytest.raises(IntegrityError, match="not signed"):
            read.check(other)


@given(st.data())
def test_any_change_of_a_byte_is_noticed(data: st.DataObject) -> None:
    with SecretBytes.from_bytes(bytes(range(32))) as seed:
        key = SigningKey.from_seed(seed)
    note = notes.sign("a\n1\nb\n", name="log", key=key)
    raw = str(note.with_signatures([notes.cosign(note, name="w", key=key, time=7)])).encode()
    at = data.draw(st.integers(0, len(raw) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda value: value != raw[at]))
    witness = VerifierKey("w", key.public, Algorithm.COSIGNATURE)

    def read() -> None:
        changed = notes.parse(raw[:at] + bytes([other]) + raw[at + 1 :])
        changed.check(VerifierKey("log", key.public))
        changed.check(witness)

    with pytest.raises(IntegrityError):
        read()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\n",
        "a\n\n",
        "a\n\n— n AAAAAAA=\r\n",
        "a\n\n— n AAAAAAA=",
        "a\n\n- n AAAAAAA=\n",
        "a\n\n— n+1 AAAAAAA=\n",
        "a\n\n— n AAAAAAA\n",
        "a\n\n— n AAAA\n",
        "a\tb\n\n— n AAAAAAA=\n",
        "a\n\n— n AAAAAAB=\n",
    ],
)
def test_what_is_no_note_is_refused(text: str) -> None:
    with pytest.raises(IntegrityError):
        notes.parse(text)


@pytest.mark.parametrize(
    "text", ["", "a", "a+b", GO_KEY[:-1], GO_KEY.replace("c74f20a3", "c74f20a4"), "+" + GO_KEY]
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        VerifierKey.parse(text)


def test_what_can_not_be_signed_is_refused(key: SigningKey) -> None:
    for text, name in (("no newline", "n"), ("a\tb\n", "n"), ("a\n", "a b"), ("a\n", "")):
        with pytest.raises(InvalidInputError):
            notes.sign(text, name=name, key=key)
    note = notes.sign("a\n", name="n", key=key)
    with pytest.raises(InvalidInputError):
        notes.cosign(note, name="w", key=key, time=2**63)

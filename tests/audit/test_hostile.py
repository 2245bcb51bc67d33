"""Notes, proofs, keys and lines made to be misread: refused, never with a raw error."""

from __future__ import annotations

import base64
import contextlib
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.audit import check, line, note, proofs, tree
from apex_creds.audit.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    CheckpointFile,
    LogKey,
    check_signatures,
    read_keys,
)
from apex_creds.audit.line import leaves_of
from apex_creds.audit.note import Signature, VerifierKey
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.public_key import SigningKey
from apex_creds.errors import ApexCredsError, IntegrityError, InvalidInputError
from apex_creds.fs.home import audit_directory
from apex_creds.model import ApiKey
from apex_creds.vault import Vault

ORIGIN = "ab" * 16


@pytest.fixture(scope="module")
def key() -> LogKey:
    with SecretBytes.from_bytes(bytes(32)) as seed:
        return LogKey(ORIGIN, SigningKey.from_seed(seed))


def proof(entry: bytes, key: LogKey, *, index: str = "0") -> str:
    made = Checkpoint.make(1, tree.leaf_hash(entry), key=key)
    extra = base64.b64encode(entry).decode()
    return f"c2sp.org/tlog-proof@v1\nextra {extra}\nindex {index}\n\n{made}"


ENTRY = b'{"v":1,"seq":1,"time":1.0,"kind":"put"}'


def test_a_proof_is_checked_with_a_key_only(key: LogKey) -> None:
    assert proofs.check_inclusion(proof(ENTRY, key), keys=[key.verifier]).event.kind == "put"
    with pytest.raises(InvalidInputError, match="without a key"):
        proofs.check_inclusion(proof(ENTRY, key), keys=())


@pytest.mark.parametrize(
    "index",
    ["\u00b2", "\u0662", "00", "0 ", " 0", "+0", "-0", "0x0", "", "9" * 5000, "1_0", "0\r"],
)
def test_an_index_has_one_form(key: LogKey, index: str) -> None:
    with pytest.raises(IntegrityError):
        proofs.check_inclusion(proof(ENTRY, key, index=index), keys=[key.verifier])


@pytest.mark.parametrize(
    "entry",
    [b"[1,2]", b"\xff", b"{}", b"null", b"[" * 60_000, b'{"a":' * 9_000, b'{"time":1e999}',
     b'{"v":1,"seq":1,"time":' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_an_entry_that_is_no_event_is_said_to_be_none(key: LogKey, entry: bytes) -> None:
    proved = proofs.check_inclusion(proof(entry, key), keys=[key.verifier])
    with pytest.raises(IntegrityError, match="no event known here"):
        _ = proved.event


@given(text=st.text(max_size=80), at=st.integers(0, 400), data=st.data())
def test_nothing_raises_but_what_is_promised(
    key: LogKey, text: str, at: int, data: st.DataObject
) -> None:
    whole = proof(ENTRY, key)
    changed = whole[:at] + text + whole[data.draw(st.integers(at, at + 40)) :]
    for odd in (changed, text, str(Checkpoint.make(1, bytes(32), key=key))[:at] + text):
        for read in (note.parse, Checkpoint.parse, VerifierKey.parse):
            with_errors(read, odd)
        with_errors(lambda odd: proofs.check_inclusion(odd, keys=[key.verifier]).event, odd)


@pytest.mark.parametrize("odd", ["\ud800", "a\udfffb\n\n\u2014 x AAAAAAAA\n"])
def test_half_a_character_is_no_text(key: LogKey, odd: str) -> None:
    for text in (odd, f"{odd}\n\n\u2014 x {base64.b64encode(bytes(68)).decode()}\n"):
        with pytest.raises(IntegrityError):
            note.parse(text)
        with pytest.raises(ApexCredsError):
            VerifierKey.parse(f"{text}+00000000+AAAA")
    with pytest.raises(InvalidInputError):
        note.sign(f"{odd}\n", name=key.origin, key=key.signer)


def with_errors(read, text: str) -> None:
    with contextlib.suppress(ApexCredsError):
        read(text)


# -- signatures by nobody known ---------------------------------------------------------


def test_a_line_of_an_unknown_key_is_passed_over(key: LogKey) -> None:
    strange = Signature("witness.example/w1", b"\1\2\3\4", bytes(72))
    made = Checkpoint.make(5, bytes(32), key=key)
    signed = Checkpoint.parse(str(made.note.with_signatures([strange])))
    check_signatures(signed, (key.verifier,))
    alone = Checkpoint.parse(str(note.Note(made.note.text, (strange,))))
    with pytest.raises(IntegrityError, match="not signed"):
        check_signatures(alone, (key.verifier,))
    own = Signature(key.origin, key.verifier.id, bytes(64))
    with pytest.raises(IntegrityError):  # one of a known key that is wrong
        check_signatures(
            Checkpoint.parse(str(made.note.with_signatures([own]))), (key.verifier,)
        )


@pytest.mark.anyio
async def test_a_line_that_was_appended_shows_nothing_and_breaks_nothing(tmp_path) -> None:
    async with await Vault.create(tmp_path / "home", master=f"file:{tmp_path}/m.key") as vault:
        await vault.put("one", ApiKey("sk-made-up"))
        vault_id = vault.vault_id
    where = audit_directory(tmp_path / "home")
    strange = str(Signature("w.example/1", b"\1\2\3\4", bytes(72)).name)
    encoded = base64.b64encode(b"\1\2\3\4" + bytes(72)).decode()
    with (where / CHECKPOINTS).open("a", encoding="utf-8") as file:
        file.write(f"\u2014 {strange} {encoded}\n")
    assert check(where, vault_id=vault_id, keys=read_keys(where)).ok
    assert CheckpointFile(where, vault_id=vault_id).last() is not None
    async with await Vault.unseal(tmp_path / "home") as vault:
        assert [info.name for info in await vault.list()] == ["one"]


# -- lines ------------------------------------------------------------------------------


def hashed(body: bytes) -> bytes:
    digest = sha256(b"\0" + body).hexdigest().encode()
    return body[:-1] + b',"hash":"' + digest + b'"}\n'


@pytest.mark.parametrize(
    "body",
    [
        b'{"v":' + b"9" * 5000 + b',"seq":1}',
        b'{"v":1,"seq":' + b"9" * 5000 + b"}",
        b'{"v":1,"seq":1,"time":' + b"9" * 5000 + b"}",
        b'{"v":1,"seq":1,"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"v":2,"seq":1}',
        b"\xff\xfe",
        b"{}",
    ],
    ids=["version", "number", "time", "nested", "newer", "bytes", "empty"],
)
def test_a_line_made_to_hurt_is_a_fault(body: bytes) -> None:
    for text in (body + b"\n", hashed(body)):
        assert line.fault(1, text)
        assert leaves_of(text, 1, 0)[1]
        assert line.parse_header(text, segment=1, vault_id=ORIGIN) is None

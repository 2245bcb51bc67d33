"""Our log against implementations that we did not write: aics-tlog and pymerkle (PyPI)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apex_creds.audit import AuditEvent, AuditLog, EventKind, proofs, tree
from apex_creds.audit import note as notes
from apex_creds.audit.checkpoint import Checkpoint, CheckpointFile, LogKey, read_keys
from apex_creds.audit.line import entry_of
from apex_creds.audit.verify import entries
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.public_key import SigningKey
from apex_creds.model import SystemClock

VAULT = "ab" * 16
COUNT = 21


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, log_key: LogKey) -> Path:
    directory = tmp_path_factory.mktemp("interop") / "audit"
    log = AuditLog(directory, vault_id=VAULT, clock=SystemClock(), key=log_key)
    for number in range(COUNT):
        log.append(AuditEvent(1.0, EventKind.LEASE, detail=f"event {number}"))
        if number == 12:
            log.sign()
    log.close()
    return directory


@pytest.fixture
def raw(place: Path) -> list[bytes]:
    return [entry_of(text) for _, text in entries(place, vault_id=VAULT)]


def test_pymerkle_finds_the_same_roots_and_proofs(place: Path, raw: list[bytes]) -> None:
    pymerkle = pytest.importorskip("pymerkle")
    theirs = pymerkle.InmemoryTree(algorithm="sha256")
    for entry in raw:
        theirs.append_entry(entry)
    checkpoints = list(CheckpointFile(place, vault_id=VAULT).all())
    assert [each.size for each in checkpoints] == [13, COUNT]
    for each in checkpoints:
        assert theirs.get_root(each.size) == each.root
    leaves = [tree.leaf_hash(entry) for entry in raw]
    for size in range(1, COUNT + 1):
        for index in range(size):
            ours = tree.hashes_of(tree.inclusion_ranges(index, size), leaves)
            path = theirs.prove_inclusion(index + 1, size).path
            assert path == [leaves[index], *ours]


def test_aics_tlog_verifies_a_checkpoint_with_a_witness(place: Path) -> None:
    tlog = pytest.importorskip("aics_tlog")
    from apex_creds.audit.note import Algorithm, VerifierKey

    with SecretBytes.from_bytes(bytes(range(1, 33))) as seed:
        witness = SigningKey.from_seed(seed)
    ours = CheckpointFile(place, vault_id=VAULT).last()
    assert ours is not None
    signature = notes.cosign(ours.note, name="example.com/w1", key=witness, time=1_700_000_000)
    text = str(ours.note.with_signatures([signature]))
    log_key = tlog.parse_vkey(str(read_keys(place)[0]))
    vkey = VerifierKey("example.com/w1", witness.public, Algorithm.COSIGNATURE)
    result = tlog.verify_checkpoint(
        tlog.parse_note(text), log_key, [tlog.parse_vkey(str(vkey))], 1
    )
    assert result.log_ok
    assert result.ok, result
    read = tlog.parse_checkpoint(tlog.parse_note(text).text)
    assert (read.size, read.root) == (ours.size, ours.root)


def test_aics_tlog_verifies_our_proofs(place: Path, raw: list[bytes]) -> None:
    tlog = pytest.importorskip("aics_tlog")
    for seq in range(1, COUNT + 1):
        text = proofs.inclusion(place, vault_id=VAULT, seq=seq)
        head, _, note = text.partition("\n\n")
        checkpoint = tlog.parse_checkpoint(tlog.parse_note(note).text)
        path = [notes.bytes_of(each) for each in head.split("\n")[3:]]
        assert tlog.verify_leaf_inclusion(
            raw[seq - 1], seq - 1, checkpoint.size, path, checkpoint.root
        )
    first, last = CheckpointFile(place, vault_id=VAULT).all()
    hashes, _ = proofs.consistency(place, vault_id=VAULT, old=first.size)
    assert tlog.verify_consistency(first.size, last.size, first.root, last.root, hashes)


def test_we_verify_what_aics_tlog_signs() -> None:
    tlog = pytest.importorskip("aics_tlog")
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    key, witness = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    root = os.urandom(32)
    made = tlog.sign_checkpoint(
        tlog.Checkpoint(origin="example.com/log", size=7, root=root), key, "example.com/log"
    )
    _, line = tlog.sign_cosignature(witness, "w", 1_700_000_000, "example.com/log", 7, root)
    signed = tlog.Note(text=made.text, signatures=(*made.signatures, line))
    read = Checkpoint.parse(signed.serialise())
    assert (read.size, read.root, read.origin) == (7, root, "example.com/log")
    for vkey in (
        tlog.vkey_from_ed25519("example.com/log", key.public_key()),
        tlog.cosignature_vkey("w", witness.public_key()),
    ):
        read.note.check(notes.VerifierKey.parse(tlog.format_vkey(vkey)))

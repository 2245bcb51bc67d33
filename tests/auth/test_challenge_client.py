"""A client's key file: made once, closed to others, read strictly, never shown."""

from __future__ import annotations

import base64
import copy
import json
import os
import pickle
import stat
import sys
from pathlib import Path

import pytest

from apex_creds.auth import challenge
from apex_creds.auth.challenge_client import ClientKey
from apex_creds.errors import (
    ChallengeError,
    CorruptDocumentError,
    InvalidInputError,
    SecretMisuseError,
    SecretWipedError,
    StorageError,
    UnsafePathError,
    UnsafePermissionsError,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="no POSIX permissions")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "client.key"


def test_a_key_is_made_and_read_back(path):
    with ClientKey.generate(path) as made, ClientKey.load(path) as read:
        assert made.public == read.public
        assert made.id == read.id == challenge.client_id(made.public)
    assert path.read_bytes().startswith(b"apex-creds-client-key-v1 ")


@posix
def test_the_file_is_closed_to_others_under_any_umask(path):
    before = os.umask(0)
    try:
        ClientKey.generate(path).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_overwritten(path):
    path.write_bytes(b"precious")
    with pytest.raises(InvalidInputError):
        ClientKey.generate(path)
    assert path.read_bytes() == b"precious"


@posix
def test_links_are_not_followed(path, tmp_path):
    target = tmp_path / "target"
    path.symlink_to(target)
    with pytest.raises((InvalidInputError, UnsafePathError)):
        ClientKey.generate(path)
    assert not target.exists()
    ClientKey.generate(target).close()
    with pytest.raises(UnsafePathError):
        ClientKey.load(path)


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_is_open_to_others_is_not_read(path, mode):
    ClientKey.generate(path).close()
    path.chmod(mode)
    with pytest.raises(UnsafePermissionsError, match="chmod 600"):
        ClientKey.load(path)


@posix
def test_what_is_no_file_of_ours_is_not_read(path, tmp_path):
    with pytest.raises(StorageError):
        ClientKey.load(path)
    with pytest.raises((UnsafePathError, StorageError)):
        ClientKey.load(tmp_path)
    os.mkfifo(path, 0o600)
    with pytest.raises(UnsafePathError):
        ClientKey.load(path)
    path.unlink()
    with pytest.raises(StorageError):
        ClientKey.generate(tmp_path / "missing" / "client.key")
    if os.geteuid() == 0:
        ClientKey.generate(path).close()
        os.chown(path, 65534, 65534)
        with pytest.raises(UnsafePathError):
            ClientKey.load(path)


def test_a_file_that_is_not_exactly_a_key_is_refused(path):
    ClientKey.generate(path).close()
    good = path.read_bytes()
    bad = [good[:end] for end in range(len(good))]
    bad += [good + b"\n", b"\n" + good, good.replace(b"v1", b"v2"), good.replace(b" ", b"  "),
            good[:-2] + b"A\n", good[:-1] + b" ", b"x" * 100_000]  # fmt: skip
    for data in bad:
        path.write_bytes(data)
        with pytest.raises(CorruptDocumentError) as caught:
            ClientKey.load(path)
        assert good[25:69].decode() not in str(caught.value)


def test_it_can_not_be_shown_copied_or_used_after_it_was_closed(path):
    key = ClientKey.generate(path)
    seed = base64.b64decode(path.read_bytes().split()[1])
    assert seed.hex() not in repr(key) + str(vars(key))
    assert base64.b64encode(seed).decode() not in repr(key)
    for use in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(SecretMisuseError):
            use(key)
    with pytest.raises(TypeError):
        json.dumps(key)
    made = challenge.Challenge(
        vault_id="0" * 32,
        client=key.id,
        nonce=bytes(32),
        credential="c",
        plugin="p",
        expires=challenge.millis(key._clock.time() + 30),
    )
    assert len(key.answer(made.encode(), vault_id="0" * 32, allow=lambda _: True)) == 96
    with pytest.raises(ChallengeError):
        key.answer(made.encode(), vault_id="1" * 32, allow=lambda _: True)
    key.close()
    key.close()
    with pytest.raises(SecretWipedError):
        key.answer(made.encode(), vault_id="0" * 32, allow=lambda _: True)

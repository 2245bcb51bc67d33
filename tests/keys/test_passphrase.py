"""A passphrase comes from a prompt or a descriptor, and its parameters are bounded."""

from __future__ import annotations

import base64
import gc
import os
import pty

import pytest

from apex_creds.crypto.kdf import argon2id
from apex_creds.crypto.memory import SecretBytes, arena
from apex_creds.errors import (
    CorruptDocumentError,
    InvalidInputError,
    MasterKeyUnavailableError,
)
from apex_creds.keys import passphrase as module
from apex_creds.keys.passphrase import PassphraseProvider, terminal_prompt
from apex_creds.testing.providers import VAULT, MasterKeyProviderContract

pytestmark = pytest.mark.anyio

PASS = "correct horse battery staple"
MODERATE = {"opslimit": "3", "memlimit": "268435456"}


def typing(*answers: str):
    queue = list(answers)
    return lambda _text: queue.pop(0)


def pipe(data: bytes) -> int:
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    return read


class TestPassphraseContract(MasterKeyProviderContract):
    stores = False

    @pytest.fixture
    def reopen(self):
        return lambda: PassphraseProvider(prompt=lambda _text: PASS)


@pytest.mark.real_kdf
async def test_the_key_is_argon2id_of_the_passphrase():
    key, params = await PassphraseProvider(prompt=typing(PASS, PASS)).create(
        vault_id=VAULT, version=1
    )
    salt = base64.b64decode(params["salt"])
    with SecretBytes.from_bytes(PASS.encode()) as secret:
        expected = argon2id(secret, salt=salt, opslimit=3, memlimit=256 * 1024**2)
    with key, expected:
        assert key.equals(expected)
    assert params == {"salt": params["salt"], **MODERATE}
    assert len(salt) == 16


async def test_create_asks_twice_and_load_once():
    asked = []

    def prompt(text):
        asked.append(text)
        return PASS

    provider = PassphraseProvider(prompt=prompt)
    key, params = await provider.create(vault_id=VAULT, version=1)
    with key, await provider.load(vault_id=VAULT, version=1, params=params) as loaded:
        assert loaded.equals(key)
    assert asked == ["Passphrase: ", "Passphrase again: ", "Passphrase: "]


async def test_nothing_stays_open():
    gc.collect()
    before = arena().open_slots
    provider = PassphraseProvider(prompt=typing(PASS, PASS, "a", "b", PASS, ""))
    key, _ = await provider.create(vault_id=VAULT, version=1)
    key.close()
    for _ in range(2):
        with pytest.raises(InvalidInputError):
            await provider.create(vault_id=VAULT, version=1)
    assert arena().open_slots == before


@pytest.mark.parametrize(
    "answers",
    [
        ("", ""),
        (PASS, PASS + "x"),
        (PASS, ""),
        ("x" * 4097, "x" * 4097),
        ("\udcff", ""),
        ("x", "x"),
        ("fourteen chars",) * 2,
        ("abcd" * 9,) * 2,
    ],
)
async def test_passphrases_that_are_refused(answers):
    with pytest.raises(InvalidInputError) as caught:
        await PassphraseProvider(prompt=typing(*answers)).create(vault_id=VAULT, version=1)
    assert PASS not in str(caught.value)
    assert caught.value.__context__ is None


async def test_composed_and_decomposed_accents_are_the_same():
    key, _ = await PassphraseProvider(
        prompt=typing("un caf\u00e9 au lait", "un cafe\u0301 au lait")
    ).create(vault_id=VAULT, version=1)
    key.close()


async def test_no_prompt_is_said():
    with pytest.raises(MasterKeyUnavailableError, match="fd=N"):
        await PassphraseProvider().create(vault_id=VAULT, version=1)


async def test_a_prompt_that_ends_is_said():
    def prompt(_text):
        raise EOFError

    with pytest.raises(MasterKeyUnavailableError):
        await PassphraseProvider(prompt=prompt).create(vault_id=VAULT, version=1)


def test_the_terminal_prompt_never_echoes(monkeypatch):
    monkeypatch.setattr(module, "_has_terminal", lambda: False)
    with pytest.raises(MasterKeyUnavailableError):
        terminal_prompt("Passphrase: ")


@pytest.mark.parametrize(
    "data", [b"secret passphrase\n", b"secret passphrase", b"secret passphrase\nnext\n"]
)
async def test_a_descriptor_gives_its_first_line(data):
    fd = pipe(data)
    key, params = await PassphraseProvider(fd=fd).create(vault_id=VAULT, version=1)
    os.close(fd)
    with (
        key,
        await PassphraseProvider(prompt=typing("secret passphrase")).load(
            vault_id=VAULT, version=1, params=params
        ) as loaded,
    ):
        assert loaded.equals(key)


async def test_each_use_takes_the_next_line():
    fd = pipe(b"old\nnew\nrest")
    provider = PassphraseProvider(fd=fd)
    params = {"salt": base64.b64encode(bytes(16)).decode(), **MODERATE}
    for expected in ("old", "new"):
        typed = PassphraseProvider(prompt=typing(expected))
        with (
            await provider.load(vault_id=VAULT, version=1, params=params) as key,
            await typed.load(vault_id=VAULT, version=1, params=params) as same,
        ):
            assert key.equals(same)
    assert os.read(fd, 100) == b"rest"
    os.close(fd)


@pytest.mark.parametrize("data", [b"", b"\n", b"\nsecret\n", b"x" * 4097])
async def test_an_empty_or_endless_descriptor_is_refused(data):
    fd = pipe(data)
    with pytest.raises(InvalidInputError):
        await PassphraseProvider(fd=fd).create(vault_id=VAULT, version=1)
    os.close(fd)


async def test_the_longest_passphrase_is_taken():
    fd = pipe(b"0123456789abcdef" * 256)
    key, _ = await PassphraseProvider(fd=fd).create(vault_id=VAULT, version=1)
    os.close(fd)
    key.close()


async def test_a_closed_descriptor_is_said():
    fd = pipe(b"x")
    os.close(fd)
    with pytest.raises(MasterKeyUnavailableError, match=str(fd)):
        await PassphraseProvider(fd=fd).create(vault_id=VAULT, version=1)


async def test_a_terminal_is_not_a_descriptor_to_read_from():
    leader, follower = pty.openpty()
    with pytest.raises(MasterKeyUnavailableError, match="terminal"):
        await PassphraseProvider(fd=follower).create(vault_id=VAULT, version=1)
    os.close(leader)
    os.close(follower)


async def test_children_do_not_inherit_the_descriptor():
    fd = pipe(b"secret passphrase\nnew")
    os.set_inheritable(fd, True)
    (await PassphraseProvider(fd=fd).create(vault_id=VAULT, version=1))[0].close()
    assert not os.get_inheritable(fd)
    os.close(fd)


SALT = base64.b64encode(bytes(16)).decode()


@pytest.mark.parametrize(
    "params",
    [
        {"salt": SALT},
        {**MODERATE},
        {**MODERATE, "salt": ""},
        {**MODERATE, "salt": SALT[:-1]},
        {**MODERATE, "salt": SALT + "\n"},
        {**MODERATE, "salt": SALT[:-3] + "B=="},
        {**MODERATE, "salt": base64.b64encode(bytes(15)).decode()},
        {**MODERATE, "salt": "\u00e9"},
        {**MODERATE, "salt": SALT, "extra": "1"},
        {**MODERATE, "salt": SALT, "opslimit": "2"},
        {**MODERATE, "salt": SALT, "opslimit": "17"},
        {**MODERATE, "salt": SALT, "opslimit": "03"},
        {**MODERATE, "salt": SALT, "opslimit": "-3"},
        {**MODERATE, "salt": SALT, "opslimit": "\u0663"},
        {**MODERATE, "salt": SALT, "opslimit": " 3"},
        {**MODERATE, "salt": SALT, "opslimit": "9" * 5000},
        {**MODERATE, "salt": SALT, "memlimit": "8192"},
        {**MODERATE, "salt": SALT, "memlimit": str(1024**3 + 1)},
    ],
)
async def test_parameters_out_of_bounds_are_refused_before_asking(params):
    def prompt(_text):
        raise AssertionError("asked")

    with pytest.raises(CorruptDocumentError):
        await PassphraseProvider(prompt=prompt).load(vault_id=VAULT, version=1, params=params)


async def test_a_vault_whose_key_is_elsewhere_is_not_called_damaged():
    with pytest.raises(MasterKeyUnavailableError, match="from no passphrase"):
        await PassphraseProvider(prompt=typing(PASS)).load(vault_id=VAULT, version=1, params={})


def test_repr_and_uri_hold_nothing():
    provider = PassphraseProvider(prompt=typing(PASS))
    assert PASS not in repr(provider) + provider.uri

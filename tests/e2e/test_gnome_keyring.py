"""The keyring provider against a real gnome-keyring, over a real D-Bus."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from keyring.backends.SecretService import Keyring

from apex_creds.errors import (
    MasterKeyNotFoundError,
    MasterKeyUnavailableError,
    WrongMasterKeyError,
)
from apex_creds.keys import provider_from_uri
from apex_creds.keys.os_keyring import SERVICE, KeyringProvider
from apex_creds.testing.providers import VAULT, MasterKeyProviderContract
from tests.support.realparts import gnome_keyring, gnome_keyring_missing

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(bool(gnome_keyring_missing()), reason=gnome_keyring_missing()),
]

secretstorage = pytest.importorskip("secretstorage", reason="keyring needs it on Linux only")
ENTRY = f"{VAULT}:v1"
ATTRIBUTES = {"service": SERVICE, "username": ENTRY}


@pytest.fixture
def environment():
    with gnome_keyring() as env:
        yield env


@pytest.fixture
def bus(environment, monkeypatch):
    """This process finds the keyring too."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with closing(secretstorage.dbus_init()) as connection:
        yield connection


def provider() -> KeyringProvider:
    return KeyringProvider(Keyring())


async def create() -> bytes:
    with (await provider().create(vault_id=VAULT, version=1))[0] as key:
        return key.expose_bytes()


async def load() -> bytes:
    with await provider().load(vault_id=VAULT, version=1, params={}) as key:
        return key.expose_bytes()


def stored(bus) -> list[bytes]:
    found = secretstorage.get_default_collection(bus).search_items(ATTRIBUTES)
    return [item.get_secret() for item in found]


class TestGnomeKeyringContract(MasterKeyProviderContract):
    @pytest.fixture
    def reopen(self, bus):
        return provider


async def test_create_and_load(bus):
    key = await create()
    assert stored(bus) == [base64.b64encode(key)]
    assert await load() == key


async def test_missing(bus):
    with pytest.raises(MasterKeyNotFoundError, match=VAULT):
        await load()
    await create()
    await provider().discard(vault_id=VAULT, version=1)
    with pytest.raises(MasterKeyNotFoundError):
        await load()
    assert stored(bus) == []


async def test_locked(bus, monkeypatch):
    await create()
    connect, opened = secretstorage.dbus_init, []
    monkeypatch.setattr(
        secretstorage, "dbus_init", lambda: opened.append(connect()) or opened[-1]
    )
    secretstorage.get_default_collection(bus).lock()
    for attempt in (create(), load(), provider().discard(vault_id=VAULT, version=1)):
        with pytest.raises(MasterKeyUnavailableError, match="locked") as caught:
            await attempt
        assert "Unlock" in caught.value.hint
    for connection in opened:  # keyring's backend leaves them open when it is locked
        connection.close()


async def test_overwritten_by_another_program(bus):
    key = await create()
    other = base64.b64encode(bytes(32)).decode()
    Keyring().set_password(SERVICE, ENTRY, other)
    assert await load() == bytes(32) != key
    Keyring().set_password(SERVICE, ENTRY, "hunter2")
    with pytest.raises(WrongMasterKeyError) as caught:
        await load()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("secret", "content_type"),
    [
        (b"\xff\x00binary", "application/octet-stream"),
        (b"", "text/plain"),
        (b"a note\n", "text/plain"),
    ],
)
async def test_an_entry_of_the_wrong_type_is_refused_and_kept(bus, secret, content_type):
    collection = secretstorage.get_default_collection(bus)
    collection.create_item("a note", ATTRIBUTES, secret, content_type=content_type)
    for attempt in (load(), create()):
        with pytest.raises(WrongMasterKeyError):
            await attempt
    assert stored(bus) == [secret]


PROGRAM = """
import asyncio, sys
from apex_creds.errors import ApexCredsError
from apex_creds.keys import provider_from_uri
async def main():
    provider = provider_from_uri("keyring:")
    key, _ = await provider.create(vault_id=sys.argv[1], version=1)
    again = await provider.load(vault_id=sys.argv[1], version=1, params={})
    print(key.equals(again), key.expose_bytes().hex(), await provider.backend_name())
try:
    asyncio.run(main())
except ApexCredsError as error:
    print(type(error).__name__, error)
"""


def start(env: dict[str, str], *, pinned: bool = True) -> subprocess.Popen[str]:
    env = {**env, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    if not pinned:
        env.pop("PYTHON_KEYRING_BACKEND")
    command = [sys.executable, "-W", "error", "-c", PROGRAM, VAULT]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_processes_that_race_get_one_key(bus, environment):
    runs = [start(environment) for _ in range(4)]
    outputs = sorted(run.communicate(timeout=480)[0] for run in runs)
    assert [line.split()[0] for line in outputs] == ["MasterKeyExistsError"] * 3 + ["True"]
    made = bytes.fromhex(outputs[-1].split()[1])
    assert stored(bus) == [base64.b64encode(made)], "the key is not the one maker's"


def test_the_backend_that_keyring_selects_by_itself(environment):
    first = start(environment, pinned=False).communicate(timeout=480)[0]
    assert first.startswith("True ")
    assert "SecretService" in first


async def test_the_key_survives_its_process_in_the_encrypted_file(bus, environment):
    key = start(environment).communicate(timeout=480)[0].split()[1]
    assert start(environment).communicate(timeout=480)[0].startswith("MasterKeyExistsError ")
    assert (await load()).hex() == key
    files = Path(environment["XDG_DATA_HOME"], "keyrings").iterdir()
    data = b"".join(file.read_bytes() for file in files)
    assert len(data) > 100
    assert base64.b64encode(bytes.fromhex(key)) not in data


def test_a_keyring_that_was_never_set_up():
    with gnome_keyring(password=None) as env:
        output = start(env).communicate(timeout=480)[0]
    assert output.startswith("MasterKeyUnavailableError")
    assert "not set up" in output


def test_a_bus_that_is_gone():
    with gnome_keyring() as env:
        pass
    output = start(env).communicate(timeout=480)[0]
    assert output.startswith("MasterKeyUnavailableError")


def test_the_uri():
    assert provider_from_uri("keyring:").uri == "keyring:"

"""The keyring is used only if it encrypts, and nothing in it is overwritten."""

from __future__ import annotations

import base64
import gc
import logging
import os
import subprocess
import sys
import threading
import traceback

import keyring
import keyring.backends.chainer
import keyring.backends.fail
import keyring.backends.null
import keyring.errors
import pytest
from keyring.backend import KeyringBackend

from apex_creds.crypto.memory import arena
from apex_creds.errors import (
    MasterKeyExistsError,
    MasterKeyNotFoundError,
    MasterKeyUnavailableError,
    UnsafeKeyringError,
    WrongMasterKeyError,
)
from apex_creds.keys.os_keyring import SERVICE, KeyringProvider
from apex_creds.testing.providers import VAULT, MasterKeyProviderContract

pytestmark = pytest.mark.anyio

ENTRY = f"{VAULT}:v1"


# keyring registers every subclass for discovery, so these must look unusable to it.
class Memory(KeyringBackend):
    priority = -1

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], str] = {}
        self.lock = threading.Lock()

    def get_password(self, service, username):
        with self.lock:
            return self.entries.get((service, username))

    def set_password(self, service, username, password):
        with self.lock:
            self.entries[service, username] = password

    def delete_password(self, service, username):
        if self.entries.pop((service, username), None) is None:
            raise keyring.errors.PasswordDeleteError("No such password!")


class PlaintextKeyring(Memory):
    priority = -1


class Renamed(PlaintextKeyring):
    priority = -1


class UncryptedFileKeyring(Memory):
    priority = -1


class Wrapper(Memory):
    priority = -1

    def __init__(self, inner: KeyringBackend) -> None:
        super().__init__()
        self._keyring = inner


class Chain(keyring.backends.chainer.ChainerBackend):
    priority = -1
    backends: list[KeyringBackend] = []  # noqa: RUF012

    def __init__(self, *members: KeyringBackend) -> None:
        self.backends = list(members)


class Forgetful(Memory):
    priority = -1

    def set_password(self, service, username, password):
        pass


class Altering(Memory):
    priority = -1

    def set_password(self, service, username, password):
        super().set_password(service, username, base64.b64encode(bytes(32)).decode())


class Sticky(Memory):
    priority = -1

    def delete_password(self, service, username):
        pass


class Failing(Memory):
    """Raises the given error, with the secret in it, as a careless backend would."""

    priority = -1

    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.error = error

    def get_password(self, service, username):
        if self.error is UnicodeDecodeError:
            return b"\xffsecret-in-exception".decode()
        raise self.error("secret-in-exception")


class FailingSet(Memory):
    priority = -1

    def set_password(self, service, username, password):
        raise keyring.errors.PasswordSetError(f"could not store {password}")


class LockedException(Exception):  # secretstorage's, by name
    pass


class TestKeyringContract(MasterKeyProviderContract):
    @pytest.fixture
    def reopen(self):
        backend = Memory()
        return lambda: KeyringProvider(backend)


def settled() -> int:
    """Open slots, without those that earlier tests lost."""
    gc.collect()
    return arena().open_slots


async def create(backend):
    return (await KeyringProvider(backend).create(vault_id=VAULT, version=1))[0]


async def load(backend):
    return await KeyringProvider(backend).load(vault_id=VAULT, version=1, params={})


async def test_the_entry_is_standard_base64_under_our_service():
    backend = Memory()
    with await create(backend) as key:
        expected = base64.b64encode(key.expose_bytes()).decode()
    assert backend.entries == {(SERVICE, ENTRY): expected}
    assert SERVICE == "apex-creds"


@pytest.mark.parametrize(
    "backend",
    [
        keyring.backends.null.Keyring(),
        keyring.backends.fail.Keyring(),
        PlaintextKeyring(),
        Renamed(),
        UncryptedFileKeyring(),
        Wrapper(PlaintextKeyring()),
        Wrapper(Wrapper(PlaintextKeyring())),
        Chain(),
        Chain(PlaintextKeyring()),
        Chain(keyring.backends.null.Keyring(), PlaintextKeyring()),
        Chain(Chain(PlaintextKeyring())),
    ],
    ids=lambda b: type(b).__name__,
)
async def test_unsafe_backends_are_refused_by_name(backend):
    provider = KeyringProvider(backend)
    for attempt in (create(backend), load(backend), provider.backend_name()):
        with pytest.raises(UnsafeKeyringError) as caught:
            await attempt
        assert "file:PATH" in caught.value.hint
        assert "passphrase:" in caught.value.hint
        assert "." in caught.value.message
    assert not getattr(backend, "entries", None)


async def test_a_chain_is_narrowed_to_its_safe_members():
    plain, safe = PlaintextKeyring(), Memory()
    planted = base64.b64encode(bytes(32)).decode()
    plain.set_password(SERVICE, ENTRY, planted)
    chain = Chain(plain, safe)
    with await create(chain) as key, await load(chain) as loaded:
        assert loaded.equals(key)
        assert not key.equals(bytes(32))
    assert list(safe.entries) == [(SERVICE, ENTRY)]
    assert plain.entries == {(SERVICE, ENTRY): planted}


async def test_a_chain_of_plain_and_locked_does_not_fall_through():
    plain = PlaintextKeyring()
    with pytest.raises(MasterKeyUnavailableError):
        await create(Chain(Failing(keyring.errors.KeyringLocked), plain, Memory()))
    assert not plain.entries


async def test_a_chain_of_itself_ends():
    chain = Chain()
    chain.backends.append(chain)
    with pytest.raises(UnsafeKeyringError):
        await load(chain)


async def test_the_key_is_found_in_any_safe_member_and_deleted_from_it():
    first, second = Memory(), Memory()
    with await create(second) as key, await load(Chain(first, second)) as loaded:
        assert loaded.equals(key)
    await KeyringProvider(Chain(first, second)).discard(vault_id=VAULT, version=1)
    assert not second.entries


async def test_missing():
    with pytest.raises(MasterKeyNotFoundError, match=SERVICE):
        await load(Memory())


@pytest.mark.parametrize("text", ["", "hunter2", "A" * 44, "\u00e9" * 44, "x" * 100_000])
async def test_an_entry_of_another_type_is_refused_and_kept(text):
    backend = Memory()
    backend.set_password(SERVICE, ENTRY, text)
    for attempt in (load(backend), create(backend)):
        with pytest.raises(WrongMasterKeyError) as caught:
            await attempt
        assert "hunter2" not in str(caught.value)
    assert backend.entries == {(SERVICE, ENTRY): text}


async def test_binary_entries_are_refused():
    with pytest.raises(WrongMasterKeyError) as caught:
        await load(Failing(UnicodeDecodeError))
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (keyring.errors.KeyringLocked, "locked"),
        (LockedException, "locked"),
        (keyring.errors.InitError, "not set up"),
        (keyring.errors.KeyringError, "KeyringError"),
        (ConnectionError, "ConnectionError"),
        (RuntimeError, "RuntimeError"),
        (KeyError, "KeyError"),
    ],
)
async def test_backend_errors_become_ours_without_their_text(error, said):
    for attempt in (load(Failing(error)), create(Failing(error))):
        with pytest.raises(MasterKeyUnavailableError, match=said) as caught:
            await attempt
        assert caught.value.hint
        assert caught.value.__context__ is None
        assert "secret" not in "".join(traceback.format_exception(caught.value))


async def test_no_keyring_lists_the_alternatives():
    with pytest.raises(UnsafeKeyringError, match="passphrase:"):
        await load(Failing(keyring.errors.NoKeyringError))


async def test_a_failed_write_says_nothing_of_the_key(caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(MasterKeyUnavailableError) as caught:
        await create(FailingSet())
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "could not store" not in shown
    assert caught.value.__context__ is None


@pytest.mark.parametrize("backend", [Forgetful, Altering, FailingSet])
async def test_what_is_not_kept_is_not_used(backend):
    before = settled()
    with pytest.raises(MasterKeyUnavailableError) as caught:
        await create(backend())
    assert arena().open_slots == before
    assert caught.value.hint


async def test_a_delete_that_does_not_delete_is_said():
    backend = Sticky()
    (await create(backend)).close()
    with pytest.raises(MasterKeyUnavailableError, match="did not delete"):
        await KeyringProvider(backend).discard(vault_id=VAULT, version=1)


async def test_no_slot_stays_open():
    before, backend = settled(), Memory()
    (await create(backend)).close()
    with pytest.raises(MasterKeyExistsError):
        await create(backend)
    (await load(backend)).close()
    assert arena().open_slots == before


async def test_the_name_of_the_backend_for_doctor():
    assert (await KeyringProvider(Memory()).backend_name()).endswith(".Memory")


def child(program: str, home: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {
        "PATH": os.environ["PATH"],
        "HOME": home,
        "PYTHONPATH": os.pathsep.join(sys.path),
        **env,
    }
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, env=clean, capture_output=True, text=True, timeout=480)


LOAD = """
import asyncio
from apex_creds.errors import ApexCredsError
from apex_creds.keys import provider_from_uri
try:
    asyncio.run(provider_from_uri("keyring:").load(vault_id="a", version=1, params={}))
except ApexCredsError as error:
    print(type(error).__name__, error)
"""


def test_a_machine_without_a_keyring(fresh_home):
    done = child(LOAD, str(fresh_home))  # or with keyrings.alt's, where it is installed
    assert done.stdout.startswith("UnsafeKeyringError The keyring backend keyring")


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("keyring.backends.null.Keyring", "UnsafeKeyringError"),
        ("no.such.module.Keyring", "MasterKeyUnavailableError"),
        ("keyring.backends.macOS.Keyring", "MasterKeyUnavailableError"),
        ("nonsense", "MasterKeyUnavailableError"),
    ],
)
def test_a_backend_chosen_by_the_environment(fresh_home, backend, said):
    done = child(LOAD, str(fresh_home), PYTHON_KEYRING_BACKEND=backend)
    assert done.stdout.startswith(said)
    assert not done.stderr


def test_the_plain_text_backend_of_keyrings_alt(fresh_home):
    pytest.importorskip("keyrings.alt", reason="keyrings.alt is not installed")
    done = child(
        LOAD, str(fresh_home), PYTHON_KEYRING_BACKEND="keyrings.alt.file.PlaintextKeyring"
    )
    assert done.stdout.startswith("UnsafeKeyringError")

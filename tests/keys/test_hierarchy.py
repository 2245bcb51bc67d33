"""Keys in memory: what is derived from what, what opens where, and what is left at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.crypto.memory import SecretBytes, arena
from apex_creds.errors import (
    DecryptionError,
    IntegrityError,
    SecretWipedError,
    UnknownKeyError,
    VaultSealedError,
)
from apex_creds.keys.hierarchy import (
    CHECK_BYTES,
    KEY_BYTES,
    SALT_BYTES,
    Hierarchy,
    derive_kek,
    master_check,
)
from apex_creds.keys.keyset import Keyset

VAULT, OTHER = "0123456789abcdef" * 2, "f" * 32
KEK_ID, DEK_ID = "a" * 32, "b" * 32


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = arena().open_slots
    yield
    assert arena().open_slots == before


@pytest.fixture
def master() -> Iterator[SecretBytes]:
    with SecretBytes.from_bytes(b"m" * KEY_BYTES) as key:
        yield key


def keks(*salts: bytes) -> Keyset:
    made = Keyset.new(id=KEK_ID, label="kek", material=salts[0], parent=1, now=1.0)
    for salt in salts[1:]:
        made = made.add_pending(material=salt, parent=1, now=1.0)
        made = made.promote(made.versions[-1].version, now=1.0)
    return made


ONE = keks(b"s" * SALT_BYTES)
TWO = keks(b"s" * SALT_BYTES, b"t" * SALT_BYTES)


@pytest.fixture
def hierarchy(master: SecretBytes) -> Iterator[Hierarchy]:
    made = Hierarchy.from_master(master, vault_id=VAULT, keks=TWO)
    yield made
    made.close()


def dek(hierarchy: Hierarchy, *, kek_version: int = 1, fill: bytes = b"d") -> Keyset:
    with SecretBytes.from_bytes(fill * KEY_BYTES) as key:
        wrapped = hierarchy.wrap(key, key_id=DEK_ID, version=1, kek_version=kek_version)
    return Keyset.new(id=DEK_ID, label="a/b", material=wrapped, parent=kek_version, now=1.0)


def test_the_check_tells_a_right_master_key_and_nothing_of_it(master: SecretBytes) -> None:
    check = master_check(master, vault_id=VAULT)
    assert len(check) == CHECK_BYTES
    assert check == master_check(master, vault_id=VAULT)
    assert check != master_check(master, vault_id=OTHER)
    with SecretBytes.from_bytes(b"n" * KEY_BYTES) as wrong:
        assert check != master_check(wrong, vault_id=VAULT)


def test_a_kek_depends_on_master_salt_version_and_vault(master: SecretBytes) -> None:
    def exposed(
        vault_id: str, keyset: Keyset, version: int, key: SecretBytes = master
    ) -> bytes:
        with derive_kek(key, keyset.get(version), vault_id=vault_id) as kek:
            return kek.expose_bytes()

    same_salt = keks(b"s" * SALT_BYTES, b"s" * SALT_BYTES)
    with SecretBytes.from_bytes(b"n" * KEY_BYTES) as wrong:
        found = [
            exposed(VAULT, ONE, 1),
            exposed(OTHER, ONE, 1),
            exposed(VAULT, TWO, 2),
            exposed(VAULT, same_salt, 2),
            exposed(VAULT, ONE, 1, wrong),
        ]
    assert len(set(found)) == len(found)
    assert {len(kek) for kek in found} == {KEY_BYTES}
    assert exposed(VAULT, TWO, 1) == found[0]


def test_the_master_key_is_not_kept(master: SecretBytes) -> None:
    made = Hierarchy.from_master(master, vault_id=VAULT, keks=ONE)
    master.close()
    assert made.document_keys("api_keys", 1).body
    made.close()


def test_destroyed_keks_are_not_derived(master: SecretBytes) -> None:
    destroyed = TWO.retire(1, now=2.0).destroy(1, now=2.0)
    made = Hierarchy.from_master(master, vault_id=VAULT, keks=destroyed)
    assert made.kek_versions == {2}
    with pytest.raises(UnknownKeyError) as caught:
        made.document_keys("api_keys", 1)
    assert caught.value.hint
    made.close()


def test_every_document_and_purpose_has_a_key_of_its_own(hierarchy: Hierarchy) -> None:
    keys = [
        key.expose_bytes()
        for section in ("keystore", "api_keys", "oauth_tokens")
        for version in (1, 2)
        for key in hierarchy.document_keys(section, version)
    ]
    assert len(set(keys)) == 12
    assert hierarchy.document_keys("api_keys", 1) is hierarchy.document_keys("api_keys", 1)


@pytest.mark.parametrize("kek_version", [1, 2])
def test_a_wrapped_dek_comes_back(hierarchy: Hierarchy, kek_version: int) -> None:
    keyset = dek(hierarchy, kek_version=kek_version)
    found = hierarchy.unwrap(keyset, 1)
    assert found.equals(b"d" * KEY_BYTES)
    assert hierarchy.unwrap(keyset, 1) is found


def test_a_wrapped_dek_opens_only_as_itself(hierarchy: Hierarchy, master: SecretBytes) -> None:
    material = dek(hierarchy).primary.material
    renamed = Keyset.new(id="c" * 32, label="a/b", material=material, parent=1, now=1.0)
    with pytest.raises(DecryptionError):
        hierarchy.unwrap(renamed, 1)
    moved = renamed.add_pending(material=material, parent=1, now=1.0)
    with pytest.raises(DecryptionError):
        hierarchy.unwrap(moved, 2)
    for made in (
        Hierarchy.from_master(master, vault_id=OTHER, keks=TWO),
        Hierarchy.from_master(master, vault_id=VAULT, keks=keks(b"u" * SALT_BYTES)),
    ):
        with pytest.raises(DecryptionError):
            made.unwrap(
                Keyset.new(id=DEK_ID, label="", material=material, parent=1, now=1.0), 1
            )
        made.close()


@given(at=st.integers(0, 200), bit=st.integers(0, 7))
def test_an_altered_wrapping_does_not_open(at: int, bit: int) -> None:
    with SecretBytes.from_bytes(b"m" * KEY_BYTES) as key:
        made = Hierarchy.from_master(key, vault_id=VAULT, keks=ONE)
    material = bytearray(dek(made).primary.material)
    material[at % len(material)] ^= 1 << bit
    altered = Keyset.new(id=DEK_ID, label="", material=bytes(material), parent=1, now=1.0)
    with pytest.raises(IntegrityError):
        made.unwrap(altered, 1)
    made.close()


def test_a_destroyed_version_is_said_to_be_destroyed(hierarchy: Hierarchy) -> None:
    keyset = dek(hierarchy).add_pending(material=b"x", parent=1, now=1.0).promote(2, now=1.0)
    gone = keyset.retire(1, now=1.0).destroy(1, now=1.0)
    with pytest.raises(UnknownKeyError, match="destroyed"):
        hierarchy.unwrap(gone, 1)
    with pytest.raises(UnknownKeyError):
        hierarchy.unwrap(gone, 3)


def test_a_forgotten_dek_is_wiped(hierarchy: Hierarchy) -> None:
    found = hierarchy.unwrap(dek(hierarchy), 1)
    hierarchy.forget(DEK_ID, 1)
    hierarchy.forget(DEK_ID, 1)
    with pytest.raises(SecretWipedError):
        found.expose_bytes()


def test_nothing_works_and_nothing_is_left_after_close(hierarchy: Hierarchy) -> None:
    keyset = dek(hierarchy)
    held = [hierarchy.unwrap(keyset, 1), *hierarchy.document_keys("api_keys", 2)]
    hierarchy.close()
    hierarchy.close()
    assert all(key.closed for key in held)
    with pytest.raises(VaultSealedError):
        hierarchy.document_keys("api_keys", 2)
    with pytest.raises(VaultSealedError):
        hierarchy.unwrap(keyset, 1)
    with pytest.raises(VaultSealedError), SecretBytes.random(KEY_BYTES) as key:
        hierarchy.wrap(key, key_id=DEK_ID, version=1, kek_version=1)

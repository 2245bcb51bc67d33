"""What bad input gets: a specific error that says what to do, and nothing changed on disk.

DESIGN rules 6 and 10; the audit log alone may grow.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from apex_creds.errors import (
    ApexCredsError,
    AuditUnavailableError,
    CorruptDocumentError,
    CredentialExistsError,
    CredentialNotFoundError,
    ForeignDocumentError,
    ForeignVaultError,
    IntegrityError,
    InvalidInputError,
    InvalidNameError,
    MasterKeyError,
    MasterKeyNotFoundError,
    MasterKeyUnavailableError,
    RollbackDetectedError,
    StorageError,
    StorageFullError,
    StorageReadOnlyError,
    UnsafePathError,
    UnsafePermissionsError,
    UnsupportedFormatError,
    ValueTooLargeError,
    VaultExistsError,
    VaultNotFoundError,
    VaultSealedError,
    WrongMasterKeyError,
)
from apex_creds.keys.key_file import FileProvider
from apex_creds.model import MAX_SECRET_BYTES, ApiKey, BasicAuth, GenericSecret
from apex_creds.vault import PutItem, Vault
from tests.support.disks import as_root, mounted
from tests.support.vaults import (
    create,
    finish,
    home_in,
    keystore_file,
    master_in,
    section_file,
    start,
    together,
    tree,
    unseal,
    value_of,
    values,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is changed by hand here does not tell the storage's counter."""
    monkeypatch.setattr("apex_creds.storage.file_storage._LOOK_EVERY", 0.0, raising=False)


@pytest.fixture
async def small(tmp_path: Path) -> Path:
    """A sealed vault with one credential."""
    async with await create(tmp_path) as vault:
        await vault.put("a", ApiKey("first"))
    return tmp_path


@contextlib.asynccontextmanager
async def refused(
    where: Path,
    expected: type[ApexCredsError] | tuple[type[ApexCredsError], ...],
    match: str | None = None,
) -> AsyncIterator[None]:
    """The block raises exactly this, with a hint, and the home is as it was."""
    before = tree(home_in(where))
    with pytest.raises(expected, match=match) as caught:
        yield
    assert caught.value.hint, f"{caught.value!r} does not say what to do"
    assert tree(home_in(where)) == before


async def everything(where: Path) -> None:
    """Unseals, reads all there is, and writes."""
    async with await unseal(where) as vault:
        await values(vault)
        await vault.put("more", ApiKey("more"))


# -- documents that are not what was written -----------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "flipped"])
async def test_a_key_store_damaged_at_any_byte(small: Path, how: str) -> None:
    file = keystore_file(small)
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(damaged(whole, at, how))
        async with refused(small, ApexCredsError):
            try:
                await everything(small)
            except (IntegrityError, MasterKeyError, InvalidInputError, StorageError):
                raise  # a class that says what it is
    file.write_bytes(whole)
    await everything(small)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "flipped"])
async def test_a_section_damaged_at_any_byte(small: Path, how: str) -> None:
    file = section_file(small)
    whole = file.read_bytes()
    async with await unseal(small) as vault:
        for at in range(len(whole)):
            file.write_bytes(damaged(whole, at, how))
            async with refused(small, IntegrityError):
                await vault.list()
            if at % 16 == 0:
                await refuses_all(small, vault)
        file.write_bytes(whole)
        assert await values(vault) == {"a": b"first"}


async def refuses_all(where: Path, vault: Vault) -> None:
    async with refused(where, IntegrityError):
        await vault.put("a", ApiKey("second"))
    async with refused(where, IntegrityError):
        await vault.put("b", ApiKey("second"))
    async with refused(where, IntegrityError):
        await vault.delete("a")
    async with refused(where, IntegrityError):
        await value_of(vault, "a")


def damaged(whole: bytes, at: int, how: str) -> bytes:
    if how == "cut":
        return whole[:at]
    return whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]


@pytest.mark.parametrize("tail", [b" ", b"\n", b"\0", b"{}", b'"}'])
async def test_a_document_with_something_behind_it(small: Path, tail: bytes) -> None:
    for file in (keystore_file(small), section_file(small)):
        whole = file.read_bytes()
        file.write_bytes(whole + tail)
        async with refused(small, CorruptDocumentError):
            await everything(small)
        file.write_bytes(whole)


async def test_a_document_in_another_spelling(small: Path) -> None:
    for file in (keystore_file(small), section_file(small)):
        whole = file.read_bytes()
        for spelled in (json.dumps(json.loads(whole)), json.dumps(json.loads(whole), indent=1)):
            file.write_text(spelled)
            async with refused(small, CorruptDocumentError):
                await everything(small)
        file.write_bytes(whole)


async def test_an_unknown_field(small: Path) -> None:
    for file in (keystore_file(small), section_file(small)):
        whole = file.read_bytes()
        file.write_bytes(b'{"extra":1,' + whole[1:])
        async with refused(small, CorruptDocumentError):
            await everything(small)
        file.write_bytes(whole)


async def test_a_newer_format_version_says_upgrade(small: Path) -> None:
    for file in (keystore_file(small), section_file(small)):
        whole = file.read_bytes()
        newer = {"format": "apex-creds/document", "version": 9, "something": ["new"]}
        for data in (json.dumps(newer).encode(), whole.replace(b'"version":2', b'"version":9')):
            file.write_bytes(data)
            async with refused(small, UnsupportedFormatError, match="upgrade"):
                await everything(small)
        file.write_bytes(whole)


async def test_the_section_of_another_vault(small: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    async with await Vault.create(
        home_in(other), master=master_in(tmp_path), use_existing_key=True
    ) as vault:
        await vault.put("a", ApiKey("theirs"))
    shutil.copy(section_file(other), section_file(small))
    async with refused(small, ForeignDocumentError):
        await everything(small)


async def test_the_key_store_of_another_vault_under_the_same_master_key(
    small: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    async with await Vault.create(
        home_in(other), master=master_in(tmp_path), use_existing_key=True
    ) as vault:
        await vault.put("a", ApiKey("theirs"))
    shutil.copy(keystore_file(other), keystore_file(small))
    for path in (home_in(small) / "security/audit").iterdir():
        path.unlink()
    for anchor in tmp_path.rglob("*.anchor"):
        anchor.unlink()
    async with refused(small, ForeignVaultError):
        await everything(small)


async def test_the_key_store_of_another_vault_under_a_live_one(
    small: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    await (await create(other)).close()
    async with await unseal(small) as vault:
        shutil.copy(keystore_file(other), keystore_file(small))
        async with refused(small, ForeignDocumentError):
            await vault.put("a", ApiKey("second"))
        async with refused(small, ForeignDocumentError):
            await vault.grants()


async def test_swapped_sections(small: Path) -> None:
    async with await unseal(small) as vault:
        await vault.put("b", BasicAuth("user", "password"))
    one, two = section_file(small), section_file(small, "basic_auth")
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    async with refused(small, ForeignDocumentError):
        await everything(small)


async def test_a_section_in_place_of_the_key_store_and_the_other_way(small: Path) -> None:
    keystore, section = keystore_file(small).read_bytes(), section_file(small).read_bytes()
    keystore_file(small).write_bytes(section)
    async with refused(small, ForeignDocumentError):
        await everything(small)
    keystore_file(small).write_bytes(keystore)
    section_file(small).write_bytes(keystore)
    async with refused(small, ForeignDocumentError):
        await everything(small)


async def test_a_missing_section_is_not_an_empty_start(small: Path) -> None:
    section_file(small).unlink()
    async with refused(small, CorruptDocumentError, match="missing"):
        await everything(small)
    async with await unseal(small) as vault:
        async with refused(small, CorruptDocumentError, match="missing"):
            await vault.put("b", ApiKey("b"))
        async with refused(small, CorruptDocumentError, match="missing"):
            await vault.delete("a")


async def test_a_section_that_goes_missing_under_a_live_vault(small: Path) -> None:
    async with await unseal(small) as vault:
        await vault.list()
        section_file(small).unlink()
        async with refused(small, CorruptDocumentError, match="missing"):
            await vault.put("a", ApiKey("second"))


async def test_a_missing_key_store(small: Path) -> None:
    async with await unseal(small) as vault:
        keystore_file(small).unlink()
        async with refused(small, CorruptDocumentError, match="missing"):
            await vault.put("a", ApiKey("second"))
    async with refused(small, VaultNotFoundError):
        await unseal(small)


async def test_no_new_vault_over_the_credentials_of_a_lost_key_store(small: Path) -> None:
    keystore_file(small).unlink()
    async with refused(small, VaultExistsError, match="key store"):
        await create(small)


@pytest.mark.parametrize("which", ["section", "keystore"])
async def test_a_document_rolled_back_under_a_live_vault(small: Path, which: str) -> None:
    file = section_file(small) if which == "section" else keystore_file(small)
    old = file.read_bytes()
    async with await unseal(small) as vault:
        await vault.put("a", ApiKey("second"), service="other")
        file.write_bytes(old)
        async with refused(small, RollbackDetectedError):
            await vault.list() if which == "section" else await vault.grants()
        async with refused(small, RollbackDetectedError):
            await vault.put("a", ApiKey("third"))


async def test_a_section_rolled_back_behind_the_key_store(small: Path) -> None:
    old = section_file(small).read_bytes()
    async with await unseal(small) as vault:
        await vault.put("a", ApiKey("second"))
        await vault.put("b", ApiKey("another service: the key store is written"))
    section_file(small).write_bytes(old)
    async with refused(small, RollbackDetectedError):
        await everything(small)


async def test_a_section_rolled_back_behind_a_deletion_does_not_open(small: Path) -> None:
    async with await unseal(small) as vault:
        await vault.put("b", ApiKey("deleted later"), service="a")
        old = section_file(small).read_bytes()
        deletion = await vault.delete("b")
        assert deletion.shredded
    section_file(small).write_bytes(old)
    async with refused(small, RollbackDetectedError):
        await everything(small)


async def test_an_empty_file(small: Path) -> None:
    for file in (keystore_file(small), section_file(small)):
        whole = file.read_bytes()
        file.write_bytes(b"")
        async with refused(small, CorruptDocumentError):
            await everything(small)
        file.write_bytes(whole)


# -- the master key ------------------------------------------------------------------


async def test_a_wrong_master_key(small: Path, tmp_path: Path) -> None:
    wrong = FileProvider(tmp_path / "wrong.key")
    (await wrong.create(vault_id="0" * 32, version=1))[0].close()
    async with refused(small, WrongMasterKeyError):
        await Vault.unseal(home_in(small), master=wrong)
    async with refused(small, WrongMasterKeyError):
        await Vault.unseal(home_in(small), master=wrong.uri)


async def test_no_master_key(small: Path) -> None:
    (small / "master.key").unlink()
    async with refused(small, MasterKeyNotFoundError):
        await unseal(small)
    assert not (small / "master.key").exists()


@pytest.mark.parametrize("uri", ["", "keyring", "file:", "vault:x", "passphrase:secret", "\0"])
async def test_no_such_provider(small: Path, uri: str) -> None:
    async with refused(small, InvalidInputError):
        await Vault.unseal(home_in(small), master=uri)


@pytest.mark.parametrize("where", ["home/security/k", "home/k", "link/k"])
async def test_a_key_beside_its_vault_is_used_only_if_it_is_named(
    tmp_path: Path, where: str
) -> None:
    """Whoever replaces the whole directory may have brought both."""
    home = home_in(tmp_path)
    home.mkdir(mode=0o700)
    (home / "security").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(home)
    uri = f"file:{tmp_path / where}"
    async with await Vault.create(home, master=uri):
        pass
    with pytest.raises(MasterKeyUnavailableError, match="own directory"):
        await Vault.unseal(home)
    async with await Vault.unseal(home, master=uri):
        pass


# -- places --------------------------------------------------------------------------


async def test_no_vault_there(tmp_path: Path) -> None:
    with pytest.raises(VaultNotFoundError, match="init"):
        await unseal(tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_never_initialised_twice(small: Path) -> None:
    async with refused(small, VaultExistsError):
        await create(small)
    keystore_file(small).write_bytes(b"damaged")
    async with refused(small, VaultExistsError):
        await create(small)


PLACES = ["", "security", "credentials", "security/keystore.enc", "credentials/api_keys.enc"]


@pytest.mark.parametrize("place", PLACES)
async def test_a_link_in_its_place(small: Path, place: str) -> None:
    path = home_in(small) / place
    moved = small / "moved"
    path.rename(moved)
    path.symlink_to(moved)
    with pytest.raises(UnsafePathError) as caught:
        await everything(small)
    assert caught.value.hint
    assert str(path) in caught.value.message
    with pytest.raises((UnsafePathError, VaultExistsError)):
        await create(small)


@pytest.mark.parametrize("place", PLACES)
async def test_open_to_others(small: Path, place: str) -> None:
    path = home_in(small) / place
    mode = path.stat().st_mode
    for bit in (0o040, 0o020, 0o004, 0o002):
        path.chmod(mode | bit)
        if not place and bit in (0o040, 0o004):
            await everything(small)  # all that lies in the home is closed
            continue
        async with refused(small, UnsafePermissionsError, match="chmod"):
            await everything(small)
    path.chmod(mode)
    await everything(small)


async def test_opened_to_others_under_a_live_vault(small: Path) -> None:
    async with await unseal(small) as vault:
        await vault.list()
        section_file(small).chmod(0o644)
        async with refused(small, UnsafePermissionsError, match="chmod"):
            await vault.put("a", ApiKey("second"))
        async with refused(small, UnsafePermissionsError, match="chmod"):
            await value_of(vault, "a")


@pytest.mark.parametrize("place", PLACES[3:])
async def test_a_folder_in_place_of_a_file(small: Path, place: str) -> None:
    path = home_in(small) / place
    path.unlink()
    path.mkdir(mode=0o700)
    async with refused(small, UnsafePathError):
        await everything(small)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with mounted(tmp_path / "disk", "size=256k"):
        yield tmp_path / "disk"


@as_root
@pytest.mark.faults
async def test_a_full_disk(disk: Path) -> None:
    async with await create(disk) as vault:
        await vault.put("a", GenericSecret(b"first"))
        await vault.put("b", GenericSecret(b"b"))
        fill(disk, leave=16 * 1024)
        async with refused(disk, StorageFullError):
            await vault.put("a", GenericSecret(bytes(MAX_SECRET_BYTES)))
        assert await values(vault) == {"a": b"first", "b": b"b"}
        fill(disk, leave=0)
        async with refused(disk, ApexCredsError):
            await vault.put("a", GenericSecret(b"second"))
        async with refused(disk, ApexCredsError):
            await vault.delete("a")
        (disk / "filler").unlink()
        assert await values(vault) == {"a": b"first", "b": b"b"}
        await vault.put("a", GenericSecret(b"second"))
        assert (await vault.delete("b")).shredded
    async with await unseal(disk) as vault:
        assert await values(vault) == {"a": b"second"}


@as_root
@pytest.mark.faults
async def test_a_vault_on_a_full_disk_is_made_whole_or_not_at_all(disk: Path) -> None:
    fill(disk, leave=0)
    with pytest.raises(StorageFullError):
        await create(disk)
    (disk / "filler").unlink()
    async with await create(disk) as vault:
        await vault.put("a", ApiKey("first"))


@as_root
@pytest.mark.faults
async def test_a_read_only_disk(disk: Path) -> None:
    async with await create(disk) as vault:
        await vault.put("a", ApiKey("first"))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    async with refused(disk, (AuditUnavailableError, StorageReadOnlyError)):
        await everything(disk)
    with pytest.raises((StorageReadOnlyError, MasterKeyError)) as caught:
        await Vault.create(disk / "another", master=master_in(disk))
    assert caught.value.hint


@as_root
@pytest.mark.faults
async def test_a_folder_that_can_not_be_written() -> None:
    """As a user for whom modes count."""
    where = Path(tempfile.mkdtemp())
    os.chown(where, 65534, 65534)
    process = start("read_only_folder", str(where))
    try:
        expected = [["StorageReadOnlyError", "StorageReadOnlyError", True]]
        assert await together(process) == expected
    finally:
        shutil.rmtree(where)


def fill(disk: Path, *, leave: int) -> None:
    """Takes the space, but for ``leave`` bytes."""
    with (disk / "filler").open("ab", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        size = file.tell()
        file.truncate(max(0, size - leave))


# -- processes -----------------------------------------------------------------------


@pytest.mark.parametrize("same_key_file", [True, False])
async def test_processes_initialising_at_once(tmp_path: Path, same_key_file: bool) -> None:
    masters = [
        f"file:{tmp_path}/{'master' if same_key_file else number}.key" for number in range(4)
    ]
    processes = [start("initialise", str(home_in(tmp_path)), uri) for uri in masters]
    outcomes = await together(*processes)
    assert sorted(map(str, outcomes)) == ["VaultExistsError"] * 3 + ["created"]
    async with await Vault.unseal(home_in(tmp_path)) as vault:
        await vault.put("a", ApiKey("works"))
        assert await values(vault) == {"a": b"works"}


async def test_tasks_initialising_at_once(tmp_path: Path) -> None:
    import asyncio

    outcomes = await asyncio.gather(
        *(create(tmp_path) for _ in range(5)), return_exceptions=True
    )
    made = [outcome for outcome in outcomes if isinstance(outcome, Vault)]
    assert len(made) == 1
    assert all(isinstance(o, VaultExistsError) for o in outcomes if o is not made[0])
    await made[0].put("a", ApiKey("works"))
    await made[0].close()


# -- arguments -----------------------------------------------------------------------

BAD_NAMES = [
    "", " ", "a\n", "a\0b", "\x1b[31mred", "a\u202eb", "a\u2028b", "x" * 257, "x" * 10_240,
    "é" * 129, " padded", "e\u0301", "\ud800", "a\x7f",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_a_bad_name(small: Path, name: str) -> None:
    async with await unseal(small) as vault:
        async with refused(small, InvalidNameError):
            await vault.put(name, ApiKey("value"))
        if name:
            async with refused(small, InvalidNameError):
                await vault.put("a", ApiKey("value"), service=name)
        async with refused(small, InvalidNameError):
            await vault.grant(name, "a")
        async with refused(small, InvalidNameError):
            await vault.grant("plugin", name)
        async with refused(small, InvalidNameError):
            await vault.grant("plugin", "a", scopes=[name])
        for use in (vault.get, vault.delete):
            async with refused(small, CredentialNotFoundError) as _:
                await use(name)


async def test_names_at_the_limit_work(small: Path) -> None:
    async with await unseal(small) as vault:
        for name in ("x" * 256, "é" * 128, "a/b", "a b", "日本", "..", "api_keys/a"):
            await vault.put(name, ApiKey("value"))
            assert await value_of(vault, name) == b"value"


async def test_an_oversized_value(small: Path) -> None:
    async with await unseal(small) as vault:
        async with refused(small, ValueTooLargeError):
            await vault.put("a", GenericSecret(bytes(MAX_SECRET_BYTES + 1)))
        async with refused(small, ValueTooLargeError):
            await vault.put("a", ApiKey("x" * (MAX_SECRET_BYTES + 1)))
        async with refused(small, InvalidInputError):
            await vault.put("a", ApiKey(""))
        await vault.put("b", GenericSecret(bytes(range(256)) * 256))
        assert await value_of(vault, "b") == bytes(range(256)) * 256


@pytest.mark.parametrize(
    "origin", ["", "example.com", "ftp://a", "https://a/path", "https://u@a"]
)
async def test_a_bad_origin(small: Path, origin: str) -> None:
    async with await unseal(small) as vault, refused(small, InvalidInputError):
        await vault.put("a", ApiKey("value"), origins=["https://good.example", origin])


@pytest.mark.parametrize(
    "delivery", ["", "cookie", "header", "header:", "header:a b", "bearer:x"]
)
async def test_a_bad_delivery(small: Path, delivery: str) -> None:
    async with await unseal(small) as vault, refused(small, InvalidInputError):
        await vault.put("a", ApiKey("value"), delivery=delivery)


@pytest.mark.parametrize("when", [math.nan, math.inf, -math.inf])
async def test_a_time_that_is_none(small: Path, when: float) -> None:
    async with await unseal(small) as vault:
        async with refused(small, InvalidInputError):
            await vault.put("a", ApiKey("value"), expires=when)
        async with refused(small, InvalidInputError):
            await vault.grant("plugin", "a", until=when)


async def test_a_name_taken_by_another_kind(small: Path) -> None:
    async with await unseal(small) as vault:
        async with refused(small, CredentialExistsError):
            await vault.put("a", BasicAuth("user", "password"))
        async with refused(small, CredentialExistsError):
            await vault.put_many(
                [
                    PutItem(name="b", secret=ApiKey("value")),
                    PutItem(name="a", secret=BasicAuth("user", "password")),
                ]
            )


async def test_a_name_twice_in_a_batch(small: Path) -> None:
    async with await unseal(small) as vault:
        for second in (ApiKey("two"), BasicAuth("user", "two")):
            async with refused(small, InvalidInputError):
                await vault.put_many(
                    [
                        PutItem(name="b", secret=ApiKey("one")),
                        PutItem(name="b", secret=second),
                    ]
                )


async def test_a_revocation_of_nothing_in_particular(small: Path) -> None:
    async with await unseal(small) as vault, refused(small, InvalidInputError):
        await vault.revoke()


async def test_a_sealed_vault(small: Path) -> None:
    vault = await unseal(small)
    await vault.close()
    await vault.close()
    for use in (vault.list, vault.grants, vault.refresh):
        async with refused(small, VaultSealedError):
            await use()
    async with refused(small, VaultSealedError):
        await vault.put("a", ApiKey("second"))
    async with refused(small, VaultSealedError):
        await vault.delete("a")
    async with refused(small, ApexCredsError):
        await vault.grant("plugin", "a")


async def test_a_log_that_can_not_be_written_stops_everything(small: Path) -> None:
    async with await unseal(small) as vault:
        log = next((home_in(small) / "security/audit").glob("*.jsonl"))
        log.rename(small / "stolen.jsonl")
        log.symlink_to(small / "stolen.jsonl")
        for use in (
            lambda: vault.put("a", ApiKey("second")),
            lambda: vault.delete("a"),
            lambda: vault.grant("plugin", "a"),
            lambda: vault.revoke(plugin="plugin"),
            lambda: value_of(vault, "a"),
        ):
            async with refused(small, ApexCredsError):
                await use()
        log.unlink()
        (small / "stolen.jsonl").rename(log)
        assert await values(vault) == {"a": b"first"}


def test_finish_reports_what_a_worker_returned() -> None:
    process = start("echo", "hello")
    assert process.stdout is not None
    process.stdout.readline()
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    assert finish(process) == "hello"

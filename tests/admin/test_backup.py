"""A backup is the vault of one instant, whatever goes on; a restore believes none of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from apex_creds.admin import backup as backing
from apex_creds.admin import restore
from apex_creds.admin.archive import left_copies, partial_copy
from apex_creds.admin.backup import Manifest, backup
from apex_creds.audit.verify import check, read
from apex_creds.cli import doctor_command as doctor
from apex_creds.documents import key_versions
from apex_creds.errors import (
    ApexCredsError,
    AuditTamperedError,
    CredentialNotFoundError,
    IntegrityError,
    InvalidInputError,
    InvalidNameError,
    MasterKeyNotFoundError,
    RollbackDetectedError,
    StorageError,
    StorageLockedError,
    UnsafePathError,
    UnsafePermissionsError,
    VaultExistsError,
    VaultNotFoundError,
)
from apex_creds.keys import provider_from_uri
from apex_creds.model import ApiKey, GenericSecret, OAuthToken, SystemClock
from apex_creds.scheduler import kek_rotation
from apex_creds.storage.base import Storage
from apex_creds.vault import Vault
from tests.support.vaults import (
    create,
    home_in,
    master_in,
    start,
    together,
    tree,
    unseal,
    values,
)

pytestmark = pytest.mark.anyio

CANARY = "sk-cAnArY-0123456789abcdef"
STORED = {"a": CANARY.encode(), "b": b"tok", "c": b"\0raw"}


async def filled(where: Path, **options: object) -> None:
    async with await create(where, **options) as vault:
        await vault.put("a", ApiKey(CANARY))
        await vault.put("b", OAuthToken("tok", refresh_token="ref"))
        await vault.put("c", GenericSecret(b"\0raw"))


async def backed_up(where: Path, name: str) -> Manifest:
    async with await unseal(where) as vault:
        return await backup(vault, where / name, provider=provider_from_uri(master_in(where)))


async def restored(where: Path, source: Path, *, force: bool = False) -> Path | None:
    """As the command does it."""
    home, provider = home_in(where), provider_from_uri(master_in(where))
    clock = SystemClock()
    with restore.staged(source, home) as stage:
        manifest = await restore.check_copy(stage, provider=provider, clock=clock)
        await restore.mark_rotations_uncertain(stage, provider=provider, clock=clock)
        aside = restore.install(stage, home, force=force)
        await restore.record(home, manifest, provider=provider, reason="test", clock=clock)
    return aside


@pytest.mark.usefixtures("no_slot_left")
@pytest.mark.parametrize("name", ["copy", "copy.tar"])
@pytest.mark.parametrize("hashed", [False, True])
async def test_there_and_back(tmp_path: Path, name: str, hashed: bool) -> None:
    await filled(tmp_path, hashed_names=hashed)
    (home_in(tmp_path) / "security/policy.toml").touch(mode=0o600)
    made = await backed_up(tmp_path, name)
    assert made.contents.credentials == 3
    async with await unseal(tmp_path) as vault:
        await vault.put("later", ApiKey("later"))
        await vault.delete("a")
    aside = await restored(tmp_path, tmp_path / name)
    async with await unseal(tmp_path) as vault:
        assert await values(vault) == STORED
        await vault.put("d", ApiKey("further"))
        vault_id = vault.vault_id
    assert aside is not None
    assert (aside / "security/keystore.enc").exists()
    assert (home_in(tmp_path) / "security/policy.toml").exists()
    assert check(home_in(tmp_path) / "security/audit", vault_id=vault_id).ok
    events = read(home_in(tmp_path) / "security/audit", vault_id=vault_id)
    kinds = [event.kind for event in events if event.seq > made.contents.events]
    assert kinds[0] == "rollback"
    assert "backup" in kinds


WHOSE = [
    *(("key", who) for who in ("", "alice", "bob", "Alice", "0", "key", "é", "ê", "..")),
    *(("key", who) for who in ("a" * 255, "a" * 256, "key (of alice)", "%1f", "ali/ce")),
    *[("a/b", ""), ("a", "b"), ("a", "b/c"), ("a/b", "c"), ("key (of alice)", "")],
    *[("a", "bc"), ("ab", "c"), ("alice", "key"), ("key%1falice", ""), ("key|alice", "")],
]
"""Names and principals that could be taken for each other."""


@pytest.mark.usefixtures("no_slot_left")
@pytest.mark.parametrize("hashed", [False, True])
async def test_whose_a_credential_is_goes_there_and_back(tmp_path: Path, hashed: bool) -> None:
    async with await create(tmp_path, hashed_names=hashed) as vault:
        for number, (name, who) in enumerate(WHOSE):
            await vault.put(name, ApiKey(f"value {number}"), principal=who)
    await backed_up(tmp_path, "copy.tar")
    async with await unseal(tmp_path) as vault:
        for name, who in WHOSE[::2]:
            await vault.delete(name, principal=who)
        await vault.put("key", ApiKey("another"), principal="bob")
    await restored(tmp_path, tmp_path / "copy.tar")
    async with await unseal(tmp_path) as vault:
        assert {(info.name, info.principal) for info in await vault.list()} == {*WHOSE}
        for number, (name, who) in enumerate(WHOSE):
            async with vault.open(name, principal=who) as opened:
                assert bytes(opened.view()) == f"value {number}".encode()
            assert [i.principal for i in await vault.list(principal=who) if i.name == name] == [
                who
            ]
        for name, who in [("key", "carol"), ("a", ""), ("key", "ALICE"), ("a/b", "b")]:
            with pytest.raises(CredentialNotFoundError):
                await vault.get(name, principal=who)
        for name, who in [("key", "e\u0301"), ("key\x1falice", ""), ("key", "a" * 257)]:
            with pytest.raises(InvalidNameError):
                await vault.get(name, principal=who)


async def test_it_is_private_and_holds_no_secret_and_no_master_key(tmp_path: Path) -> None:
    await filled(tmp_path)
    for name in ("copy", "copy.tar"):
        await backed_up(tmp_path, name)
    master = (tmp_path / "master.key").read_bytes().split()[-1]
    files = [tmp_path / "copy.tar", *(p for p in (tmp_path / "copy").rglob("*") if p.is_file())]
    assert len(files) > 5
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        data = path.read_bytes()
        assert CANARY.encode() not in data
        assert master not in data
    folders = [p for p in (tmp_path / "copy", *(tmp_path / "copy").rglob("*")) if p.is_dir()]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in folders)


async def test_nothing_is_overwritten_or_left_behind(tmp_path: Path) -> None:
    await filled(tmp_path)
    await backed_up(tmp_path, "copy")
    before = sorted(p.name for p in tmp_path.iterdir())
    for name in ("copy", "no/such/place", "home/security/copy"):
        with pytest.raises(InvalidInputError):
            await backed_up(tmp_path, name)
    section = home_in(tmp_path) / "credentials/api_keys.enc"
    section.write_bytes(section.read_bytes().replace(b'"written"', b'"writtem"'))
    with pytest.raises(IntegrityError):
        await backed_up(tmp_path, "damaged")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.slow
async def test_four_processes_write_and_keys_rotate_meanwhile(tmp_path: Path) -> None:
    """Each copy has, of each writer, a state that there was; and none goes backwards."""
    await filled(tmp_path)
    home, names = str(home_in(tmp_path)), ["x", "y"]
    writers = [
        start("put_many_times", home, f"w{i}", [f"{n}{i}" for n in names], 40) for i in range(4)
    ]
    provider = provider_from_uri(master_in(tmp_path))
    async with await unseal(tmp_path) as vault:
        working = asyncio.ensure_future(together(*writers))
        while not any(info.service == "shared" for info in await vault.list()):
            await asyncio.sleep(0.01)
        store, label = vault.store, "api_keys/shared"
        for number in range(4):
            now = vault.clock.time()
            await kek_rotation.rotate_kek(store, replaces=number + 1, now=now)
            await key_versions.renew(store, label, now=now)
            await key_versions.move_records(store, "api_keys", label)
            await key_versions.destroy_unused(store, "api_keys", label, now=now)
            await backup(vault, tmp_path / f"copy{number}", provider=provider)
        await working
    last: dict[str, int] = {}
    for number in range(4):
        where = tmp_path / f"restored{number}"
        where.mkdir()
        shutil.copytree(tmp_path / f"copy{number}", where / "home")
        (where / "home/backup.json").unlink()
        shutil.copy(tmp_path / "master.key", where)
        async with await Vault.unseal(where / "home", master=master_in(where)) as vault:
            found = await values(vault)
        assert found["a"] == CANARY.encode()
        mine = {name: value for name, value in found.items() if name[0] in names}
        rounds = {name: int(value.split(b"-")[-1]) for name, value in mine.items()}
        assert all(rounds[name] >= at for name, at in last.items())
        last = rounds
    assert last


async def test_writers_that_never_rest_wait_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(tmp_path)
    real = backing._read_all
    calls = 0

    async def disturbed(storage: Storage, names: list[str]) -> dict[str, bytes]:
        nonlocal calls
        calls += 1
        found = await real(storage, names)
        if calls <= 5:
            async with await unseal(tmp_path) as other:
                await other.put("x", ApiKey(str(calls)))
        return found

    monkeypatch.setattr(backing, "_read_all", disturbed)
    made = await backed_up(tmp_path, "copy")
    assert calls == 6
    assert made.contents.credentials == 4


# -- what a restore refuses --------------------------------------------------------------


def flipped(name: str) -> Callable[[Path], None]:
    def damage(copy: Path) -> None:
        path = copy / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)

    return damage


def removed(name: str) -> Callable[[Path], None]:
    return lambda copy: (copy / name).unlink()


def added(name: str) -> Callable[[Path], None]:
    return lambda copy: (copy / name).touch(mode=0o600)


def older(name: str) -> Callable[[Path], None]:
    """The same file of another backup of the same vault."""
    return lambda copy: shutil.copy(copy.with_name("older") / name, copy / name)


FILES = (
    "backup.json",
    "security/keystore.enc",
    "credentials/api_keys.enc",
    "security/audit/000001.jsonl",
    "security/audit/checkpoints",
    "security/audit/vkeys",
)
DAMAGES = [make(name) for make in (flipped, removed, older) for name in FILES[:-1]]
DAMAGES += [flipped(FILES[-1]), added("credentials/basic.enc"), added("security/policy.toml")]


@pytest.mark.usefixtures("no_slot_left")
async def test_a_copy_that_is_not_whole_replaces_nothing(tmp_path: Path) -> None:
    await filled(tmp_path)
    await backed_up(tmp_path, "older")
    async with await unseal(tmp_path) as vault:
        await vault.put("a", ApiKey("newer"))
        await kek_rotation.rotate_kek(vault.store, replaces=1, now=vault.clock.time())
    await backed_up(tmp_path, "copy")
    before = tree(home_in(tmp_path))
    for number, damage in enumerate(DAMAGES):
        copy = tmp_path / f"damaged{number}"
        shutil.copytree(tmp_path / "copy", copy)
        damage(copy)
        with pytest.raises(ApexCredsError):
            await restored(tmp_path, copy)
        after = tree(home_in(tmp_path))
        assert after == before, number


async def test_links_and_open_files_are_refused(tmp_path: Path) -> None:
    await filled(tmp_path)
    await backed_up(tmp_path, "copy")
    path = tmp_path / "copy/credentials/api_keys.enc"
    path.chmod(0o644)
    with pytest.raises(UnsafePermissionsError):
        await restored(tmp_path, tmp_path / "copy")
    path.rename(tmp_path / "target")
    path.symlink_to(tmp_path / "target")
    with pytest.raises(UnsafePathError):
        await restored(tmp_path, tmp_path / "copy")


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../outside"),
        tarfile.TarInfo("/tmp/outside"),
        tarfile.TarInfo("security/.lock"),
        tarfile.TarInfo("security/../../x"),
        tarfile.TarInfo("other/keystore.enc"),
        tarfile.TarInfo("security/keystore.enc"),
    ],
    ids=lambda member: member.name,
)
async def test_a_tar_file_writes_nowhere_else(tmp_path: Path, member: tarfile.TarInfo) -> None:
    await filled(tmp_path)
    await backed_up(tmp_path, "copy.tar")
    with tarfile.open(tmp_path / "copy.tar", "a") as tar:
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(IntegrityError):
        await restored(tmp_path, tmp_path / "copy.tar")
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        link = tarfile.TarInfo("security/keystore.enc")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(IntegrityError):
        await restored(tmp_path, tmp_path / "links.tar")
    assert not list(home_in(tmp_path).glob(".restoring-*"))


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.map": "a,b", "GNU.sparse.size": "1"},
        {"GNU.sparse.map": "0,1", "GNU.sparse.size": "-5"},
        {"GNU.sparse.map": "99999999999999999999,5", "GNU.sparse.size": "7"},
        {"GNU.sparse.map": "0,1", "GNU.sparse.size": "2000000000"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"GNU.sparse.size": "zz"},
        {"GNU.sparse.realsize": "x"},
        {"path": "security/a\0b"},
        {"size": "-1"},
        {"size": "9" * 30},
    ],
    ids=str,
)
async def test_headers_of_no_backup_are_refused(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    file = tmp_path / "evil.tar"
    member = tarfile.TarInfo("security/x")
    member.pax_headers = headers
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(b""))
    with pytest.raises(ApexCredsError):
        await restored(tmp_path, file)
    assert not list(home_in(tmp_path).glob(".restoring-*"))


@pytest.mark.parametrize("size", [0, 1, 511, 5000])
async def test_a_cut_tar_file_is_refused(tmp_path: Path, size: int) -> None:
    await filled(tmp_path)
    await backed_up(tmp_path, "copy.tar")
    os.truncate(tmp_path / "copy.tar", size)
    with pytest.raises(IntegrityError):
        await restored(tmp_path, tmp_path / "copy.tar")


async def test_without_its_master_key_nothing_happens(tmp_path: Path) -> None:
    await filled(tmp_path)
    await backed_up(tmp_path, "copy")
    (tmp_path / "master.key").rename(tmp_path / "kept")
    before = tree(home_in(tmp_path))
    with pytest.raises(MasterKeyNotFoundError):
        await restored(tmp_path, tmp_path / "copy")
    assert tree(home_in(tmp_path)) == before


async def test_a_vault_in_use_is_not_replaced_unless_forced(tmp_path: Path) -> None:
    await filled(tmp_path)
    await backed_up(tmp_path, "copy")
    vault = await unseal(tmp_path)
    await vault.put("a", ApiKey("newer"))
    with pytest.raises(StorageError, match="has the vault open"):
        await restored(tmp_path, tmp_path / "copy")
    await restored(tmp_path, tmp_path / "copy", force=True)
    # Who has it open is not deceived for long: refused, or given what was restored, at the
    # latest when the files are looked at again, a tenth of a second later.
    with contextlib.suppress(RollbackDetectedError):
        while (await vault.get("a")).version != 1:
            await anyio.sleep(0.01)
    with contextlib.suppress(AuditTamperedError):  # nor is its log, if it has more to write
        await vault.close()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(4))
async def test_what_was_there_is_put_back_where_one_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, after: bool
) -> None:
    await filled(tmp_path)
    await backed_up(tmp_path, "copy")
    async with await unseal(tmp_path) as vault:
        await vault.put("later", ApiKey("later"))
    names, real, calls = sorted(os.listdir(home_in(tmp_path))), os.rename, []

    def rename(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == number + 1 and not after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args, **kwargs)
        if len(calls) == number + 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(StorageError):
        await restored(tmp_path, tmp_path / "copy")
    assert sorted(os.listdir(home_in(tmp_path))) == sorted({*names, ".restore.lock"})
    async with await unseal(tmp_path) as vault:
        assert await values(vault) == {**STORED, "later": b"later"}


async def test_unfinished_copies_are_seen_unless_their_maker_lives(tmp_path: Path) -> None:
    dead = tmp_path / ".copy.0123456789ab.partial"
    dead.mkdir()
    (tmp_path / ".copy.0123456789ab.partial.tar").touch()
    (tmp_path / ".somebody.partial").mkdir()
    with partial_copy(tmp_path / "other") as living:
        assert living.is_dir()
        assert left_copies(tmp_path) == []
        dead.mkdir()
        assert left_copies(tmp_path) == [dead]
        check = doctor._copies(home_in(tmp_path))
    assert check.state == "warning"
    assert str(dead) in check.detail
    dead.rmdir()
    assert doctor._copies(home_in(tmp_path)).state == "ok"


async def test_one_restore_at_a_time(tmp_path: Path) -> None:
    await filled(tmp_path)
    await backed_up(tmp_path, "copy")
    with (
        restore.staged(tmp_path / "copy", home_in(tmp_path)),
        pytest.raises(StorageLockedError),
    ):
        await restored(tmp_path, tmp_path / "copy")


@pytest.mark.parametrize("when", ["set aside", "half in place"])
async def test_nothing_new_begins_where_a_restore_was_interrupted(
    tmp_path: Path, when: str
) -> None:
    await filled(tmp_path)
    await backed_up(tmp_path, "copy")
    home = home_in(tmp_path)
    stage = home / ".restoring-0123456789ab"
    shutil.copytree(tmp_path / "copy", stage)
    (home / ".before-restore-x").mkdir(mode=0o700)
    for name in ("security", "credentials"):
        (home / name).rename(home / ".before-restore-x" / name)
    if when == "half in place":
        (stage / "credentials").rename(home / "credentials")
    with pytest.raises(VaultExistsError, match="restore was interrupted"):
        await create(tmp_path)
    with pytest.raises(VaultNotFoundError, match="restore was interrupted") as caught:
        await unseal(tmp_path)
    assert "apex-creds restore again" in caught.value.hint
    assert "init" not in str(caught.value).replace(str(tmp_path), "")
    await restored(tmp_path, tmp_path / "copy")
    async with await unseal(tmp_path) as vault:
        assert await values(vault) == STORED


@pytest.mark.parametrize("name", ["000001.jsonl", "000001.jsonl.gz", "000002.jsonl.zst"])
async def test_nothing_new_begins_beside_a_log(tmp_path: Path, name: str) -> None:
    audit = home_in(tmp_path) / "security/audit"
    audit.mkdir(mode=0o700, parents=True)
    for folder in (audit, audit.parent, home_in(tmp_path)):
        folder.chmod(0o700)
    (audit / name).touch(0o600)
    with pytest.raises(VaultExistsError, match="what a vault left"):
        await create(tmp_path)


async def test_no_vault_begins_while_a_restore_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(tmp_path)
    await backed_up(tmp_path, "copy")
    shutil.rmtree(home_in(tmp_path))
    monkeypatch.setattr("apex_creds.vault.unfinished._WAIT", 0.1)
    with restore.staged(tmp_path / "copy", home_in(tmp_path)):
        with pytest.raises(StorageLockedError):
            await create(tmp_path)
        assert not (home_in(tmp_path) / "security").exists()


@pytest.mark.parametrize("target", ["../master.key", "nowhere"])
async def test_a_link_in_place_of_the_lock(tmp_path: Path, target: str) -> None:
    await filled(tmp_path)
    await backed_up(tmp_path, "copy")
    lock = home_in(tmp_path) / ".restore.lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(target)
    key = (tmp_path / "master.key").read_bytes()
    with pytest.raises(UnsafePathError):
        await restored(tmp_path, tmp_path / "copy")
    assert (tmp_path / "master.key").read_bytes() == key


async def test_into_an_empty_place_beside_the_files_of_others(tmp_path: Path) -> None:
    await filled(tmp_path)
    await backed_up(tmp_path, "copy")
    shutil.rmtree(home_in(tmp_path))
    home_in(tmp_path).mkdir(mode=0o700)
    (home_in(tmp_path) / "agent.toml").write_text("not ours")
    assert await restored(tmp_path, tmp_path / "copy") is None
    assert (home_in(tmp_path) / "agent.toml").read_text() == "not ours"
    async with await unseal(tmp_path) as vault:
        assert await values(vault) == STORED

"""Sections in files: one document while small, shards when large; what a put costs then."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from apex_creds.admin import backup as backup_module
from apex_creds.admin.backup import backup
from apex_creds.admin.transfer import transfer
from apex_creds.documents import key_versions, sections
from apex_creds.documents.keystore import shard_names
from apex_creds.documents.sections import LARGE
from apex_creds.errors import (
    ConflictError,
    CorruptDocumentError,
    RollbackDetectedError,
    StorageUncertainError,
    UnsafePathError,
)
from apex_creds.keys import provider_from_uri
from apex_creds.model import ApiKey, Delivery, Origin
from apex_creds.scheduler.reencryption import left, reencrypt
from apex_creds.storage import FileStorage, MemoryStorage, file_storage, journal
from apex_creds.storage.base import Stored, Write, WriteResult
from apex_creds.vault import Vault
from apex_creds.vault.lookup import PutItem
from tests.support.vaults import create, home_in, master_in, unseal, value_of, values

pytestmark = pytest.mark.anyio
SHARDS = 4
LOOKS = ("pread", "lstat", "stat", "fstat", "fsync", "open")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections are large early, and divided in few."""
    monkeypatch.setattr(sections, "LARGE", 6)
    monkeypatch.setattr(file_storage, "DIVISION", SHARDS)


def items(count: int, value: str = "value", service: str = "s") -> list[PutItem]:
    return [PutItem(name=f"c{n}", secret=ApiKey(value), service=service) for n in range(count)]


def files_of(where: Path) -> set[str]:
    return {path.stem for path in (home_in(where) / "credentials").iterdir()}


async def divided(where: Path, **options: object) -> Vault:
    vault = await create(where, **options)
    await vault.put_many(items(9))
    return vault


async def test_who_saw_a_section_empty_sees_it_filled_and_divided_by_another(
    small: None, tmp_path: Path
) -> None:
    async with await create(tmp_path) as vault, await unseal(tmp_path) as other:
        store = other.store
        assert (await store.sections.read("api_keys")).records == {}
        await vault.put_many(items(9))
        assert "api_keys" not in files_of(tmp_path)
        assert store.sections.now("api_keys") is None
        assert len((await store.sections.read("api_keys")).records) == 9
        assert await other.delete("c1")


# -- what it costs -----------------------------------------------------------------------


class Counted(FileStorage):
    """Counts the bytes of documents that are read and written."""

    moved = 0

    async def read(self, name: str) -> Stored | None:
        found = await super().read(name)
        self.moved += len(found.data) if found else 0
        return found

    async def read_many(self, names: Any) -> dict[str, Stored]:
        names = list(names)
        found = await super().read_many(names)
        if len(names) > 1:  # one is read by ``read``
            self.moved += sum(len(stored.data) for stored in found.values())
        return found

    async def write_many(
        self, writes: Sequence[Write], *, shred: bool = False
    ) -> list[WriteResult]:
        self.moved += sum(len(write.data or b"") for write in writes)
        return await super().write_many(writes, shred=shred)


@pytest.mark.parametrize("section", [LARGE + 1, 60_000])
async def test_a_put_moves_at_most_twice_the_bytes_of_one_beside_a_thousand(
    tmp_path: Path, section: int
) -> None:
    costs = []
    for size in (1_000, section):
        storage = Counted(tmp_path / f"{size}")
        key = f"file:{tmp_path}/{size}.key"
        async with await Vault.create(
            tmp_path / f"{size}", storage=storage, master=key
        ) as vault:
            await vault.put_many(items(size))
            storage.moved = 0
            await vault.put("c0", ApiKey("changed"))
            costs.append(storage.moved)
    assert costs[1] <= 2 * costs[0]


async def test_a_put_looks_at_as_much_beside_any_number_of_shards(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the counter as often, and no document's state but those that it writes."""
    monkeypatch.setattr(file_storage, "_LOOK_EVERY", 1e9)
    calls = []
    for shards in (4, 64):
        monkeypatch.setattr(file_storage, "DIVISION", shards)
        async with await divided(tmp_path / str(shards)) as vault:
            await vault.put("c0", ApiKey("changed"))
            puts = []
            for _ in range(5):  # the least of several: the log's thread works beside a put
                counted: Counter[str] = Counter()
                with monkeypatch.context() as patch:
                    for call in LOOKS:
                        patch.setattr(os, call, counting(counted, getattr(os, call)))
                    await vault.put("c0", ApiKey("again"))
                puts.append(counted)
            calls.append({call: min(counted[call] for counted in puts) for call in LOOKS})
    assert calls[0] == calls[1]


def counting(counted: Counter[str], call: Callable[..., Any]) -> Callable[..., Any]:
    """Counts a call of ``os``, but for the log's: those depend on the time."""

    def counts(*args: Any, **options: Any) -> Any:
        counted[call.__name__] += "/audit/" not in str(args[0])
        return call(*args, **options)

    return counts


async def test_a_rotation_writes_each_shard_once(small: None, tmp_path: Path) -> None:
    storage = Counted(home_in(tmp_path))
    async with await create(tmp_path, storage=storage) as vault:
        await vault.put_many(items(40))
        whole = sum(p.stat().st_size for p in (home_in(tmp_path) / "credentials").iterdir())
        await key_versions.renew(vault.store, "api_keys/s", now=1.0)
        storage.moved = 0
        last = [each async for each in reencrypt(vault.store, "api_keys")][-1]
        assert (last.done, await left(vault.store, "api_keys")) == (40, 0)
        assert storage.moved < 1.5 * whole


# -- from one to many --------------------------------------------------------------------


async def test_a_section_is_one_document_until_it_is_large(small: None, tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        await vault.put_many(items(6))
        assert files_of(tmp_path) == {"api_keys"}
        await vault.put("more", ApiKey("x"))
        assert files_of(tmp_path) == set(shard_names("api_keys", SHARDS))
        for name in ("more", *(f"c{n}" for n in range(6))):
            await vault.delete(name)
        assert files_of(tmp_path) == set(shard_names("api_keys", SHARDS))
        assert await vault.list() == []


async def test_generation_and_counts_of_messages_go_on(small: None, tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        for _ in range(5):
            await vault.put_many(items(6))
        before = await vault.store.sections.read("api_keys")
        await vault.put("more", ApiKey("x"), service="s")
        after = await vault.store.sections.read("api_keys")
        assert after.count == SHARDS
        assert after.generation > before.generation
        [(key, count)] = before.uses.items()
        assert after.uses == {key: count + 1}


async def test_an_older_programs_large_section_is_divided_by_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await create(tmp_path) as vault:
        await vault.put_many(items(20))
    monkeypatch.setattr(sections, "LARGE", 6)
    async with await unseal(tmp_path) as vault:
        assert len(await vault.list()) == 20
        assert files_of(tmp_path) == {"api_keys"}
        await vault.put("c0", ApiKey("changed"))
        assert files_of(tmp_path) == set(shard_names("api_keys", file_storage.DIVISION))
    async with await unseal(tmp_path) as vault:
        found = await values(vault)
        assert found == {f"c{n}": b"value" for n in range(20)} | {"c0": b"changed"}


async def test_a_program_that_knows_no_shards_refuses_the_key_store(
    small: None, tmp_path: Path
) -> None:
    async with await divided(tmp_path):
        text = (home_in(tmp_path) / "security/keystore.enc").read_bytes()
    assert msgspec.json.decode(text)["version"] > 1


async def test_a_put_is_not_undone_by_a_division_that_fails(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async with await create(tmp_path) as vault:
        with monkeypatch.context() as patch:
            patch.setattr(journal, "begin", full)
            await vault.put_many(items(9))
            assert files_of(tmp_path) == {"api_keys"}
        assert not [
            name for name in os.listdir(home_in(tmp_path) / "credentials") if "next" in name
        ]
        assert await value_of(vault, "c8") == b"value"
        await vault.put("more", ApiKey("x"))
        assert files_of(tmp_path) == set(shard_names("api_keys", SHARDS))
        assert len(await vault.list()) == 10


# -- beside others -----------------------------------------------------------------------


async def test_what_one_process_divides_the_other_reads_and_writes(
    small: None, tmp_path: Path
) -> None:
    async with await create(tmp_path) as one, await unseal(tmp_path) as other:
        await one.put_many(items(6))
        assert len(await other.list()) == 6
        await one.put_many(items(9, "from one"))
        assert await value_of(other, "c8") == b"from one"
        await other.put("c0", ApiKey("from the other"))
        assert await value_of(one, "c0") == b"from the other"
        assert files_of(tmp_path) == set(shard_names("api_keys", SHARDS))


async def test_a_writer_that_has_the_one_document_does_not_bring_it_back(
    small: None, tmp_path: Path
) -> None:
    async with await create(tmp_path) as one, await unseal(tmp_path) as other:
        await one.put_many(items(6))
        await other.list()
        real = other.store.sections.read
        first = True

        async def read(name: str) -> object:
            nonlocal first
            found = await real(name)
            if first:
                first = False
                await one.put_many(items(9, "from one"))
            return found

        other.store.sections.read = read  # type: ignore[method-assign, assignment]
        await other.put("mine", ApiKey("from the other"))
        found = await values(one)
        assert found == {f"c{n}": b"from one" for n in range(9)} | {"mine": b"from the other"}
        assert files_of(tmp_path) == set(shard_names("api_keys", SHARDS))


async def test_both_divide_at_once(small: None, tmp_path: Path) -> None:
    async with await create(tmp_path) as one, await unseal(tmp_path) as other:
        async with anyio.create_task_group() as group:
            group.start_soon(one.put_many, items(8))
            group.start_soon(
                other.put_many, [PutItem(name=f"d{n}", secret=ApiKey("d")) for n in range(8)]
            )
        assert len(await one.list()) == len(await other.list()) == 16
        assert files_of(tmp_path) == set(shard_names("api_keys", SHARDS))


# -- what knows of them ------------------------------------------------------------------


async def test_a_shard_that_is_missing_or_older_is_an_error(
    small: None, tmp_path: Path
) -> None:
    async with await divided(tmp_path) as vault:
        name = vault.store.sections.shard_of("api_keys", "c0")
        file = home_in(tmp_path) / f"credentials/{name}.enc"
        old = file.read_bytes()
        await vault.put("c0", ApiKey("changed"))
        await vault.revoke(plugin="none")  # which anchors what was seen
        new = file.read_bytes()
    file.write_bytes(old)
    async with await unseal(tmp_path) as vault:
        with pytest.raises(RollbackDetectedError):
            await vault.list()
    file.write_bytes(new)
    file.rename(file.with_suffix(".away"))
    async with await unseal(tmp_path) as vault:
        with pytest.raises(CorruptDocumentError, match="missing"):
            await vault.list()


async def test_a_section_whose_shards_are_all_gone_is_an_error(
    small: None, tmp_path: Path
) -> None:
    async with await divided(tmp_path):
        pass
    for file in (home_in(tmp_path) / "credentials").iterdir():
        file.unlink()
    async with await unseal(tmp_path) as vault:
        with pytest.raises(CorruptDocumentError, match="missing"):
            await vault.list()
        with pytest.raises(CorruptDocumentError, match="missing"):
            await vault.put("c0", ApiKey("x"))


async def test_an_older_state_is_accepted_on_purpose(small: None, tmp_path: Path) -> None:
    async with await divided(tmp_path) as vault:
        for number in range(6):
            await vault.grant(f"plugin{number}", "c0")
    shutil.copytree(home_in(tmp_path), tmp_path / "before")
    async with await unseal(tmp_path) as vault:
        await vault.put_many(items(9, "changed"))
        await vault.revoke(plugin="plugin0")
        await vault.delete("c1")
    shutil.rmtree(home_in(tmp_path))
    (tmp_path / "before").rename(home_in(tmp_path))
    with pytest.raises(RollbackDetectedError):
        await unseal(tmp_path)
    async with await Vault.unseal(home_in(tmp_path), accept_rollback="on purpose") as vault:
        assert len(await vault.grants()) == 6
        assert await values(vault) == {f"c{n}": b"value" for n in range(9)}
    async with await unseal(tmp_path) as vault:
        await vault.put("c0", ApiKey("works"))
        await vault.revoke(plugin="plugin1")
        assert len(await vault.grants()) == 5


async def test_what_the_key_store_has_does_not_grow_with_the_shards(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KEK rotation writes the key store and nothing else."""
    monkeypatch.setattr(file_storage, "DIVISION", 64)
    sizes = []
    for count in (6, 9):
        (tmp_path / f"{count}").mkdir()
        async with await create(tmp_path / f"{count}") as vault:
            await vault.put_many(items(count))
            assert len(files_of(tmp_path / f"{count}")) == (1 if count == 6 else 64)
        sizes.append((home_in(tmp_path / f"{count}") / "security/keystore.enc").stat().st_size)
    assert sizes[1] < sizes[0] + 200  # a byte or two for each shard: what it has reached


@pytest.mark.parametrize("noted", [False, True])
async def test_an_older_shard_is_refused_by_whoever_comes_later(
    small: None, tmp_path: Path, noted: bool
) -> None:
    """By the anchor or, where that has no line of it, by what the key store notes."""
    async with await divided(tmp_path) as vault:
        name = vault.store.sections.shard_of("api_keys", "c1")
        path = home_in(tmp_path) / "credentials" / f"{name}.enc"
        old = path.read_bytes()
        keystore = home_in(tmp_path) / "security/keystore.enc"
        before = keystore.read_bytes()
        await vault.put("c1", ApiKey("newer"), service="s")
        if noted:
            await vault.grant("p", "c1", scopes=["read"])
            await vault.revoke(plugin="p")  # which is anchored
    [anchor] = tmp_path.glob("*.anchor")
    assert (f"\n{name} " in anchor.read_text()) is not noted
    newest = path.read_bytes()
    path.write_bytes(old)
    async with await unseal(tmp_path) as vault:
        with pytest.raises(RollbackDetectedError):
            await vault.list()
    if noted:  # with a key store that notes less
        keystore.write_bytes(before)
        with pytest.raises(RollbackDetectedError):
            await unseal(tmp_path)
    else:
        path.write_bytes(newest)
        async with await unseal(tmp_path) as vault:
            assert await value_of(vault, "c1") == b"newer"


async def test_names_are_hashed_where_they_are_to_be(small: None, tmp_path: Path) -> None:
    async with await divided(tmp_path, hashed_names=True) as vault:
        names = files_of(tmp_path)
        assert len(names) == SHARDS
        assert all(len(name) == 32 and "api" not in name for name in names)
        assert set(shard_names("api_keys", SHARDS)) <= set(await vault.store.storage.names())
    async with await unseal(tmp_path) as vault:
        assert len(await values(vault)) == 9


async def test_a_backup_has_every_shard(small: None, tmp_path: Path) -> None:
    async with await divided(tmp_path) as vault:
        made = await backup(
            vault, tmp_path / "copy", provider=provider_from_uri(master_in(tmp_path))
        )
    assert made.contents.credentials == 9
    assert set(shard_names("api_keys", SHARDS)) <= made.contents.documents.keys()


async def test_a_backup_that_waits_for_writers_finishes_a_commit_that_was_cut_off(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await divided(tmp_path) as vault:

        def dies(folders: journal.Folders, steps: Sequence[journal.Step]) -> bool:
            raise OSError(5, "cut off")

        with monkeypatch.context() as patch:
            patch.setattr(journal, "take", dies)
            with pytest.raises(StorageUncertainError):
                await vault.put_many(items(9, value="changed"))
        assert (home_in(tmp_path) / "security/.commit").exists()
        monkeypatch.setattr(backup_module, "_OPTIMISTIC", 0)
        made = await backup(
            vault, tmp_path / "copy", provider=provider_from_uri(master_in(tmp_path))
        )
        assert made.contents.credentials == 9
        assert not (home_in(tmp_path) / "security/.commit").exists()
        assert set((await values(vault)).values()) == {b"changed"}


@pytest.mark.parametrize("count", [4, 9])
async def test_a_copy_is_divided_as_its_place_is(
    small: None, tmp_path: Path, count: int
) -> None:
    async with await create(tmp_path) as vault:
        await vault.put_many(items(count))
        database = MemoryStorage(shards=2)
        await transfer(vault, database)
        assert set(shard_names("api_keys", 2)) <= set(await database.names())
        (tmp_path / "again").mkdir()
        files = FileStorage(home_in(tmp_path / "again"))
        await transfer(vault, files)
        await files.close()
    wanted = shard_names("api_keys", SHARDS if count > 6 else 0)
    assert files_of(tmp_path / "again") == set(wanted)
    async with await Vault.unseal(
        home_in(tmp_path / "again"), master=master_in(tmp_path), accept_rollback="a copy"
    ) as copy:
        assert len(await values(copy)) == count
        await copy.put("more", ApiKey("x"))


# -- the journal -------------------------------------------------------------------------


async def test_a_journal_of_files_that_another_program_wrote_since_is_void(
    tmp_path: Path,
) -> None:
    storage = FileStorage(tmp_path)
    await storage.prepare()
    old = await storage.write("keystore", b"old", expected=None)
    new = tmp_path / "security" / journal.new_name("keystore.enc")
    new.write_bytes(b"new")
    new.chmod(0o600)
    step = journal.Step("security", "keystore.enc", new.name, (1, 3))
    text = msgspec.json.encode({"format": journal.FORMAT, "version": 1, "steps": [step]})
    (tmp_path / "security/.commit").write_bytes(text)
    (tmp_path / "security/.commit").chmod(0o600)
    found = await storage.read("keystore")
    assert found is not None
    assert (found.data, found.token) == (b"old", old.token)
    assert not new.exists()
    assert not (tmp_path / "security/.commit").exists()


async def test_a_copy_from_the_middle_of_a_division_keeps_the_section(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = home_in(tmp_path / "copy")

    def copied(folders: journal.Folders, steps: Sequence[journal.Step]) -> bool:
        shutil.copytree(home_in(tmp_path) / "security", copy / "security")
        return take(folders, steps)

    async with await create(tmp_path) as vault:
        await vault.put_many(items(6))
        copy.mkdir(parents=True, mode=0o700)
        take = journal.take
        monkeypatch.setattr(journal, "take", copied)
        shutil.copytree(home_in(tmp_path) / "credentials", copy / "credentials")
        await vault.put("c6", ApiKey("value"))
    monkeypatch.setattr(journal, "take", take)
    assert (copy / "security/.commit").exists()
    async with await Vault.unseal(
        copy, master=master_in(tmp_path), accept_rollback="a copy"
    ) as opened:
        assert {f"c{n}" for n in range(6)} <= (await values(opened)).keys()
        await opened.put("more", ApiKey("x"))
    assert not (copy / "security/.commit").exists()


async def test_a_commit_is_not_acknowledged_where_others_write_without_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = FileStorage(tmp_path)
    await storage.prepare()
    old = await storage.write("a", b"old", expected=None)
    begin = journal.begin

    def overtaken(
        folders: journal.Folders, steps: Sequence[journal.Step], files: Iterable[int]
    ) -> None:
        begin(folders, steps, files)
        (tmp_path / "credentials/a.enc").write_bytes(b"another program's")

    monkeypatch.setattr(journal, "begin", overtaken)
    with pytest.raises(ConflictError):
        await storage.write_many([Write("a", b"new", old.token), Write("b", b"new", None)])
    found = await storage.read("a")
    assert found is not None
    assert found.data == b"another program's"
    assert await storage.read("b") is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b'{"format":"apex-creds/commit","version":2,"steps":[]}',
        b'{"format":"apex-creds/commit","version":1,"steps":[]}',
        b'{"format":"apex-creds/commit","version":1,"steps":[["security","../x.enc","",[1,1]]]}',
        b'{"format":"apex-creds/commit","version":1,"steps":[["..","x.enc","",[1,1]]]}',
    ],
)
async def test_what_is_no_journal_is_not_followed(tmp_path: Path, text: bytes) -> None:
    storage = FileStorage(tmp_path)
    await storage.prepare()
    (tmp_path / "security/.commit").write_bytes(text)
    (tmp_path / "security/.commit").chmod(0o600)
    with pytest.raises(CorruptDocumentError, match="journal"):
        await storage.write("a", b"1", expected=None)
    assert await storage.read("keystore") is None
    assert await storage.read("a") is None
    assert (tmp_path / "security/.commit").read_bytes() == text


async def test_a_link_in_the_place_of_the_journal_is_named(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    await storage.prepare()
    (tmp_path / "security/.commit").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError, match=r"\.commit is a symbolic link"):
        await storage.write("a", b"1", expected=None)


async def test_a_journal_of_which_a_new_version_is_gone_is_void(tmp_path: Path) -> None:
    """The machine stopped before the folders were flushed: nobody has been told of it."""
    storage = FileStorage(tmp_path)
    await storage.prepare()
    old = await storage.write("keystore", b"old", expected=None)
    first = await storage.write("first", b"1", expected=None)
    steps = []
    for folder, name, token in (
        ("credentials", "first", first.token),
        ("security", "keystore", old.token),
    ):
        file = f"{name}.enc"
        new = journal.new_name(file)
        if name == "first":
            (tmp_path / folder / new).write_bytes(b"2")
            (tmp_path / folder / new).chmod(0o600)
        steps.append(journal.Step(folder, file, new, (token[2], token[3])))
    text = msgspec.json.encode({"format": journal.FORMAT, "version": 1, "steps": steps})
    (tmp_path / "security/.commit").write_bytes(text)
    (tmp_path / "security/.commit").chmod(0o600)
    found = await storage.read_many(["first", "keystore"])
    assert {name: stored.data for name, stored in found.items()} == {
        "first": b"1",
        "keystore": b"old",
    }
    again = await storage.read("keystore")
    assert again is not None
    assert not (tmp_path / "security/.commit").exists()
    assert await storage.read("first") == Stored(b"1", first.token)


async def test_a_commit_of_several_flushes_each_file_and_folder_once_before_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files and the journal, their folder before the renames, and after."""
    storage = FileStorage(tmp_path)
    await storage.prepare()
    pair = [Write("keystore", b"1", None), Write("grants", b"1", None)]
    await storage.write_many(pair)
    counted: Counter[str] = Counter()
    monkeypatch.setattr(os, "fsync", counting(counted, os.fsync))
    tokens = [storage.change_token(write.name) for write in pair]
    await storage.write_many(
        [Write(write.name, b"2", at) for write, at in zip(pair, tokens, strict=True)]
    )
    assert counted["fsync"] == 5


# -- what it takes of memory -------------------------------------------------------------


async def test_what_records_have_in_common_is_there_once(tmp_path: Path, small: None) -> None:
    async with await create(tmp_path) as vault:
        for start in (0, 9):
            alike = [
                PutItem(
                    name=f"c{n}",
                    secret=ApiKey("v"),
                    service="svc",
                    delivery=Delivery.parse("header:X-Key"),
                    origins=(Origin.parse("https://a.example"),),
                )
                for n in range(start, start + 9)
            ]
            await vault.put_many(alike)
        await vault.put("other", ApiKey("v"), service="t", origins=["https://b.example"])
    async with await unseal(tmp_path) as vault:
        found = [(await vault.find(f"c{n}")).info for n in range(18)]
        assert len({id(info.service) for info in found}) == 1
        assert len({id(info.delivery) for info in found}) == 1
        assert len({id(info.origins) for info in found}) == 1
        assert len({id(info.created) for info in found}) == len({i.created for i in found})
        other = (await vault.find("other")).info
        assert (other.service, [str(o) for o in other.origins]) == ("t", ["https://b.example"])
        assert {(i.service, *map(str, i.origins)) for i in found} == {
            ("svc", "https://a.example")
        }


async def test_few_files_are_read_before_the_first_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "LARGE", 6)
    async with await create(tmp_path) as vault:
        await vault.put_many(items(9))
    asked: list[int] = []
    read_many = FileStorage.read_many

    async def counting_names(storage: FileStorage, names: Any) -> dict[str, Stored]:
        names = list(names)
        asked.append(len(names))
        return await read_many(storage, names)

    monkeypatch.setattr(FileStorage, "read_many", counting_names)
    async with await unseal(tmp_path) as vault:
        assert len(await values(vault)) == 9
    assert sum(asked) >= file_storage.DIVISION
    assert max(asked) < file_storage.DIVISION / 4

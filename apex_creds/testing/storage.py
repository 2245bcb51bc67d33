"""What every storage backend must do, as tests that its author runs.

Guarantee: a backend that passes keeps the promises of ``apex_creds.storage.base`` that
can be seen from outside: whole documents, compare-and-set, no lost update, specific
errors, ties that hold, nothing changed by a refusal. (Durability needs a killed process: see
tests/faults in the source tree.)

Subclass ``StorageContract`` in a test module and say how a storage is opened::

    class TestMyStorage(StorageContract):
        async def open_storage(self, where: Path) -> Storage:
            return MyStorage(where / "data")
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, ClassVar, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from apex_creds.errors import ConflictError, InvalidNameError, StorageError
from apex_creds.storage.base import Divides, Storage, Token, Write, shared

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DOCUMENTS = ("keystore", "config", "api_keys", "oauth_tokens", "a", "z" * 64, "0_9")
BAD_NAMES = ("", "A", "a-b", "a b", "../a", "a/b", "a\0", "a\n", ".", "é", "x" * 65)
FOREIGN_TOKEN = Token(("never", "given"))


class StorageContract:
    """Test methods; override ``open_storage``, and ``shared`` where it is not so."""

    pytestmark = pytest.mark.anyio
    shared: ClassVar[bool] = True
    """Two storages opened at the same place hold the same documents."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def open_storage(self, where: Path) -> Storage:
        """A separate storage for each ``where`` (an empty directory)."""
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def opened(self, where: Path) -> AsyncIterator[Storage]:
        storage = await self.open_storage(where)
        try:
            await storage.prepare()
            yield storage
        finally:
            await storage.close()

    # -- whole documents -------------------------------------------------------------

    async def test_it_follows_the_protocol(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            assert isinstance(storage, Storage)

    async def test_nothing_is_there_at_first(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            assert await storage.read("keystore") is None
            assert storage.change_token("keystore") is None
            assert await storage.names() == []

    @pytest.mark.parametrize(
        "data", [b"", b"x", bytes(range(256)), b"\r\n\x1a\0" * 1000, b"big" * 2_000_000]
    )
    async def test_what_is_written_is_read(self, tmp_path: Path, data: bytes) -> None:
        async with self.opened(tmp_path) as storage:
            result = await storage.write("api_keys", data, expected=None)
            stored = await storage.read("api_keys")
            assert stored is not None
            assert stored.data == data
            assert stored.token == result.token == storage.change_token("api_keys")

    async def test_a_replacement_is_whole(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            token: Token | None = None
            for data in (b"long" * 10_000, b"short", b"", b"longer again"):
                token = (await storage.write("config", data, expected=token)).token
                stored = await storage.read("config")
                assert stored is not None
                assert stored.data == data

    async def test_documents_do_not_touch_each_other(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            for name in DOCUMENTS:
                await storage.write(name, name.encode(), expected=None)
            assert await storage.names() == sorted(DOCUMENTS)
            for name in DOCUMENTS:
                stored = await storage.read(name)
                assert stored is not None
                assert stored.data == name.encode()

    async def test_the_bytes_are_the_writers_no_more(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            data = bytearray(b"before")
            await storage.write("a", cast("bytes", data), expected=None)
            data[:] = b"after!"
            stored = await storage.read("a")
            assert stored is not None
            assert stored.data == b"before"

    async def test_bytes_are_not_shown(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            await storage.write("a", b"canary-in-a-document", expected=None)
            assert "canary" not in repr(await storage.read("a"))

    # -- compare-and-set -------------------------------------------------------------

    async def test_every_version_has_its_own_token(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            token: Token | None = None
            tokens: set[Token] = set()
            for _ in range(40):
                token = (await storage.write("a", b"same", expected=token)).token
                tokens.add(token)
            assert len(tokens) == 40

    async def test_a_token_stands_still_while_nothing_changes(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            token = (await storage.write("a", b"1", expected=None)).token
            await storage.write("config", b"2", expected=None)
            for _ in range(3):
                stored = await storage.read("a")
                assert stored is not None
                assert stored.token == token == storage.change_token("a")

    async def test_nothing_is_overwritten_unseen(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            first = (await storage.write("a", b"1", expected=None)).token
            second = (await storage.write("a", b"2", expected=first)).token
            for stale in (None, first, FOREIGN_TOKEN):
                with pytest.raises(ConflictError):
                    await storage.write("a", b"lost", expected=stale)
            stored = await storage.read("a")
            assert stored is not None
            assert (stored.data, stored.token) == (b"2", second)

    async def test_what_is_gone_is_not_replaced(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            token = (await storage.write("a", b"1", expected=None)).token
            await storage.delete("a", expected=token)
            for stale in (token, FOREIGN_TOKEN):
                with pytest.raises(ConflictError):
                    await storage.write("a", b"2", expected=stale)
            assert await storage.read("a") is None

    async def test_delete_removes_only_what_was_seen(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            first = (await storage.write("a", b"1", expected=None)).token
            second = (await storage.write("a", b"2", expected=first)).token
            with pytest.raises(ConflictError):
                await storage.delete("a", expected=first)
            await storage.delete("a", expected=second)
            with pytest.raises(ConflictError):
                await storage.delete("a", expected=second)
            assert storage.change_token("a") is None
            assert await storage.names() == []

    async def test_a_recreated_document_is_another_version(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            seen: set[Token] = set()
            for _ in range(20):
                token = (await storage.write("a", b"same", expected=None)).token
                assert token not in seen
                seen.add(token)
                await storage.delete("a", expected=token)

    async def test_racing_writers_lose_nothing(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            await storage.write("a", b"0", expected=None)
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(_count_up, storage, 5)
            stored = await storage.read("a")
            assert stored is not None
            assert stored.data == b"20"

    async def test_writers_in_several_event_loops_lose_nothing(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            if shared(storage) is not None:
                pytest.skip("a vault uses it in one event loop only")
            await storage.write("a", b"0", expected=None)
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    count = functools.partial(anyio.run, _count_up, storage, 5)
                    group.start_soon(anyio.to_thread.run_sync, count)
            stored = await storage.read("a")
            assert stored is not None
            assert stored.data == b"15"

    async def test_one_creator_wins(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            won: list[int] = []

            async def create(number: int) -> None:
                with contextlib.suppress(ConflictError):
                    await storage.write("a", b"%d" % number, expected=None)
                    won.append(number)

            async with anyio.create_task_group() as group:
                for number in range(6):
                    group.start_soon(create, number)
            stored = await storage.read("a")
            assert stored is not None
            assert [stored.data] == [b"%d" % number for number in won]

    async def test_a_cancelled_write_is_whole(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            token = (await storage.write("a", b"old" * 100_000, expected=None)).token
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(
                        functools.partial(storage.write, "a", b"new" * 100_000, expected=token)
                    )
                    await anyio.lowlevel.checkpoint()
                    scope.cancel()
            stored = await storage.read("a")
            assert stored is not None
            assert stored.data in (b"old" * 100_000, b"new" * 100_000)
            await storage.write("a", b"goes on", expected=stored.token)

    # -- several documents at once ---------------------------------------------------

    async def test_several_are_read(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            made = await storage.write("a", b"1", expected=None)
            await storage.write("keystore", b"2", expected=None)
            found = await storage.read_many(["a", "keystore", "config"])
            assert {name: stored.data for name, stored in found.items()} == {
                "a": b"1",
                "keystore": b"2",
            }
            assert found["a"].token == made.token
            assert await storage.read_many([]) == {}

    async def test_a_tied_write_needs_what_it_is_tied_to(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            held = (await storage.write("keystore", b"1", expected=None)).token
            [made, tie] = await storage.write_many(
                [Write("a", b"1", None), Write("keystore", None, held)]
            )
            assert made.token == storage.change_token("a")
            assert tie.token == held == storage.change_token("keystore")
            moved = (await storage.write("keystore", b"2", expected=held)).token
            for stale in (held, FOREIGN_TOKEN):
                with pytest.raises(ConflictError):
                    await storage.write_many(
                        [Write("keystore", None, stale), Write("a", b"lost", made.token)]
                    )
            await storage.delete("keystore", expected=moved)
            with pytest.raises(ConflictError):
                await storage.write_many(
                    [Write("a", b"lost", made.token), Write("keystore", None, moved)]
                )
            stored = await storage.read("a")
            assert stored is not None
            assert (stored.data, stored.token) == (b"1", made.token)

    async def test_nothing_is_tied_to_what_does_not_exist(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            with pytest.raises(StorageError):
                await storage.write_many([Write("a", b"1", None), Write("b", None, None)])
            assert await storage.read("a") is None

    async def test_a_tied_write_is_compared_itself_too(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            held = (await storage.write("keystore", b"1", expected=None)).token
            first = (await storage.write("a", b"1", expected=None)).token
            await storage.write("a", b"2", expected=first)
            for stale in (None, first):
                with pytest.raises(ConflictError):
                    await storage.write_many(
                        [Write("a", b"lost", stale), Write("keystore", None, held)]
                    )
            stored = await storage.read("a")
            assert stored is not None
            assert stored.data == b"2"

    async def test_a_tied_write_says_what_it_shredded(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            tie = Write(
                "keystore", None, (await storage.write("keystore", b"1", expected=None)).token
            )
            [first, _] = await storage.write_many([Write("a", b"1", None), tie], shred=True)
            assert first.shredded == "no"
            again = Write("a", b"2", first.token)
            [second, kept] = await storage.write_many([again, tie], shred=True)
            assert second.shredded in ("overwritten", "unverifiable")
            assert kept.shredded == "no"

    async def test_several_are_written_and_removed_together(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            if not isinstance(storage, Divides) or not storage.division:
                pytest.skip("this storage takes one write at a time, or is shared")
            old = (await storage.write("a", b"1", expected=None)).token
            gone = Write("a", None, old, remove=True)
            others = [Write("api_keys", b"2", None), Write("keystore", b"3", None)]
            for stale in (
                Write("oauth_tokens", b"4", FOREIGN_TOKEN),
                Write("oauth_tokens", None, FOREIGN_TOKEN),
            ):
                with pytest.raises(ConflictError):
                    await storage.write_many([gone, *others, stale], shred=True)
                assert await storage.names() == ["a"]
            made = await storage.write_many([gone, *others], shred=True)
            assert await storage.names() == ["api_keys", "keystore"]
            found = await storage.read_many(["a", "api_keys", "keystore"])
            assert {name: each.data for name, each in found.items()} == {
                "api_keys": b"2",
                "keystore": b"3",
            }
            assert [found[name].token for name in found] == [each.token for each in made[1:]]
            assert [storage.change_token(n) for n in found] == [each.token for each in made[1:]]
            with pytest.raises(ConflictError):
                await storage.write_many([Write("api_keys", None, old, remove=True)])

    async def test_no_tied_write_overtakes_what_it_is_tied_to(self, tmp_path: Path) -> None:
        """What was computed from an older key store is never written after a newer one."""
        async with self.opened(tmp_path) as storage:
            await storage.write("keystore", b"0", expected=None)
            await storage.write("a", b"0", expected=None)

            async def follow(last: int) -> None:
                """Appends the key store's number to "a", tied to it, until it is ``last``."""
                number = -1
                while number < last:
                    keystore = (await storage.read_many(["keystore"]))["keystore"]
                    before = (await storage.read_many(["a"]))["a"]
                    data = before.data + b"," + keystore.data
                    tie = Write("keystore", None, keystore.token)
                    with contextlib.suppress(ConflictError):
                        await storage.write_many([Write("a", data, before.token), tie])
                        number = int(keystore.data)

            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(follow, 12)
                for _ in range(12):
                    await _count_up(storage, 1, name="keystore")
            stored = await storage.read("a")
            assert stored is not None
            versions = [int(version) for version in stored.data.split(b",")]
            assert versions == sorted(versions)
            assert versions[-1] == 12

    # -- the rest --------------------------------------------------------------------

    async def test_shredding_says_what_it_did(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            first = await storage.write("a", b"1" * 5000, expected=None, shred=True)
            assert first.shredded == "no"  # there was nothing to overwrite
            plain = await storage.write("a", b"2" * 5000, expected=first.token)
            assert plain.shredded == "no"
            shred = await storage.write("a", b"3", expected=plain.token, shred=True)
            assert shred.shredded in ("overwritten", "unverifiable")
            stored = await storage.read("a")
            assert stored is not None
            assert stored.data == b"3"
            gone = await storage.delete("a", expected=shred.token, shred=True)
            assert gone in ("overwritten", "unverifiable")

    @pytest.mark.parametrize("name", BAD_NAMES)
    async def test_a_bad_name_is_refused(self, tmp_path: Path, name: str) -> None:
        async with self.opened(tmp_path) as storage:
            with pytest.raises(InvalidNameError):
                storage.change_token(name)
            with pytest.raises(InvalidNameError):
                await storage.read(name)
            with pytest.raises(InvalidNameError):
                await storage.read_many(["a", name])
            with pytest.raises(InvalidNameError):
                await storage.write(name, b"", expected=None)
            with pytest.raises(InvalidNameError):
                await storage.write_many(
                    [Write("a", b"", None), Write(name, None, FOREIGN_TOKEN)]
                )
            with pytest.raises(InvalidNameError):
                await storage.delete(name, expected=FOREIGN_TOKEN)

    async def test_prepare_and_close_may_be_repeated(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            token = (await storage.write("a", b"kept", expected=None)).token
            await storage.prepare()
            assert storage.change_token("a") == token
            await storage.close()

    async def test_another_storage_sees_every_write(self, tmp_path: Path) -> None:
        if not self.shared:
            pytest.skip("this storage is not shared")
        async with self.opened(tmp_path) as one, self.opened(tmp_path) as other:
            first = (await one.write("a", b"1", expected=None)).token
            await refresh(other)
            assert other.change_token("a") == first
            second = (await other.write("a", b"2", expected=first)).token
            await refresh(one)
            assert one.change_token("a") == second
            with pytest.raises(ConflictError):
                await one.write("a", b"lost", expected=first)
            await one.delete("a", expected=second)
            assert await other.read("a") is None

    async def test_documents_outlive_the_storage(self, tmp_path: Path) -> None:
        if not self.shared:
            pytest.skip("this storage is not shared")
        async with self.opened(tmp_path) as storage:
            token = (await storage.write("a", b"kept", expected=None)).token
        async with self.opened(tmp_path) as storage:
            stored = await storage.read("a")
            assert stored is not None
            assert (stored.data, stored.token) == (b"kept", token)


async def refresh(storage: Storage) -> None:
    """Lets a shared storage see what others did; files need nothing of the kind."""
    common = shared(storage)
    if common is not None:
        await common.refresh()


async def _count_up(storage: Storage, times: int, name: str = "a") -> None:
    while times:
        stored = await storage.read(name)
        assert stored is not None
        with contextlib.suppress(ConflictError):
            await storage.write(name, b"%d" % (int(stored.data) + 1), expected=stored.token)
            times -= 1

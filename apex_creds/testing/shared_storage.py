"""What a storage that several processes share must do beside the rest.

Guarantee: a backend that passes keeps the promises of ``SharedStorage`` that can be seen
from one process with two storages open at one place.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio
import pytest

from apex_creds.errors import ConflictError, InvalidNameError
from apex_creds.storage.base import SharedStorage, Write
from apex_creds.testing.storage import StorageContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MANY = [f"api_keys_{number:02x}" for number in range(40)]


class SharedStorageContract(StorageContract):
    """Test methods; override ``open_storage``."""

    async def open_storage(self, where: Path) -> SharedStorage:
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def opened(self, where: Path) -> AsyncIterator[SharedStorage]:
        async with super().opened(where) as storage:
            assert isinstance(storage, SharedStorage)
            yield storage

    @contextlib.asynccontextmanager
    async def two(self, where: Path) -> AsyncIterator[tuple[SharedStorage, SharedStorage]]:
        async with self.opened(where) as one, self.opened(where) as other:
            yield one, other

    async def test_it_follows_the_shared_protocol(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            assert isinstance(storage, SharedStorage)
            assert storage.shards > 0
            await storage.refresh()
            assert storage.stale_for() == 0.0

    # -- refreshing ---------------------------------------------------------------------

    async def test_a_refresh_sees_writes_replacements_and_deletions(
        self, tmp_path: Path
    ) -> None:
        async with self.two(tmp_path) as (one, other):
            made = await one.write_many([Write(name, b"1", None) for name in MANY])
            await other.refresh()
            assert [other.change_token(name) for name in MANY] == [r.token for r in made]
            token = (await one.write(MANY[3], b"2", expected=made[3].token)).token
            await one.delete(MANY[4], expected=made[4].token)
            await other.refresh()
            assert other.change_token(MANY[3]) == token
            assert other.change_token(MANY[4]) is None

    async def test_changes_stand_still_while_nothing_changes(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, other):
            token = (await one.write("a", b"1", expected=None)).token
            await other.refresh()
            before = other.change_count()
            await other.refresh()
            await other.read("a")
            assert other.change_count() == before
            await one.write("a", b"2", expected=token)
            await other.refresh()
            assert other.change_count() > before

    async def test_what_was_read_is_in_the_map(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, other):
            await other.refresh()
            await one.write("a", b"1", expected=None)
            stored = await other.read("a")
            assert stored is not None
            assert other.change_token("a") == stored.token

    async def test_who_lost_a_race_knows_the_winner(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, other):
            first = (await one.write("a", b"1", expected=None)).token
            await other.refresh()
            second = (await one.write("a", b"2", expected=first)).token
            with pytest.raises(ConflictError):
                await other.write("a", b"lost", expected=first)
            assert other.change_token("a") == second

    async def test_subscribers_are_called(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, other):
            await other.refresh()
            seen: list[int] = []
            end = other.subscribe(lambda: seen.append(other.change_count()))
            token = (await one.write("a", b"1", expected=None)).token
            await other.refresh()
            assert seen
            end()
            seen.clear()
            await one.write("a", b"2", expected=token)
            await other.refresh()
            assert not seen

    async def test_many_refresh_at_once(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, other):
            token = (await one.write("a", b"1", expected=None)).token
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(other.refresh)
            assert other.change_token("a") == token

    async def test_a_refresh_that_is_cancelled_disturbs_nobody(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, other):
            token = (await one.write("a", b"1", expected=None)).token

            async def cancelled() -> None:
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await other.refresh()

            async with anyio.create_task_group() as group:
                group.start_soon(cancelled)
                group.start_soon(other.refresh)
            assert other.change_token("a") == token

    # -- many at once ----------------------------------------------------------------

    async def test_many_are_read_at_once(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, other):
            made = await one.write_many([Write(n, n.encode(), None) for n in MANY])
            found = await other.read_many([*MANY, "not_there"])
            assert {name: stored.data for name, stored in found.items()} == {
                name: name.encode() for name in MANY
            }
            assert [found[name].token for name in MANY] == [result.token for result in made]
            assert await other.read_many([]) == {}

    async def test_many_are_written_or_none(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, other):
            [a, b] = await one.write_many([Write("a", b"1", None), Write("b", b"1", None)])
            moved = (await other.write("b", b"2", expected=b.token)).token
            for stale in (b.token, None):
                with pytest.raises(ConflictError):
                    await one.write_many([Write("a", b"x", a.token), Write("b", b"x", stale)])
            with pytest.raises(ConflictError):
                await one.write_many([Write("c", b"x", None), Write("b", b"x", b.token)])
            found = await other.read_many(["a", "b", "c"])
            assert {name: stored.data for name, stored in found.items()} == {
                "a": b"1",
                "b": b"2",
            }
            await one.write_many([Write("a", b"3", a.token), Write("b", b"3", moved)])
            assert await one.write_many([]) == []

    async def test_a_document_may_be_held_while_others_are_written(
        self, tmp_path: Path
    ) -> None:
        async with self.two(tmp_path) as (one, other):
            held = (await one.write("keystore", b"1", expected=None)).token
            [a, guard] = await other.write_many(
                [Write("a", b"1", None), Write("keystore", None, held)]
            )
            assert guard.token == held
            await one.write("keystore", b"2", expected=held)
            with pytest.raises(ConflictError):
                await other.write_many(
                    [Write("keystore", None, held), Write("a", b"2", a.token)]
                )
            stored = await one.read("a")
            assert stored is not None
            assert stored.data == b"1"
            assert other.change_token("keystore") == one.change_token("keystore")

    async def test_a_bad_name_among_many_is_refused(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as storage:
            with pytest.raises(InvalidNameError):
                await storage.read_many(["a", "A"])
            with pytest.raises(InvalidNameError):
                await storage.write_many([Write("a", b"", None), Write("A", b"", None)])
            assert await storage.names() == []

    # -- sharing work ----------------------------------------------------------------

    async def test_one_leads(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, other):
            async with one.leader("work") as first:
                assert first
                async with other.leader("work") as second, other.leader("rest") as rest:
                    assert not second
                    await second.ended()
                    assert rest
                assert first
            assert not first
            async with other.leader("work") as second:
                assert second

    async def test_work_is_shared_out(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, other):
            async with one.claim(MANY[:8], limit=3) as ours:
                assert len(ours) == 3
                async with other.claim(MANY[:8], limit=100) as theirs:
                    assert sorted([*ours, *theirs]) == MANY[:8]
                    token = (await one.write(theirs[0], b"1", expected=None)).token
                    assert token is not None
            async with other.claim(MANY[:8], limit=100) as all_of_them:
                assert sorted(all_of_them) == MANY[:8]
            async with other.claim([], limit=1) as none:
                assert none == []

    # -- streams ---------------------------------------------------------------------

    async def test_lines_are_added_at_the_end_only(self, tmp_path: Path) -> None:
        async with self.two(tmp_path) as (one, other):
            await one.append_lines("node_1", [b"first", b"\0second"], first=0)
            await other.append_lines("node_1", [b"third"], first=2)
            await other.append_lines("node_2", [b"else"], first=0)
            for wrong in (0, 1, 2, 4):
                with pytest.raises(ConflictError):
                    await one.append_lines("node_1", [b"lost"], first=wrong)
            assert await other.read_lines("node_1", limit=10) == [
                b"first",
                b"\0second",
                b"third",
            ]
            assert await one.read_lines("node_1", first=1, limit=1) == [b"\0second"]
            assert await one.read_lines("node_9", limit=1) == []
            assert await one.streams() == {"node_1": 3, "node_2": 1}

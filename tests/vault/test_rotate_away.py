"""A server that goes away, or lies, while the master key of a shared vault is replaced."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import anyio
import pytest

from apex_creds.documents.keystore import MasterKeySource
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import (
    ApexCredsError,
    RollbackDetectedError,
    StorageStaleError,
    StorageUncertainError,
    StorageUnreachableError,
)
from apex_creds.keys import provider_from_uri
from apex_creds.keys.hierarchy import KEYSTORE
from apex_creds.scheduler import master_rotation
from apex_creds.storage.base import Write, WriteResult
from apex_creds.storage.memory_storage import MemoryStorage
from apex_creds.vault import create
from tests.support.clocks import FakeClock
from tests.support.vaults import NoNote

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_slot_left")]

Writing = Callable[[], Awaitable[list[WriteResult]]]


class Failing(MemoryStorage):
    """Has ``around`` do the next write of the key store."""

    around: Callable[[Writing], Awaitable[list[WriteResult]]] | None = None

    async def write_many(
        self, writes: Sequence[Write], *, shred: bool = False
    ) -> list[WriteResult]:
        around, inner = self.around, partial(super().write_many, shred=shred)
        if around is None or writes[0].name != KEYSTORE:
            return await inner(writes)
        self.around = None
        return await around(lambda: inner(writes))


class Server:
    """A database, and one process whose connection to it can fail."""

    def __init__(self, where: Path) -> None:
        self.key_file = where / "k"
        self.storage = Failing(shards=4, staleness=60.0)
        self.store = self.open(self.storage)
        self.others = self.storage.peer()

    def open(self, storage: MemoryStorage) -> DocumentStore:
        masters = MasterKeySource(provider_from_uri(f"file:{self.key_file}"))
        return DocumentStore(storage, clock=FakeClock(), masters=masters)

    async def create(self) -> None:
        provider = provider_from_uri(f"file:{self.key_file}")
        made = await create.create_vault(
            self.storage, provider=provider, hashed_names=False, begun=NoNote(), now=1.0
        )
        made.close()

    def keys(self) -> list[str]:
        if not self.key_file.exists():
            return []
        return [line.split()[0] for line in self.key_file.read_text().splitlines()]

    async def opens_with(self) -> int:
        """The version that the vault, as stored, opens with."""
        fresh = self.open(self.others.peer())
        try:
            return (await fresh.unseal()).root_header.master.version
        finally:
            await fresh.close()


@pytest.fixture
async def server(tmp_path: Path):
    made = Server(tmp_path)
    await made.create()
    await made.store.unseal()
    yield made
    made.storage.reachable = True
    await made.store.close()


def cut(server: Server, error: type[ApexCredsError], *, written: bool, back: bool = False):
    """The answer to the write is lost; ``back``: the server is there again at once."""

    async def around(write: Writing) -> list[WriteResult]:
        if written:
            await write()
        server.storage.reachable = back
        raise error("injected", hint="-")

    return around


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("error", [StorageUncertainError, StorageUnreachableError])
async def test_a_key_that_the_stored_vault_needs_stays(
    server: Server, error: type[ApexCredsError], back: bool
) -> None:
    server.storage.around = cut(server, error, written=True, back=back)
    with pytest.raises(error):
        await master_rotation.rotate_master(server.store, replaces=1, now=5.0)
    assert server.keys() == ["v1", "v2"]
    assert await server.opens_with() == 2


async def test_a_write_that_lands_after_it_was_given_up_finds_its_key(server: Server) -> None:
    late: list[Writing] = []

    async def around(write: Writing) -> list[WriteResult]:
        late.append(write)
        raise StorageUncertainError("injected", hint="-")

    server.storage.around = around
    with pytest.raises(StorageUncertainError):
        await master_rotation.rotate_master(server.store, replaces=1, now=5.0)
    assert (await server.store.keystore()).root_header.master.version == 1
    await late[0]()
    assert await server.opens_with() == 2


@pytest.mark.parametrize("back", [False, True])
async def test_a_rotation_that_is_cancelled_keeps_the_key(server: Server, back: bool) -> None:
    with anyio.CancelScope() as scope:

        async def around(write: Writing) -> list[WriteResult]:
            await write()
            server.storage.reachable = back
            scope.cancel()
            await anyio.sleep_forever()
            raise AssertionError

        server.storage.around = around
        await master_rotation.rotate_master(server.store, replaces=1, now=5.0)
    assert scope.cancelled_caught
    assert server.keys() == ["v1", "v2"]
    assert await server.opens_with() == 2


async def test_the_next_rotation_passes_over_what_was_left(server: Server) -> None:
    server.storage.around = cut(server, StorageUncertainError, written=False, back=True)
    with pytest.raises(StorageUncertainError):
        await master_rotation.rotate_master(server.store, replaces=1, now=5.0)
    assert await server.opens_with() == 1
    await master_rotation.rotate_master(server.store, replaces=1, now=6.0)
    assert server.keys() == ["v1", "v2", "v3"]
    assert await server.opens_with() == 3
    for version in (1, 2):
        await master_rotation.discard_master(server.store, version)
    assert server.keys() == ["v3"]


@pytest.mark.parametrize("away", [False, True])
async def test_a_rotation_that_came_second_discards_only_what_it_can_look_up(
    server: Server, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    first = Failing(shards=4)
    first._place = server.storage._place
    winner, stored = server.open(first), server.store.stored_keystore

    async def looked() -> object:
        server.storage.reachable = not away
        return await stored()

    async def winning(write: Writing) -> list[WriteResult]:
        async def losing(mine: Writing) -> list[WriteResult]:
            results.extend(await write())
            monkeypatch.setattr(server.store, "stored_keystore", looked)
            return await mine()

        results: list[WriteResult] = []
        server.storage.around = losing
        after = await master_rotation.rotate_master(server.store, replaces=1, now=5.0)
        assert after.root_header.master.version == 2
        return results

    await winner.unseal()
    first.around = winning
    await master_rotation.rotate_master(winner, replaces=1, now=5.0)
    await winner.close()
    assert server.keys() == (["v1", "v2", "v3"] if away else ["v1", "v2"])
    assert await server.opens_with() == 2


async def test_no_key_is_made_or_deleted_while_the_server_is_away(server: Server) -> None:
    await master_rotation.rotate_master(server.store, replaces=1, now=5.0)
    await server.store.refresh()
    server.storage.reachable = False
    assert (await server.store.keystore()).root_header.master.version == 2  # from memory
    with pytest.raises(StorageStaleError):
        await master_rotation.rotate_master(server.store, replaces=2, now=6.0)
    with pytest.raises(StorageStaleError):
        await master_rotation.discard_master(server.store, 1)
    assert server.keys() == ["v1", "v2"]


@pytest.mark.parametrize("written", [False, True])
async def test_an_init_whose_answer_is_lost_keeps_its_key(
    tmp_path: Path, written: bool
) -> None:
    server = Server(tmp_path)
    server.storage.around = cut(server, StorageUncertainError, written=written, back=True)
    with pytest.raises(StorageUncertainError):
        await server.create()
    assert server.keys() == ["v1"]


async def test_an_init_that_came_second_takes_its_key_back(tmp_path: Path) -> None:
    server = Server(tmp_path)
    (tmp_path / "other").mkdir()
    first = Server(tmp_path / "other")
    first.storage = first.others = server.others

    async def around(write: Writing) -> list[WriteResult]:
        await first.create()
        return await write()

    server.storage.around = around
    with pytest.raises(ApexCredsError, match="already"):
        await server.create()
    assert (server.keys(), first.keys()) == ([], ["v1"])


# -- a server that lies --------------------------------------------------------------


async def put_back(server: Server, write: Writing) -> list[WriteResult]:
    documents = server.storage._place.documents
    before = documents[KEYSTORE]
    done = await write()
    documents[KEYSTORE] = before
    return done


async def test_a_key_store_that_is_put_back_right_after_its_commit_is_refused(
    server: Server,
) -> None:
    server.storage.around = lambda write: put_back(server, write)
    with pytest.raises(RollbackDetectedError):
        await server.store.note(["custom"])
    with pytest.raises(RollbackDetectedError):
        await server.store.stored_keystore()


async def test_a_rotation_that_is_put_back_loses_no_key(server: Server) -> None:
    server.storage.around = lambda write: put_back(server, write)
    with pytest.raises(RollbackDetectedError):
        await master_rotation.rotate_master(server.store, replaces=1, now=5.0)
    assert server.keys() == ["v1", "v2"]
    with pytest.raises(RollbackDetectedError):
        await master_rotation.discard_master(server.store, 1)

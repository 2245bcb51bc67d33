"""Writers that stall in the worst moment, while another process rotates and destroys.

Each storage call of the slow one can be held; the rotation of the other one then runs to
its end, without any grace. What the slow one is told is stored must open afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import pytest

from apex_creds.documents import key_versions
from apex_creds.documents.keystore import MasterKeySource
from apex_creds.documents.store import DocumentStore
from apex_creds.model import ApiKey
from apex_creds.scheduler.engine import Engine
from apex_creds.scheduler.reencryption import reencrypt
from apex_creds.scheduler.rotation_state import (
    RotationState,
    labels_of,
    newest,
    rotation_document,
)
from apex_creds.scheduler.schedule import Level, LevelPolicy, Policies
from apex_creds.storage.base import Token, Write, WriteResult
from apex_creds.storage.memory_storage import MemoryStorage
from apex_creds.vault import create, credential_writes
from apex_creds.vault.lookup import PutItem
from tests.scheduler.simulation import Chaos, ChaoticProvider, Keyring, Mortal, read
from tests.support.clocks import FakeClock
from tests.support.loops import WITHIN
from tests.support.vaults import NoNote

pytestmark = pytest.mark.anyio


class Gate:
    """A storage whose next write of one document waits until it is opened.

    Args:
        inner: Has the documents.
    """

    def __init__(self, inner: MemoryStorage) -> None:
        self.inner, self.name = inner, ""
        self.reached, self.open = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    async def write(
        self, name: str, data: bytes, *, expected: Token | None, shred: bool = False
    ) -> WriteResult:
        return (await self.write_many([Write(name, data, expected)], shred=shred))[0]

    async def write_many(
        self, writes: Sequence[Write], *, shred: bool = False
    ) -> list[WriteResult]:
        if self.name in [write.name for write in writes if write.data is not None]:
            self.name = ""
            self.reached.set()
            await self.open.wait()
        return await self.inner.write_many(writes, shred=shred)


class Two:
    """A slow process and a quick one, on one vault."""

    def __init__(self) -> None:
        self.storage, self.clock = MemoryStorage(), FakeClock()
        chaos = Chaos(0)
        chaos.armed = False
        self.provider = ChaoticProvider(Keyring(), chaos, Mortal(mortal=False))
        self.gate = Gate(self.storage)

    def process(self, storage: object) -> DocumentStore:
        return DocumentStore(storage, clock=self.clock, masters=MasterKeySource(self.provider))

    async def start(self) -> None:
        made = await create.create_vault(
            self.storage,
            provider=self.provider,
            hashed_names=False,
            begun=NoNote(),
            now=self.clock.now,
        )
        made.close()
        self.slow, self.quick = self.process(self.gate), self.process(self.storage)
        await self.slow.unseal()
        await self.quick.unseal()

    async def put(self, store: DocumentStore, name: str, value: str, service: str) -> None:
        item = PutItem(name=name, secret=ApiKey(value), service=service)
        await credential_writes.put(store, "api_keys", [item], clock=self.clock)

    async def rotate(self, level: Level, label: str = "") -> None:
        """All of it, by the quick one; no grace."""
        self.clock.now += 10.0
        document = rotation_document(self.quick)
        never = LevelPolicy(interval=None, grace=0.0)
        quiet = Policies(master=never, kek=never, dek=never)
        keystore = await self.quick.keystore()
        wanted = newest(keystore, level, [label] if label else labels_of(keystore))
        await document.change(lambda _: RotationState(policies=quiet, renew=wanted))
        engine = Engine(self.quick, document, next_fire=lambda *_: None)
        outcome = await engine.run(lease=False)
        assert not outcome.failed
        assert not await engine.plan()

    async def meanwhile(
        self,
        name: str,
        slowly: Callable[[], Awaitable[object]],
        quickly: Callable[[], Awaitable[object]],
    ) -> None:
        """``quickly`` runs while ``slowly`` is about to write ``name``."""
        self.gate.name = name
        task = asyncio.ensure_future(slowly())
        await asyncio.wait_for(self.gate.reached.wait(), WITHIN)
        await quickly()
        self.gate.open.set()
        await asyncio.wait_for(task, WITHIN)

    async def all_of(self, names: dict[str, str]) -> None:
        """What a third process reads."""
        fresh = self.process(self.storage)
        await fresh.unseal()
        for name, value in names.items():
            assert await read(fresh, "api_keys", name) == value


@pytest.fixture
async def two() -> Two:
    made = Two()
    await made.start()
    return made


@pytest.mark.parametrize("level", list(Level))
async def test_a_put_into_an_existing_section(two: Two, level: Level) -> None:
    await two.put(two.quick, "old", "an old value", "other")
    await two.put(two.quick, "first", "value", "service")
    await two.meanwhile(
        "api_keys",
        lambda: two.put(two.slow, "new", "a new value", "service"),
        lambda: two.rotate(level),
    )
    await two.all_of({"old": "an old value", "first": "value", "new": "a new value"})


@pytest.mark.parametrize("level", list(Level))
async def test_a_put_for_a_key_that_nothing_uses(two: Two, level: Level) -> None:
    """No record moves, so only the tie stops the writer who has the old key."""
    await key_versions.ensure(two.quick, ["api_keys/service"], now=two.clock.now)
    await two.put(two.quick, "other", "value", "other")
    await two.meanwhile(
        "api_keys",
        lambda: two.put(two.slow, "new", "a new value", "service"),
        lambda: two.rotate(level, "api_keys/service" if level is Level.DEK else ""),
    )
    await two.all_of({"other": "value", "new": "a new value"})


@pytest.mark.parametrize("level", list(Level))
async def test_the_first_put_of_a_section(two: Two, level: Level) -> None:
    """The document does not exist, so nothing in it tells which KEK it will be under."""
    await key_versions.ensure(two.quick, ["api_keys/service"], now=two.clock.now)
    await two.meanwhile(
        "api_keys",
        lambda: two.put(two.slow, "new", "a new value", "service"),
        lambda: two.rotate(level),
    )
    await two.all_of({"new": "a new value"})


@pytest.mark.parametrize("level", [Level.KEK, Level.MASTER])
async def test_a_new_keyset(two: Two, level: Level) -> None:
    """It was wrapped under a KEK that is gone when it is to be committed."""
    await two.meanwhile(
        "keystore",
        lambda: two.put(two.slow, "new", "a new value", "service"),
        lambda: two.rotate(level),
    )
    await two.all_of({"new": "a new value"})


@pytest.mark.parametrize("level", [Level.KEK, Level.MASTER])
async def test_a_state_document(two: Two, level: Level) -> None:
    document = rotation_document(two.slow)
    await two.meanwhile(
        "rotation",
        lambda: document.change(lambda s: RotationState(policies=s.policies, debounce=7.0)),
        lambda: two.rotate(level),
    )
    fresh = two.process(two.storage)
    await fresh.unseal()
    assert (await rotation_document(fresh).read()).debounce == 7.0


async def test_a_slice_whose_new_key_was_replaced_and_destroyed(two: Two) -> None:
    """Sealed under version 2, while another one went on to version 3 and destroyed 2."""
    label = "api_keys/service"
    await two.put(two.quick, "a", "value a", "service")
    await key_versions.renew(two.quick, label, now=two.clock.now)

    async def slowly() -> None:
        async for _ in reencrypt(two.slow, "api_keys"):
            pass

    async def quickly() -> None:
        now = two.clock.now
        await key_versions.renew(two.quick, label, now=now)
        retire = partial(key_versions.retire, now=now)
        destroy = partial(key_versions.destroy, before=now, now=now)
        assert await key_versions.step_unused(two.quick, "api_keys", [label], retire)
        assert await key_versions.step_unused(two.quick, "api_keys", [label], destroy)

    await two.meanwhile("api_keys", slowly, quickly)
    await two.all_of({"a": "value a"})


async def test_a_slice_commits_only_what_nobody_changed(two: Two) -> None:
    await two.put(two.quick, "a", "value a", "service")
    await two.put(two.quick, "b", "value b", "service")
    await key_versions.renew(two.quick, "api_keys/service", now=two.clock.now)

    async def slowly() -> None:
        async for _ in reencrypt(two.slow, "api_keys"):
            pass

    await two.meanwhile(
        "api_keys", slowly, lambda: two.put(two.quick, "a", "a newer value", "service")
    )
    await two.all_of({"a": "a newer value", "b": "value b"})
    keystore = await two.quick.keystore()
    for record in (await two.quick.sections.read("api_keys")).records.values():
        assert record.key[1] == keystore.by_id[record.key[0]].primary.version


async def test_two_that_rotate_at_once_rotate_once(two: Two) -> None:
    await two.put(two.quick, "a", "value a", "service")
    label = "api_keys/service"

    async def renewed(store: DocumentStore) -> None:
        await key_versions.renew_all(store, [label], now=two.clock.now, replaces={label: 1})

    await two.meanwhile("keystore", lambda: renewed(two.slow), lambda: renewed(two.quick))
    keyset = (await two.quick.keystore()).by_label[label]
    assert [v.version for v in keyset.versions] == [1, 2]

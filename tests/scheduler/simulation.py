"""A deterministic simulation of a vault that is worked on while its keys rotate.

One storage, one key provider and one clock; several workers, each with documents and caches
of its own, as processes have. Every call of the storage and of the provider may be the one
at which a worker crashes, just before it or just after; its memory is then lost, and a new
worker starts. Everything random comes from one seed: ``simulate(seed)`` replays.

``python -m tests.scheduler.simulation [COUNT] [FIRST SEED]`` runs many.
"""

from __future__ import annotations

import asyncio
import os
import random
import selectors
import sys
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from msgspec.structs import replace

from apex_creds.clocks import Ends
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.keystore import Keystore, MasterKeySource
from apex_creds.documents.records import Record, open_record
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import ConflictError, MasterKeyNotFoundError, RotatorError, TokenError
from apex_creds.keys.keyset import KeyState
from apex_creds.model import (
    SECTIONS,
    ApiKey,
    CredentialInfo,
    GenericSecret,
    Rotation,
    RotationStage,
    Secret,
    key_of,
)
from apex_creds.policy.grants import Grants
from apex_creds.rotators import Mode, Rotations, Task
from apex_creds.rotators.protocol import Created
from apex_creds.scheduler.compromise import declare
from apex_creds.scheduler.credential_rotation import CredentialRotation
from apex_creds.scheduler.engine import Engine
from apex_creds.scheduler.event_queue import EventQueue
from apex_creds.scheduler.reencryption import Pace
from apex_creds.scheduler.rotation_state import (
    CompromiseSuspected,
    Event,
    LeakDetected,
    OperatorRequest,
    PluginRemoved,
    RotationState,
    labels_of,
    newest,
    order,
    rotation_document,
)
from apex_creds.scheduler.schedule import DAY, Level, LevelPolicy, Policies
from apex_creds.storage.base import Leadership, Write
from apex_creds.storage.memory_storage import MemoryStorage
from apex_creds.vault import create, credential_writes
from apex_creds.vault.lookup import Facts, Opened, PutItem
from tests.scheduler.simulated_tokens import Server, Tokens
from tests.support.clocks import FakeClock
from tests.support.fake_rotator import FakeRotator, Provider
from tests.support.vaults import NoNote

_FIRST = b"the first value"
_PENDING = "pending_value"
ROTATED = [(mode, who) for mode in Mode for who in ("", "alice")]
"""What is replaced at a provider: the shared one and a principal's of the same name."""
ENDING = "carol"
"""Whose values end by themselves, and are replaced when somebody needs one."""
ON_DEMAND = [(mode, ENDING) for mode in Mode]
LIFE = 2 * DAY
NAMES = [f"name{number}" for number in range(4)]
SERVICES = ["one", "one", "two"]


class Crash(BaseException):
    """The process is gone."""


class Loop(asyncio.SelectorEventLoop):
    """A loop whose time passes when all tasks wait, and at once: no second of it is real."""

    def __init__(self) -> None:
        self._ticks = 0.0
        super().__init__(_Idle(self))

    def time(self) -> float:
        return self._ticks


class _Idle(selectors.SelectSelector):
    """Nothing comes from outside."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "all tasks wait for each other"
        self._loop._ticks += max(timeout, 0.0)
        return []


class Chaos:
    """Decides, from a seed, who waits for whom and who crashes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.calls = 0
        self.crashes = 0
        self.armed = True
        self.leaders: dict[str, Mortal] = {}

    async def around(self, owner: Mortal, call: Callable[[], Awaitable[Any]]) -> Any:
        """One call of a storage or a provider."""
        self.calls += 1
        dies = self.armed and owner.mortal and self.random.random() < 0.012
        if dies and self.random.random() < 0.5:
            self._crash(owner)
        await self._pause()
        result = await call()
        await self._pause()
        if dies:
            self._crash(owner)
        return result

    async def _pause(self) -> None:
        """Mostly short; now and then so long that others get a whole rotation done."""
        longest = 400 if self.random.random() < 0.04 else 3
        pause = self.random.randrange(longest)
        await asyncio.sleep(pause if self.armed else 0)  # seconds of ``Loop``, if any

    def _crash(self, owner: Mortal) -> None:
        self.crashes += 1
        owner.dead = True
        raise Crash


@dataclass(eq=False)
class Mortal:
    """A process: once dead, it calls nothing any more."""

    mortal: bool = True
    dead: bool = False


class ChaoticStorage:
    """One worker's way to the storage that all share."""

    def __init__(self, inner: MemoryStorage, chaos: Chaos, owner: Mortal) -> None:
        self._inner, self._chaos, self._owner = inner, chaos, owner

    def change_token(self, name: str) -> Any:
        return self._inner.change_token(name)

    async def _call(self, call: Callable[[], Awaitable[Any]]) -> Any:
        if self._owner.dead:
            raise Crash
        return await self._chaos.around(self._owner, call)

    async def prepare(self) -> None:
        await self._inner.prepare()

    async def read(self, name: str) -> Any:
        return await self._call(lambda: self._inner.read(name))

    async def write(self, name: str, data: bytes, **options: Any) -> Any:
        return await self._call(lambda: self._inner.write(name, data, **options))

    async def read_many(self, names: Iterable[str]) -> Any:
        return await self._call(lambda: self._inner.read_many(names))

    async def write_many(self, writes: Sequence[Write], **options: Any) -> Any:
        return await self._call(lambda: self._inner.write_many(writes, **options))

    async def delete(self, name: str, **options: Any) -> Any:
        return await self._call(lambda: self._inner.delete(name, **options))

    async def names(self) -> list[str]:
        return await self._inner.names()

    async def close(self) -> None:
        pass

    @asynccontextmanager
    async def leader(self, what: str) -> AsyncIterator[Leadership]:
        """Of who replaces a secret there is one at a time; keys are renewed by any."""
        if not what.startswith(("rotate_", "refresh_")):
            yield Leadership(held=True)
            return
        holder = self._chaos.leaders.get(what)
        if holder is not None and not holder.dead:
            yield Leadership(held=False)
            return
        self._chaos.leaders[what] = self._owner
        try:
            yield Leadership(held=True)
        finally:
            if self._chaos.leaders.get(what) is self._owner:
                del self._chaos.leaders[what]


class Keyring:
    """The master keys that all workers share."""

    def __init__(self) -> None:
        self.keys: dict[int, bytes] = {}


class ChaoticProvider:
    """One worker's way to the keyring."""

    scheme = "memory"
    uri = "memory:"

    def __init__(self, ring: Keyring, chaos: Chaos, owner: Mortal) -> None:
        self._ring, self._chaos, self._owner = ring, chaos, owner

    async def _call(self, do: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return do()

        if self._owner.dead:
            raise Crash
        return await self._chaos.around(self._owner, call)

    async def create(self, *, vault_id: str, version: int) -> Any:
        key = await self._call(lambda: self._ring.keys.setdefault(version, os.urandom(32)))
        return SecretBytes.from_bytes(key), {}

    async def load(self, *, vault_id: str, version: int, params: Mapping[str, str]) -> Any:
        key = await self._call(lambda: self._ring.keys.get(version))
        if key is None:
            raise MasterKeyNotFoundError("gone")
        return SecretBytes.from_bytes(key)

    async def discard(self, *, vault_id: str, version: int) -> None:
        await self._call(lambda: self._ring.keys.pop(version, None))


class ChaoticRotator(FakeRotator):
    """One worker's way to a provider that all share."""

    def __init__(self, world: World, uri: str, life: Mortal) -> None:
        mode, _, who = uri.partition("#")
        super().__init__(world.providers[Mode(mode), who], Mode(mode))
        self._chaos, self._life = world.chaos, life
        self._world, self._ends_by_itself = world, who == ENDING

    async def _call(self, step: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        if self._life.dead:
            raise Crash
        try:
            return await self._chaos.around(self._life, lambda: step(*args))
        except AssertionError as error:  # to a rotation that is a failure of the rotator
            self._world.wrong.append(error)
            raise

    async def create(self, task: Task) -> Any:
        return await self._call(self._made, task)

    async def _made(self, task: Task) -> Created:
        made = await super().create(task)
        if not self._ends_by_itself:
            return made
        made = Created(secret=made.secret, expires=task.now + LIFE)
        self._world.makes(key_of(task.credential, ENDING), task.current, self._life)
        return made

    async def set(self, task: Task, new: Secret) -> None:
        await self._call(self._was_set, task, new)

    async def _was_set(self, task: Task, new: Secret) -> None:
        assert new.parts["value"] not in self._provider.ended, "an old value is valid again"
        await super().set(task, new)

    async def test(self, task: Task, new: Secret) -> None:
        await self._call(super().test, task, new)

    async def finish(self, task: Task, old: Secret) -> None:
        await self._call(super().finish, task, old)


class Facade:
    """What rotations ask of a vault, over a worker's documents."""

    def __init__(self, store: DocumentStore, world: World, life: Mortal) -> None:
        self.store, self.clock, self.ends = store, world.clock, Ends(world.clock)
        self.audit = self
        self._excused, self._life = world.excused, life

    def encode(self, event: object) -> bytes:
        return b""

    def record(self, *args: object, action: str, credential: str, **fields: object) -> None:
        if action == "create credential":  # it failed, and what it made is not stored
            self._excused.add((self._life, credential))

    async def check_not_locked_down(self) -> None:
        pass

    async def grants(self) -> list[object]:
        return []

    async def refresh(self) -> None:
        await self.store.keystore()

    async def list(self, *, principal: str | None = None) -> list[CredentialInfo]:
        found = (await self.store.sections.read("api_keys")).records
        return [record.info for record in found.values()]

    async def get(self, name: str, *, principal: str = "") -> CredentialInfo:
        record = (await self.facts(key_of(name, principal))).record
        assert record is not None, name
        return record.info

    async def facts(self, key: str) -> Facts:
        while True:
            record = (await self.store.sections.read("api_keys")).records.get(key)
            await self.store.keystore()
            now = self.store.sections.now("api_keys")
            if now is not None and now.records.get(key) is record:
                return Facts(Grants(), record)

    def release(self, record: Record, event: bytes) -> Opened:
        keystore = self.store.unsealed()
        vault_id = bytes.fromhex(keystore.header.vault_id)
        whole = open_record(record, vault_id=vault_id, find_key=keystore.dek)
        return Opened(whole, record.info.kind)

    async def put_many(self, items: Iterable[PutItem]) -> None:
        await credential_writes.put(self.store, "api_keys", list(items), clock=self.clock)


@dataclass
class World:
    """What outlives every crash, and what was told to whom."""

    seed: int
    chaos: Chaos
    clock: FakeClock = field(default_factory=FakeClock)
    storage: MemoryStorage = field(default_factory=MemoryStorage)
    ring: Keyring = field(default_factory=Keyring)
    acknowledged: dict[str, str | None] = field(default_factory=dict)
    unsure: dict[str, set[str | None]] = field(default_factory=dict)
    readers: list[tuple[str, set[str | None]]] = field(default_factory=list)
    writers: dict[str, list[Worker]] = field(default_factory=dict)
    cut_off: dict[str, bool] = field(default_factory=dict)
    providers: dict[tuple[Mode, str], Provider] = field(
        default_factory=lambda: {
            each: Provider(valid={_FIRST}) for each in (*ROTATED, *ON_DEMAND)
        }
    )
    making: dict[tuple[str, bytes], Mortal] = field(default_factory=dict)
    excused: set[tuple[Mortal, str]] = field(default_factory=set)
    losing: int = 0
    needed: int = 0
    wrong: list[AssertionError] = field(default_factory=list)
    replaced: int = 0
    server: Server = field(default_factory=Server)
    events: list[Event] = field(default_factory=list)
    suspected: set[tuple[str, int]] = field(default_factory=set)
    latest: float = 0.0
    stamps: int = 0
    reads: int = 0

    def value(self) -> str:
        self.stamps += 1
        return f"value {self.stamps}"

    def makes(self, key: str, current: Secret, life: Mortal) -> None:
        """The next one after a value is made: once, but for crashes and failures."""
        if life.dead or self.losing:  # its request was under way; all that there is is lost
            return
        what = key, current.parts["value"]
        before = self.making.get(what)
        again = before is None or before.dead or (before, key) in self.excused
        assert again, "two values made for one that has expired"
        self.making[what] = life
        self.excused.discard((life, key))

    def documents(self, life: Mortal) -> DocumentStore:
        """Those of one worker."""
        return DocumentStore(
            ChaoticStorage(self.storage, self.chaos, life),
            clock=self.clock,
            masters=self.masters(life),
        )

    def masters(self, life: Mortal) -> MasterKeySource:
        return MasterKeySource(ChaoticProvider(self.ring, self.chaos, life))


class Asked(Rotations):
    """Values that may be in wrong hands: what is being made is made again."""

    def __init__(self, world: World, facade: Any, life: Mortal) -> None:
        super().__init__(facade, find=lambda uri: ChaoticRotator(world, uri, life))
        self._world = world

    async def ask(self, name: str, *, lost: bool = False, **options: Any) -> CredentialInfo:
        self._world.losing += lost
        try:
            return await super().ask(name, lost=lost, **options)
        finally:
            self._world.losing -= lost
            if lost:
                self._world.making.clear()


class Reactor:
    """What is done outside the keys is done elsewhere; an event is about one service."""

    async def _nothing(self, event: Event) -> None:
        pass

    revoke_leases = revoke_grants = lock_down = notify = _nothing

    async def services(self, event: Event) -> list[str]:
        return ["one"]


class Worker:
    """A process: documents and caches of its own."""

    def __init__(self, world: World, name: str, *, mortal: bool = True) -> None:
        self.world, self.name = world, name
        self.life = Mortal(mortal)
        self.store = world.documents(self.life)
        self.document = rotation_document(self.store)
        self.engine = Engine(
            self.store,
            self.document,
            next_fire=lambda *_: None,
            pace=Pace(slice_records=2),
        )
        facade: Any = Facade(self.store, world, self.life)
        self.rotations = Asked(world, facade, self.life)
        self.credentials = CredentialRotation(
            facade, next_fire=lambda *_: None, rotations=self.rotations
        )
        self.tokens = Tokens(world, self.store, self.life)
        self.bus = EventQueue(
            self.store, self.document, reactor=Reactor(), credentials=self.credentials
        )

    async def act(self) -> None:
        """One random thing."""
        roll = self.world.chaos.random
        actions = [self.put] * 6 + [self.redeem] * 6 + [self.delete] * 2
        actions += [self.rotate] * 6 + [self.compromise] * 2 + [self.request] * 2
        actions += [self.emit] * 3 + [self.replace] * 4 + [self.need] * 6 + [self.run_due]
        actions += [self.tokens.use] * 6 + [self.tokens.reconnect]
        await roll.choice(actions)()

    async def put(self) -> None:
        world, roll = self.world, self.world.chaos.random
        name, text = roll.choice(NAMES), world.value()
        section, secret = _secret(name, text)
        item = PutItem(name=name, secret=secret, service=roll.choice(SERVICES))
        with self.writes(name, text):
            await credential_writes.put(self.store, section, [item], clock=world.clock)

    async def delete(self) -> None:
        name = self.world.chaos.random.choice(NAMES)
        with self.writes(name, None):
            await credential_writes.remove(
                self.store, _secret(name, "x")[0], name, clock=self.world.clock
            )

    @contextmanager
    def writes(self, name: str, value: str | None) -> Iterator[None]:
        """While a write is under way, or was cut off, readers may see the old or the new."""
        world = self.world
        maybe = world.unsure.setdefault(name, set())
        maybe.add(value)
        for reading, seen in world.readers:
            if reading == name:
                seen.add(value)
        if name in world.acknowledged:
            maybe.add(world.acknowledged[name])
        else:
            maybe.add(None)
        alone = world.writers.setdefault(name, [])
        alone.append(self)
        try:
            yield
        except (Crash, ConflictError):
            pass
        else:
            # With one writer at a time, an acknowledged value is the only one.
            if len(alone) == 1 and not world.cut_off.get(name):
                world.acknowledged[name] = value
                world.unsure[name] = set()
                alone.remove(self)
                return
        alone.remove(self)
        world.cut_off[name] = bool(alone)
        if self.life.dead:
            raise Crash

    async def redeem(self) -> None:
        name = self.world.chaos.random.choice(NAMES)
        section = _secret(name, "x")[0]
        seen = (name, _allowed(self.world, name))  # and what is written while it reads
        self.world.readers.append(seen)
        found = await read(self.store, section, name)
        self.world.reads += 1
        allowed = seen[1] | _allowed(self.world, name)
        assert found in allowed, (name, found, allowed)

    async def rotate(self) -> None:
        await self.bus.act()
        await self.engine.run(lease=self.world.chaos.random.random() < 0.7)

    async def replace(self) -> None:
        """A secret at its provider: asked for, or what is under way goes on."""
        world, roll = self.world, self.world.chaos.random
        mode, who = roll.choice(ROTATED)
        if roll.random() < 0.6:
            await self.rotations.ask(mode.value, principal=who, lost=roll.random() < 0.3)
        with suppress(ConflictError, RotatorError):  # no answer within a minute
            await self.rotations.advance(mode.value, principal=who, wait=False)
            world.replaced += 1
        await self.check_value(mode, who)

    async def need(self) -> None:
        """What a redeem does: a value that has not expired and is valid, or a refusal."""
        mode = self.world.chaos.random.choice(list(Mode))
        try:
            info = await self.rotations.ensure(mode.value, principal=ENDING)
        except (TokenError, ConflictError):
            return
        assert not info.has_expired(self.world.clock.now)
        self.world.needed += 1
        await self.check_value(mode, ENDING)

    async def run_due(self) -> None:
        """What the worker does every minute."""
        await self.credentials.run()

    async def check_value(self, mode: Mode, who: str) -> None:
        """What plugins get is valid; of one value at a time, but for the gap."""
        provider = self.world.providers[mode, who]
        before, steps = set(provider.valid), len(provider.steps)
        found = await self.rotations._vault.facts(key_of(mode.value, who))
        if len(provider.steps) != steps:  # another worker was at it meanwhile
            return
        with self.rotations._vault.release(found.record, b"") as opened:
            value = bytes(opened.view())
            pending = bytes(opened.view("pending_value")) if _PENDING in opened.names else b""
        assert before <= {*provider.valid, value, pending} or mode is Mode.DUAL
        assert value in before or (mode is Mode.SWAP and pending in before), mode

    async def emit(self) -> None:
        """An event; once it was accepted, it is acted on, whoever crashes."""
        world, roll = self.world, self.world.chaos.random
        level = roll.choice(list(Level))
        event: Event = roll.choice(
            [
                CompromiseSuspected(level=level),
                CompromiseSuspected(service="one"),
                OperatorRequest(level=level),
                PluginRemoved(plugin="weather"),
                LeakDetected(credential="name1"),
            ]
        )
        there = _concerned(event, await self.store.keystore())
        if await self.bus.accept(event):
            world.events.append(event)
            world.suspected |= there

    async def compromise(self) -> None:
        level = self.world.chaos.random.choice(list(Level))
        await declare(self.store, self.document, level=level)

    async def request(self) -> None:
        level, keystore = (
            self.world.chaos.random.choice(list(Level)),
            await self.store.keystore(),
        )
        await order(self.document, newest(keystore, level, labels_of(keystore)))


def _secret(name: str, text: str) -> tuple[str, Secret]:
    if NAMES.index(name) < 3:
        return "api_keys", ApiKey(text)
    return "generic", GenericSecret(text.encode())


def _allowed(world: World, name: str) -> set[str | None]:
    return {world.acknowledged.get(name), *world.unsure.get(name, ())}


async def read(store: DocumentStore, section: str, name: str) -> str | None:
    """As ``Vault.open`` and ``release`` do it."""
    while True:
        record = (await store.sections.read(section)).records.get(name)
        keystore = await store.keystore()
        now = store.sections.now(section)
        if now is None or now.records.get(name) is not record:
            continue
        if record is None:
            return None
        vault_id = bytes.fromhex(keystore.header.vault_id)
        whole = open_record(record, vault_id=vault_id, find_key=keystore.dek)
        with Opened(whole, record.info.kind) as opened:
            return bytes(opened.view()).decode()


async def life_of(world: World, number: int, actions: int) -> None:
    """A worker, and those that come after it when it crashes."""
    worker: Worker | None = None
    generation = 0
    for _ in range(actions):
        roll = world.chaos.random.random()
        if roll < 0.25:
            world.clock.now += world.chaos.random.choice([1.0, 40.0, DAY, 8 * DAY, 60 * DAY])
            world.latest = max(world.latest, world.clock.now)
        elif roll < 0.27:
            world.clock.now -= world.chaos.random.choice([5.0, DAY, 200 * DAY])
        await asyncio.sleep(0)
        try:
            if worker is None:
                generation += 1
                fresh = Worker(world, f"worker {number}.{generation}")
                await fresh.store.unseal()
                worker = fresh
            await worker.act()
        except Crash:
            worker = None


async def _at_providers(worker: Worker) -> None:
    """Each rotation ends, and then the provider takes the one value that is stored."""
    world = worker.world
    for _ in range(3):
        world.clock.now += 8 * DAY
        assert await worker.credentials.run() == 0
    for mode, who in ROTATED:
        provider = world.providers[mode, who]
        info = await worker.rotations._vault.get(mode.value, principal=who)
        assert info.rotation is not None
        assert info.rotation.stage is RotationStage.IDLE
        assert info.rotation.asked < info.rotation.since
        value = await read(worker.store, "api_keys", info.key)
        assert value is not None
        assert provider.valid == {value.encode()}, (mode, who)
    for mode, who in ON_DEMAND:
        info = await worker.rotations.ensure(mode.value, principal=who)
        assert not info.has_expired(world.clock.now)
        await worker.check_value(mode, who)
        assert len(world.providers[mode, who].valid) <= 2


async def check(world: World) -> None:
    """The rules of DESIGN section 6, and that rotation ends, as a new process sees them."""
    world.chaos.armed = False
    worker = Worker(world, "the last", mortal=False)
    await worker.store.unseal()
    await _readable(worker)
    # What was stamped while the clock was ahead is kept until its grace is over.
    world.clock.now = max(world.latest, world.clock.now)
    await worker.bus.act()
    assert not (await worker.document.read()).queue
    await worker.engine.run(lease=False)
    await _at_providers(worker)
    for error in world.wrong:
        raise error
    await worker.tokens.settle()
    await _acted_on(worker)
    quiet = LevelPolicy(interval=None)
    calm = Policies(master=quiet, kek=quiet, dek=quiet)
    await worker.document.change(lambda s: replace(s, policies=calm))
    for _ in range(3):  # everything due is done, step after step, grace after grace
        outcome = await worker.engine.run(lease=False)
        assert not outcome.failed, outcome.failed
        assert await worker.engine.plan() == ()
        await _readable(worker)
        world.clock.now += 8 * DAY
    await _ended(worker)


async def _readable(worker: Worker) -> None:
    world = worker.world
    for name in NAMES:
        found = await read(worker.store, _secret(name, "x")[0], name)
        assert found in _allowed(world, name), (name, found, _allowed(world, name))
    fresh = Worker(world, "fresh", mortal=False)
    await fresh.store.unseal()
    keystore = await fresh.store.keystore()
    for keyset in (keystore.root_header.keks, keystore.body.root, *keystore.body.deks):
        states = [version.state for version in keyset.versions]
        assert states.count(KeyState.PRIMARY) == 1
    for section in SECTIONS.values():
        for record in (await fresh.store.sections.read(section)).records.values():
            state = keystore.by_id[record.key[0]].get(record.key[1]).state
            assert state in (KeyState.PRIMARY, KeyState.ACTIVE, KeyState.RETIRED)


def _concerned(event: Event, keystore: Keystore) -> set[tuple[str, int]]:
    """The versions of DEKs and KEKs that were there, and that an event says to destroy."""
    if not isinstance(event, CompromiseSuspected):
        return set()
    chosen = [k for k in keystore.body.deks if k.label.endswith(event.service)]
    if event.level is not Level.DEK:
        chosen.append(keystore.root_header.keks)
    return {(k.id, v.version) for k in chosen for v in k.versions}


async def _acted_on(worker: Worker) -> None:
    """What was suspected is not in use any more, and was destroyed without grace."""
    keystore, world = await worker.store.keystore(), worker.world
    for keyset in (keystore.root_header.keks, *keystore.body.deks):
        for version in keyset.versions:
            if (keyset.id, version.version) in world.suspected:
                assert version.state is KeyState.DESTROYED, (keyset.label, version)


async def _ended(worker: Worker) -> None:
    keystore = await worker.store.keystore()
    for keyset in (keystore.root_header.keks, *keystore.body.deks):
        states = {v.state for v in keyset.versions}
        assert states <= {KeyState.PRIMARY, KeyState.DESTROYED}, (keyset.label, states)
        assert not keyset.primary.compromised
    version = keystore.root_header.master.version
    assert set(worker.world.ring.keys) <= {version, version + 1}


async def run(world: World) -> World:
    """One schedule."""
    policies = Policies(
        master=LevelPolicy(interval=300 * DAY),
        kek=LevelPolicy(interval=100 * DAY, jitter=DAY),
        dek=LevelPolicy(interval=50 * DAY, max_encryptions=7),
    )
    first = Mortal(mortal=False)
    provider = ChaoticProvider(world.ring, world.chaos, first)
    (
        await create.create_vault(
            world.storage,
            provider=provider,
            hashed_names=False,
            begun=NoNote(),
            now=world.clock.now,
        )
    ).close()
    setup = Worker(world, "setup", mortal=False)
    await setup.store.unseal()
    await setup.document.change(lambda _: RotationState(policies=policies))
    world.latest = world.clock.now
    for mode, who in (*ROTATED, *ON_DEMAND):
        state = Rotation(rotator=f"{mode.value}#{who}", grace=5 * DAY)
        await credential_writes.put(
            setup.store,
            "api_keys",
            [
                PutItem(
                    name=mode.value,
                    secret=ApiKey(_FIRST.decode()),
                    service="one" if who != ENDING else "four",
                    expires=world.clock.now + LIFE if who == ENDING else None,
                    origins=(FakeRotator.origin,),
                    rotation=state,
                    principal=who,
                )
            ],
            clock=world.clock,
        )
    await setup.tokens.connect()
    count = world.chaos.random.choice([1, 2, 3, 4])
    actions = world.chaos.random.choice([4, 8, 14])
    await asyncio.gather(*(life_of(world, n, actions) for n in range(count)))
    await check(world)
    return world


def simulate(seed: int, world: Callable[[int, Chaos], World] = World) -> World:
    """Runs one schedule; raises what goes wrong, with the seed noted."""
    try:
        entropy = random.Random(f"entropy {seed}").randbytes
        with mock.patch("os.urandom", entropy), asyncio.Runner(loop_factory=Loop) as runner:
            return runner.run(run(world(seed, Chaos(seed))))
    except BaseException as error:
        error.add_note(f"replay with: python -m {getattr(world, '__module__', '')} 1 {seed}")
        raise


def main(count: int = 1000, first: int = 0) -> None:
    """Many schedules."""
    calls = crashes = reads = 0
    for seed in range(first, first + count):
        world = simulate(seed)
        calls, crashes = calls + world.chaos.calls, crashes + world.chaos.crashes
        reads += world.reads
    print(
        f"{count} schedules from seed {first}: {calls} calls, {crashes} crashes, {reads} reads"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

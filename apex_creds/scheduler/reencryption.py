"""Re-encryption of a section's records under the primary versions of their keysets.

Guarantee: a record that another writer changed meanwhile keeps that writer's version; the
rest is compare-and-set per record, several in one commit. The locks are free while records
are encrypted, in a worker thread, in pieces of some milliseconds. Stopped anywhere,
cancelled or killed, what was committed stays, and the next run goes on from there.

Workers of one vault share the work: at most one rotates at a time, and stops with its process
or connection; a shard is done by one worker at a time, as long as that one gets on. Neither is
relied on: every step is compare-and-set.
"""

from __future__ import annotations

import math
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
)
from contextlib import AsyncExitStack, aclosing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final

import anyio
import anyio.to_thread

from apex_creds.concurrency import ATTEMPTS, off_loop, too_busy
from apex_creds.documents.keystore import Keystore
from apex_creds.documents.records import Record, Resealed, Shard, heads, reseal_records
from apex_creds.documents.sections import Changes, Section
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import (
    DecryptionError,
    InvalidInputError,
    SecretWipedError,
    StorageError,
    UnknownKeyError,
)
from apex_creds.storage.base import Leadership, Leads, Storage
from apex_creds.telemetry import semconv, tracing

ROTATION: Final = "rotation"
"""Held for a run by who rotates."""
WORKER: Final = "worker"
"""Held by one worker for as long as it runs."""
BATCH: Final = 16
"""Shards that a worker takes at once, and writes in one commit."""
PERIOD: Final = 0.05
PATIENCE: Final = 200
"""So many periods for shards that others have claimed, before they are done here, too."""


class Leader:
    """Leader election: for rotating, or for being the worker.

    Args:
        storage: Elects; with one that does not, each process leads.
        what: The office.
    """

    def __init__(self, storage: Storage, what: str) -> None:
        self._storage = storage if isinstance(storage, Leads) else None
        self._what = what
        self._held: AsyncExitStack | None = None
        self._lead: Leadership | None = None

    async def hold(self) -> bool:
        """Leads if no other process does; returns whether it does now."""
        if self._lead or self._storage is None:
            return True
        await self.release()
        async with AsyncExitStack() as stack:
            lead = await stack.enter_async_context(self._storage.leader(self._what))
            if lead:
                self._lead, self._held = lead, stack.pop_all()
        return bool(lead)

    async def release(self) -> None:
        """Resigns; idempotent."""
        held, self._held, self._lead = self._held, None, None
        if held is not None:
            await held.aclose()


async def worker_runs(storage: Storage) -> bool | None:
    """Whether some worker runs on a vault; None where the storage can't say."""
    if not isinstance(storage, Leads):
        return None
    try:
        async with storage.leader(WORKER) as lead:
            return not lead
    except StorageError:
        return None


async def over_shards(
    run: Run,
    *,
    stale: Callable[[], Awaitable[Collection[str]]],
    work: Callable[[Run], AsyncGenerator[Progress, None]],
) -> AsyncGenerator[Progress, None]:
    """Does ``work`` on shards that no other worker has claimed, until none is left.

    Where a storage has no claims, the vault's one worker has them all.

    Args:
        run: Its ``within`` is set to the shards that were claimed.
        stale: The shards that have something to be done.
        work: Does it.
    """
    storage, waited = run.store.shared, 0
    hopeless: set[str] = set()
    while left := [name for name in await stale() if name not in hopeless]:
        claims = (
            nullcontext(left[:BATCH]) if storage is None else storage.claim(left, limit=BATCH)
        )
        async with claims as claimed:
            patient = waited < PATIENCE
            ours = claimed if claimed or patient else left[:BATCH]
            run.within, failed = frozenset(ours), len(run.failed)
            if ours:
                async with aclosing(work(run)) as steps:
                    async for progress in steps:
                        yield progress
        if len(run.failed) > failed:
            hopeless.update(ours)
        if ours:
            waited = 0
            continue
        if run.pace.backwards:
            return  # a worker that helps has done its part
        waited += 1
        await anyio.sleep(PERIOD)


PIECE: Final = 512
"""Records that one call of a worker thread encrypts."""
SLICES: Final = 3
"""A commit writes the whole section, so a slice is that part of it, and never tiny."""
MIN_SLICE: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast to go.

    Attributes:
        per_second: Records; None for as fast as it goes.
        slice_records: Records of one commit; None for a third of the section.
        backwards: Begin at the end: for a worker that helps one that begins at the front.

    Raises:
        InvalidInputError: ``per_second`` is no number above 0.
    """

    per_second: float | None = None
    slice_records: int | None = None
    backwards: bool = False

    def __post_init__(self) -> None:
        if self.per_second is not None and not 0 < self.per_second < math.inf:
            raise InvalidInputError(
                f"{self.per_second} records a second is no pace.",
                hint="Give a number above 0, or nothing for as fast as it goes.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a section is.

    Attributes:
        section: Its name.
        done: Records that were committed under their primary by this run.
        total: Records that were not under their primary when it began.
        failed: Records that do not open; they were left as they are.
    """

    section: str
    done: int
    total: int
    failed: int = 0


@dataclass(slots=True)
class Run:
    """What one run knows; ``within`` names the shards that it is about."""

    store: DocumentStore
    section: str
    pace: Pace
    labels: frozenset[str] | None
    done: int = 0
    total: int = 0
    failed: set[bytes] = field(default_factory=set)
    within: frozenset[str] | None = None


async def reencrypt(
    store: DocumentStore,
    section: str,
    *,
    labels: Collection[str] | None = None,
    pace: Pace | None = None,
) -> AsyncGenerator[Progress, None]:
    """Re-encrypts what is not under its primary; yields after each commit.

    Args:
        store: The vault's documents.
        section: Whose records.
        labels: Of these keysets alone; of all by default.
        pace: How fast.

    Raises:
        DecryptionError: Some records do not open; all others were done.
        ConflictError: Other writers were first, again and again.
    """
    chosen = None if labels is None else frozenset(labels)
    run = Run(store, section, pace or Pace(), chosen)

    async def stale() -> list[str]:
        shards = (await store.sections.read(section)).shards.items()
        keystore = await store.keystore()
        return [name for name, shard in shards if _any_stale(shard, keystore, chosen)]

    divided = store.sections.count(section)
    steps = over_shards(run, stale=stale, work=_over) if divided else _over(run)
    async with aclosing(steps):
        async for progress in steps:
            yield progress
    if run.failed:
        raise DecryptionError(
            f"{len(run.failed)} credentials of {section!r} do not open; they were left alone.",
            hint="Restore the section from a backup; its old keys are kept until then.",
        )


async def _over(run: Run) -> AsyncGenerator[Progress, None]:
    section, todo = run.section, await _todo(run)
    run.total, fruitless = run.total + len(todo), 0
    while todo:
        count = len((await run.store.sections.read(section)).records)
        size = run.pace.slice_records or max(MIN_SLICE, -(-count // SLICES))
        taken = {name: todo.pop(name) for name in list(islice(todo, size))}
        pairs = await _slice(run, taken)
        with tracing.step(semconv.REENCRYPT, {semconv.SECTION: section}) as step:
            committed = await _commit(run, pairs)
            step.set(semconv.RECORDS, committed)
        fruitless = 0 if committed else fruitless + 1
        if fruitless == ATTEMPTS:
            raise too_busy(section)
        run.done += committed
        await off_loop(len(taken), partial(_let_go, pairs, taken))
        yield Progress(section=section, done=run.done, total=run.total, failed=len(run.failed))
        if not todo:  # what was meanwhile written, or not committed
            todo = await _todo(run)
            run.total = max(run.total, run.done + len(todo))


async def left(store: DocumentStore, section: str) -> int:
    """How many records of a section are not under their primary."""
    return len(await _todo(Run(store, section, Pace(), None)))


async def _todo(run: Run) -> dict[str, Record]:
    section = await run.store.sections.read(run.section)
    keystore = await run.store.keystore()
    if run.within is not None:
        section = section.only(run.within)
    if not _any_stale(section, keystore, run.labels):
        return {}

    def found() -> dict[str, Record]:  # those under compromised versions first
        verdicts: dict[bytes, bool | None] = {}
        buckets: dict[bytes, dict[str, Record]] = {}  # by key: set up once for its records
        every = section.records
        for (name, record), head in zip(every.items(), heads(every.values()), strict=True):
            if head not in verdicts:
                key_id, at = record.key
                stale = _is_stale(keystore, key_id, at, run.labels)
                lost = stale and keystore.by_id[key_id].get(at).compromised
                verdicts[head] = lost if stale else None
            if verdicts[head] is not None and record.sealed not in run.failed:
                buckets.setdefault(head, {})[name] = record
        first = sorted(buckets, key=lambda head: not verdicts[head])
        chosen = {name: r for head in first for name, r in buckets[head].items()}
        return dict(reversed(chosen.items())) if run.pace.backwards else chosen

    return await off_loop(len(section.records), found)


def _any_stale(
    section: Section | Shard, keystore: Keystore, labels: frozenset[str] | None
) -> bool:
    return any(
        _is_stale(keystore, bytes.fromhex(key), version, labels)
        for key, version in section.keys_used
    )


def _is_stale(
    keystore: Keystore, key_id: bytes, version: int, labels: frozenset[str] | None
) -> bool:
    keyset = keystore.by_id.get(key_id)
    if keyset is None or (labels is not None and keyset.label not in labels):
        return False
    return keyset.primary.version != version


def _let_go(*many: dict[str, Resealed] | dict[str, Record]) -> None:
    """Frees old records one by one: all at once would hold the interpreter too long."""
    for items in many:
        for name in list(items):
            del items[name]


async def _slice(run: Run, chosen: Mapping[str, Record]) -> dict[str, Resealed]:
    clock, keystore = run.store.clock, await run.store.keystore()
    begun, pairs, names = clock.monotonic(), dict[str, Resealed](), iter(chosen)
    while piece := {name: chosen[name] for name in islice(names, PIECE)}:
        pairs |= await off_loop(len(piece), partial(_piece, run, keystore, piece))
        rate = run.pace.per_second
        ahead = len(pairs) / rate - (clock.monotonic() - begun) if rate else 0.0
        await anyio.sleep(max(ahead, 0.0))
    return pairs


def _piece(run: Run, keystore: Keystore, records: Mapping[str, Record]) -> dict[str, Resealed]:
    """Pairs of old and new; what does not open is noted, what was destroyed passed over."""
    vault_id = bytes.fromhex(keystore.header.vault_id)
    pairs: dict[str, Resealed] = {}
    groups: dict[bytes, dict[str, Record]] = {}
    for (name, record), head in zip(records.items(), heads(records.values()), strict=True):
        groups.setdefault(head, {})[name] = record
    for group in groups.values():
        keyset = keystore.by_id[next(iter(group.values())).key[0]]
        try:
            key = keystore.hierarchy.unwrap(keyset, keyset.primary.version)
            made, failed = reseal_records(
                group,
                section=run.section,
                vault_id=vault_id,
                find_key=keystore.dek,
                keyset=keyset,
                key=key,
            )
        except (UnknownKeyError, SecretWipedError):
            continue  # destroyed meanwhile: then none of them is current any more
        pairs |= made
        run.failed |= {record.sealed for record in failed}
    return pairs


async def _commit(run: Run, pairs: Mapping[str, Resealed]) -> int:
    """Puts in the new records whose old one is still there; how many that were."""
    replaced = 0

    def change(before: Section, keystore: Keystore) -> Changes:
        # One that is not primary now may be on its way to being destroyed, after a scan.
        new = [pair.new for pair in pairs.values()]
        examples = dict(zip(heads(new), new, strict=True))
        primaries = {
            head
            for head, (key_id, version) in ((head, one.key) for head, one in examples.items())
            if (keyset := keystore.by_id.get(key_id)) and keyset.primary.version == version
        }
        named = zip(heads(new), pairs.items(), strict=True)
        made = {name: pair for head, (name, pair) in named if head in primaries}
        changes: dict[str, Record] = {}
        for shard in before.shards.values():
            there = shard.records
            for name in made.keys() & there.keys():
                found, pair = there[name], made[name]
                if found is pair.old:
                    changes[name] = pair.new
                elif found.sealed == pair.old.sealed:
                    changes[name] = Record(found.info, pair.new.sealed)
        nonlocal replaced
        replaced = len(changes)
        return changes

    await run.store.sections.commit(run.section, change, size=len(pairs), within=run.within)
    return replaced

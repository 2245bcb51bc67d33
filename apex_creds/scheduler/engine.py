"""Carries out the plans of the state machine against a vault's documents.

Guarantee: it keeps no state that matters. Each round reads what is stored, asks
``plan`` and does the first steps; killed anywhere, another one goes on. A step
that fails is reported and passed over, so that a keyring that is locked does not keep DEKs
from rotating. Two engines at work at once lose nothing: each step is compare-and-set, and
names the version that it is about; that one rotates at a time only saves doing work twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Final

import anyio
from msgspec.structs import replace

from apex_creds.concurrency import off_loop
from apex_creds.documents import key_versions, observe
from apex_creds.documents.cached import Document, recommit
from apex_creds.documents.keystore import BRANCH, DOCUMENTS_LABEL, Keystore
from apex_creds.documents.sections import records_by_key
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import ApexCredsError, ConflictError
from apex_creds.keys.keyset import Keyset, KeyState
from apex_creds.keys.passphrase import PassphraseProvider
from apex_creds.model import SECTION_NAMES
from apex_creds.scheduler import kek_rotation, master_rotation
from apex_creds.scheduler.kek_rotation import KeyScan
from apex_creds.scheduler.reencryption import ROTATION, Leader, Pace, Progress, reencrypt
from apex_creds.scheduler.rotation_plan import Action, KeyView, MasterView, Step, View, plan
from apex_creds.scheduler.rotation_state import (
    RotationState,
    adopt,
    by_time,
    request_key,
    undone,
    with_discarded,
)
from apex_creds.scheduler.schedule import Level, NextFire

BY_HAND: Final = frozenset({Level.MASTER, Level.KEK})
"""Levels that somebody must be there for, where the master key is in ``passphrase:``."""
_REPEATS: Final = 3

Mover = Callable[[], Awaitable[object]]
"""Renews a keyset that no section uses, moves what it protects, destroys its old versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run did.

    Attributes:
        done: The steps that were taken.
        failed: Those that were not, and why.
        waiting: Another worker rotates, or this one was stopped.
        by_hand: Steps that were left for somebody who knows the passphrase.
    """

    done: tuple[Step, ...] = ()
    failed: Mapping[Step, ApexCredsError] = field(default_factory=dict)
    waiting: bool = False
    by_hand: tuple[Step, ...] = ()


class Engine:
    """Rotates the keys of one vault.

    Args:
        store: The vault's documents.
        document: Its document ``rotation``.
        next_fire: Reads cron expressions.
        movers: By label: who moves what a DEK outside the sections protects.
        on_step: Called before each step is taken; what it raises stops the step.
        on_progress: Called as re-encryption proceeds.
        pace: How fast records are re-encrypted.

    Attributes:
        stopped: Set it, and a run ends after its next commit.
    """

    def __init__(
        self,
        store: DocumentStore,
        document: Document[RotationState],
        *,
        next_fire: NextFire,
        movers: Mapping[str, Mover] | None = None,
        on_step: Callable[[Step], None] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.store = store
        self.document = document
        self.next_fire = next_fire
        self._movers = dict(movers or {})
        self._on_step = on_step or (lambda _: None)
        self._on_progress = on_progress or (lambda _: None)
        self._pace = pace or Pace()
        self.stopped = False
        self._leader = Leader(store.storage, ROTATION)

    # -- who rotates ---------------------------------------------------------------

    async def hold(self) -> bool:
        """Becomes the one that rotates, if nobody else is; whether this one is now."""
        return await self._leader.hold()

    async def release(self) -> None:
        """Leaves it to others; idempotent."""
        await self._leader.release()

    # -- reading -----------------------------------------------------------------

    async def view(self) -> View:
        """What is stored now, as the state machine sees it.

        Raises:
            IntegrityError: A document is not what this vault wrote.
        """
        state = await self.document.read()
        use = await kek_rotation.scan(self.store)
        sections = [await self.store.sections.read(name) for name in SECTION_NAMES]
        keystore = await self.store.keystore()

        def seen() -> View:
            used = set(use.documents.values())
            uses: dict[tuple[str, int], int] = {}
            for section in sections:
                used |= section.keys_used
                uses.update(section.uses)
            uses.update(self._document_uses(state, use))
            stored: Counter[str] = Counter()
            most = state.policies.dek.max_encryptions
            if most is not None and any(count >= most for count in uses.values()):
                for section in sections:
                    for (key_id, _), count in records_by_key(section.records.values()).items():
                        stored[key_id] += count
            keks = keystore.root_header.keks
            # While something is not under the primary, every older version counts as in use.
            # What was scanned may be older than the key store; then the next round sees it.
            current = use.only and use.keks.primary.version == keks.primary.version
            numbers = [v.version for v in keks.versions if v.state is not KeyState.DESTROYED]
            in_use = frozenset([keks.primary.version] if current else numbers)
            keys = [KeyView(level=Level.KEK, keyset=keks, in_use=in_use)]
            keys += [
                self._dek_view(keyset, used, uses, stored[keyset.id])
                for keyset in keystore.body.deks
                if keyset.label in {*self._movers, DOCUMENTS_LABEL}
                or keyset.label.partition("/")[0] in SECTION_NAMES
            ]
            orders = {**by_time(keystore, state.requested), **state.renew}
            every = [(Level.MASTER, ""), *((key.level, key.label) for key in keys)]
            asked = {k: orders[name] for k in every if (name := request_key(*k)) in orders}
            master = _master_view(keystore, state)
            return View(master=master, keys=tuple(keys), requested=asked)

        return await off_loop(len(keystore.body.deks), seen)

    def _document_uses(
        self, state: RotationState, use: KeyScan
    ) -> Mapping[tuple[str, int], int]:
        """The messages under the primary key of documents: each write of one is one."""
        keyset = use.keystore.by_label.get(DOCUMENTS_LABEL)
        if keyset is None:
            return {}
        written, primary = self._written(use), keyset.primary.version
        before = state.documents.get(primary, 0 if primary == 1 else written)
        return {(keyset.id, primary): max(written - before, 0)}

    def _written(self, use: KeyScan) -> int:
        """How often all documents were written, on the branch that they are of."""
        reached = self.store.rollback.generations()
        return sum(reached.get(name, 0) % BRANCH for name in use.documents)

    async def plan(self) -> tuple[Step, ...]:
        """The steps that can be taken now."""
        view, state = await self.view(), await self.document.read()
        make = partial(plan, now=self.store.clock.time(), next_fire=self.next_fire)
        return await off_loop(len(view.keys), lambda: make(view, state.policies))

    def _dek_view(
        self,
        keyset: Keyset,
        used: set[tuple[str, int]],
        uses: Mapping[tuple[str, int], int],
        stored: int,
    ) -> KeyView:
        numbers = [v.version for v in keyset.versions if v.state is not KeyState.DESTROYED]
        outside = keyset.label in self._movers  # only its mover knows, so it is asked
        return KeyView(
            level=Level.DEK,
            keyset=keyset,
            label=keyset.label,
            in_use=frozenset(n for n in numbers if outside or (keyset.id, n) in used),
            encryptions={n: uses.get((keyset.id, n), 0) for n in numbers},
            stored=stored,
        )

    # -- doing -------------------------------------------------------------------

    async def run(
        self,
        *,
        lease: bool = True,
        only: frozenset[Level] | None = None,
        attended: bool = True,
    ) -> Outcome:
        """Takes steps until nothing is due.

        Args:
            lease: Only while no other worker rotates.
            only: Steps of these levels alone.
            attended: Whether a person is there, who can be asked for a passphrase.

        Raises:
            IntegrityError: A document is not what this vault wrote.
            StorageError: The backend failed.
        """
        done: Counter[Step] = Counter()
        failed: dict[Step, ApexCredsError] = {}
        try:
            await adopt(self.store, self.document)
            while not self.stopped and (not lease or await self.hold()):
                steps = [s for s in await self.plan() if only is None or s.level in only]
                alone = () if attended else await self.by_hand(steps)
                left = [s for s in steps if s not in failed and s not in alone]
                # The first step, and those after it that are done together with it.
                groups = groupby(left, lambda s: (s.level, s.action, s.urgent))
                group = list(next(groups, (0, ()))[1])
                if not group:
                    await self._forget_orders()
                    await self.store.sections.note_generations()
                    return Outcome(done=tuple(done.elements()), failed=failed, by_hand=alone)
                try:
                    if any(done[step] >= _REPEATS for step in group):
                        action, level = group[0].action.value, group[0].level.value
                        raise ConflictError(
                            f"The step {action!r} of a {level} key has no effect.",
                            hint="Other writers may be at work; it will be tried again.",
                        )
                    with observe.triggered(group[0].reason.value):
                        await self._take(group)
                except ApexCredsError as error:
                    failed.update(dict.fromkeys(group, error))
                else:
                    done.update(group)
            return Outcome(done=tuple(done.elements()), failed=failed, waiting=True)
        finally:
            with anyio.CancelScope(shield=True):
                await self.release()

    async def by_hand(self, steps: Iterable[Step]) -> tuple[Step, ...]:
        """Those of the steps for which somebody must type a passphrase.

        A new KEK is derived from the master key, and a new master key from a passphrase
        that somebody chooses; neither is kept anywhere.
        """
        uri = (await self.store.keystore()).root_header.master.uri
        if uri.partition(":")[0] != PassphraseProvider.scheme:
            return ()
        return tuple(s for s in steps if s.level in BY_HAND and s.action is Action.ROTATE)

    async def _take(self, group: Sequence[Step]) -> None:
        for step in group:
            self._on_step(step)
        now, first = self.store.clock.time(), group[0]
        match first.level, first.action:
            case Level.MASTER, Action.ROTATE:
                await master_rotation.rotate_master(self.store, replaces=first.version, now=now)
            case Level.MASTER, _:
                for step in group:
                    await master_rotation.discard_master(self.store, step.version)
                    done = partial(with_discarded, version=step.version, now=now)
                    await self.document.change(done)
            case Level.KEK, Action.ROTATE:
                await kek_rotation.rotate_kek(self.store, replaces=first.version, now=now)
            case Level.KEK, _:
                await self._take_kek(first.action, now)
            case Level.DEK, _:
                await self._take_dek(group, now)

    async def _take_kek(self, action: Action, now: float) -> None:
        if action is Action.MOVE:
            await self._recommit_stale()
        elif action is Action.RETIRE:
            await kek_rotation.retire_keks(self.store, now=now)
        else:
            grace = (await self.document.read()).policies.kek.grace
            await kek_rotation.destroy_keks(self.store, before=now - grace, now=now)

    async def _take_dek(self, group: Sequence[Step], now: float) -> None:
        outside = {s.label for s in group if s.label in self._movers}
        for label in sorted(outside):
            await self._movers[label]()
        steps = [s for s in group if s.label not in outside]
        if not steps:
            return
        if steps[0].action in (Action.ROTATE, Action.PROMOTE):
            replaces = {s.label: s.version for s in steps if s.action is Action.ROTATE}
            await key_versions.promote_all(self.store, {s.label for s in steps}, now=now)
            await key_versions.renew_all(self.store, replaces, now=now, replaces=replaces)
            return
        labels = {step.label for step in steps}
        for section in SECTION_NAMES:
            chosen = frozenset(name for name in labels if name.partition("/")[0] == section)
            if chosen:
                await self._take_section(steps[0].action, section, chosen, now)
        # Last, so that a section whose records moved has moved, too.
        if DOCUMENTS_LABEL in labels and not self.stopped:
            await self._take_documents(steps[0].action, now)

    async def _take_documents(self, action: Action, now: float) -> None:
        if action is Action.MOVE:
            await self._recommit_stale()
            return
        if action is Action.RETIRE:
            use = await kek_rotation.scan(self.store)
            keyset = use.keystore.by_label[DOCUMENTS_LABEL]
            counted = {keyset.primary.version: self._written(use) + 1}  # and this write
            await self.document.change(lambda state: replace(state, documents=counted))
        await kek_rotation.step_unused(self.store, await self._ending(action, now))

    async def _ending(
        self, action: Action, now: float
    ) -> Callable[[Keyset, Collection[int]], Keyset]:
        """What a step that retires or destroys makes of a DEK keyset and its spent versions."""
        if action is Action.RETIRE:
            return partial(key_versions.retire, now=now)
        before = now - (await self.document.read()).policies.dek.grace
        return partial(key_versions.destroy, before=before, now=now)

    async def _recommit_stale(self) -> None:
        await recommit(self.store, *(await kek_rotation.scan(self.store)).stale)

    async def _take_section(
        self, action: Action, section: str, labels: frozenset[str], now: float
    ) -> None:
        if action is Action.MOVE:
            steps = reencrypt(self.store, section, labels=labels, pace=self._pace)
            async with aclosing(steps):
                async for progress in steps:
                    self._on_progress(progress)
                    if self.stopped:
                        return
            return
        step = await self._ending(action, now)
        await key_versions.step_unused(self.store, section, labels, step)

    async def _forget_orders(self) -> None:
        """Drops the orders that are done."""
        state = await self.document.read()
        if not state.renew:
            return
        left = set(undone(await self.store.keystore(), state.renew))

        def forget(found: RotationState) -> RotationState:
            kept = {
                name: number
                for name, number in found.renew.items()
                if name in left or state.renew.get(name) != number
            }
            return found if kept == found.renew else replace(found, renew=kept)

        await self.document.change(forget)


# -- what the state machine sees -------------------------------------------------------


def _master_view(keystore: Keystore, state: RotationState) -> MasterView:
    record, keks = keystore.root_header.master, keystore.root_header.keks
    began: dict[int, float] = {}
    for version in keks.versions:
        began.setdefault(version.parent, version.created)
    left = {n: _left(began, n) for n in range(state.discarded + 1, record.version)}
    gone = {  # of some that an earlier program deleted, it is only known when they were left
        n: state.discarded_at.get(n, _left(began, n))
        for n in range(1, min(state.discarded + 1, record.version))
    }
    return MasterView(
        version=record.version,
        created=began[record.version],
        left=left,
        compromised=state.compromised_master,
        began=began,
        gone=gone,
    )


def _left(began: Mapping[int, float], version: int) -> float:
    """When a version was left for the one that came after it; numbers may be passed over."""
    return began[min(number for number in began if number > version)]

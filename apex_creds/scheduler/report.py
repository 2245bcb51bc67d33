"""What the operator is told of a vault's keys: states, what each protects, what is next.

Guarantee: read from what is stored, and nothing changed. No key material is in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

from apex_creds.documents.store import DocumentStore
from apex_creds.keys.keyset import KeyState, KeyVersion
from apex_creds.scheduler import kek_rotation
from apex_creds.scheduler.engine import BY_HAND, Engine
from apex_creds.scheduler.kek_rotation import SECTION_NAMES
from apex_creds.scheduler.policy import Level
from apex_creds.scheduler.rotation import Action, Reason, Step, View, next_due, plan
from apex_creds.scheduler.sharing import worker_runs
from apex_creds.scheduler.state import RotationState

_AHEAD: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionLine:
    """One version of one key.

    Attributes:
        label: ``section/service`` for a DEK, else empty.
        protects: Credentials for a DEK, documents and keys for a KEK; -1 where only the
            provider knows.
        encryptions: Messages under a DEK version.
        created: Unix seconds, as is ``changed``.
    """

    level: Level
    label: str
    version: int
    state: str
    compromised: bool
    protects: int
    encryptions: int
    created: float
    changed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a vault's keys are.

    Attributes:
        lines: Every version that is not destroyed.
        due: When the next key of each level is due.
        steps: What could be done now.
        state: The document ``rotation``.
        by_hand: Levels that no worker rotates: a passphrase must be typed for them.
    """

    lines: tuple[VersionLine, ...]
    due: dict[Level, float]
    steps: tuple[Step, ...]
    state: RotationState
    by_hand: frozenset[Level] = frozenset()


async def status(engine: Engine, *, destroyed: bool = False) -> Status:
    """Reads how the keys are.

    Args:
        engine: Of the vault.
        destroyed: Show destroyed versions, too.

    Raises:
        IntegrityError: A document is not what this vault wrote.
    """
    view, state = await engine.view(), await engine.document.read()
    now, fire = engine.store.clock.time(), engine.next_fire
    lines = [line async for line in _lines(engine.store, view)]
    shown = [line for line in lines if destroyed or line.state != KeyState.DESTROYED]
    asked = await engine.by_hand(
        Step(level=level, action=Action.ROTATE, version=1, reason=Reason.TIME)
        for level in BY_HAND
    )
    return Status(
        lines=tuple(shown),
        due=next_due(view, state.policies, next_fire=fire),
        steps=plan(view, state.policies, now=now, next_fire=fire),
        state=state,
        by_hand=frozenset(step.level for step in asked),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """What waits to be done about a vault's keys, and who would do it.

    Attributes:
        levels: Those with keys that are to be renewed, in order.
        steps: How many steps could be taken now.
        events: How many events wait to be acted on.
        worker: Whether some worker runs; None where that can't be told.
        ahead: Levels whose newest key is from a time that is still to come.
    """

    levels: tuple[Level, ...]
    steps: int
    events: int
    worker: bool | None
    ahead: tuple[Level, ...] = ()

    @property
    def waits(self) -> bool:
        """Whether something is left that nobody does."""
        return bool(self.steps or self.events) and not self.worker


async def undone(engine: Engine) -> Undone:
    """Looks what waits to be done, and whether a worker runs.

    Raises:
        IntegrityError: A document is not what this vault wrote.
    """
    view, state = await engine.view(), await engine.document.read()
    now = engine.store.clock.time()
    steps = plan(view, state.policies, now=now, next_fire=engine.next_fire)
    made = [(Level.MASTER, view.master.created)]
    made += [(key.level, key.keyset.primary.created) for key in view.keys]
    renewed = {step.level for step in steps if step.action in (Action.ROTATE, Action.PROMOTE)}
    return Undone(
        levels=tuple(level for level in Level if level in renewed),
        steps=len(steps),
        events=len(state.queue),
        worker=await worker_runs(engine.store.storage),
        ahead=tuple(dict.fromkeys(level for level, at in made if at > now + _AHEAD)),
    )


async def _lines(store: DocumentStore, view: View) -> AsyncIterator[VersionLine]:
    protects: Counter[tuple[str, int]] = Counter()
    for name in SECTION_NAMES:
        records = (await store.sections.read(name)).records.values()
        protects.update((key.hex(), version) for key, version in (r.key for r in records))
    for line in _masters(view):
        yield line
    scanned = await kek_rotation.scan(store)
    for key in view.keys:
        for version in key.keyset.versions:
            kek = key.level is Level.KEK
            yield _line(
                key.level,
                version,
                protects=scanned.protects(version.version)
                if kek
                else protects[key.keyset.id, version.version],
                encryptions=key.encryptions.get(version.version, 0),
                label=key.label,
            )


def _masters(view: View) -> Iterator[VersionLine]:
    """Those that were used; a number that was passed over protected nothing."""
    master = view.master
    for version, began in sorted(master.began.items()):
        current = version == master.version
        state = KeyState.DESTROYED if version in master.gone else KeyState.RETIRED
        since = {**master.left, **master.gone}
        yield VersionLine(
            level=Level.MASTER,
            label="",
            version=version,
            state=(KeyState.PRIMARY if current else state).value,
            compromised=version <= master.compromised,
            protects=-1 if current else 0,
            encryptions=0,
            created=began,
            changed=began if current else since.get(version, began),
        )


def _line(
    level: Level,
    version: KeyVersion,
    *,
    protects: int,
    encryptions: int,
    label: str,
) -> VersionLine:
    return VersionLine(
        level=level,
        label=label,
        version=version.version,
        state=version.state.value,
        compromised=version.compromised,
        protects=protects,
        encryptions=encryptions,
        created=version.created,
        changed=version.changed,
    )

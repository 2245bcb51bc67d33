"""The status of rotation, and the health of what a worker watches: the log and its keys.

Guarantee: states come from the key store and from a scan of every document, not from what a
worker remembers. The log is read in threads and nothing is changed; what only metrics want is
not read while nobody exports them. A log that does not verify is an error of the worker, and
stays one in ``log_check`` until it verifies again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import anyio.to_thread

from apex_creds.audit.checkpoint import LogKey, read_keys
from apex_creds.audit.event_counts import EventCounts, EventLabel
from apex_creds.audit.note import VerifierKey
from apex_creds.audit.verify import Report, check, judged
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import ApexCredsError, AuditTamperedError
from apex_creds.fs.home import audit_directory
from apex_creds.keys.keyset import KeyState
from apex_creds.model import SECTION_NAMES
from apex_creds.scheduler import kek_rotation
from apex_creds.scheduler.credential_rotation import rotates_at
from apex_creds.scheduler.engine import BY_HAND, Engine
from apex_creds.scheduler.reencryption import worker_runs
from apex_creds.scheduler.rotation_plan import Action, Reason, Step, View, next_due, plan
from apex_creds.scheduler.rotation_state import RotationState
from apex_creds.scheduler.schedule import Level
from apex_creds.telemetry.instruments import LogCheck, metering_on, watch_worker
from apex_creds.vault import Vault
from apex_creds.vault.anchor import open_signing_key

_AHEAD: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionLine:
    """One version of one key.

    Attributes:
        label: ``section/service`` for a DEK, or what else it is for; else empty.
        protects: Credentials for a DEK, documents for that of documents, keys for a KEK (and
            the documents of an older program); -1 where only the provider knows.
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


async def rotation_status(engine: Engine, *, destroyed: bool = False) -> Status:
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
        worker: Whether some worker runs; None where the storage can't say.
        ahead: Levels whose newest key is from a time that is still to come.
    """

    levels: tuple[Level, ...]
    steps: int
    events: int
    worker: bool | None
    ahead: tuple[Level, ...] = ()

    @property
    def waits(self) -> bool:
        """Whether something waits that no worker does."""
        return bool(self.steps or self.events) and not self.worker


async def undone(engine: Engine) -> Undone:
    """Finds what waits to be done, and whether a worker runs.

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
    protects.update(scanned.documents.values())
    for key in view.keys:
        for version in key.keyset.versions:
            number, kek = version.version, key.level is Level.KEK
            yield VersionLine(
                level=key.level,
                label=key.label,
                version=number,
                state=version.state.value,
                compromised=version.compromised,
                protects=scanned.protects(number) if kek else protects[key.keyset.id, number],
                encryptions=key.encryptions.get(number, 0),
                created=version.created,
                changed=version.changed,
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


class Watch:
    """Health checks of one vault, each made when it is called; metrics show what they found.

    Args:
        vault: Unsealed.
        engine: Knows when keys are due.
    """

    def __init__(self, vault: Vault, engine: Engine) -> None:
        self._vault = vault
        self._engine = engine
        self._directory = audit_directory(vault.home)
        self._counts = EventCounts(self._directory, vault_id=vault.audit.vault_id)
        self._checked: tuple[bool, float] | None = None
        self._unsigned: tuple[int, float] | None = None
        self._due: dict[str, float] = {}
        self.wrong: Mapping[str, str] = {}
        watch_worker(self)

    # -- checks ------------------------------------------------------------------

    async def verify(self) -> None:
        """Checks the whole log against the vault's own key.

        Raises:
            AuditTamperedError: It does not verify; says where.
            AuditUnavailableError: It can't be read.
        """
        vault_id = self._vault.audit.vault_id
        try:
            keys = (self._log_key(), *read_keys(self._directory)[1:])
            work = partial(check, self._directory, vault_id=vault_id, keys=keys)
            found = await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
            waits = self._waits(found)
            report = judged(self._directory, found, vault_id=vault_id, waits=waits)
            if not report.ok:
                raise AuditTamperedError(
                    report.wrong, hint="See: apex-creds audit verify. Keep a copy of the log."
                )
        except ApexCredsError:
            self._checked = False, self._vault.clock.monotonic()
            raise
        self._checked = True, self._vault.clock.monotonic()

    def _log_key(self) -> VerifierKey:
        with open_signing_key(self._vault.store.unsealed()) as signer:
            return LogKey(self._vault.audit.vault_id, signer).verifier

    def _waits(self, found: Report) -> float:
        """Seconds since the first unsigned event was first seen, whatever its time says.

        Not by that time: the clock may have been set since, or the machine have slept.
        """
        if not found.unsigned:
            self._unsigned = None
            return 0.0
        if self._unsigned is None or self._unsigned[0] != found.signed:
            self._unsigned = found.signed, self._vault.clock.monotonic()
        return self._vault.clock.monotonic() - self._unsigned[1]

    async def count(self) -> None:
        """Counts the log's new events, where metrics are exported.

        Raises:
            AuditTamperedError: A line is not what was written.
            AuditUnavailableError: It can't be read.
        """
        if metering_on():
            update = partial(self._counts.update, key=self._log_key())
            await anyio.to_thread.run_sync(update, abandon_on_cancel=True)

    async def due(self) -> None:
        """Finds out when keys and credentials are due next, where metrics are exported.

        Raises:
            IntegrityError: A document is not what this vault wrote.
        """
        if not metering_on():
            return
        view, state = await self._engine.view(), await self._engine.document.read()
        fire = self._engine.next_fire
        keys = next_due(view, state.policies, next_fire=fire)
        due = {level.value: at for level, at in keys.items()}
        times = [rotates_at(info, next_fire=fire) for info in await self._vault.list()]
        if known := [at for at in times if at is not None]:
            due["credential"] = min(known)
        self._due = due

    # -- for metrics -------------------------------------------------------------

    def log_check(self) -> LogCheck | None:
        """See ``WatchSource``."""
        if self._checked is None:
            return None
        intact, at = self._checked
        return LogCheck(intact, self._vault.clock.monotonic() - at)

    def log_events(self) -> Iterable[tuple[EventLabel, int]]:
        """See ``WatchSource``."""
        return self._counts.read().items()

    def rotations_due(self) -> Mapping[str, float]:
        """See ``WatchSource``."""
        now = self._vault.clock.time()
        return {level: at - now for level, at in self._due.items()}

    def problems(self) -> int:
        """See ``WatchSource``."""
        return len(self.wrong)

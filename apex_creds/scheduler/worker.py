"""The background worker: looks regularly what is due, and does it.

Guarantee: nothing is due because a job was scheduled, and nothing is missed because one
was not: each job looks at what is stored. Jobs carry the worker's id and their own name,
nothing else. Of several workers on a vault one rotates; when it dies, another goes on
within half a minute. A job that fails is reported in ``health`` and comes again.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.audit.text import shown_label
from apex_creds.errors import (
    ApexCredsError,
    AuditTamperedError,
    InvalidInputError,
    LockedDownError,
)
from apex_creds.model import new_id
from apex_creds.scheduler import systemd
from apex_creds.scheduler.bus import EventBus
from apex_creds.scheduler.engine import Engine, Mover, Outcome
from apex_creds.scheduler.events import AuditTampered, Event, Reaction, kind_of
from apex_creds.scheduler.policy import Level
from apex_creds.scheduler.reactor import Notify, VaultReactor
from apex_creds.scheduler.reencrypt import Pace, Progress, reencrypt
from apex_creds.scheduler.rotation import Step
from apex_creds.scheduler.state import RotationState, rotation_document
from apex_creds.scheduler.watch import Watch
from apex_creds.vault import Vault
from apex_creds.vault.access import DEK_LABEL, Access
from apex_creds.vault.reseal import SECTION_NAMES

Hook = Callable[[], object | Awaitable[object]]

_log: Final = logging.getLogger(__name__)
_jobs_log: Final = logging.getLogger(f"{__name__}.jobs")
_jobs_log.setLevel(logging.ERROR)  # that a job is still at it when its next turn comes is usual
_ALONGSIDE: Final = frozenset({"verify", "count", "due"})
"""Jobs that only look, and wait for no other."""
_workers: Final[WeakValueDictionary[str, RotationWorker]] = WeakValueDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rhythm:
    """How often each job looks, in seconds."""

    check: float = 60.0
    events: float = 2.0
    checkpoint: float = 3600.0
    sweep: float = 60.0
    health: float = 10.0
    verify: float = 3600.0
    count: float = 10.0
    due: float = 60.0


def next_fire(cron: str, after: float) -> float | None:
    """The first time after a moment that a cron expression (five fields, UTC) fires.

    Raises:
        InvalidInputError: It is no cron expression.
    """
    try:
        trigger = CronTrigger.from_crontab(cron, timezone=UTC)
        moment = datetime.fromtimestamp(after + 0.001, UTC)
        found: datetime | None = trigger.get_next_fire_time(None, moment)
    except (ValueError, OverflowError, OSError):
        found, trigger = None, None
    if trigger is None:
        raise InvalidInputError(
            f"{cron[:80]!r} is no cron expression.",
            hint="Use five fields, like '0 3 * * sun'.",
        )
    return None if found is None else found.timestamp()


class RotationWorker:
    """Rotates the keys of a vault while the block runs: ``async with RotationWorker(vault)``.

    Args:
        vault: Unsealed for longer than the block.
        rhythm: How often to look.
        pace: How fast records are re-encrypted.
        notify: Told of events whose reactions say so.
        checkpoint: Called regularly, to sign the audit log's state.
        sweep: Called regularly, to end leases that are over.
        health_file: Where ``health`` is written.
        help_others: Re-encrypt while another worker has the lease.
        tell: Called as re-encryption proceeds.
        watching: Verify and count the audit log, and tell metrics what is due. A log that
            was altered is an ``AuditTampered`` event.
    """

    def __init__(
        self,
        vault: Vault,
        *,
        rhythm: Rhythm | None = None,
        pace: Pace | None = None,
        notify: Notify | None = None,
        checkpoint: Hook | None = None,
        sweep: Hook | None = None,
        health_file: Path | None = None,
        help_others: bool = False,
        tell: Callable[[Progress], None] | None = None,
        watching: bool = False,
    ) -> None:
        self.id = new_id()
        self._vault = vault
        self._rhythm = rhythm or Rhythm()
        self._pace = pace or Pace()
        self._hooks: dict[str, Hook | None] = {"checkpoint": checkpoint, "sweep": sweep}
        self._health_file = health_file
        self._help = help_others or vault.store.shared is not None
        document = rotation_document(vault.store)
        self.engine = Engine(
            vault.store,
            document,
            holder=self.id,
            next_fire=next_fire,
            movers=_movers(vault),
            report=self._report,
            tell=tell,
            pace=pace,
        )
        self._document = document
        self._reactor = VaultReactor(vault, notify=notify)
        self.bus = EventBus(vault.store, document, reactor=self._reactor)
        self._scheduler: AsyncIOScheduler | None = None
        self._busy = anyio.Lock()
        self._under_way: dict[asyncio.Task[object], str] = {}
        self._started = vault.clock.time()
        self._known: set[str] = set()
        self._problems: dict[str, str] = {}
        self._last: dict[str, float] = {}
        self._rotates = False
        self._watch: Watch | None = None
        if watching:
            watch = self._watch = Watch(vault, self.engine)
            watch.wrong = self._problems
            self._hooks |= {"verify": self._verify, "count": watch.count, "due": watch.due}

    # -- life --------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._vault.heed_lockdown()
        _workers[self.id] = self
        self.engine.stopped = False
        scheduler = AsyncIOScheduler(timezone=UTC, logger=_jobs_log)
        for name, seconds in self._jobs().items():
            scheduler.add_job(
                _run_job,
                "interval",
                seconds=seconds,
                args=(self.id, name),
                id=name,
                coalesce=True,
                max_instances=1,
                misfire_grace_time=None,
                next_run_time=datetime.now(UTC),
            )
        scheduler.start()
        self._scheduler = scheduler
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        scheduler, self._scheduler = self._scheduler, None
        _workers.pop(self.id, None)
        self.engine.stopped = True
        with anyio.CancelScope(shield=True):
            if scheduler is not None:
                await self._end(scheduler)
            async with self._busy:
                await self._quietly("release", self.engine.release)

    async def _end(self, scheduler: AsyncIOScheduler) -> None:
        """What rotates ends at its next commit; the scheduler would break it off anywhere."""
        scheduler.pause()
        await asyncio.sleep(0)  # jobs that it has just made begin, and see that it is over
        rotating = {task for task, name in self._under_way.items() if name not in _ALONGSIDE}
        if rotating:
            await asyncio.wait(rotating)
        scheduler.shutdown(wait=False)
        if self._under_way:
            await asyncio.wait(self._under_way)

    def _jobs(self) -> dict[str, float]:
        rhythm = self._rhythm
        jobs = {f"rotate {level.value}": rhythm.check for level in Level}
        jobs |= {"events": rhythm.events, "health": rhythm.health}
        chosen = {name: getattr(rhythm, name) for name, hook in self._hooks.items() if hook}
        return jobs | chosen

    # -- for callers ---------------------------------------------------------------

    async def emit(self, event: Event) -> bool:
        """Accepts an event, durably, and has it acted on at once.

        Returns:
            Whether it was new; see ``EventBus.accept``.
        """
        accepted = await self.bus.accept(event)
        if self._scheduler is not None and accepted:
            self._scheduler.modify_job("events", next_run_time=datetime.now(UTC))
        return accepted

    async def run_once(self) -> Outcome:
        """Acts on events, then does what is due, all levels; for tests and commands.

        Raises:
            ApexCredsError: What was wrong with the first thing that failed.
        """
        async with self._busy:
            await self.bus.act()
            if self._vault.store.sealed:  # by a lockdown, which one of them may have been
                return Outcome(waiting=True)
            return await self.engine.run()

    def health(self) -> dict[str, object]:
        """How the worker is: when each job last ended, and what is wrong."""
        return {
            "worker": self.id,
            "vault": self._vault.vault_id,
            "ok": not self._problems,
            "rotates": self._rotates,
            "last": {name: round(at, 3) for name, at in self._last.items()},
            "problems": dict(self._problems),
            "written": round(time.time(), 3),
        }

    # -- jobs --------------------------------------------------------------------

    async def scheduled(self, name: str) -> None:
        """One job, in a task of the scheduler's."""
        task = asyncio.current_task()
        assert task is not None
        self._under_way[task] = name
        try:
            await self.job(name)
        except asyncio.CancelledError:
            if self._scheduler is not None:
                raise
        finally:
            del self._under_way[task]

    async def job(self, name: str) -> None:
        """One job; what fails is kept for ``health``."""
        if name == "health":
            await self._report_health()
            return
        if name in _ALONGSIDE:
            await self._quietly(name, lambda: self._do(name))
            return
        async with self._busy:
            if _workers.get(self.id) is not self:
                return
            await self._quietly(name, lambda: self._do(name))

    async def _do(self, name: str) -> None:
        if name == "events":
            await self._events()
        elif name in self._hooks:
            await _call(self._hooks[name])
        else:
            await self._rotate(Level(name.removeprefix("rotate ")))

    async def _verify(self) -> None:
        """Checks the log; what is wrong with it at a second look, too, is a security event."""
        assert self._watch is not None
        with suppress(AuditTamperedError):
            await self._watch.verify()
            return
        try:
            await self._watch.verify()
        except AuditTamperedError as error:
            log = self._vault.audit.vault_id[:8]
            detail = f"log {log}: {error.message}".encode()[:256].decode(errors="ignore")
            await self.emit(AuditTampered(source="worker", detail=detail))
            raise

    async def _events(self) -> None:
        self._end_leases(await self._document.read())
        if await self.bus.act():
            await self._rotate(None)

    def _end_leases(self, state: RotationState) -> None:
        """Ends this process's leases for events, also those that others acted on.

        Leases are in memory, and so is the memory of what was done about them.
        """
        for item in (*state.queue, *state.acted):
            ends = Reaction.REVOKE_LEASES in state.table.get(kind_of(item.event), ())
            if item.id not in self._known and item.at >= self._started and ends:
                self._reactor.end_leases(item.event)
        self._known = {item.id for item in (*state.queue, *state.acted)}

    async def _rotate(self, level: Level | None) -> None:
        only = None if level is None else frozenset({level})
        outcome = await self.engine.run(only=only, attended=False)
        self._rotates = not outcome.waiting
        if outcome.waiting and self._help:
            await self._help_reencrypt()
        for step, error in outcome.failed.items():
            self._problems[f"{step.action.value} {step.level.value}"] = error.message
        for step in outcome.by_hand:
            self._problems[f"{step.action.value} {step.level.value}"] = (
                "a passphrase must be typed for it: apex-creds rotate " + step.level.value
            )
        if not outcome.failed and not outcome.by_hand:
            done = tuple(f" {each.value}" for each in ([level] if level else Level))
            for name in [name for name in self._problems if name.endswith(done)]:
                del self._problems[name]

    async def _help_reencrypt(self) -> None:
        pace = Pace(per_second=self._pace.per_second, backwards=True)
        for section in SECTION_NAMES:
            async with aclosing(reencrypt(self._vault.store, section, pace=pace)) as moved:
                async for _ in moved:
                    if self.engine.stopped:
                        return

    def _report(self, step: Step) -> None:
        self._vault.audit.append(
            AuditEvent(
                time=self._vault.clock.time(),
                kind=EventKind.ROTATION,
                action=f"{step.action.value} {step.level.value}",
                reason=step.reason.value,
                key_version=step.version,
                detail=shown_label(step.label, self._vault.audit.shown),
            )
        )

    async def _report_health(self) -> None:
        report = self.health()
        status = "; ".join(self._problems.values()) or "all keys are as they should be"
        systemd.notify(WATCHDOG="1", STATUS=status[:200])
        if self._health_file is not None:
            try:
                await anyio.to_thread.run_sync(systemd.write_health, self._health_file, report)
            except OSError as error:
                _log.warning("the health file can't be written: %s", error.strerror)

    async def _quietly(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except ApexCredsError as error:
            waits = isinstance(error, LockedDownError)  # again and again, and no fault
            self._problems[name] = f"{type(error).__name__}: {error.message}"
            _log.log(logging.DEBUG if waits else logging.WARNING, "%s: %s", name, error)
        else:
            self._problems.pop(name, None)
            self._last[name] = self._vault.clock.time()


async def _run_job(worker_id: str, name: str) -> None:
    worker = _workers.get(worker_id)
    if worker is not None:
        await worker.scheduled(name)


async def _call(hook: Hook | None) -> None:
    result = hook() if hook is not None else None
    if inspect.isawaitable(result):
        await result


def _movers(vault: Vault) -> Mapping[str, Mover]:
    return {DEK_LABEL: Access(vault).rekey}

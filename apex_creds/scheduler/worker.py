"""The background worker: checks regularly what is due, and does it.

Guarantee: nothing is due because a job was scheduled, and nothing is missed because one
was not: each job reads what is stored. Jobs are paced by a clock that never jumps; the
wall clock only says which keys are old. Of several workers on a vault one is on duty and
rotates; when it ends, in any way, another goes on at its next check. A job that fails, or
makes no progress, is reported in ``health``; one that fails is tried again.

systemd is notified where it started the worker (sd_notify(3)). The health file is replaced
whole, 0600, and holds no secret.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.to_thread
from apscheduler.triggers.cron import CronTrigger

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.audit.line import shown_label
from apex_creds.auth.access_document import DEK_LABEL
from apex_creds.clocks import boot_id, boot_time
from apex_creds.concurrency import Lock, Place, run_at, running_loop, soon
from apex_creds.crypto.memory import harden_process
from apex_creds.errors import (
    ApexCredsError,
    AuditTamperedError,
    EventLoopError,
    InvalidInputError,
    LockedDownError,
    NeedsReconnectError,
    RotatorError,
)
from apex_creds.fs.private_files import replace_file
from apex_creds.model import SECTION_NAMES, new_id
from apex_creds.oauth.refresh import refresher_of
from apex_creds.plain import check_can, check_is
from apex_creds.scheduler.credential_rotation import CredentialRotation
from apex_creds.scheduler.engine import Engine, Outcome
from apex_creds.scheduler.event_queue import EventQueue, Notify, VaultReactor
from apex_creds.scheduler.reencryption import WORKER, Leader, Pace, Progress, reencrypt
from apex_creds.scheduler.rotation_plan import Step
from apex_creds.scheduler.rotation_state import (
    AuditTampered,
    Event,
    Reaction,
    RotationState,
    kind_of,
    rotation_document,
)
from apex_creds.scheduler.schedule import Level
from apex_creds.scheduler.status import Watch
from apex_creds.vault import Vault

Hook = Callable[[], object | Awaitable[object]]

_log: Final = logging.getLogger(__name__)
_ALONGSIDE: Final = frozenset({"verify", "count", "due", "refresh", "credentials"})
"""Jobs that touch no key, and wait for no other."""
_LONGEST: Final = 10 * 366 * 86_400
_STALLED: Final = 300.0
"""A job without progress for so many seconds (or five of its periods) is stalled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rhythm:
    """How often each job runs, in seconds; at most ten years.

    Raises:
        InvalidInputError: A number is none of seconds.
    """

    check: float = 60.0
    events: float = 2.0
    checkpoint: float = 3600.0
    sweep: float = 60.0
    health: float = 10.0
    verify: float = 3600.0
    count: float = 10.0
    due: float = 60.0
    refresh: float = 30.0
    credentials: float = 30.0

    def __post_init__(self) -> None:
        for job in fields(self):
            seconds = getattr(self, job.name)
            if not 0 < seconds <= _LONGEST:  # nor if it is not a number
                raise InvalidInputError(
                    f"{seconds} seconds is not how often a worker can look.",
                    hint="Give a number above 0, 60 for example.",
                )


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

    It works in the loop that the block is entered in, and only as long as that one runs.

    Args:
        vault: Unsealed for longer than the block.
        rhythm: How often each job runs.
        pace: How fast records are re-encrypted.
        notify: Called with each event whose reactions include ``notify``.
        checkpoint: Called regularly, to sign the audit log's state.
        sweep: Called regularly, to end leases that are over.
        health_file: Where ``health`` is written.
        help_others: Re-encrypt while another worker has the lease.
        on_progress: Called as re-encryption proceeds.
        watching: Verify and count the audit log, and export as metrics what is due. A log that
            was altered is an ``AuditTampered`` event.
        harden: Whether to call ``harden_process()``, as the middleware does.
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
        on_progress: Callable[[Progress], None] | None = None,
        watching: bool = False,
        harden: bool = True,
    ) -> None:
        check_is(vault, Vault, what="vault")
        for value, kind, what in ((rhythm, Rhythm, "rhythm"), (pace, Pace, "pace")):
            if value is not None:
                check_is(value, kind, what=what)
        for hook, what in (
            (notify, "notify"),
            (checkpoint, "checkpoint"),
            (sweep, "sweep"),
            (on_progress, "on_progress"),
        ):
            if hook is not None:
                check_can(hook, what=what)
        if harden:
            harden_process()
        self.id = new_id()
        self._vault = vault
        self._on_progress = on_progress
        self._rhythm = rhythm or Rhythm()
        self._pace = pace or Pace()
        self._hooks: dict[str, Hook | None] = {
            "checkpoint": checkpoint,
            "sweep": sweep,
            "refresh": self._refresh,
            "credentials": self._rotate_credentials,
        }
        self._refresher = refresher_of(vault)
        self._health_file = health_file
        self._help = help_others or vault.store.shared is not None
        document = rotation_document(vault.store)
        self.engine = Engine(
            vault.store,
            document,
            next_fire=next_fire,
            movers={DEK_LABEL: vault.access.rekey},
            on_step=self._log_step,
            on_progress=self._progressed,
            pace=pace,
        )
        self._document = document
        self._reactor = VaultReactor(vault, notify=notify)
        self._credentials = CredentialRotation(vault, next_fire=next_fire)
        self.bus = EventQueue(
            vault.store, document, reactor=self._reactor, credentials=self._credentials
        )
        self._periodic: dict[str, Periodic] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._place: Place | None = None
        self._busy = Lock()
        self._since: dict[str, float] = {}
        self._moved = boot_time()
        self._known: set[str] = set()
        self._problems: dict[str, str] = {}
        self._last: dict[str, float] = {}
        self._rotates = False
        self._duty = Leader(vault.store.storage, WORKER)
        self._watch: Watch | None = None
        if watching:
            watch = self._watch = Watch(vault, self.engine)
            watch.wrong = self._problems
            self._hooks |= {"verify": self._verify, "count": watch.count, "due": watch.due}

    # -- life --------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._vault.obey_lockdown()
        self.engine.stopped = False
        self._place = Place()
        await self._quietly("duty", self._duty.hold)
        with suppress(ApexCredsError):  # sealed: then every event counts as one of now
            self._known = {item.id for item in (await self._document.read()).acted}
        jobs = {f"rotate {level.value}": self._rhythm.check for level in Level}
        for name in ("events", "health", *(name for name, hook in self._hooks.items() if hook)):
            jobs[name] = getattr(self._rhythm, name)
        for name, seconds in jobs.items():
            job = self._periodic[name] = Periodic(partial(self.job, name), seconds=seconds)
            self._tasks[name] = asyncio.create_task(job.run(), name=f"apex-creds {name}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:

        async def end() -> None:
            for job in self._periodic.values():  # what rotates ends at its next commit
                job.stop()
            for name in _ALONGSIDE & self._tasks.keys():  # what only reads is cancelled
                self._tasks[name].cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

        self.engine.stopped = True
        with anyio.CancelScope(shield=True):
            with suppress(EventLoopError):  # that loop is gone, and its tasks with it
                await run_at(self._place or Place(), end)
            self._periodic, self._tasks, self._since, self._place = {}, {}, {}, None
            await self._quietly("duty", self._duty.release)

    # -- for callers ---------------------------------------------------------------

    async def emit(self, event: Event) -> bool:
        """Accepts an event, durably, and has it acted on at once; from any event loop.

        Returns:
            Whether it was new; see ``EventQueue.accept``.
        """
        accepted = await self.bus.accept(event)
        if accepted and (job := self._periodic.get("events")):
            job.wake()
        return accepted

    async def run_once(self) -> Outcome:
        """Acts on events, then does what is due, all levels; for tests and commands.

        Raises:
            ApexCredsError: What was wrong with the first thing that failed.
        """
        async with self._busy.held():
            await self.bus.act()
            if self._vault.store.sealed:  # by a lockdown, which one of them may have been
                return Outcome(waiting=True)
            return await self.engine.run()

    def health(self) -> dict[str, object]:
        """How the worker is: when each job last ended, and what is wrong.

        ``beat`` is when that was, on the boot-time clock that ``boot`` names: a file of it
        is as old as that clock says. The other times are for people.
        """
        problems, now = dict(self._problems), boot_time()
        for name, since in self._since.items():
            idle = now - max(since, self._moved)
            if idle > max(_STALLED, 5 * self._periodic[name].seconds):
                problems[f"{name} stalled"] = f"no progress for {idle:.0f} seconds"
        if self._place is not None and not self._place.runs:
            problems["loop"] = "the event loop that the worker was begun in has ended"
        return {
            "worker": self.id,
            "vault": self._vault.vault_id,
            "ok": not problems,
            "rotates": self._rotates,
            "last": {name: round(at, 3) for name, at in self._last.items()},
            "problems": problems,
            "written": round(self._vault.clock.time(), 3),
            "boot": boot_id(),
            "beat": round(boot_time(), 3),
        }

    # -- jobs --------------------------------------------------------------------

    async def job(self, name: str) -> None:
        """One job; what fails is kept for ``health``."""
        self._since[name] = boot_time()
        if name == "health" or name in _ALONGSIDE:
            await self._quietly(name, lambda: self._do(name))
        else:
            async with self._busy.held():
                if not self.engine.stopped:
                    await self._quietly(name, lambda: self._do(name))
        self._since.pop(name, None)

    def _progressed(self, progress: Progress) -> None:
        self._moved = boot_time()
        if self._on_progress is not None:
            self._on_progress(progress)

    async def _do(self, name: str) -> None:
        if name == "events":
            self._end_leases(await self._document.read())
            if await self.bus.act() or (await self._document.read()).renew:
                await self._rotate(None)
        elif name == "health":
            await self._quietly("duty", self._duty.hold)
            await self._report_health()
        elif hook := self._hooks.get(name):
            result = hook()
            if inspect.isawaitable(result):
                await result
        else:
            await self._rotate(Level(name.removeprefix("rotate ")))

    async def _verify(self) -> None:
        """Checks the log; what is wrong with it at a second check, too, is a security event."""
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

    async def _refresh(self) -> None:
        """Renews OAuth tokens before they expire."""
        await self._vault.check_not_locked_down()
        lost = await self._refresher.renew_due()
        if lost:
            raise NeedsReconnectError(
                f"{lost} OAuth connections need a person.",
                hint="See: apex-creds list; then: apex-creds connect PROVIDER --name NAME",
            )

    async def _rotate_credentials(self) -> None:
        """Replaces secrets at their providers when they are due."""
        await self._vault.check_not_locked_down()
        wrong, left = await asyncio.gather(
            self._credentials.run(), self._credentials.revoke_left(), return_exceptions=True
        )
        for failure in (wrong, left):
            if isinstance(failure, BaseException):
                raise failure
        if left:
            raise RotatorError(
                f"{left} logins that have ended could not be revoked at their provider.",
                hint="See: apex-creds rotation status",
            )
        if wrong:
            raise RotatorError(
                f"{wrong} credentials could not be replaced at their providers.",
                hint="See: apex-creds list; then: apex-creds rotate credential NAME",
            )

    def _end_leases(self, state: RotationState) -> None:
        """Ends this process's leases for events, also those that others acted on.

        Leases are in memory, and so is the memory of what was done about them.
        """
        for item in (*state.queue, *state.acted):
            ends = Reaction.REVOKE_LEASES in state.table.get(kind_of(item.event), ())
            if item.id not in self._known and ends:
                self._reactor.end_leases(item.event)
        self._known = {item.id for item in (*state.queue, *state.acted)}

    async def _rotate(self, level: Level | None) -> None:
        await self._vault.check_not_locked_down()
        only = None if level is None else frozenset({level})
        outcome = Outcome(waiting=True)
        if await self._duty.hold():
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

    def _log_step(self, step: Step) -> None:
        self._moved = boot_time()
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
        wrong = report["problems"]
        assert isinstance(wrong, dict)
        status = "; ".join(wrong.values()) or "all keys are as they should be"
        notify_systemd(WATCHDOG="1", STATUS=status[:200])
        if self._health_file is not None:
            try:
                await anyio.to_thread.run_sync(write_health, self._health_file, report)
            except OSError as error:
                _log.warning("the health file can't be written: %s", error.strerror)

    async def _quietly(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except ApexCredsError as error:
            waits = isinstance(error, LockedDownError)  # again and again, and no fault
            self._problems[name] = f"{type(error).__name__}: {error.message}"
            _log.log(logging.DEBUG if waits else logging.WARNING, "%s: %s", name, error)
        except Exception as error:  # noqa: BLE001
            # A hook's, or a fault of this program: the job comes again, the others go on.
            self._problems[name] = type(error).__name__
            _log.error("%s failed", name, exc_info=error)
        else:
            self._problems.pop(name, None)
            if name not in ("duty", "health"):
                self._last[name] = self._vault.clock.time()


def notify_systemd(**fields: str) -> bool:
    """Sends ``READY=1``, ``STATUS=…`` and the like; whether systemd listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = "\n".join(f"{name}={value.splitlines()[0]}" for name, value in fields.items())
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect(address)
        out.sendall(message.encode())
        return True
    return False


def write_health(path: Path, report: Mapping[str, object]) -> None:
    """Replaces the health file.

    Raises:
        OSError: It can't be written.
    """
    replace_file(path, [json.dumps(report).encode()], durable=False)


LONGEST_SLEEP: Final = 5.0
"""An event loop's own timers stand still while the machine sleeps: the clock is read again."""


class Periodic:
    """Runs ``work`` at once, and then each time ``seconds`` after it ended.

    Guarantee: setting the wall clock, by any amount in any direction, neither delays a run nor
    makes one more; runs that were missed while the machine slept are one run, which begins
    within seconds of its waking. Work never overlaps itself.

    Args:
        work: Raises nothing but cancellation.
        seconds: Between two runs.
        now: The clock.
    """

    def __init__(
        self,
        work: Callable[[], Awaitable[object]],
        *,
        seconds: float,
        now: Callable[[], float] = boot_time,
    ) -> None:
        self.seconds = seconds
        self._work = work
        self._now = now
        self._loop = running_loop()
        self._wake = asyncio.Event()
        self._over = False

    async def run(self) -> None:
        """Until ``stop``; the run that is under way then ends first."""
        while not self._over:
            self._wake.clear()
            await self._work()
            await asyncio.sleep(0)  # other tasks run, also if this one never waits
            due = self._now() + self.seconds
            while not self._wake.is_set() and (left := due - self._now()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, LONGEST_SLEEP)):
                        await self._wake.wait()

    def wake(self) -> None:
        """The next run is now, or as soon as the present one ends; from any thread."""
        soon(self._loop, self._wake.set)

    def stop(self) -> None:
        """There is no further run; from any thread."""
        self._over = True
        self.wake()

"""Whether the log verifies, and what it records of each plugin's activity.

Guarantee: ``ok`` is only said of what was checked against the vault's signed checkpoints;
what an incremental check does not read again, the next full one does. What plugins did is
bounded, however many names there are. A check blocks: call it in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from apex_creds.audit.checkpoint import Checkpoint, CheckpointFile
from apex_creds.audit.events import EventKind, Recorded
from apex_creds.audit.line import SHARED
from apex_creds.audit.verify import Progress, Report, check_now
from apex_creds.clocks import boot_time
from apex_creds.errors import ApexCredsError, AuditTamperedError

# -- verification ---------------------------------------------------------------------------


FULL_SECONDS: Final = 900.0
"""How old a check of everything may get."""


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """How the log is.

    Attributes:
        state: ``checking``, ``ok``, ``bad``, or ``unknown``: it could not be read.
        count: Events that verify; ``signed`` of them by a checkpoint.
        what: What is wrong, or why it is not known.
        at: When that was found, Unix seconds; ``full`` is when all was last read.
        took: Seconds.
    """

    state: str = "checking"
    count: int = 0
    signed: int = 0
    checkpoints: int = 0
    head: str = ""
    bad: int = 0
    what: str = ""
    at: float = 0.0
    full: float = 0.0
    took: float = 0.0


class Verifier:
    """Checks one vault's log again and again.

    Args:
        directory: The log's.
        vault_id: Whose.
        now: A monotonic clock.
    """

    def __init__(
        self, directory: Path, *, vault_id: str, now: Callable[[], float] = boot_time
    ) -> None:
        self._directory = directory
        self._vault_id = vault_id
        self._known: Checkpoint | None = None
        self._now = now
        self._full = 0.0
        self._due = float("-inf")
        self.last = Verified()

    def check(self, *, full: bool = False, progress: Progress | None = None) -> Verified:
        """Checks what is new, or everything where that is due or asked for."""
        began, now = time.perf_counter(), time.time()
        full = full or self._known is None or self._now() > self._due
        try:
            newest = CheckpointFile(self._directory, vault_id=self._vault_id).last()
            report = check_now(
                self._directory,
                vault_id=self._vault_id,
                since=None if full else self._known,
                progress=progress,
            )
        except AuditTamperedError as error:
            found = Verified(state="bad", what=error.message, at=now, full=self._full)
        except ApexCredsError as error:
            found = Verified(state="unknown", what=error.message, at=now, full=self._full)
        else:
            found = self._judge(report, newest, now, full=full)
        took = time.perf_counter() - began
        self.last = msgspec.structs.replace(found, took=took)
        return self.last

    def _judge(
        self, report: Report, newest: Checkpoint | None, now: float, *, full: bool
    ) -> Verified:
        if report.ok:
            if full:
                self._full, self._due = now, self._now() + FULL_SECONDS
            if newest is not None and newest.size <= report.signed:
                self._known = newest
        else:
            self._known = None
        where = f"Event {report.bad_line} ({report.segment}) {report.how}."
        return Verified(
            state="ok" if report.ok else "bad",
            count=report.count,
            signed=report.signed,
            checkpoints=report.checkpoints,
            head=report.head,
            bad=report.bad_line,
            what="" if report.ok else where,
            at=now,
            full=self._full,
        )


# -- activity -------------------------------------------------------------------------------


MAX_PAIRS: Final = 100_000
_ASKED: Final = "consent_"


class Use(msgspec.Struct):
    """One plugin and one credential.

    Attributes:
        used: When it was last redeemed; ``denied`` likewise; 0: never.
        why: The reason of the last denial.
        answer: What a person last answered, and when.
    """

    redeems: int = 0
    used: float = 0.0
    denials: int = 0
    denied: float = 0.0
    why: str = ""
    answer: str = ""
    answered: float = 0.0


class Activity:
    """Takes events in their order; knows what was done."""

    def __init__(self) -> None:
        self.pairs: dict[tuple[str, str, str], Use] = {}
        self.changes = 0

    def take(self, event: Recorded) -> None:
        """One more event."""
        if not event.plugin or not event.credential:
            return
        if event.kind is EventKind.REDEEM:
            use = self._pair(event)
            use.redeems, use.used = use.redeems + 1, event.time
        elif event.kind is EventKind.DENIAL:
            use = self._pair(event)
            use.denials, use.denied, use.why = use.denials + 1, event.time, event.reason
        elif event.kind is EventKind.GRANT and event.reason.startswith(_ASKED):
            use = self._pair(event)
            use.answer, use.answered = event.reason.removeprefix(_ASKED), event.time

    def _pair(self, event: Recorded) -> Use:
        self.changes += 1
        whose = "" if event.detail == SHARED else event.principal
        key = (event.plugin, event.credential, whose)
        found = self.pairs.get(key)
        if found is None:
            if len(self.pairs) >= MAX_PAIRS:
                self.pairs.pop(next(iter(self.pairs)))
            found = self.pairs[key] = Use()
        return found

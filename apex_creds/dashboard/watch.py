"""Looks at the vault and its log, again and again, and tells the hub what changed.

Guarantee: it only reads. What blocks, or grows with the vault or the log, is done in
threads; what goes wrong in one place is shown there and tried again, and the rest goes on.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from apex_creds.audit.events import Recorded
from apex_creds.dashboard.activity import Activity
from apex_creds.dashboard.asked import question
from apex_creds.dashboard.hierarchy import hierarchy
from apex_creds.dashboard.hub import KEPT, Hub
from apex_creds.dashboard.leases import LIFETIME, OpenLease, OpenLeases
from apex_creds.dashboard.matrix import Matrix, matrix
from apex_creds.dashboard.shown import Names, text
from apex_creds.dashboard.tail import Batch, LogTail
from apex_creds.dashboard.verification import Verified, Verifier
from apex_creds.documents.sections import Section
from apex_creds.errors import ApexCredsError, InvalidPolicyError, LockedDownError, StorageError
from apex_creds.fs.home import audit_directory
from apex_creds.policy.grants import Grants, Lockdown
from apex_creds.policy.policy_file import Change, PolicySource
from apex_creds.policy.rules import Policy
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.vault import Vault
from apex_creds.vault.access import Access
from apex_creds.vault.requests import Requests
from apex_creds.vault.reseal import SECTION_NAMES

_SHOWN_LEASES: Final = 200
_POLICY_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rhythm:
    """How often each part looks, in seconds."""

    log: float = 0.4
    vault: float = 0.5
    verify: float = 5.0


class Watcher:
    """Watches one vault.

    Args:
        vault: Unsealed for longer than ``run``.
        hub: Who is told.
        names: How credentials are called.
        rhythm: How often to look.
    """

    def __init__(
        self, vault: Vault, hub: Hub, *, names: Names, rhythm: Rhythm | None = None
    ) -> None:
        self._vault = vault
        self._hub = hub
        self._names = names
        self._rhythm = rhythm or Rhythm()
        directory = audit_directory(vault.home)
        self._tail = LogTail(directory, vault_id=vault.audit.vault_id)
        self._verifier = Verifier(directory, vault_id=vault.audit.vault_id)
        self._engine = RotationWorker(vault).engine
        self._access = Access(vault)
        self._requests = Requests(vault)
        self.leases = OpenLeases()
        self.activity = Activity()
        self._keys_seen: tuple[object, ...] = ()
        self._permissions_seen: tuple[object, ...] = ()
        self._numbers: tuple[int, ...] = ()
        self._source: PolicySource | None = None
        self._policy: Policy | None = None
        self._policy_due = float("-inf")
        self._policy_fault: ApexCredsError | None = None
        self._verify_now = anyio.Event()
        self._troubles: dict[str, dict[str, str]] = {}

    async def run(self) -> None:
        """Watches until it is cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._again, "log", self.look_at_log, self._rhythm.log)
            group.start_soon(self._again, "vault", self.look_at_vault, self._rhythm.vault)
            group.start_soon(self._verify_again)

    def verify_all(self) -> None:
        """Has everything in the log checked as soon as possible."""
        self._verify_now.set()

    # -- the loops -------------------------------------------------------------------

    async def _again(
        self, place: str, look: Callable[[], Awaitable[None]], every: float
    ) -> None:
        while True:
            began = time.perf_counter()
            await self._try(place, look)
            # A vault that takes long to look at is looked at less often.
            await anyio.sleep(max(every, 3 * (time.perf_counter() - began)))

    async def _try(self, place: str, look: Callable[[], Awaitable[None]]) -> None:
        try:
            await look()
        except LockedDownError:  # while it looked; the next look says so
            self._trouble(place, None)
        except ApexCredsError as error:
            self._trouble(place, error)
        else:
            self._trouble(place, None)

    def _trouble(self, place: str, error: ApexCredsError | None) -> None:
        self._troubles.pop(place, None)
        if error is not None:
            what = {"error": text(error.message), "hint": text(error.hint)}
            self._troubles[place] = what
        self._hub.publish("trouble", self._troubles)

    # -- the log ---------------------------------------------------------------------

    async def look_at_log(self) -> None:
        """Tells what is new in the log, and which leases are open."""
        batch = await anyio.to_thread.run_sync(self._tail.look)
        shown = await anyio.to_thread.run_sync(self._digest, batch)
        self._hub.log(shown)
        self._hub.log({"seq": each.seq, "fault": text(each.how)} for each in batch.faults)
        now = self._vault.clock.time()
        found = self.leases.open(now)
        self._hub.publish(
            "leases",
            {
                "open": [self._lease(item) for item in found[:_SHOWN_LEASES]],
                "count": len(found),
                "since": batch.first,
                "lifetime": LIFETIME,
            },
        )

    def _digest(self, batch: Batch) -> list[dict[str, object]]:
        """Takes events in; returns the last of them as the page gets them."""
        for event in batch.events:
            self.leases.take(event)
            self.activity.take(event)
        return [self.shown(event) for event in batch.events[-KEPT:]]

    def shown(self, event: Recorded) -> dict[str, object]:
        """An event as the page gets it."""
        return self._names.event(event)

    def _lease(self, item: OpenLease) -> dict[str, object]:
        found: dict[str, object] = msgspec.to_builtins(item)
        for name in ("plugin", "action", "version", "method", "origin"):
            found[name] = text(str(found[name]))
        found["credential"] = self._names.logged(str(found["credential"]))
        return found

    # -- the vault -------------------------------------------------------------------

    async def look_at_vault(self) -> None:
        """Tells what changed in the vault; of one that is sealed, what can be known."""
        store = self._vault.store
        grants = (await store.keystore()).grants
        sealed = grants.lockdown is not None and store.sealed
        self._hub.publish("lockdown", _lockdown(grants.lockdown, sealed=sealed))
        if sealed:
            self._hub.publish("requests", [])
            self._keys_seen = ()
        else:
            waiting = await self._requests.open()
            self._hub.publish("requests", [question(i, names=self._names) for i in waiting])
            await self._look_at_keys()
        await self._look_at_permissions()

    async def _look_at_keys(self) -> None:
        sections = await self._sections()
        access, rotation = await self._access.read(), await self._engine.document.read()
        keystore = await self._vault.store.keystore()
        seen = (*sections, keystore, rotation, access.factors, access.recovery)
        if _same(seen, self._keys_seen):
            return
        self._hub.publish("keys", await hierarchy(self._engine, names=self._names))
        self._keys_seen = seen

    async def _look_at_permissions(self) -> None:
        sections, policy = await self._sections(), await self._current_policy()
        keystore = await self._vault.store.keystore()
        now = self._vault.clock.time()
        # Ends of grants are looked at twice a minute.
        seen = (*sections, keystore, policy, self._ticks(self.activity.changes, int(now / 30)))
        if _same(seen, self._permissions_seen):
            return
        stored = [name for section in sections for name in section.records]
        self._names.learn([*stored, *(grant.credential for grant in keystore.grants)])
        made = partial(self._matrix, sections, keystore.grants, policy, now)
        self._hub.publish("matrix", await anyio.to_thread.run_sync(made))
        self._permissions_seen = seen

    async def _sections(self) -> list[Section]:
        return [await self._vault.store.sections.read(name) for name in SECTION_NAMES]

    def _ticks(self, *numbers: int) -> tuple[int, ...]:
        """The numbers; the same object as before while they are equal to it."""
        if numbers != self._numbers:
            self._numbers = numbers
        return self._numbers

    def _matrix(
        self, sections: list[Section], grants: Grants, policy: Policy | None, now: float
    ) -> Matrix:
        infos = [r.info for section in sections for r in section.records.values()]
        uses = dict(self.activity.pairs)
        return matrix(infos, grants, uses, policy, names=self._names, now=now)

    async def _current_policy(self) -> Policy | None:
        """The policy in force, looked at now and then; None: its file can't be read."""
        if time.monotonic() < self._policy_due:
            return self._policy
        self._policy_due = time.monotonic() + _POLICY_SECONDS
        try:
            if self._source is None:
                made = partial(PolicySource, self._vault.home, changed=self._policy_changed)
                self._source = await anyio.to_thread.run_sync(made)
                self._policy_fault = None
            self._policy = await anyio.to_thread.run_sync(self._source.reload)
        except (InvalidPolicyError, StorageError) as error:
            self._policy_fault = error
        self._trouble("policy", self._policy_fault)
        return self._policy

    def _policy_changed(self, change: Change) -> None:
        self._policy_fault = None if change.ok else InvalidPolicyError(change.detail)

    # -- verification ----------------------------------------------------------------

    async def _verify_again(self) -> None:
        full = True
        while True:
            self._hub.publish("verified", self._checking())
            check = partial(self._verifier.check, full=full)
            found = await anyio.to_thread.run_sync(check)
            self._hub.publish("verified", _told(found))
            self._verify_now = anyio.Event()
            pause = max(self._rhythm.verify, 20 * found.took)
            with anyio.move_on_after(pause) as waited:
                await self._verify_now.wait()
            full = not waited.cancelled_caught

    def _checking(self) -> dict[str, object]:
        return {**_told(self._verifier.last), "busy": True}


def _told(found: Verified) -> dict[str, object]:
    told: dict[str, object] = {**msgspec.to_builtins(found), "busy": False}
    told["what"] = text(found.what)
    return told


def _lockdown(found: Lockdown | None, *, sealed: bool) -> dict[str, object] | None:
    if found is None:
        return None
    return {"since": found.since, "reason": text(found.reason), "sealed": sealed}


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    """Whether all values are the same objects: what is stored is never changed in place."""
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))

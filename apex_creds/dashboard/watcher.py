"""Watches the vault and its log, and publishes what changed.

Guarantee: it only reads. Of a long list a page gets how long it is, and asks for the window
that it shows. What blocks, or grows with the vault or the log, is done in threads; what goes
wrong in one place is shown there and tried again, and the rest goes on.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from apex_creds.audit.events import Recorded
from apex_creds.auth.access_document import PendingRequest
from apex_creds.auth.consent_queue import Requests
from apex_creds.dashboard.event_words import with_words
from apex_creds.dashboard.lease_view import (
    LIFETIME,
    MAX_OPEN,
    Names,
    OpenLease,
    OpenLeases,
    question,
    text,
    words_of,
)
from apex_creds.dashboard.live_feed import KEPT, LiveFeed, LogTail
from apex_creds.dashboard.log_status import Activity, Verified, Verifier
from apex_creds.dashboard.paging import PageQuery, page
from apex_creds.dashboard.vault_views import (
    Hierarchy,
    Permissions,
    hierarchy,
    keys_page,
    summary,
)
from apex_creds.documents.sections import Section
from apex_creds.errors import (
    ApexCredsError,
    InvalidPolicyError,
    LockedDownError,
    NotFoundError,
    StorageError,
)
from apex_creds.fs.home import audit_directory
from apex_creds.model import SECTION_NAMES
from apex_creds.policy.policy_file import Change, PolicySource
from apex_creds.policy.rules import Policy
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.vault import Vault

_POLICY_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rhythm:
    """How often each part is read, in seconds."""

    log: float = 0.4
    vault: float = 0.5
    verify: float = 5.0


class Watcher:
    """Watches one vault.

    Args:
        vault: Unsealed for longer than ``run``.
        feed: What is sent to the page.
        names: How credentials are called.
        rhythm: How often to read.
    """

    def __init__(
        self, vault: Vault, feed: LiveFeed, *, names: Names, rhythm: Rhythm | None = None
    ) -> None:
        self._vault = vault
        self._feed = feed
        self._names = names
        self._rhythm = rhythm or Rhythm()
        directory = audit_directory(vault.home)
        self._tail = LogTail(directory, vault_id=vault.audit.vault_id)
        self._verifier = Verifier(directory, vault_id=vault.audit.vault_id)
        self._engine = RotationWorker(vault).engine
        self._access = vault.access
        self._requests = Requests(vault)
        self.leases = OpenLeases()
        self.activity = Activity()
        self._open: list[OpenLease] = []
        self._waiting: list[PendingRequest] = []
        self._keys: Hierarchy | None = None
        self._permissions: Permissions | None = None
        self._revision = 0
        self._keys_seen: tuple[object, ...] = ()
        self._permissions_seen: tuple[object, ...] = ()
        self._source: PolicySource | None = None
        self._policy: Policy | None = None
        self._policy_due = float("-inf")
        self._policy_fault: ApexCredsError | None = None
        self._verify_now = anyio.Event()
        self._troubles: dict[str, dict[str, str]] = {}

    async def begin(self) -> None:
        """Reads the vault; in a lockdown, for the last time before its keys are wiped."""
        await self._try("vault", self.read_vault)
        self._vault.obey_lockdown()

    async def run(self) -> None:
        """Watches until it is cancelled; what is new is shown before all is checked."""
        await self._try("log", self.read_log)
        async with anyio.create_task_group() as group:
            group.start_soon(self._again, "log", self.read_log, self._rhythm.log)
            group.start_soon(self._again, "vault", self.read_vault, self._rhythm.vault)
            group.start_soon(self._verify_again)

    def verify_all(self) -> None:
        """Has everything in the log checked as soon as possible."""
        self._verify_now.set()

    # -- the loops -------------------------------------------------------------------

    async def _again(
        self, place: str, step: Callable[[], Awaitable[None]], every: float
    ) -> None:
        while True:
            began = time.perf_counter()
            await self._try(place, step)
            # A vault that takes long to read is read less often.
            await anyio.sleep(max(every, 3 * (time.perf_counter() - began)))

    async def _try(self, place: str, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except LockedDownError:  # meanwhile; the next reading says so
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
        self._feed.publish("trouble", self._troubles)

    # -- the log ---------------------------------------------------------------------

    async def read_log(self) -> None:
        """Sends what is new in the log, and which leases are open."""
        batch = await anyio.to_thread.run_sync(self._tail.poll)

        def take_in() -> list[dict[str, object]]:
            for event in batch.events:
                self.leases.take(event)
                self.activity.take(event)
            return [self.shown(event) for event in batch.events[-KEPT:]]

        self._feed.log(await anyio.to_thread.run_sync(take_in))
        self._feed.log(self.fault(each.seq, each.how) for each in batch.faults)
        self._open = self.leases.open(self._vault.clock.time())
        self._feed.publish(
            "leases",
            {
                "count": len(self._open),
                "full": len(self._open) == MAX_OPEN,  # older ones may be open besides
                "since": batch.first,
                "lifetime": LIFETIME,
                "revision": self.leases.changes,
            },
        )

    def shown(self, event: Recorded) -> dict[str, object]:
        """An event as the page gets it."""
        return with_words(self._names.event(event))

    @staticmethod
    def fault(seq: int, how: str) -> dict[str, object]:
        """A line that is not what was written, as the page gets it."""
        return with_words({"seq": seq, "fault": text(how)})

    def _lease(self, item: OpenLease, now: float) -> dict[str, object]:
        found: dict[str, object] = msgspec.to_builtins(item)
        for name in ("plugin", "action", "version", "method", "origin"):
            found[name] = text(str(found[name]))
        for name in ("credential", "principal"):
            found[name] = self._names.logged(str(found[name]))
        late = now - item.begun > LIFETIME
        return {**found, "state": "revoked" if item.revoked else "overdue" if late else "open"}

    # -- the vault -------------------------------------------------------------------

    async def read_vault(self) -> None:
        """Sends what changed in the vault; of one that is sealed, what can be known."""
        store = self._vault.store
        grants = await store.grants.read()
        sealed = grants.lockdown is not None and store.sealed
        if (found := grants.lockdown) is None:
            self._feed.publish("lockdown", None)
        else:
            shown = {"since": found.since, "reason": text(found.reason), "sealed": sealed}
            self._feed.publish("lockdown", shown)
        self._waiting = [] if sealed else await self._requests.open()
        ids = [item.id for item in self._waiting]
        self._feed.publish("requests", {"count": len(ids), "ids": ids})
        if sealed:
            self._keys_seen = ()
        else:
            await self._read_keys()
        await self._read_permissions()

    async def _read_keys(self) -> None:
        sections = await self._sections()
        access, rotation = await self._access.read(), await self._engine.document.read()
        keystore = await self._vault.store.keystore()
        seen = (*sections, keystore, rotation, access.factors, access.recovery)
        if _same(seen, self._keys_seen):
            return
        self._keys = await hierarchy(self._engine, names=self._names)
        self._publish("keys", summary(self._keys))
        self._keys_seen = seen

    async def _read_permissions(self) -> None:
        sections, policy = await self._sections(), await self._current_policy()
        grants = await self._vault.store.grants.read()
        now = self._vault.clock.time()
        # Ends of grants are compared twice a minute.
        seen = (*sections, grants, policy, self.activity.changes, int(now / 30))
        if _same(seen, self._permissions_seen):
            return
        stored = [name for section in sections for name in section.records]
        self._names.learn([*stored, *(grant.key for grant in grants)])

        def read() -> Permissions:
            infos = [r.info for section in sections for r in section.records.values()]
            uses = dict(self.activity.pairs)
            return Permissions(infos, grants, uses, policy, names=self._names, now=now)

        self._permissions = await anyio.to_thread.run_sync(read)
        self._publish("matrix", self._permissions.summary())
        self._permissions_seen = seen

    def _publish(self, topic: str, counts: dict[str, object]) -> None:
        """Says that a list changed: a page that shows a window of it asks for that again."""
        self._revision += 1
        self._feed.publish(topic, {**counts, "revision": self._revision})

    async def _sections(self) -> list[Section]:
        return [await self._vault.store.sections.read(name) for name in SECTION_NAMES]

    async def _current_policy(self) -> Policy | None:
        """The policy in force, read now and then; None: its file can't be read."""
        if time.monotonic() < self._policy_due:
            return self._policy
        self._policy_due = time.monotonic() + _POLICY_SECONDS

        def changed(change: Change) -> None:
            self._policy_fault = None if change.ok else InvalidPolicyError(change.detail)

        try:
            if self._source is None:
                made = partial(PolicySource, self._vault.home, changed=changed)
                self._source = await anyio.to_thread.run_sync(made)
                self._policy_fault = None
            self._policy = await anyio.to_thread.run_sync(self._source.reload)
        except (InvalidPolicyError, StorageError) as error:
            self._policy_fault = error
        self._trouble("policy", self._policy_fault)
        return self._policy

    # -- pages -----------------------------------------------------------------------

    def window(self, name: str, query: Mapping[str, str]) -> object:
        """The window of a list that a page asks for; blocks.

        Raises:
            NotFoundError: There is no such list (yet).
            InvalidInputError: It asks for what makes no sense.
        """
        asked = PageQuery.parse(query)
        if name == "requests":
            waiting = [question(item, names=self._names) for item in self._waiting]
            return page(waiting, asked, words_of)
        if name == "leases":
            now = self._vault.clock.time()
            leases = [self._lease(item, now) for item in self._open]
            return page(leases, asked, _words_of_lease)
        if name == "keys" and self._keys is not None:
            return keys_page(self._keys, asked)
        if name == "steps" and self._keys is not None:
            return page(self._keys.steps, asked, str)
        if name == "permissions" and self._permissions is not None:
            return self._permissions.page(asked, PageQuery.parse(query, "plugin_"))
        raise NotFoundError("There is nothing here yet.")

    # -- verification ----------------------------------------------------------------

    async def _verify_again(self) -> None:
        full = True
        while True:
            checking = {**_verification(self._verifier.last), "busy": True}
            self._feed.publish("verified", checking)
            check = partial(self._verifier.check, full=full)
            found = await anyio.to_thread.run_sync(check)
            self._feed.publish("verified", _verification(found))
            self._verify_now = anyio.Event()
            pause = max(self._rhythm.verify, 20 * found.took)
            with anyio.move_on_after(pause) as waited:
                await self._verify_now.wait()
            full = not waited.cancelled_caught


def _verification(found: Verified) -> dict[str, object]:
    shown: dict[str, object] = {**msgspec.to_builtins(found), "busy": False}
    shown["what"] = text(found.what)
    return shown


def _words_of_lease(lease: Mapping[str, object]) -> str:
    """What is read of a lease, as the page gets it."""
    whose = f"for {lease['principal']}" if lease["principal"] else ""
    passed = "(passed on)" if lease["parent"] else ""
    used = f"used {lease['uses']}×, last" if lease["uses"] else "not used yet"
    parts = (lease["plugin"], "uses", lease["credential"], whose, passed, used, lease["method"])
    return " ".join(
        str(part) for part in (*parts, lease["origin"], lease["state"], lease["action"])
    )


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    """Whether nothing changed: what is stored is replaced, never changed in place."""
    return len(one) == len(other) and all(
        a == b if isinstance(a, int) else a is b for a, b in zip(one, other, strict=True)
    )

"""Security events: accepted durably, acted on by a worker, delivered to callbacks.

Guarantee: an event that ``accept`` returned for is in the vault's document ``rotation``, and a
worker acts on it, also after a crash. Acting twice is acting once: orders and marks are about
the key versions that there were when it was accepted. The same event, again within the
debounce time, is not accepted again; the same damage of a log never is.

Each subscriber gets each event once, in order, whichever process accepted it, from a task that
holds no lock: a callback may accept an event itself, or hang, and nothing but its own queue
waits. It runs in the event loop in which it subscribed; where that has ended, in a thread for
it. What it raises is logged.

Leases end in this process before a reaction returns. A lockdown is durable; so is the mark of a
revocation, after which nothing is allowed by what was allowed for a session.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from contextlib import nullcontext, suppress
from typing import Final, Protocol

from msgspec.structs import replace

from apex_creds.audit.events import EventKind
from apex_creds.clocks import Moment
from apex_creds.concurrency import LoopThread, Place
from apex_creds.documents.cached import Document
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import (
    AuditUnavailableError,
    CredentialNotFoundError,
    EventLoopError,
    InvalidInputError,
    UnknownKeyError,
)
from apex_creds.model import new_id
from apex_creds.policy.grants import with_revocation
from apex_creds.scheduler.compromise import declare
from apex_creds.scheduler.rotation_state import (
    Accepted,
    AuditTampered,
    CompromiseSuspected,
    Event,
    Numbers,
    OperatorRequest,
    PluginRemoved,
    Reaction,
    RotationState,
    concerned,
    fingerprint,
    kind_of,
    labels_of,
    newest_below,
    with_orders,
)
from apex_creds.scheduler.schedule import Level
from apex_creds.vault import Vault

MAX_QUEUE: Final = 1_000
KEPT: Final = 64
"""So many events that were acted on stay, for the history and for other processes."""

_URGENT: Final = frozenset({"compromise_suspected", "audit_tampered"})
"""There is room for these where there is none for others: a flood must not hide them."""
_REMEMBERED: Final = 4 * MAX_QUEUE
_log: Final = logging.getLogger(__name__)


class Reactor(Protocol):
    """What is done outside the keys."""

    async def revoke_leases(self, event: Event) -> None:
        """Ends the open leases that the event concerns."""

    async def revoke_grants(self, event: Event) -> None:
        """Takes back what the event's plugin was allowed."""

    async def lock_down(self, event: Event) -> None:
        """Releases nothing until the operator says so."""

    async def notify(self, event: Event) -> None:
        """Passes the event on to the operator."""

    async def services(self, event: Event) -> Collection[str]:
        """The services whose keys an event without a level is about."""


class Credentials(Protocol):
    """What is done about secrets at their providers."""

    async def concerned(self, event: Event) -> dict[str, int]:
        """The values that there are of what an event is about."""

    async def replace(self, concerns: Numbers, *, lost: bool) -> None:
        """Has them replaced; what can't be done now is on record."""


class EventQueue:
    """The events of one vault.

    Args:
        store: The vault's documents.
        document: Its document ``rotation``.
        reactor: Does what is not about keys.
        credentials: Replaces secrets at their providers, before keys are renewed.
    """

    def __init__(
        self,
        store: DocumentStore,
        document: Document[RotationState],
        *,
        reactor: Reactor,
        credentials: Credentials | None = None,
    ) -> None:
        self._credentials = credentials
        self._store = store
        self._document = document
        self._reactor = reactor
        self._subscriptions: list[Subscription] = []
        self._lock = threading.Lock()
        self._refreshed = False
        self._delivered: dict[str, None] = {}
        self._from: dict[str, Subscription | None] = {}

    def subscribe(
        self, callback: Callback, kinds: Collection[str] | None = None
    ) -> Subscription:
        """Has ``callback`` called with each event, whichever process accepts it.

        It is called from another task, in the running event loop; what it raises is
        logged and goes no further. Those of other processes come with ``refresh``, which
        a worker does every few seconds.
        """
        made = Subscription(callback, kinds)
        self._subscriptions.append(made)
        return made

    async def accept(self, event: Event, *, heard_by: Subscription | None = None) -> bool:
        """Makes an event durable; it will be acted on.

        Args:
            event: What happened.
            heard_by: The subscription that has it already.

        Returns:
            Whether it was new; within the debounce time, the same one is not.

        Raises:
            InvalidInputError: A thousand events wait already.
        """
        table = (await self._document.read()).table
        made = Accepted(
            id=new_id(),
            event=event,
            at=self._store.clock.time(),
            reactions=(),
            concerns=await self._concerns(event, table.get(kind_of(event), ())),
        )
        self._from[made.id] = heard_by
        try:
            now = Moment.now(self._store.clock)
            state = await self._document.change(lambda found: _with_event(found, made, now))
            new = any(item.id == made.id for item in (*state.queue, *state.acted))
            if new:
                self._deliver([made])
        finally:
            del self._from[made.id]
        await asyncio.sleep(0)  # subscribers here may run, but are not waited for
        return new

    async def _concerns(self, event: Event, reactions: Collection[Reaction]) -> dict[str, int]:
        """The key versions that there are, where an event is about keys that are here."""
        if not {Reaction.ROTATE, Reaction.ROTATE_AND_DESTROY} & set(reactions):
            return {}
        found: dict[str, int] = {}
        if self._credentials is not None:
            found = await self._credentials.concerned(event)
        level, services = _level_of(event), [getattr(event, "service", "")]
        try:
            if not isinstance(event, OperatorRequest | CompromiseSuspected):
                services = list(await self._reactor.services(event))
            keystore = await self._store.keystore()
            labels = [label for name in services for label in labels_of(keystore, name)]
        except CredentialNotFoundError:
            return found
        return found | newest_below(keystore, level, labels)

    async def refresh(self) -> None:
        """Delivers what other processes accepted since the last refresh.

        At the first one, what was acted on already is history.
        """
        self._relay(await self._document.read())

    def _relay(self, state: RotationState) -> None:
        first, self._refreshed = not self._refreshed, True
        if first:
            with self._lock:
                self._delivered |= {item.id: None for item in state.acted}
        self._deliver([*state.acted, *state.queue])

    def _deliver(self, items: Collection[Accepted]) -> None:
        with self._lock:
            new = [item for item in items if item.id not in self._delivered]
            self._delivered |= {item.id: None for item in new}
            while len(self._delivered) > _REMEMBERED:
                del self._delivered[next(iter(self._delivered))]
            self._subscriptions = [each for each in self._subscriptions if each.active]
            subscriptions = tuple(self._subscriptions)
        for item in new:
            for subscription in subscriptions:
                if subscription is not self._from.get(item.id):
                    subscription.put(item.event)

    async def act(self) -> int:
        """Acts on what waits, oldest first; returns how many events were finished.

        What is urgent comes before all else, also if it is accepted meanwhile.

        Raises:
            ApexCredsError: A reaction failed; it stays, and is tried again.
        """
        finished, state = 0, await self._document.read()
        self._relay(state)
        left = [item.id for item in state.queue]
        done = set[str]()
        while True:
            waits = [
                each for each in (await self._document.read()).queue if each.id not in done
            ]
            urgent = [each for each in waits if kind_of(each.event) in _URGENT]
            chosen = [*urgent, *(each for each in waits if each.id in left)]
            if not chosen:
                return finished
            item = chosen[0]
            done.add(item.id)
            locks = Reaction.LOCK_DOWN in item.reactions
            # A lockdown seals the vault when it is written down that all was done.
            async with self._store.holding(reload=False) if locks else nullcontext():
                for reaction in item.reactions:
                    await self._react(item, reaction)
            finished += 1

    async def _react(self, item: Accepted, reaction: Reaction) -> None:
        orders: Numbers = {}
        try:
            if reaction in (Reaction.ROTATE, Reaction.ROTATE_AND_DESTROY):
                concerns = item.concerns
                if concerns is None:  # accepted by an earlier program
                    concerns = await self._concerns(item.event, [reaction])
                if self._credentials is not None:
                    lost = reaction is Reaction.ROTATE_AND_DESTROY
                    await self._credentials.replace(concerns, lost=lost)
                orders = await self._renew(item.event, reaction, concerns)
            else:
                await {
                    Reaction.REVOKE_LEASES: self._reactor.revoke_leases,
                    Reaction.LOCK_DOWN: self._reactor.lock_down,
                    Reaction.REVOKE_GRANTS: self._reactor.revoke_grants,
                    Reaction.NOTIFY: self._reactor.notify,
                }[reaction](item.event)
        except (CredentialNotFoundError, InvalidInputError, UnknownKeyError) as error:
            # It will never succeed: what it is about is not, or no longer, there.
            _log.warning("%s: %s was dropped: %s", kind_of(item.event), reaction, error)
        await self._document.change(lambda s: _reacted(s, item.id, reaction, orders))

    async def _renew(self, event: Event, reaction: Reaction, concerns: Numbers) -> Numbers:
        """Marks keys compromised, or returns the orders to renew them."""
        if not concerns:
            raise CredentialNotFoundError("The event concerns no key that is here.")
        level = _level_of(event)
        if reaction is Reaction.ROTATE:
            return {n: v for n, v in concerns.items() if n.partition(" ")[0] == level}
        version = event.version if isinstance(event, CompromiseSuspected) else 0
        service = getattr(event, "service", "")
        await declare(
            self._store,
            self._document,
            level=level,
            service=service,
            version=version,
            upto=concerns,
        )
        return {}


def _level_of(event: Event) -> Level:
    if isinstance(event, OperatorRequest | CompromiseSuspected):
        return event.level
    return Level.DEK


def _with_event(state: RotationState, made: Accepted, now: Moment) -> RotationState:
    mark = fingerprint(made.event)
    heard = {m: at for m, at in state.heard.items() if 0 <= now.since(at) < state.debounce}
    if mark in heard:
        return state
    found = made.event.detail if isinstance(made.event, AuditTampered) else ""
    if found and found in state.tampering:
        return state
    if len(state.queue) >= MAX_QUEUE * (2 if kind_of(made.event) in _URGENT else 1):
        raise InvalidInputError(
            "Too many events wait to be acted on.",
            hint="Is a worker running? Start one with: apex-creds worker",
        )
    reactions = tuple(state.table.get(kind_of(made.event), ()))
    if isinstance(made.event, PluginRemoved) and Reaction.REVOKE_GRANTS not in reactions:
        reactions += (Reaction.REVOKE_GRANTS,)  # whatever the table says
    item = replace(made, reactions=reactions)
    heard[mark] = now
    if found:
        state = replace(state, tampering=(*state.tampering, found)[-KEPT:])
    if not reactions:
        return replace(state, acted=_kept(state, item), recent={}, heard=heard)
    return replace(state, queue=(*state.queue, item), recent={}, heard=heard)


def _reacted(
    state: RotationState, number: str, reaction: Reaction, orders: Numbers
) -> RotationState:
    """Without that reaction; an event without any is done."""
    queue, acted = [], state.acted
    if any(item.id == number and reaction in item.reactions for item in state.queue):
        state = with_orders(state, orders)  # else another one acted, and what it made is new
    for item in state.queue:
        if item.id != number:
            queue.append(item)
            continue
        left = tuple(r for r in item.reactions if r is not reaction)
        if left:
            queue.append(replace(item, reactions=left))
        else:
            acted = _kept(state, replace(item, reactions=()))
    return replace(state, queue=tuple(queue), acted=acted)


def _kept(state: RotationState, item: Accepted) -> tuple[Accepted, ...]:
    return (*state.acted, item)[-KEPT:]


Callback = Callable[[Event], Awaitable[object]]

MAX_WAITING: Final = 1_000
_elsewhere: Final = LoopThread("apex-creds events")


class Subscription:
    """A callback and its queue.

    Args:
        callback: Called with each event.
        kinds: Which it wants; None: all.
    """

    def __init__(self, callback: Callback, kinds: Collection[str] | None = None) -> None:
        self._callback = callback
        self._kinds = None if kinds is None else frozenset(kinds)
        self._queue: deque[Event] = deque()
        self._lock = threading.RLock()
        self._home: Place | None = None
        with suppress(EventLoopError):  # subscribed outside an event loop
            self._home = Place()
        self._at: Place | None = None
        self._task: asyncio.Task[None] | None = None
        self.active = True

    def cancel(self) -> None:
        """No further event is delivered; idempotent."""
        self.active = False
        self._queue.clear()

    def put(self, event: Event) -> None:
        """Has the event delivered, soon."""
        if not self.active or (self._kinds is not None and kind_of(event) not in self._kinds):
            return
        if len(self._queue) >= MAX_WAITING:
            _log.error("a callback is too slow for its events: %s was dropped", kind_of(event))
            return
        self._queue.append(event)
        here = Place()
        with self._lock:
            if self._at is not None and self._at.goes_on(here):
                return
            self._home = self._home or here
            if self._home.goes_on(here):
                self._at = self._home
                if self._home.loop is here.loop:
                    self._begin()
                else:
                    self._home.loop.call_soon_threadsafe(self._begin)
            else:
                _elsewhere.start(self._deliver)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._deliver())

    async def _deliver(self) -> None:
        with self._lock:
            at = self._at = Place()
        try:
            while self._next_is_mine(at):
                event = self._queue.popleft()
                try:
                    await self._callback(event)
                except asyncio.CancelledError:  # its loop ends: the next one has it again
                    self._queue.appendleft(event)
                    raise
                except Exception as error:  # noqa: BLE001 - a callback's own business
                    kind = type(error).__name__
                    _log.warning("a callback for %s failed: %s", kind_of(event), kind)
        finally:
            with self._lock:
                if self._at is at:
                    self._at = None

    def _next_is_mine(self, at: Place) -> bool:
        """Whether there is an event, and nobody has taken over; else this is the end."""
        with self._lock:
            if self._at is at and self._queue:
                return True
            if self._at is at:
                self._at = None
            return False


Notify = Callback


class VaultReactor:
    """The reactions of one vault.

    Args:
        vault: Unsealed.
        notify: Called with the event, from another task; the audit log has it in any case.
    """

    def __init__(self, vault: Vault, *, notify: Notify | None = None) -> None:
        self._vault = vault
        self._notify = None if notify is None else Subscription(notify)

    async def revoke_leases(self, event: Event) -> None:
        """See ``Reactor``. Grants stay."""
        self.end_leases(event)
        plugin, credential = concerned(event)
        await self._vault.store.commit_keystore(
            lambda body: replace(
                body,
                revocations=with_revocation(
                    body.revocations, plugin=plugin or "", credential=credential or ""
                ),
            )
        )

    def end_leases(self, event: Event) -> None:
        """Ends the leases of this process that an event concerns."""
        self._vault.notify_revoked(*concerned(event))

    async def revoke_grants(self, event: Event) -> None:
        """See ``Reactor``. What the plugin was denied for good stays denied."""
        plugin, _ = concerned(event)
        if plugin is not None:
            await self._vault.revoke(plugin=plugin, keep_denials=True)

    async def lock_down(self, event: Event) -> None:
        """See ``Reactor``. One that could not be logged is in force, and not done again."""
        try:
            await self._vault.lockdown(reason=f"{kind_of(event)} by {event.source}")
        except AuditUnavailableError as error:
            _log.error("the vault is locked down, but that is not in its log: %s", error)

    async def notify(self, event: Event) -> None:
        """See ``Reactor``. That its log was altered may not be in the log."""
        plugin, credential = concerned(event)
        try:
            self._vault.record(
                EventKind.ROTATION,
                action="event",
                reason=kind_of(event),
                plugin=plugin or "",
                credential=credential or "",
                detail=event.source,
            )
        except AuditUnavailableError:
            if not isinstance(event, AuditTampered):
                raise
        if self._notify is not None:
            self._notify.put(event)

    async def services(self, event: Event) -> Collection[str]:
        """See ``Reactor``: of the credential, else of what the plugin has grants for."""
        plugin, credential = concerned(event)
        if credential is not None:
            return await self._services({credential})
        if plugin is None:
            return [""]
        grants = await self._vault.grants()
        return await self._services({g.key for g in grants if g.plugin == plugin})

    async def _services(self, names: Collection[str]) -> Collection[str]:
        found = {info.service for info in await self._vault.list() if info.key in names}
        if not found:
            raise CredentialNotFoundError("The event concerns no credential that is here.")
        return sorted(found)

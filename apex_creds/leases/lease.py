"""A lease: one time-bounded use of a grant. Internal; plugins hold handles.

Guarantee: a lease that has ended never comes back; ending it wipes what was revealed
under it and ends every lease attenuated from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    HandleExhaustedError,
    HandleExpiredError,
    HandleRevokedError,
    LeaseEndedError,
)
from apex_creds.leases.basis import Basis
from apex_creds.leases.invocation import Invocation
from apex_creds.model import new_id
from apex_creds.policy.decide import Permission
from apex_creds.policy.grants import Grants
from apex_creds.policy.manifest import Need
from apex_creds.policy.rules import NO_POLICY, Policy
from apex_creds.telemetry import tracing

if TYPE_CHECKING:
    from apex_creds.leases.broker import LeaseBroker

T = TypeVar("T")
REGISTRY: Final[dict[str, Lease]] = {}
"""Every open lease of the process by its id: handles find theirs here, and only here."""
_EXPIRED: Final[dict[str, None]] = {}
"""Ids of the last leases that ended by the clock, so that their handles can say so."""
_MANY_EXPIRED: Final = 1024


class Body(Protocol):
    """A response's body that is open under a lease."""

    def abandon(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Closes it, without waiting."""


class Lease:
    """The state behind a handle.

    Attributes:
        expires: On the monotonic clock, seconds.
        uses_left: None: without limit.
        parent: The lease that this one was attenuated from.
        grants: The grants under which ``permission`` was decided; ``policy`` likewise.
        basis: What that rests on besides; None: nothing.
    """

    __slots__ = (
        "basis",
        "bodies",
        "broker",
        "children",
        "ended",
        "expires",
        "grants",
        "id",
        "invocation",
        "need",
        "parent",
        "permission",
        "policy",
        "record_id",
        "revealed",
        "scopes",
        "uses_left",
    )

    def __init__(
        self,
        *,
        broker: LeaseBroker,
        invocation: Invocation,
        need: Need,
        record_id: str,
        permission: Permission,
        grants: Grants,
        scopes: tuple[str, ...],
        expires: float,
        uses_left: int | None = None,
        parent: Lease | None = None,
        policy: Policy = NO_POLICY,
        basis: Basis | None = None,
    ) -> None:
        self.id = new_id()
        self.broker = broker
        self.invocation = invocation
        self.need = need
        self.record_id = record_id
        self.permission = permission
        self.grants = grants
        self.policy = policy
        self.basis = basis
        self.scopes = scopes
        self.expires = expires
        self.uses_left = uses_left
        self.parent = parent
        self.ended: type[LeaseEndedError] | None = None
        self.children: set[Lease] = set()
        self.revealed: set[SecretBytes] = set()
        self.bodies: dict[Body, asyncio.AbstractEventLoop | None] | None = None
        REGISTRY[self.id] = self

    def end(self, why: type[LeaseEndedError] = HandleRevokedError) -> None:
        """Ends the lease and what hangs on it; idempotent, from any thread."""
        if REGISTRY.pop(self.id, None) is None:  # of several threads, one ends it
            return
        self.ended = why
        if why is HandleExpiredError:
            _remember_expired(self.id)
        self.broker.deadlines.forget(self)
        if self.revealed:
            drain(self.revealed, SecretBytes.close)
        while self.bodies:
            body, loop = self.bodies.popitem()
            body.abandon(loop)
        if self.children:
            drain(self.children, lambda child: child.end(why))
        self.invocation.leases.discard(self)
        if tracing.OPEN:
            tracing.lease_ended(self.id, expired=why is HandleExpiredError)
        if self.parent is not None:
            self.parent.children.discard(self)

    def keep(self, body: Body, loop: asyncio.AbstractEventLoop | None) -> None:
        """Has ``body``, which lives on ``loop``, closed when the lease ends."""
        if self.bodies is None:
            self.bodies = {}
        self.bodies[body] = loop
        self.broker.deadlines.watch(self)
        if self.ended is not None:
            body.abandon(loop)

    def check_alive(self, now: float) -> None:
        """Checks this lease and those it came from.

        Raises:
            LeaseEndedError: One of them is over; if its time is up, it is ended now.
        """
        if self.ended is None and now >= self.expires:
            self.end(HandleExpiredError)
        if self.ended is not None:
            raise ended_error(self.ended)
        if self.uses_left is not None and self.uses_left <= 0:
            raise ended_error(HandleExhaustedError)
        if self.parent is not None:
            self.parent.check_alive(now)

    def count_use(self) -> None:
        """Takes one use from this lease and from those it came from."""
        if self.uses_left is not None:
            self.uses_left -= 1
        if self.parent is not None:
            self.parent.count_use()


def drain(items: set[T], end: Callable[[T], object]) -> None:
    """Takes one after the other out of a set that other threads take from, too."""
    while items:
        try:
            item = items.pop()
        except KeyError:
            return
        end(item)


def find_lease(lease_id: str) -> Lease:
    """The open lease of that id.

    Raises:
        LeaseEndedError: There is none: it has ended.
    """
    lease = REGISTRY.get(lease_id)
    if lease is None:
        raise ended_error(HandleExpiredError if lease_id in _EXPIRED else HandleRevokedError)
    return lease


def _remember_expired(lease_id: str) -> None:
    _EXPIRED[lease_id] = None
    while len(_EXPIRED) > _MANY_EXPIRED:
        _EXPIRED.pop(next(iter(_EXPIRED)), None)


def let_go(lease_id: str, body: Body) -> None:
    """A body that was kept by a lease is closed."""
    lease = REGISTRY.get(lease_id)
    if lease is not None and lease.bodies is not None:
        lease.bodies.pop(body, None)


def forget_revealed(lease_id: str, secret: SecretBytes) -> None:
    """Lets go of a revealed secret that was closed before its lease ended."""
    lease = REGISTRY.get(lease_id)
    if lease is not None:
        lease.revealed.discard(secret)
        if not lease.revealed and not lease.bodies:
            lease.broker.deadlines.forget(lease)


def ended_error(why: type[LeaseEndedError]) -> LeaseEndedError:
    """The error that says how a lease ended."""
    return why(_ENDED[why], hint="Ask for a new handle by invoking the plugin again.")


_ENDED: Final[dict[type[LeaseEndedError], str]] = {
    HandleExpiredError: "The credential handle has expired.",
    HandleRevokedError: "The credential handle is no longer valid: its lease has ended.",
    HandleExhaustedError: "The credential handle has been used as often as it may be.",
}

"""Leases that are open now, in all processes, as far as the log tells.

Guarantee: pure; follows from the events alone. The log says when a lease was made, used and
revoked, and when its invocation ended; it does not say which process it is of, nor that
a process was killed. So a lease that is older than leases live by default is told apart.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from apex_creds.audit.events import EventKind, Recorded

LIFETIME: Final = 300.0
"""Seconds that a lease lives where its runtime says nothing else."""
MAX_OPEN: Final = 2000
_MANY_ENDED: Final = 512


class OpenLease(msgspec.Struct):
    """One lease.

    Attributes:
        since: When it was made, Unix seconds; 0: before what was read of the log.
        parent: The lease that it was attenuated from.
        uses: Redeems since then.
        revoked: When what it rests on was taken back; 0: it was not.
    """

    lease: str
    invocation: str
    plugin: str
    credential: str
    action: str = ""
    version: str = ""
    parent: str = ""
    since: float = 0.0
    uses: int = 0
    last: float = 0.0
    method: str = ""
    origin: str = ""
    revoked: float = 0.0

    @property
    def begun(self) -> float:
        """When it was first heard of."""
        return self.since or self.last


class OpenLeases:
    """Takes events in their order; knows what is open."""

    def __init__(self) -> None:
        self._open: dict[str, OpenLease] = {}
        self._of: dict[str, set[str]] = {}
        self._ended: dict[str, None] = {}
        self.made = 0
        self.changes = 0
        self.recent: deque[float] = deque(maxlen=10_000)

    def take(self, event: Recorded) -> None:
        """One more event."""
        before = self.changes
        self.changes += 1
        if event.kind is EventKind.LEASE:
            self._begin(event, since=event.time)
        elif event.kind in (EventKind.REDEEM, EventKind.EXPOSE) and event.lease:
            self._use(event)
        elif event.kind is EventKind.INVOCATION:
            self._end(event.invocation)
        elif event.kind is EventKind.REVOKE:
            self._revoke(event)
        else:
            self.changes = before

    def open(self, now: float) -> list[OpenLease]:
        """Those that are open, newest first; what is silent for a day is given up."""
        old = [k for k, v in self._open.items() if now - max(v.begun, v.last) > 86_400]
        for lease in old:
            self._forget(lease)
        return sorted(self._open.values(), key=lambda item: item.begun, reverse=True)

    def _begin(self, event: Recorded, *, since: float) -> OpenLease:
        made = OpenLease(
            lease=event.lease,
            invocation=event.invocation,
            plugin=event.plugin,
            credential=event.credential,
            action=event.action,
            version=event.plugin_version,
            parent=event.parent,
            since=since,
        )
        self.made += 1
        if event.invocation in self._ended:  # its last words came first
            return made
        self._open[event.lease] = made
        self._of.setdefault(event.invocation, set()).add(event.lease)
        while len(self._open) > MAX_OPEN:
            self._forget(next(iter(self._open)))
        return made

    def _use(self, event: Recorded) -> None:
        found = self._open.get(event.lease) or self._begin(event, since=0.0)
        found.uses += event.kind is EventKind.REDEEM
        found.last, found.method, found.origin = event.time, event.method, event.origin

    def _end(self, invocation: str) -> None:
        for lease in self._of.pop(invocation, ()):
            self._open.pop(lease, None)
        self._ended[invocation] = None
        while len(self._ended) > _MANY_ENDED:
            self._ended.pop(next(iter(self._ended)))

    def _revoke(self, event: Recorded) -> None:
        for lease in self._open.values():
            plugin = event.plugin in ("", lease.plugin)
            if plugin and event.credential in ("", lease.credential):
                lease.revoked = lease.revoked or event.time

    def _forget(self, lease: str) -> None:
        gone = self._open.pop(lease, None)
        if gone is not None:
            kin = self._of.get(gone.invocation, set())
            kin.discard(lease)
            if not kin:
                self._of.pop(gone.invocation, None)

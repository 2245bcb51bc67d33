"""What rotation keeps in the vault: policies, the workers' lease, events to act on.

Guarantee: nothing here decides whether a credential can be read. Lost or rolled back, it
costs a rotation done twice or a policy at its default, never a key. An event that was
accepted is anchored at once, so that no older copy silences an alarm.
"""

from __future__ import annotations

from typing import Final

import msgspec

from apex_creds.clocks import Moment
from apex_creds.documents.cached import Document
from apex_creds.documents.store import DocumentStore
from apex_creds.scheduler.events import DEFAULT_TABLE, Event, Reaction, Table
from apex_creds.scheduler.policy import Policies

DOCUMENT: Final = "rotation"


class WorkerLease(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read where an earlier program wrote it; who rotates holds a lock now."""

    holder: str
    until: float


class Accepted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An event that will be acted on.

    Attributes:
        id: 32 hexadecimal digits.
        event: What happened.
        at: When it was accepted, Unix seconds.
        reactions: What is left to do, in order.
        concerns: The key versions that there were then, which it is about; None where an
            earlier program accepted it.
    """

    id: str
    event: Event
    at: float
    reactions: tuple[Reaction, ...]
    concerns: dict[str, int] | None = None


class RotationState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document ``rotation``.

    Attributes:
        policies: When keys rotate.
        table: What is done about events.
        debounce: Seconds in which the same event is accepted once.
        lease: Not used any more.
        queue: Events that are not yet acted on, oldest first.
        acted: The last events that were acted on.
        heard: When an event was last accepted, by fingerprint.
        recent: Not used any more.
        renew: Keys (``level`` or ``level label``) whose primary is of this version, or an
            earlier one, are to be rotated.
        requested: The same by time, where an earlier program wrote it.
        discarded: Master keys up to this version were deleted at their provider.
        discarded_at: When each of them was, Unix seconds.
        compromised_master: Master keys up to this version may be in wrong hands.
        tampering: What was found wrong with audit logs, the newest last. It stays wrong, and
            each is one event, however often it is found again.
    """

    policies: Policies = Policies()
    table: Table = msgspec.field(default_factory=lambda: dict(DEFAULT_TABLE))
    debounce: float = 60.0
    lease: WorkerLease | None = None
    queue: tuple[Accepted, ...] = ()
    acted: tuple[Accepted, ...] = ()
    heard: dict[str, Moment] = {}
    recent: dict[str, float] = {}
    renew: dict[str, int] = {}
    requested: dict[str, float] = {}
    discarded: int = 0
    discarded_at: dict[int, float] = {}
    compromised_master: int = 0
    tampering: tuple[str, ...] = ()


def rotation_document(store: DocumentStore) -> Document[RotationState]:
    """The document of a vault."""
    return Document(store, name=DOCUMENT, empty=RotationState(), takes_away=_alarms)


def _alarms(before: RotationState, after: RotationState) -> bool:
    """An alarm that was accepted, or a key that is not to be trusted, is not to be undone."""
    known = {accepted.id for accepted in before.queue}
    return before.compromised_master != after.compromised_master or any(
        accepted.id not in known for accepted in after.queue
    )

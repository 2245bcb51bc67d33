"""What may be written in the audit log: one closed, typed schema.

Guarantee: an event holds names, identifiers, numbers and reasons, never a secret; a
field that is not here can't be written, and a line that has one does not verify.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ["AuditEvent", "EventKind", "Recorded"]


class EventKind(StrEnum):
    """What happened."""

    INIT = "init"
    UNSEAL = "unseal"
    PUT = "put"
    DELETE = "delete"
    GRANT = "grant"
    REVOKE = "revoke"
    INVOCATION = "invocation"
    LEASE = "lease"
    REDEEM = "redeem"
    EXPOSE = "expose"
    DENIAL = "denial"
    LEAK = "leak"
    RECOVERED = "recovered"
    DROPPED = "dropped"
    FACTOR = "factor"
    CLIENT = "client"
    CHALLENGE = "challenge"


class AuditEvent(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False
):
    """One event; every field but the first two may be left out.

    Values are not checked on construction (it is on the path of every redeem); the log
    checks them when it encodes. Strings longer than the log takes are cut there.

    Attributes:
        time: Unix seconds, UTC.
        kind: What happened.
        plugin: Identifier of the plugin that acts; empty for the operator.
        plugin_version: Of that plugin's manifest.
        action: The plugin's action, or the operator's command.
        invocation: Identifier of the invocation.
        lease: Identifier of the lease.
        parent: Identifier of the lease (or invocation) that this one came from.
        credential: Name of the credential.
        decision: ``allow`` or ``deny``.
        reason: The rule that made the decision, or the purpose that was declared.
        key_id: 32 hexadecimal digits of the keyset used.
        key_version: Version in that keyset; 0 when none was used.
        origin: Where a secret was sent, ``scheme://host[:port]``.
        method: How: an HTTP method, or ``reveal``.
        trace_id: 32 hexadecimal digits; empty when tracing is off.
        span_id: 16 hexadecimal digits; empty when tracing is off.
        outcome: How it ended: ``ok``, or the name of an error's class.
        duration_us: Microseconds it took.
        detail: Anything else that a reader needs, in words.
    """

    time: float
    kind: EventKind
    plugin: str = ""
    plugin_version: str = ""
    action: str = ""
    invocation: str = ""
    lease: str = ""
    parent: str = ""
    credential: str = ""
    decision: str = ""
    reason: str = ""
    key_id: str = ""
    key_version: int = 0
    origin: str = ""
    method: str = ""
    trace_id: str = ""
    span_id: str = ""
    outcome: str = ""
    duration_us: int = 0
    detail: str = ""


class Recorded(AuditEvent, frozen=True, kw_only=True, gc=False):
    """An event as it stands in the log.

    Attributes:
        seq: Its number: 1 for the first event; also its line in the file.
        hash: 64 hexadecimal digits: SHA-256 over the hash before it and this line.
    """

    seq: int
    hash: str

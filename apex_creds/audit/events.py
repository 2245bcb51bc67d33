"""What may be written in the audit log: one closed, typed schema.

Guarantee: an event holds names, identifiers, numbers and reasons, never a secret; a
field that is not here can't be written, and a line that has one does not verify.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

__all__ = ["SCHEMA_VERSION", "AuditEvent", "EventKind", "FactorOutcome", "Recorded"]

SCHEMA_VERSION: Final = 1
"""Of the events below: grows when a field is taken away or changes its meaning."""


class FactorOutcome(StrEnum):
    """What became of an answer that was given as a second factor; a reason of ``FACTOR``."""

    PASSED = "passed"
    WRONG = "wrong"
    REPLAYED = "replayed"
    LOCKED = "locked_out"
    NOT_ENROLLED = "not_enrolled"


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
    UNSEARCHED = "unsearched"
    RECOVERED = "recovered"
    ROLLBACK = "rollback"
    DROPPED = "dropped"
    FACTOR = "factor"
    CLIENT = "client"
    CHALLENGE = "challenge"
    POLICY = "policy"
    ROTATION = "rotation"
    RECOVERY = "recovery"
    BACKUP = "backup"


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
        principal: For whom the plugin acts; a pseudonym where the vault says so.
        session: Identifier of that principal's session.
        invocation: Identifier of the invocation.
        lease: Identifier of the lease.
        parent: Identifier of the lease (or invocation) that this one came from.
        credential: Name of the credential; a pseudonym where the vault says so.
        decision: ``allow`` or ``deny``.
        rule: The id of the rule or grant that made the decision.
        reason: Why it is so, or the purpose that was declared.
        key_id: 32 hexadecimal digits of the keyset used.
        key_version: Version in that keyset; 0 when none was used.
        origin: Where a secret was sent, or was to be, ``scheme://host[:port]``.
        method: How: an HTTP method, ``reveal``, or what was signed: ``SIGN``, ``JWT``,
            ``PRESIGN``.
        path: Of a request that was denied, without its query.
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
    principal: str = ""
    session: str = ""
    invocation: str = ""
    lease: str = ""
    parent: str = ""
    credential: str = ""
    decision: str = ""
    rule: str = ""
    reason: str = ""
    key_id: str = ""
    key_version: int = 0
    origin: str = ""
    method: str = ""
    path: str = ""
    trace_id: str = ""
    span_id: str = ""
    outcome: str = ""
    duration_us: int = 0
    detail: str = ""


class Recorded(AuditEvent, frozen=True, kw_only=True, gc=False):
    """An event as it stands in the log.

    Attributes:
        v: The schema's version.
        seq: Its number: 1 for the first event; its leaf in the tree is one less.
        hash: 64 hexadecimal digits: its leaf in the Merkle tree (RFC 9162, 2.1.1).
    """

    v: int = SCHEMA_VERSION
    seq: int
    hash: str

"""The audit log: a closed schema of events, an append-only hash chain, spans.

Guarantee: an event that ``AuditLog.append`` acknowledged is in the file (it survives a
crash of the process), and any later change of it is found by ``verify``.
"""

from __future__ import annotations

from apex_creds.audit.events import AuditEvent, EventKind, Recorded
from apex_creds.audit.log import AuditLog
from apex_creds.audit.verify import Report, check, read, verify

__all__ = [
    "AuditEvent",
    "AuditLog",
    "EventKind",
    "Recorded",
    "Report",
    "check",
    "read",
    "verify",
]

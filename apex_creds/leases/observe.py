"""Leases and redeems as spans and metrics, for the broker, while telemetry is on.

Guarantee: names are as the log shows them; nothing here is called while telemetry is off.
"""

from __future__ import annotations

from typing import Final

from apex_creds.audit import AuditLog, telemetry
from apex_creds.audit.telemetry import Step
from apex_creds.leases.lease import Lease
from apex_creds.vault.section import Record

_NO_KEY: Final = (b"", 0)


def redeem(lease: Lease, method: str, record: Record | None, log: AuditLog) -> Step:
    """A redeem begins."""
    return telemetry.redeem(
        plugin=lease.invocation.manifest.plugin,
        credential=log.shown(lease.need.name),
        lease=lease.id,
        method=method,
        key=record.key if record is not None else _NO_KEY,
    )


def lease_made(lease: Lease, record: Record | None, log: AuditLog) -> None:
    """A lease begins; ``Lease.end`` tells when it is over."""
    telemetry.lease_made(
        lease=lease.id,
        parent=lease.parent.id if lease.parent else "",
        credential=log.shown(lease.need.name),
        key=record.key if record is not None else _NO_KEY,
    )
    if lease.ended is not None:  # meanwhile, in another thread
        telemetry.lease_ended(lease.id, expired=False)

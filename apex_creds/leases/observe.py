"""Leases and redeems as spans and metrics, for the broker, while telemetry is on.

Guarantee: names are as the log shows them; nothing here is called while telemetry is off.
"""

from __future__ import annotations

from typing import Final

from apex_creds.documents.records import Record
from apex_creds.leases.lease import Lease
from apex_creds.telemetry import semconv, tracing
from apex_creds.telemetry.tracing import Step
from apex_creds.vault import Vault

_NO_KEY: Final = ("", 0)
_MANY: Final = 4096
_known: Final[dict[bytes, tuple[str, int]]] = {}


def _key(record: Record | None) -> tuple[str, int]:
    """Id (hexadecimal) and version of a record's key, remembered by its ciphertext."""
    if record is None:
        return _NO_KEY
    found = _known.get(record.sealed)
    if found is None:
        if len(_known) >= _MANY:
            _known.clear()
        key_id, version = record.key
        found = _known[record.sealed] = (key_id.hex(), version)
    return found


def redeem(lease: Lease, method: str, record: Record | None, vault: Vault) -> Step:
    """A redeem begins."""
    step = tracing.redeem(
        plugin=lease.invocation.manifest.plugin,
        credential=vault.audit.shown(lease.need.name),
        lease=lease.id,
        method=method,
        key=_key(record),
    )
    several = vault.store.shared
    if several is not None and (stale := several.stale_for()):
        step.set(semconv.STALE_MS, round(stale * 1000))  # the storage can't be reached
    return step


def lease_made(lease: Lease, record: Record | None, vault: Vault) -> None:
    """A lease begins; ``Lease.end`` tells when it is over."""
    if record is None:
        facts = vault.facts_now(lease.need.name)
        record = facts.record if facts is not None else None
    tracing.lease_made(
        lease=lease.id,
        parent=lease.parent.id if lease.parent else "",
        credential=vault.audit.shown(lease.need.name),
        key=_key(record),
    )
    if lease.ended is not None:  # meanwhile, in another thread
        tracing.lease_ended(lease.id, expired=False)

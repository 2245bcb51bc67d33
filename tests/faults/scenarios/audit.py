"""What is killed at every write boundary: the rotation of a log, and a checkpoint."""

from __future__ import annotations

from pathlib import Path

from apex_creds.audit import AuditEvent, AuditLog, EventKind
from apex_creds.audit.checkpoint import LogKey
from apex_creds.audit.upkeep import Cadence
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.signing import SigningKey
from apex_creds.model import SystemClock
from tests.faults import killer

VAULT = "ab" * 16


def open_log(directory: str) -> AuditLog:
    """A log whose thread leaves everything to whoever opened it."""
    with SecretBytes.from_bytes(bytes(range(32))) as seed:
        key = LogKey(VAULT, SigningKey.from_seed(seed))
    return AuditLog(
        Path(directory),
        vault_id=VAULT,
        clock=SystemClock(),
        key=key,
        durable_within=3600,
        cadence=Cadence(events=10**9, seconds=10**6),
    )


def event(detail: str) -> AuditEvent:
    return AuditEvent(1.0, EventKind.REDEEM, detail=detail)


def rotate(directory: str) -> None:
    log = open_log(directory)
    for number in range(5):
        log.append(event(f"before {number}"))
    log.sign()
    killer.begin()
    log._upkeep._rotate()
    killer.acknowledge("rotated")
    log.append(event("between"))
    killer.acknowledge("between")
    log.sign()
    killer.acknowledge("signed")
    for thread in log._upkeep._packing:
        thread.join()
    log.append(event("after"))
    killer.acknowledge("after")

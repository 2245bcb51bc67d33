"""What is killed: a log's rotation and a checkpoint, and a log under load.

As a program of its own it is under load without end, and writes each number it is told.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from apex_creds.audit import AuditEvent, AuditLog, EventKind
from apex_creds.audit.checkpoint import LogKey
from apex_creds.audit.maintenance import Cadence
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.public_key import SigningKey
from apex_creds.model import SystemClock
from tests.support import killer

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


def load(directory: str) -> None:
    """Appends until it is killed."""
    killer.begin()
    _append_on(directory, lambda seq: killer.acknowledge(str(seq)))


def _append_on(directory: str, told: Callable[[int], object]) -> None:
    with SecretBytes.from_bytes(bytes(range(32))) as seed:
        key = LogKey(VAULT, SigningKey.from_seed(seed))
    log = AuditLog(
        Path(directory),
        vault_id=VAULT,
        clock=SystemClock(),
        key=key,
        durable_within=0.01,
        cadence=Cadence(events=50, seconds=0.05, segment_bytes=20_000),
    )
    number = 0
    while True:
        number += 1
        seq = log.append(event("x" * 60), flush=number % 3 != 0)
        if seq is not None:
            told(seq)


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


if __name__ == "__main__":
    os.write(1, b"go\n")
    _append_on(sys.argv[1], lambda seq: os.write(1, b"%d\n" % seq))

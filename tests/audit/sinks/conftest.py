"""A log to attach destinations to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apex_creds.audit import AuditEvent, AuditLog, read
from apex_creds.audit.sinks import Destination, Destinations
from apex_creds.model import SystemClock

VAULT = "ab" * 16


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def log(directory: Path) -> Iterator[AuditLog]:
    log = AuditLog(directory, vault_id=VAULT, clock=SystemClock())
    yield log
    log.close()


@pytest.fixture
def attach(log: AuditLog) -> Callable[..., Destinations]:
    def attach(*destinations: Destination, patience: float = 10.0) -> Destinations:
        return Destinations(log, destinations, clock=SystemClock(), patience=patience)

    return attach


@pytest.fixture
def recorded(directory: Path) -> Callable[[], list[AuditEvent]]:
    return lambda: list(read(directory, vault_id=VAULT))

"""A log to attach destinations to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apex_creds.audit import AuditEvent, AuditLog, read
from apex_creds.audit.sinks import Destination, Destinations
from apex_creds.model import SystemClock

VAULT = "ab" * 16
Attach = Callable[..., tuple[AuditLog, Destinations]]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def open_log(directory: Path) -> Iterator[Callable[..., AuditLog]]:
    opened: list[AuditLog] = []

    def open_log(**options: object) -> AuditLog:
        log = AuditLog(directory, vault_id=VAULT, clock=SystemClock(), **options)  # type: ignore[arg-type]
        opened.append(log)
        return log

    yield open_log
    for log in opened:
        log.close()


@pytest.fixture
def attach(open_log: Callable[..., AuditLog]) -> Attach:
    """Makes a log with destinations."""

    def attach(
        *destinations: Destination, patience: float = 10.0, **options: object
    ) -> tuple[AuditLog, Destinations]:
        hub = Destinations(destinations, clock=SystemClock(), patience=patience)
        log = open_log(observer=hub, **options)
        hub.bind(log)
        return log, hub

    return attach


@pytest.fixture
def recorded(directory: Path) -> Callable[[], list[AuditEvent]]:
    return lambda: list(read(directory, vault_id=VAULT))

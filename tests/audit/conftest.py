"""A log in a directory of its own, and the events to put in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apex_creds.audit import AuditEvent, AuditLog, EventKind
from apex_creds.audit.checkpoint import LogKey
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.public_key import SigningKey
from apex_creds.model import SystemClock

VAULT = "ab" * 16


@pytest.fixture
def audit_dir(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def open_log(audit_dir: Path) -> Iterator[Callable[..., AuditLog]]:
    """Opens logs that are closed at the end, whatever state they are in."""
    opened: list[AuditLog] = []

    def opener(
        directory: Path = audit_dir,
        *,
        vault_id: str = VAULT,
        durable_within: float = 0.1,
        **more: Any,
    ) -> AuditLog:
        log = AuditLog(
            directory,
            vault_id=vault_id,
            clock=SystemClock(),
            durable_within=durable_within,
            **more,
        )
        opened.append(log)
        return log

    yield opener
    for log in opened:
        log.close()


@pytest.fixture(scope="session")
def log_key() -> LogKey:
    with SecretBytes.from_bytes(bytes(range(32))) as seed:
        return LogKey(VAULT, SigningKey.from_seed(seed))


@pytest.fixture
def make_event() -> Callable[..., AuditEvent]:
    def make(detail: str = "", **fields: object) -> AuditEvent:
        kind = EventKind.REDEEM
        return AuditEvent(1700000000.25, kind, credential="k", detail=detail, **fields)  # type: ignore[arg-type]

    return make

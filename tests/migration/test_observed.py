"""A migration in a span: its format and how many entries, and none of their secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_creds.migration import migrate
from apex_creds.telemetry import semconv
from apex_creds.vault import Vault
from tests.support import old
from tests.support.recording import recording

pytestmark = pytest.mark.anyio


async def test_a_source_is_a_span(vault: Vault, place: Path) -> None:
    path = old.fernet_file(place)
    with recording() as seen:
        report = await migrate(vault, [path], environ=old.ENV)
        (source,) = report.sources
        assert source.format is not None
        assert dict(seen.span(semconv.MIGRATE).attributes or {}) == {
            semconv.FORMAT: source.format.value,
            semconv.RECORDS: len(source.entries),
        }
        assert not {"gh-1", "at-1", "sk-1"} & set(seen.everything().split('"'))

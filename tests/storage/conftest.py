"""A real PostgreSQL server for the tests of this folder, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.postgres import Postgres, postgres


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """Shared by tests: none stops it or changes its settings."""
    with postgres() as running:
        yield running

"""A real PostgreSQL server for the tests of this folder, started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import Postgres, postgres


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs on the server is end-to-end, whatever file it is in."""
    for item in items:
        if item.path.parent == Path(__file__).parent and "server" in item.fixturenames:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """Shared by tests: none stops it or changes its settings."""
    with postgres() as running:
        yield running

"""One server of each kind for all tests of the folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from apex_creds.vault import Vault
from tests.support.clocks import FakeClock
from tests.support.github import GitHub, github_app
from tests.support.rotators import Roles, roles
from tests.support.vaults import create


@pytest.fixture(scope="session")
def database() -> Iterator[Roles]:
    with roles() as running:
        yield running


@pytest.fixture
def server(database: Roles) -> Roles:
    database.reset()
    return database


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def github(clock: FakeClock) -> Iterator[GitHub]:
    with github_app(clock) as made:
        yield made


@pytest.fixture
async def vault(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Vault]:
    async with await create(tmp_path) as made:
        yield made

"""One authorization server for all tests of the folder; a world for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from apex_creds.oauth import provider_presets as providers
from apex_creds.oauth.provider_presets import Provider
from tests.support.oidc import Server, authorization_server
from tests.support.worlds import World, world_in


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with authorization_server() as running:
        yield running


@pytest.fixture
async def provider(server: Server) -> Provider:
    return await providers.find(server.issuer)


@pytest.fixture
async def world(tmp_path: Path, anyio_backend: str) -> AsyncIterator[World]:
    async with world_in(tmp_path) as made:
        yield made

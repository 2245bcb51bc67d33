"""One authorization server for all tests of the folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from apex_creds.oauth import provider_presets as providers
from apex_creds.oauth.provider_presets import Provider
from tests.support.oidc import Server, authorization_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with authorization_server() as running:
        yield running


@pytest.fixture
async def provider(server: Server) -> Provider:
    return await providers.find(server.issuer)

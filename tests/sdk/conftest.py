"""A world, a vendor's server that insists on a credential, and a grant to send it there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.vendor import Vendor, vendor
from tests.support.worlds import World, world_in


@pytest.fixture
async def world(tmp_path: Path, anyio_backend: str) -> AsyncIterator[World]:
    async with world_in(tmp_path) as made:
        yield made


@pytest.fixture
async def service() -> AsyncIterator[Vendor]:
    async with vendor() as made:
        yield made

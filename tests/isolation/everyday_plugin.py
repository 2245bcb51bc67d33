"""What tests of isolated plugins share; bubblewrap is real here, always."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from apex_creds.isolation.code import PluginFunction, plugin_function
from apex_creds.isolation.runner import Isolation
from tests.support.worlds import World, world_in

PLUGINS = Path(__file__).parent / "plugins"


def everyday(name: str) -> PluginFunction:
    """A function of the plugin of that name, which is not imported here."""
    return plugin_function(PLUGINS, f"everyday:{name}")


@pytest.fixture
async def world(tmp_path: Path, anyio_backend: str) -> AsyncIterator[World]:
    """A vault, and a middleware that isolates every plugin."""
    async with world_in(tmp_path, isolation=Isolation.BUBBLEWRAP) as made:
        yield made

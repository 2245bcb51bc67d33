"""Fixtures that every test may use: one async backend, and a home of its own."""

from __future__ import annotations

import gc
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says something about the machine, not about the code.
settings.register_profile("whole", deadline=None)
settings.load_profile("whole")
# For the second and third Python: what differs between them shows in few examples.
settings.register_profile("brief", deadline=None, max_examples=15)

_done = itertools.count(1)
_OWN = ("APEX_CREDS_", "XDG_", "PYTHON_KEYRING_")


@pytest.fixture
def anyio_backend() -> str:
    """Async tests (``pytestmark = pytest.mark.anyio``) run on asyncio alone."""
    return "asyncio"


def pytest_collection_finish() -> None:
    """What was there before the tests is not looked at by their ``gc.collect()``."""
    _set_aside()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Nor is what earlier tests have imported and reported, now and then."""
    if next(_done) % 50 == 0:
        _set_aside()


def _set_aside() -> None:
    """Tests of leaks collect hundreds of times; each would search the whole session."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty 0700 home; nothing of the user's settings, keyring or vault is reachable."""
    for name in [name for name in os.environ if name.startswith(_OWN)]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    return home

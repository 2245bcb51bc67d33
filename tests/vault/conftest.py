"""Fixtures of the vault's tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from apex_creds.crypto.memory import arena


@pytest.fixture
def no_slot_left() -> Iterator[None]:
    """A test leaves no secret open; what others of the same process left is not its own."""
    gc.collect()
    before = arena().open_slots
    yield
    gc.collect()  # Python 3.13 keeps what a failed rotation raised until then
    assert arena().open_slots <= before

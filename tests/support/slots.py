"""Counting secrets that are open, for tests of leaks."""

from __future__ import annotations

import gc

from apex_creds.crypto.memory import arena


def open_slots() -> int:
    """How many secrets are open, not counting what earlier tests left as garbage."""
    gc.collect()
    return arena().open_slots

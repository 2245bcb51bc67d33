"""Debian's Chromium, headless; what it keeps goes with its home."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, async_playwright

_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def options(home: Path) -> dict[str, Any]:
    """What Playwright's ``launch`` is called with; Chromium writes to its home at once."""
    found = shutil.which("chromium")
    assert found, "scripts/bootstrap.sh installs it: apt-get install chromium"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")}
    return {
        "executable_path": found,
        "args": [*_FLAGS],
        "env": environment | {"HOME": str(home)},
    }


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """One that ends here."""
    with tempfile.TemporaryDirectory(prefix="browser-") as home:
        async with async_playwright() as playwright:
            made = await playwright.chromium.launch(**options(Path(home)))
            try:
                yield made
            finally:
                await made.close()

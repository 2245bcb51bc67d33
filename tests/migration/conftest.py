"""A vault of its own beside which old files can be put; no keyring but what a test gives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import keyring
import keyring.backends.fail
import pytest

from apex_creds.vault import Vault
from tests.support import old


@pytest.fixture(autouse=True)
def alone(fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(old.VARIABLE, raising=False)
    before = keyring.get_keyring()
    keyring.set_keyring(keyring.backends.fail.Keyring())
    monkeypatch.setattr(keyring, "get_keyring", lambda: before)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Holds the vault's directory, ``.apex_agent``, as a user's home does."""
    made = tmp_path / "user"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def master(tmp_path: Path) -> str:
    return f"file:{tmp_path}/master.key"


@pytest.fixture
async def vault(place: Path, master: str) -> AsyncIterator[Vault]:
    async with await Vault.create(place / ".apex_agent", master=master) as made:
        yield made

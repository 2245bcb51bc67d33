"""A keyring backend that keeps its entries in memory, by keyring's own interface."""

from __future__ import annotations

import keyring.backend


class Memory(keyring.backend.KeyringBackend):
    priority = -1

    def __init__(self) -> None:
        super().__init__()
        self.entries: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.entries.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.entries[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.entries[service, username]

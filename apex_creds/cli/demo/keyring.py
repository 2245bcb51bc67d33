"""A keyring that lives in this process and nowhere else, for the demo only.

Guarantee: ``keyring`` itself never selects it (its priority is below that of the backend
that always fails), so it is used only where it is passed in.
"""

from __future__ import annotations

from keyring.backend import KeyringBackend


class InProcessKeyring(KeyringBackend):
    """Entries in a dictionary; gone with the process."""

    priority = -1

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._entries: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        """The entry, or None."""
        return self._entries.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        """Stores an entry."""
        self._entries[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        """Deletes an entry."""
        self._entries.pop((service, username), None)

"""What a document store does where its storage is shared, done for one that is not.

Guarantee: none of it costs anything. ``shared.SharedStore`` has the other answers.
"""

from __future__ import annotations

from collections.abc import Mapping

from apex_creds.storage.base import SharedStorage


class Alone:
    """The part of a document store that knows of other homes: there are none."""

    shared: SharedStorage | None = None
    ties_commits: bool = False
    """Whether a commit of a section fails if the key store moved meanwhile."""

    def expect(self, sums: Mapping[str, int]) -> None:
        """Has sections refused whose shards' generations do not add up to these sums."""

    async def note_reached(self) -> None:
        """Has the key store say how far each shard has come, as far as is known here."""

    def look_blocking(self) -> None:
        """As ``look``, from code that can't wait."""

    async def look(self) -> None:
        """Has what is in memory compared with what is stored, where that costs a trip."""

    async def settle(self) -> None:
        """As ``look``, for what must not be decided on what was true a while ago."""

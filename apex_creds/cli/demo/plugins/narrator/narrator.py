"""A streaming plugin: its handle lives for as long as the stream does."""

from __future__ import annotations

from collections.abc import AsyncIterator

from apex_creds import CredentialMap
from apex_creds.cli.demo.service import BasePlugin


class NarratorPlugin(BasePlugin):
    """Stories."""

    async def story(
        self, base: str, topic: str, credentials: CredentialMap
    ) -> AsyncIterator[str]:
        """A story, piece by piece."""
        async with (
            credentials["STORY_TOKEN"].client(base_url=base) as http,
            http.stream("GET", "/v1/story", params={"topic": topic}) as answer,
        ):
            answer.raise_for_status()
            async for piece in answer.aiter_text():
                yield piece

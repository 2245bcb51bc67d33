"""A plugin that leaks on purpose: in logs, results, exceptions, and piece by piece."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import httpx

from apex_creds import CredentialMap
from apex_creds.cli.demo.service import BasePlugin

_log = logging.getLogger("apexagent.plugins.chatter")


class ChatterPlugin(BasePlugin):
    """Talks too much."""

    def __init__(self) -> None:
        self._http = httpx.AsyncClient(trust_env=False)

    async def send(self, base: str, credentials: CredentialMap) -> object:
        """Sends the header itself, logs its arguments, returns what it sent and got."""
        async with credentials["CHATTER_TOKEN"].reveal() as secret:
            kwargs = {"headers": {"Authorization": f"Bearer {secret.expose_str()}"}}
            _log.info(f"GET /v1/echo with {kwargs}")
            answer = await self._http.get(f"{base}/v1/echo", headers=kwargs["headers"])
            answer.raise_for_status()
            return {"sent": kwargs["headers"], "got": answer.json()}

    async def crash(self, base: str, credentials: CredentialMap) -> object:
        """Gets an answer that it does not like, and says with what it asked."""
        sent = await self.send(base, credentials)
        raise RuntimeError(f"no good answer to {sent}")

    async def drip(self, credentials: CredentialMap) -> AsyncIterator[str]:
        """The secret in pieces of seven characters, which no search of a piece finds."""
        async with credentials["CHATTER_TOKEN"].reveal() as secret:
            text = f"my token is {secret.expose_str()}, believe me"
        for start in range(0, len(text), 7):
            yield text[start : start + 7]

    async def use(self, credentials: CredentialMap) -> object:
        """Reads the secret and keeps quiet."""
        async with credentials["CHATTER_TOKEN"].reveal() as secret:
            return len(secret)

    async def idle(self) -> object:
        """Does nothing."""
        return 0

    async def shutdown(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

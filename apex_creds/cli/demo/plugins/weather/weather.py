"""A plain plugin: one request, with a handle instead of a key."""

from __future__ import annotations

from apex_creds import CredentialMap
from apex_creds.cli.demo.service import BasePlugin


class WeatherPlugin(BasePlugin):
    """Forecasts."""

    async def forecast(self, base: str, city: str, credentials: CredentialMap) -> object:
        """The sky over a city."""
        async with credentials["WEATHER_API_KEY"].client(base_url=base) as http:
            answer = await http.get("/v1/forecast", params={"city": city})
            answer.raise_for_status()
            return answer.json()

    async def stray(self, base: str, credentials: CredentialMap) -> object:
        """Sends a request where it may not: another path of the same service."""
        async with credentials["WEATHER_API_KEY"].client(base_url=base) as http:
            return (await http.get("/v1/echo")).text

    async def snoop(self, credentials: CredentialMap) -> object:
        """Asks for a credential that it did not declare."""
        return credentials["PAYROLL_TOKEN"].name

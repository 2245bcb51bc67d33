"""Events to a web hook: the smallest audit sink that another package can add to apex-creds.

With this package installed, `APEX_CREDS_AUDIT_TO='webhook://logs.example/in?level=security'`
posts each of these events there as JSON: its entry point (see pyproject.toml) names
`WebHook.from_url`. What it could not deliver is delivered again, in order.
"""

from __future__ import annotations

import httpx

from apex_creds.audit.sinks import Line


class WebHook:
    """Posts each line as the log has it, so that a copy can be compared with the log."""

    def __init__(self, url: str) -> None:
        self._url = url

    @classmethod
    def from_url(cls, url: str) -> WebHook:
        scheme = "http" if url.startswith("webhook+http:") else "https"
        return cls(f"{scheme}:{url.partition(':')[2]}")

    def open(self) -> None:
        """A request is a connection of its own."""

    def deliver(self, line: Line) -> None:
        answer = httpx.post(
            self._url,
            content=line.data,
            headers={"content-type": "application/json"},
            timeout=10,
        )
        answer.raise_for_status()  # it is delivered again, then

    def close(self) -> None:
        """Nothing stays open."""

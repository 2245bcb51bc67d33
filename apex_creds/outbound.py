"""One request to an HTTP server that may be hostile, and its answer.

Guarantee: no redirect is followed, no proxy of the environment or cookie used; an answer is
read up to 256 KiB, uncompressed, and must be complete within a minute. No frame of the HTTP
client is in a traceback, since it holds what was sent.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_SECONDS: Final = 20.0
_WHOLE: Final = 60.0
_LARGEST: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, and at most 256 KiB."""

    status: int
    body: bytes = field(repr=False)


class NoAnswerError(Exception):
    """No answer came, or none that is read.

    Attributes:
        why: In words.
        sent: Whether the request may have reached the server.
        understood: False: there was an answer, which can't be used.
    """

    def __init__(self, why: str, *, sent: bool = True, understood: bool = True) -> None:
        super().__init__(why)
        self.why = why
        self.sent = sent
        self.understood = understood


async def ask(
    method: str, url: str, *, headers: Mapping[str, str], body: bytes = b"", ca: str = ""
) -> Answer:
    """Sends a request.

    Args:
        method: Of HTTP.
        url: Checked by the caller.
        headers: Beside those that every request has.
        body: Whole.
        ca: A file of certificates that the server's must be by; the system's by default.

    Raises:
        NoAnswerError: See there.
    """
    import httpx  # long to import

    said = {"accept": "application/json", "accept-encoding": "identity", **headers}
    try:
        async with (
            asyncio.timeout(_WHOLE),  # httpx's begin anew with each byte
            httpx.AsyncClient(
                trust_env=False,
                follow_redirects=False,
                timeout=_SECONDS,
                # Where there is no TLS, the system's certificates are not read for nothing.
                verify=ssl.create_default_context(cafile=ca)
                if ca
                else not url.startswith("http:"),
            ) as client,
            client.stream(method, url, content=body, headers=said) as response,
        ):
            packed = response.headers.get("content-encoding", "identity") != "identity"
            found = bytearray()
            if not packed or response.status_code >= 500:
                async for chunk in response.aiter_raw():
                    found += chunk
                    if len(found) > _LARGEST:
                        break
                else:
                    return Answer(response.status_code, bytes(found))
        why = "larger than 256 KiB" if found else "compressed, which was not asked for"
        failed = NoAnswerError(f"it is {why}", understood=False)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
        unsent = httpx.ConnectError | httpx.ConnectTimeout | httpx.InvalidURL
        failed = NoAnswerError(type(error).__name__, sent=not isinstance(error, unsent))
    raise failed  # out of the handler: the frames of httpx hold what was sent

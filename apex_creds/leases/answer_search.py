"""How answers are searched for the secrets that were sent: what the sending step asks for.

``leases`` knows no search; the middleware gives the broker one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from apex_creds.documents.records import Record
from apex_creds.leases.deliveries import RawHeaders
from apex_creds.leases.lease import Lease


class AnswerFilter(Protocol):
    """Takes secrets out of one answer, while it comes; called by one thread at a time.

    Attributes:
        headers: Those that the plugin gets.
    """

    headers: RawHeaders

    def feed(self, chunk: bytes) -> bytes:
        """What can go on now that ``chunk`` has come; it may be nothing.

        Raises:
            ApexCredsError: The answer can't be searched, and goes no further.
        """

    def finish(self) -> bytes:
        """What was held back, when the last chunk has come; raises as ``feed`` does."""

    def close(self) -> None:
        """Wipes what it has; idempotent, from any thread, with or without ``finish``."""


class AnswerSearch(Protocol):
    """Searches answers for the secrets that were sent."""

    def begin(
        self,
        leases: Sequence[Lease],
        records: Sequence[Record],
        status: int,
        headers: RawHeaders,
    ) -> AnswerFilter | None:
        """The search of one answer; None: there is nothing to search for.

        Args:
            leases: Those that the request was sent with, and whose invocation made it.
            records: What they released, sealed.
            status: Of the answer.
            headers: Of the answer.

        Raises:
            ApexCredsError: It can't be searched, and is not given on.
        """

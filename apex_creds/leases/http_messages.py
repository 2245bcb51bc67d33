"""A request, its answer, and what went wrong, in the neutral values that adapters deal in.

Nothing here knows a library or a secret: a process that has none uses the same. How answers are
searched for the secrets that were sent is here as what the sending step asks for: ``leases``
knows no search, and the middleware gives the broker one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import httpx
import msgspec

if TYPE_CHECKING:
    from apex_creds.documents.records import Record
    from apex_creds.leases.lease import Lease

RawHeaders = list[tuple[bytes, bytes]]


class SendFailure(NamedTuple):
    """What went wrong while sending; neither its words nor its frames hold a secret.

    Attributes:
        kind: ``connect``, ``read``, ``write``, each with ``_timeout`` or without it,
            ``pool_timeout``, ``protocol``, ``closed`` or ``other``.
        name: What httpx, and what continues it, call the error.
        text: For people.
    """

    kind: str
    name: str
    text: str


Say = Callable[[SendFailure], BaseException]
"""Says it with an exception of the library that the request came from."""


class Request(msgspec.Struct, frozen=True, eq=False):
    """What an adapter hands in.

    Attributes:
        url: Text, or an ``httpx.URL``.
        headers: Names and values; without ``Host`` the URL's is sent.
        body: Bytes, an iterable of them (asynchronous where the request is), or None.
        timeout: Seconds, of ``connect``, ``read``, ``write``, ``pool``; none: without end.
        say: Makes the library's exception of what went wrong.
        scope: One that the leases must have.
    """

    method: str
    url: object
    headers: Iterable[tuple[bytes, bytes]]
    body: object
    timeout: Mapping[str, float | None]
    say: Say
    scope: str | None = None


class Answered(msgspec.Struct, frozen=True, eq=False):
    """What an adapter gets; nothing in it leads to the request as it was sent.

    Attributes:
        body: Streams, and closes.
        http_version: As ``HTTP/1.1``.
        given: The headers as httpx has them already; None: it has not.
    """

    status: int
    headers: RawHeaders
    body: httpx.AsyncByteStream | httpx.SyncByteStream
    http_version: bytes | None
    given: httpx.Headers | None


class AnswerFilter(Protocol):
    """Takes secrets out of one answer, while it comes; called by one thread at a time.

    Attributes:
        headers: Those that the plugin gets.
    """

    headers: RawHeaders

    def feed(self, chunk: bytes) -> Iterable[bytes]:
        """What can go on now that ``chunk`` has come, in pieces of a bounded size.

        They are to be taken before the next chunk; there may be none.

        Raises:
            ApexCredsError: The answer can't be searched, and goes no further.
        """

    def finish(self) -> bytes:
        """What was held back, when the last chunk has come; raises as ``feed`` does."""

    def close(self) -> None:
        """Wipes what it has; idempotent, from any thread, with or without ``finish``."""


class MessageFilter(Protocol):
    """Takes secrets out of the messages of one connection, as of a WebSocket.

    All raises as ``AnswerFilter.feed``; a message is as long as it was.
    """

    def whole(self, message: str | bytes) -> str | bytes:
        """A whole message without secrets."""

    def feed(self, frame: bytes) -> bytes:
        """What can go on of a message that comes in frames; it may be nothing."""

    def finish(self, frame: bytes = b"") -> bytes:
        """The rest of that message, with its last frame."""

    def close(self) -> None:
        """As ``AnswerFilter.close``."""


class AnswerSearch(Protocol):
    """Searches answers for the secrets that were sent."""

    def ask(self, leases: Sequence[Lease], headers: list[tuple[bytes, bytes, bytes]]) -> None:
        """Has a request's headers (those of its ``Snapshot``) ask for what can be searched."""

    def begin(
        self,
        leases: Sequence[Lease],
        records: Sequence[Record],
        method: str,
        status: int,
        headers: RawHeaders,
    ) -> AnswerFilter | None:
        """The search of one answer; None: there is nothing to search for.

        Args:
            leases: Those that the request was sent with, and whose invocation made it.
            records: What they released, sealed.
            method: Of the request.
            status: Of the answer.
            headers: Of the answer.

        Raises:
            ApexCredsError: It can't be searched, and is not given on.
        """

    def messages(
        self, leases: Sequence[Lease], records: Sequence[Record]
    ) -> MessageFilter | None:
        """The search of what comes over one connection; as ``begin``."""

    def wipe(self) -> None:
        """Forgets every secret that is searched for; what is being searched ends first."""

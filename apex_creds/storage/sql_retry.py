"""Which failures of a database are worth another try, and for how long.

Guarantee: a failure becomes one ``StorageError`` that says what to do, without any
statement, parameter or password. What is repeated is safe to repeat, for no longer than the
time that was given; each try runs to its end, also where the caller is cancelled. Nothing is
logged: handlers would run in the storage's thread, for which others wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential
from tenacity.wait import wait_random

from apex_creds.concurrency import run_to_completion
from apex_creds.errors import (
    StorageBusyError,
    StorageError,
    StorageFullError,
    StorageLockedError,
    StorageReadOnlyError,
    StorageSchemaError,
    StorageTimeoutError,
    StorageUnreachableError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

_WAIT: Final = wait_exponential(multiplier=0.02, max=0.5) + wait_random(0, 0.1)

T = TypeVar("T")


class StatementError(Exception):
    """A statement failed.

    Attributes:
        error: For the caller.
        retryable: The same again may help, and can do no harm (reads, compare-and-set).
        uncertain: There was no answer, so a write may have happened.
    """

    def __init__(
        self, error: StorageError, *, retryable: bool = False, uncertain: bool = False
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.retryable = retryable
        self.uncertain = uncertain


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a kind of failure is for the caller; see ``StatementError``."""

    kind: type[StorageError]
    message: str
    hint: str
    retryable: bool = False
    uncertain: bool = False

    def failure(self, *, detail: str = "", uncertain: bool = False) -> StatementError:
        """As an exception; ``detail`` is said where nothing else is known."""
        message = f"{self.message} ({detail})." if self is OTHER else self.message
        return StatementError(
            self.kind(message, hint=self.hint),
            retryable=self.retryable,
            uncertain=self.uncertain or uncertain,
        )


GONE: Final = Meaning(
    StorageUnreachableError,
    "The database server can't be reached.",
    "See that it runs and can be reached; what was stored is safe.",
    retryable=True,
    uncertain=True,
)
BUSY: Final = Meaning(
    StorageBusyError,
    "No connection to the database became free in time.",
    "Give it more (?pool= here, max_connections at the server), or start fewer processes.",
    retryable=True,
)
READ_ONLY: Final = Meaning(
    StorageReadOnlyError,
    "The database can't be written.",
    "It is a standby, or its disk or settings make it read-only; see its log.",
    retryable=True,
)
LOCKED: Final = Meaning(
    StorageLockedError,
    "Another process holds a lock in the database for too long.",
    "Wait for it to finish, or end it, and retry.",
    retryable=True,
)
FULL: Final = Meaning(
    StorageFullError,
    "The database has no space left.",
    "Free some space and retry; the previous version is intact.",
)
NO_TABLES: Final = Meaning(
    StorageSchemaError,
    "The tables in the database are missing, or of another version.",
    "Run: apex-creds db status",
)
OTHER: Final = Meaning(StorageError, "The database failed", "See its log.")
_UNDONE: Final = Meaning(
    StorageBusyError,
    "The database undid a statement for another's sake.",
    "Retry.",
    retryable=True,
)
_REFUSED: Final = Meaning(
    StorageError,
    "The database server refused the login.",
    "Check user and password: ?passfile=, ?service= or ?keyring=, and pg_hba.conf.",
)
_NO_RIGHT: Final = Meaning(
    StorageReadOnlyError,
    "The database role may not do that.",
    "Give it the rights that deploy/postgres/roles.sql gives.",
)
_TOO_LONG: Final = Meaning(
    StorageTimeoutError,
    "A statement took longer than it may.",
    "Look what the database is busy with, or raise ?statement_timeout=.",
)
_NO_DATABASE: Final = Meaning(
    StorageError, "There is no such database.", "Make it: createdb NAME."
)
_UNTRUSTED: Final = Meaning(
    StorageUnreachableError,
    "The database server's certificate does not verify.",
    "Name the authority with ?tls_ca=FILE, and the host as the certificate does.",
)
_STATES: Final = {
    "25006": READ_ONLY,
    "28000": _REFUSED,
    "28P01": _REFUSED,
    "3D000": _NO_DATABASE,
    "40001": _UNDONE,
    "40P01": _UNDONE,
    "42501": _NO_RIGHT,
    "42P01": NO_TABLES,
    "42703": NO_TABLES,
    "53100": FULL,
    "53200": BUSY,
    "53300": BUSY,
    "55P03": LOCKED,
    "57014": _TOO_LONG,
    "57P01": GONE,
    "57P02": GONE,
    "57P03": GONE,
    "57P05": GONE,
}
# What libpq itself says, before there is a session or after it broke. Anything else that TLS
# says ("SSL error: unexpected eof") means that the line was cut.
_SAID: Final = (
    (BUSY, ("too many clients", "remaining connection slots", "too many connections")),
    (_REFUSED, ("authentication failed", "no password supplied", "pg_hba.conf", 'role "')),
    (_UNTRUSTED, ("certificate", "does not support SSL", "for a verified SSL connection")),
    (READ_ONLY, ("read-only", "is in recovery", "not in recovery")),
    (_NO_DATABASE, ("does not exist",)),
)


def meaning_of_state(sqlstate: str) -> Meaning:
    """What a server's error code means, in the classes of the SQL standard and PostgreSQL."""
    return GONE if sqlstate.startswith("08") else _STATES.get(sqlstate, OTHER)


def meaning_of_text(said: str) -> Meaning | None:
    """What libpq means where it has no code; None: nothing that is known."""
    return next((m for m, texts in _SAID if any(text in said for text in texts)), None)


class WriteOutcome:
    """Whether it is known what became of a write that is tried again and again."""

    def __init__(self) -> None:
        self.unknown = False

    async def of(self, work: Callable[[], Coroutine[object, object, bool]]) -> bool:
        """Does ``work``, and notes where it may have happened all the same."""
        try:
            return await work()
        except StatementError as failure:
            self.unknown = self.unknown or failure.uncertain
            raise


async def retried(work: Callable[[], Coroutine[object, object, T]], *, patience: float) -> T:
    """What ``work`` returns; it is repeated while that is safe and may help.

    Args:
        work: Raises ``StatementError``.
        patience: Seconds; 0 tries once.

    Raises:
        StorageError: What the last failure means.
    """
    try:
        return await run_to_completion(work())
    except StatementError as failure:
        if not failure.retryable or not patience:
            raise failure.error from failure
    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(lambda e: isinstance(e, StatementError) and e.retryable),
            stop=stop_after_delay(patience),
            wait=_WAIT,
            reraise=True,
        ):
            with attempt:
                return await run_to_completion(work())
    except StatementError as failure:
        raise failure.error from failure
    raise AssertionError("it ends by returning or raising")


async def acquire_in_time(turns: asyncio.Semaphore, *, seconds: float) -> None:
    """Takes one of the turns at a database's connections.

    Raises:
        StatementError: None became free in time.
    """
    if not turns.locked():
        await turns.acquire()
        return
    try:
        async with asyncio.timeout(seconds):
            await turns.acquire()
    except TimeoutError:
        raise BUSY.failure() from None


@contextlib.asynccontextmanager
async def entered(block: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Enters ``block``, and raises the ``StorageError`` where that fails."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            value = await stack.enter_async_context(block)
        except StatementError as failure:
            raise failure.error from failure
        yield value

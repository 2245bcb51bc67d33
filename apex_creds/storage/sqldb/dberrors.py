"""What a database's error means.

Guarantee: each becomes one ``StorageError`` that says what to do, without any statement,
parameter or password; and whether trying again is safe, and whether a write may have
happened all the same.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

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

DATABASE_ERRORS: Final = (SQLAlchemyError, psycopg.Error, sqlite3.Error, OSError, TimeoutError)
"""What the layers below raise for a database that does not do what it is asked."""


class FailedError(Exception):
    """A statement failed.

    Attributes:
        error: What to tell the caller.
        again: Trying the same again may help, and can do no harm (reads, compare-and-set).
        lost: The connection is gone, so a write may have happened.
    """

    def __init__(self, error: StorageError, *, again: bool = False, lost: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.again = again
        self.lost = lost


@dataclass(frozen=True, slots=True)
class _Meaning:
    kind: type[StorageError]
    message: str
    hint: str
    again: bool = False
    lost: bool = False


_GONE: Final = _Meaning(
    StorageUnreachableError,
    "The database server can't be reached.",
    "See that it runs and can be reached; what was stored is safe.",
    again=True,
    lost=True,
)
_BUSY: Final = _Meaning(
    StorageBusyError,
    "No connection to the database became free in time.",
    "Give it more (?pool= here, max_connections at the server), or start fewer processes.",
    again=True,
)
_READ_ONLY: Final = _Meaning(
    StorageReadOnlyError,
    "The database can't be written.",
    "It is a standby, or its disk or settings make it read-only; see its log.",
    again=True,
)
_LOCKED: Final = _Meaning(
    StorageLockedError,
    "Another process holds a lock in the database for too long.",
    "Wait for it to finish, or end it, and retry.",
    again=True,
)
_FULL: Final = _Meaning(
    StorageFullError,
    "The database has no space left.",
    "Free some space and retry; the previous version is intact.",
)
_TURNED: Final = _Meaning(
    StorageBusyError, "The database undid a statement for another's sake.", "Retry.", again=True
)
_REFUSED: Final = _Meaning(
    StorageError,
    "The database server refused the login.",
    "Check user and password: ?passfile=, ?service= or ?keyring=, and pg_hba.conf.",
)
_NO_TABLES: Final = _Meaning(
    StorageSchemaError,
    "The tables in the database are missing, or of another version.",
    "Run: apex-creds db status",
)
_NO_RIGHT: Final = _Meaning(
    StorageReadOnlyError,
    "The database role may not do that.",
    "Give it the rights that deploy/postgres/roles.sql gives.",
)
_TOO_LONG: Final = _Meaning(
    StorageTimeoutError,
    "A statement took longer than it may.",
    "Look what the database is busy with, or raise ?statement_timeout=.",
)
_OTHER: Final = _Meaning(StorageError, "The database failed", "See its log.")

_STATES: Final = {
    "25006": _READ_ONLY,
    "28000": _REFUSED,
    "28P01": _REFUSED,
    "3D000": _Meaning(StorageError, "There is no such database.", "Make it: createdb NAME."),
    "40001": _TURNED,
    "40P01": _TURNED,
    "42501": _NO_RIGHT,
    "42P01": _NO_TABLES,
    "42703": _NO_TABLES,
    "53100": _FULL,
    "53200": _BUSY,
    "53300": _BUSY,
    "55P03": _LOCKED,
    "57014": _TOO_LONG,
    "57P01": _GONE,
    "57P02": _GONE,
    "57P03": _GONE,
    "57P05": _GONE,
}
_SQLITE: Final = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_PERM: _READ_ONLY,
    sqlite3.SQLITE_NOTADB: _Meaning(
        StorageError, "The file is no SQLite database.", "Check the URL, or restore a backup."
    ),
    sqlite3.SQLITE_CORRUPT: _Meaning(
        StorageError, "The SQLite database is damaged.", "Restore a backup."
    ),
    sqlite3.SQLITE_CANTOPEN: _Meaning(
        StorageError, "The SQLite database can't be opened.", "Check the URL and the directory."
    ),
}
_READ_ONLY_TEXTS: Final = ("read-only", "is in recovery", "not in recovery")
_TOO_MANY: Final = ("too many clients", "remaining connection slots", "too many connections")
_LOGIN: Final = ("authentication failed", "no password supplied", "pg_hba.conf")
# Anything else that TLS says ("SSL error: unexpected eof") means that the line was cut.
_UNTRUSTED: Final = ("certificate", "does not support SSL", "for a verified SSL connection")
_CERTIFICATE: Final = _Meaning(
    StorageUnreachableError,
    "The database server's certificate does not verify.",
    "Name the authority with ?tls_ca=FILE, and the host as the certificate does.",
)


def failed(error: BaseException) -> FailedError:
    """What an exception of ``DATABASE_ERRORS`` means."""
    if isinstance(error, PoolTimeoutError):
        return _made(_BUSY)
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if isinstance(cause, sqlite3.Error):
        return _made(_of_sqlite(cause), detail=type(cause).__name__)
    if isinstance(cause, psycopg.Error):
        detail = cause.sqlstate or type(cause).__name__
        return _made(_of_postgresql(cause), detail=detail, lost=_of_libpq(cause))
    if isinstance(cause, (OSError, TimeoutError)):
        return _made(_GONE)
    return _made(_OTHER, detail=type(cause).__name__)


def _of_sqlite(error: sqlite3.Error) -> _Meaning:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return _GONE if isinstance(error, sqlite3.ProgrammingError) else _OTHER
    if isinstance(error, sqlite3.OperationalError) and "no such table" in str(error):
        return _NO_TABLES
    return _SQLITE.get(code & 0xFF, _OTHER)


def _of_postgresql(error: psycopg.Error) -> _Meaning:
    state = error.sqlstate
    if state is None:
        return _without_state(error)
    if state.startswith("08"):
        return _GONE
    return _STATES.get(state, _OTHER)


def _of_libpq(error: psycopg.Error) -> bool:
    """No answer of the server, so what it did is not known."""
    ours = isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    return error.sqlstate is None and ours


def _without_state(error: psycopg.Error) -> _Meaning:
    """What libpq itself says, before there is a session or after it broke."""
    said = str(error)
    if any(text in said for text in _TOO_MANY):
        return _BUSY
    if any(text in said for text in _LOGIN):
        return _REFUSED
    if any(text in said for text in _UNTRUSTED):
        return _CERTIFICATE
    if any(text in said for text in _READ_ONLY_TEXTS):
        return _READ_ONLY
    if "does not exist" in said:
        return _STATES["3D000"]
    return _GONE if _of_libpq(error) else _OTHER


def _made(meaning: _Meaning, *, detail: str = "", lost: bool = False) -> FailedError:
    message = f"{meaning.message} ({detail})." if meaning is _OTHER else meaning.message
    return FailedError(
        meaning.kind(message, hint=meaning.hint),
        again=meaning.again,
        lost=meaning.lost or lost,
    )

"""What an error of libpq means for a write: a line that was cut leaves it unknown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest

from apex_creds.errors import (
    ConflictError,
    StorageBusyError,
    StorageError,
    StorageUncertainError,
    StorageUnreachableError,
)
from apex_creds.storage.base import Write
from apex_creds.storage.postgresql import meaning_of
from apex_creds.storage.sql_retry import StatementError
from apex_creds.storage.sql_schema import RowWrite
from apex_creds.storage.sql_storage import SqlStorage
from apex_creds.storage.sqlite import SqliteDialect

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "said",
    [
        "consuming input failed: SSL error: unexpected eof while reading",
        "consuming input failed: SSL connection has been closed unexpectedly",
        "consuming input failed: SSL SYSCALL error: EOF detected",
        "could not receive data from server: Connection reset by peer",
        'could not translate host name "db" to address: Temporary failure',
    ],
)
def test_a_line_that_was_cut_is_tried_again(said: str) -> None:
    meant = meaning_of(psycopg.OperationalError(said))
    assert (meant.retryable, meant.uncertain) == (True, True)
    assert "certificate" not in str(meant.error)


@pytest.mark.parametrize(
    "said",
    [
        "SSL error: certificate verify failed",
        'server certificate for "a" does not match host name "b"',
        "server does not support SSL, but SSL was required",
        'root certificate file "/none" does not exist',
    ],
)
def test_a_server_that_is_not_trusted_is_not_asked_again(said: str) -> None:
    meant = meaning_of(psycopg.OperationalError(said))
    assert not meant.retryable
    assert "certificate" in str(meant.error)


@pytest.mark.parametrize("last", [StorageUnreachableError, StorageBusyError, StorageError])
async def test_a_write_of_which_one_try_is_unknown_is_uncertain_whatever_came_last(
    last: type[StorageError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    storage = SqlStorage(f"sqlite:///{tmp_path}/vault.db")
    await storage.prepare()
    failures = [
        StatementError(StorageUnreachableError("cut"), retryable=True, uncertain=True),
        StatementError(last("then this")),
    ]

    async def apply(dialect: SqliteDialect, space: str, writes: Sequence[RowWrite]) -> bool:
        raise failures.pop(0)

    monkeypatch.setattr(SqliteDialect, "apply", apply)
    with pytest.raises(StorageUncertainError):
        await storage.write("a", b"1", expected=None)
    assert not failures
    await storage.close()


@pytest.mark.parametrize("others", ["all", "one", "none"])
@pytest.mark.parametrize("happened", [True, False])
async def test_a_write_that_was_cut_off_is_never_called_a_conflict_if_it_may_have_happened(
    happened: bool, others: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others write on top before it is tried again: of all its documents, of one, or none."""
    tmp_path.chmod(0o700)
    url = f"sqlite:///{tmp_path}/vault.db"
    one, other = SqlStorage(url), SqlStorage(url)
    await one.prepare()
    tokens = {name: (await one.write(name, b"1", expected=None)).token for name in "ab"}
    real, cuts = SqliteDialect.apply, [True]

    async def apply(dialect: SqliteDialect, space: str, writes: Sequence[RowWrite]) -> bool:
        if not cuts:
            return await real(dialect, space, writes)
        cuts.pop()
        if happened:
            assert await real(dialect, space, writes)
        monkeypatch.setattr(SqliteDialect, "apply", real)
        for name in {"all": "ab", "one": "a", "none": ""}[others]:
            stored = await other.read(name)
            assert stored is not None
            await other.write(name, b"3", expected=stored.token)
        monkeypatch.setattr(SqliteDialect, "apply", apply)
        cut = StorageUnreachableError("cut")
        raise StatementError(cut, retryable=True, uncertain=True)

    monkeypatch.setattr(SqliteDialect, "apply", apply)
    writes = [Write(name, b"2", tokens[name]) for name in "ab"]
    if others == "all":
        with pytest.raises(StorageUncertainError, match="may have happened"):
            await one.write_many(writes)
    elif others == "one" and not happened:
        with pytest.raises(ConflictError):
            await one.write_many(writes)
    else:
        await one.write_many(writes)
    found = {name: await other.read(name) for name in "ab"}
    mine = [name for name, stored in found.items() if stored and stored.data == b"2"]
    assert mine == {"all": [], "one": ["b"] * happened, "none": ["a", "b"]}[others]
    await one.close()
    await other.close()

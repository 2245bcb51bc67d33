"""Whether the tables are those of this program, and how they become so.

Guarantee: of any number of programs that upgrade at once one does, and the others find it
done; a database that a newer program made is refused and not touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, inspect, text

from apex_creds.errors import StorageSchemaError
from apex_creds.storage.sqldb.schema import REVISIONS, VERSION_TABLE

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_LOCK: Final = 0x6170_6578_5F64_6231  # "apex_db1"
_VERSION: Final = text(f"SELECT version_num FROM {VERSION_TABLE}")
HEAD: Final = REVISIONS[-1]


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """The version of the tables; None where there are none."""

    current: str | None

    @property
    def is_current(self) -> bool:
        """This program works with them."""
        return self.current == HEAD

    @property
    def is_newer(self) -> bool:
        """A newer program made them."""
        return self.current is not None and self.current not in REVISIONS

    @property
    def state(self) -> str:
        """In a word: ``none``, ``older``, ``current`` or ``newer``."""
        if self.current is None:
            return "none"
        if self.is_current:
            return "current"
        return "newer" if self.is_newer else "older"

    def check(self) -> None:
        """Returns if this program works with these tables.

        Raises:
            StorageSchemaError: It does not.
        """
        if self.is_current:
            return
        if self.current is None:
            raise StorageSchemaError(
                "The database has no tables of apex-creds.",
                hint="Make a vault in it (apex-creds init --storage URL), or check the URL.",
            )
        if self.is_newer:
            raise StorageSchemaError(
                f"The tables in the database are of version {self.current}, which a newer "
                f"apex-creds made; this one knows {HEAD}.",
                hint="Upgrade this program.",
            )
        raise StorageSchemaError(
            f"The tables in the database are of version {self.current}; {HEAD} is needed.",
            hint="Run: apex-creds db upgrade",
        )


async def status(connection: AsyncConnection) -> SchemaStatus:
    """The version of the tables that are there."""
    return await connection.run_sync(_status)


async def upgrade(connection: AsyncConnection, *, fresh_only: bool = False) -> SchemaStatus:
    """Brings the tables to this program's version, in a transaction that is under way.

    Args:
        connection: In a transaction; SQLite: one that may write.
        fresh_only: Only make tables where there are none.

    Returns:
        What was there before.

    Raises:
        StorageSchemaError: They are a newer program's.
    """
    return await connection.run_sync(_upgrade, fresh_only)


def _status(connection: Connection) -> SchemaStatus:
    if not inspect(connection).has_table(VERSION_TABLE):
        return SchemaStatus(None)
    return SchemaStatus(connection.scalar(_VERSION))


def _upgrade(connection: Connection, fresh_only: bool) -> SchemaStatus:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    before = _status(connection)
    if before.is_newer:
        before.check()
    if not before.is_current and (before.current is None or not fresh_only):
        _run(connection)
    return before


def _run(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "apex_creds.storage.sqldb:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")

"""The tables of the database, as the newest migration leaves them.

Guarantee: what they hold is opaque, but for the names ``keystore`` and ``config``, random
numbers, sizes and times. A document that was deleted leaves its row without data, so that
others see that it is gone; the program's role needs no right to delete rows.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    func,
)

metadata: Final = MetaData()

REVISIONS: Final = ("0001",)
"""The versions of the tables, oldest first; this program works with the last."""

VERSION_TABLE: Final = "apex_schema"
"""Where Alembic notes the revision."""

spaces: Final = Table(
    "apex_spaces",
    metadata,
    Column("space", String(64), primary_key=True),
    Column("made", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

documents: Final = Table(
    "apex_documents",
    metadata,
    Column("space", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    # Random, chosen by the writer: it names the version, and says whose write it was.
    Column("version", BigInteger, nullable=False),
    # Grows with the order in which transactions began (PostgreSQL) or ended (SQLite).
    Column("changed", BigInteger, nullable=False),
    Column("data", LargeBinary),
    Column("written", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("apex_documents_changed", "space", "changed"),
)

claims: Final = Table(
    "apex_claims",
    metadata,
    Column("space", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
)

lines: Final = Table(
    "apex_lines",
    metadata,
    Column("space", String(64), primary_key=True),
    Column("stream", String(64), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("line", LargeBinary, nullable=False),
)

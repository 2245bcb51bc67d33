"""Documents, spaces, claims, and streams of lines."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables those of this version."""
    op.create_table(
        "apex_spaces",
        sa.Column("space", sa.String(64), primary_key=True),
        _moment("made"),
    )
    op.create_table(
        "apex_documents",
        sa.Column("space", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("changed", sa.BigInteger, nullable=False),
        sa.Column("data", sa.LargeBinary),
        _moment("written"),
    )
    if op.get_context().dialect.name == "postgresql":  # what is encrypted does not compress
        op.execute("ALTER TABLE apex_documents ALTER COLUMN data SET STORAGE EXTERNAL")
    op.create_index("apex_documents_changed", "apex_documents", ["space", "changed"])
    op.create_table(
        "apex_claims",
        sa.Column("space", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
    )
    op.create_table(
        "apex_lines",
        sa.Column("space", sa.String(64), primary_key=True),
        sa.Column("stream", sa.String(64), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("line", sa.LargeBinary, nullable=False),
    )


def _moment(name: str) -> sa.Column[object]:
    return sa.Column(
        name, sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()
    )

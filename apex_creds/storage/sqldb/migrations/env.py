"""Runs migrations on the connection that ``upgrade`` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from apex_creds.storage.sqldb.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=False,  # the transaction is the caller's
)
context.run_migrations()

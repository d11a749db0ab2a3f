"""Alembic's entry: runs the versions on the connection that `database.migrate` hands over."""

from __future__ import annotations

from alembic import context

from willitrun_here.fleet.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=connection.dialect.name == "sqlite")
with context.begin_transaction():
    context.run_migrations()

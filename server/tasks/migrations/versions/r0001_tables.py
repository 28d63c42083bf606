"""Schema 0001: tables, columns and indexes that are missing, in an empty database or an older one.

Databases from before migrations have some of the columns and no revision. The tables stand here as
they were when migrations began; later changes have files of their own.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_METADATA = sa.MetaData()

sa.Table(
    "tasks",
    _METADATA,
    sa.Column("task_uuid", sa.String(36), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("base_url", sa.Text, nullable=False),
    sa.Column("seeds", sa.JSON, nullable=False),
    sa.Column("image_uuids", sa.JSON, nullable=False),
    sa.Column("status", sa.String(8), nullable=False, index=True),
    sa.Column("error", sa.JSON),
    sa.Column("created_at", sa.Float, nullable=False, index=True),
    sa.Column("holder", sa.String(36)),
    sa.Column("held_until", sa.Float),
    sa.Column("progress", sa.Integer),
    sa.Column("width", sa.Integer),
    sa.Column("height", sa.Integer),
    sa.Column("request_id", sa.Text),
)
sa.Table(
    "images",
    _METADATA,
    sa.Column("image_uuid", sa.String(36), primary_key=True),
    sa.Column("task_uuid", sa.String(36), nullable=False, index=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("is_nsfw", sa.Boolean),
    sa.Column("expires_at", sa.Float, nullable=False, index=True),
    sa.Column("diagnostics", sa.JSON),
    sa.Column("width", sa.Integer),
    sa.Column("height", sa.Integer),
    sa.Column("upload_fault", sa.Text),
)
sa.Table(
    "webhooks",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("task_uuid", sa.String(36), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("num_tries", sa.Integer, nullable=False),
    sa.Column("next_try_at", sa.Float, nullable=False, index=True),
)


def upgrade() -> None:
    """Create what is missing; rows that are there keep all they hold."""
    connection = op.get_bind()
    inspector = sa.inspect(connection)
    present_tables = set(inspector.get_table_names())
    for table in _METADATA.sorted_tables:
        if table.name not in present_tables:
            table.create(connection)
            continue
        present = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in present:
                op.add_column(table.name, sa.Column(column.name, column.type))
        indexed = {index["name"] for index in inspector.get_indexes(table.name)}
        for index in table.indexes:
            if index.name not in indexed:
                index.create(connection)

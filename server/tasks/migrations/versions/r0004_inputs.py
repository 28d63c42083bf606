"""Input images: the table `inputs`, and what a task names of it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the table and the column; tasks of before brought no images."""
    op.add_column("tasks", sa.Column("inputs", sa.JSON))
    op.create_table(
        "inputs",
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("sha256", sa.String(64), index=True),
        sa.Column("expires_at", sa.Float, nullable=False, index=True),
    )

"""Tasks that are wanted no more: `is_cancelled`."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column; tasks of before were not cancelled."""
    op.add_column("tasks", sa.Column("is_cancelled", sa.Boolean))

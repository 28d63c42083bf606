"""Usage of API keys by day: the table `usage`."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the table; usage is counted from now on."""
    op.create_table(
        "usage",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("num_tasks", sa.Integer, nullable=False),
        sa.Column("num_images", sa.Integer, nullable=False),
        sa.Column("cost", sa.Float, nullable=False),
    )

"""usage per month, refusals by time"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("month", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("partition", sa.SmallInteger(), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("users", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("month", "source", "partition"),
    )
    op.create_index("refusals_by_time", "refusals", ["received_at", "partition", "offset"], unique=False)


def downgrade() -> None:
    op.drop_index("refusals_by_time", table_name="refusals")
    op.drop_table("usage")

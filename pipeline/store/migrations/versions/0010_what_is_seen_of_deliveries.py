"""what is seen of deliveries; what was gone before a destination was there"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "destination_minutes",
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("writer", sa.String(), nullable=False),
        sa.Column("delivered", sa.BigInteger(), nullable=False),
        sa.Column("retried", sa.BigInteger(), nullable=False),
        sa.Column("rejected", sa.BigInteger(), nullable=False),
        sa.Column("latency", sa.Text(), nullable=False),
        sa.Column("causes", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("destination", "at", "writer"),
    )
    op.create_index("destination_minutes_by_time", "destination_minutes", ["at"])
    op.create_table(
        "destination_totals",
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("destination", "name"),
    )
    op.create_table(
        "destination_samples",
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("message_id", sa.String(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("destination", "code", "message"),
    )
    op.create_table(
        "destination_baselines",
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("accepted", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("destination", "source"),
    )
    # Those that are there already have met everything that their books count.
    op.execute(
        "INSERT INTO destination_baselines (destination, source, accepted) "
        "SELECT DISTINCT destination, '', 0 FROM destination_positions"
    )


def downgrade() -> None:
    for name in ("destination_baselines", "destination_samples", "destination_totals"):
        op.drop_table(name)
    op.drop_index("destination_minutes_by_time", table_name="destination_minutes")
    op.drop_table("destination_minutes")

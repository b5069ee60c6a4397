"""deleting and suppressing people"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "regulations",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger()),
        sa.Column("marks", sa.Text(), nullable=False),
        sa.Column("work", sa.Text()),
        sa.Column("receipt", sa.Text(), nullable=False),
    )
    op.create_index("regulations_by_status", "regulations", ["status", "created_at"])
    op.create_table(
        "regulation_destinations",
        sa.Column("regulation", sa.String(), primary_key=True),
        sa.Column("destination", sa.String(), primary_key=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("barrier", sa.Text()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("finished_at", sa.BigInteger()),
    )
    op.create_table(
        "tombstones",
        sa.Column("mark", sa.LargeBinary(), primary_key=True),
        sa.Column("kind", sa.String(), primary_key=True),
        sa.Column("deleted_at", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "suppressions",
        sa.Column("mark", sa.LargeBinary(), primary_key=True),
        sa.Column("id", sa.String()),
        sa.Column("regulation", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "deleted_profiles",
        sa.Column("profile", sa.String(), primary_key=True),
        sa.Column("deleted_at", sa.BigInteger(), nullable=False),
        sa.Column("regulation", sa.String(), nullable=False),
    )
    op.create_table(
        "erased",
        sa.Column("partition", sa.SmallInteger(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("regulation", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("emitted", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("partition", "offset"),
    )
    op.create_index("erased_by_regulation", "erased", ["regulation", "emitted"])
    op.create_index("erased_by_time", "erased", ["at"])
    op.create_table(
        "deletions",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
    )
    op.create_table(
        "privacy_key",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
    )
    bind = op.get_bind()
    fresh = bind.execute(sa.text("SELECT 1 FROM positions")).first() is None
    if bind.dialect.name == "sqlite" and fresh:
        op.execute("PRAGMA user_version=1")  # nothing was deleted in this file before deletes overwrote


def downgrade() -> None:
    for table in (
        "privacy_key",
        "deletions",
        "erased",
        "deleted_profiles",
        "suppressions",
        "tombstones",
        "regulation_destinations",
        "regulations",
    ):
        op.drop_table(table)

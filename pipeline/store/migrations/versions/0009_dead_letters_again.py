"""dead letters by cause, put back or purged; replays"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_DEAD = sa.text("state = 'dead'")


def upgrade() -> None:
    for name in ("redriven", "purged"):
        op.add_column("destination_counts", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("exceptions", sa.Column("cause", sa.String(), server_default="", nullable=False))
    if op.get_bind().dialect.name == "postgresql":
        before_colon = "split_part(reason, ':', 1)"
    else:
        before_colon = "substr(reason, 1, instr(reason || ':', ':') - 1)"
    op.execute(f"UPDATE exceptions SET cause = substr(trim({before_colon}), 1, 100) WHERE state = 'dead'")
    for name, columns in (
        ("exceptions_dead_by_cause", ["destination", "cause", "next_at", "state"]),
        ("exceptions_dead_by_message", ["message_id"]),
    ):
        op.create_index(name, "exceptions", columns, sqlite_where=_DEAD, postgresql_where=_DEAD)
    op.create_table(
        "replays",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("sources", sa.Text(), nullable=False),
        sa.Column("filter", sa.Text(), nullable=False),
        sa.Column("rate", sa.Float(), nullable=False),
        sa.Column("again", sa.Boolean(), nullable=False),
        sa.Column("ranges", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    op.drop_table("replays")
    for name in ("exceptions_dead_by_message", "exceptions_dead_by_cause"):
        op.drop_index(name, table_name="exceptions")
    op.drop_column("exceptions", "cause")
    for name in ("purged", "redriven"):
        op.drop_column("destination_counts", name)

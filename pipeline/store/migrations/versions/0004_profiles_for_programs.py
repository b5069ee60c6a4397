"""reading profiles: a person's events by time, the latest active, tokens, who read what"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("events", sa.Column("at", sa.BigInteger(), server_default="0", nullable=False))
    op.execute("UPDATE events SET at = processed_at")  # the best that the database knows of what came before
    op.create_index("events_by_node", "events", ["node", "at"], unique=False)
    op.create_index("profiles_by_activity", "profiles", ["last_seen", "id"], unique=False)
    if op.get_bind().dialect.name == "postgresql":
        op.create_index("nodes_by_prefix", "nodes", ["key"], postgresql_ops={"key": "text_pattern_ops"})
    op.drop_index("links_by_account", table_name="links")
    op.create_index("links_by_account", "links", ["account", "node"], unique=False)
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("traits", sa.Text(), nullable=True),
        sa.Column("per_second", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("hash"),
    )
    op.create_table(
        "profile_reads",
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("token", sa.String(), nullable=False),
        sa.Column("resource", sa.String(), nullable=False),
        sa.Column("hour", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("profile", "token", "resource", "hour"),
    )
    op.create_index("profile_reads_by_hour", "profile_reads", ["hour"], unique=False)


def downgrade() -> None:
    op.drop_table("profile_reads")
    op.drop_table("tokens")
    op.drop_index("links_by_account", table_name="links")
    op.create_index("links_by_account", "links", ["account"], unique=False)
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index("nodes_by_prefix", table_name="nodes")
    op.drop_index("profiles_by_activity", table_name="profiles")
    op.drop_index("events_by_node", table_name="events")
    op.drop_column("events", "at")

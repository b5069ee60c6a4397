"""identity that can be undone: splits, violations, links, rules; which mappings have delivered an event"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


_COUNT_MERGES = """
    WITH RECURSIVE family(root, id) AS (
      SELECT id, id FROM profiles WHERE merged_into IS NULL
      UNION ALL SELECT family.root, profiles.id FROM profiles JOIN family ON profiles.merged_into = family.id
    )
    UPDATE profiles SET merges = sizes.merges
    FROM (SELECT root, count(*) - 1 AS merges FROM family GROUP BY root) AS sizes
    WHERE sizes.root = profiles.id AND sizes.merges > 0
"""


def _text(name: str) -> "sa.Column[str]":
    return sa.Column(name, sa.String(), server_default="", nullable=False)


def _number(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)


def upgrade() -> None:
    op.add_column("profiles", sa.Column("collection", sa.String(), server_default="users", nullable=False))
    op.add_column("profiles", _number("seq"))
    for name in ("source", "message_id", "last_source", "last_message"):
        op.add_column("profiles", _text(name))
    op.add_column("profiles", sa.Column("added", sa.Text()))
    op.add_column("profiles", sa.Column("apart", sa.Text()))
    op.add_column("profiles", sa.Column("merges", sa.Integer(), server_default="0", nullable=False))
    op.execute(_COUNT_MERGES)

    op.add_column("nodes", sa.Column("home", sa.String()))
    op.add_column("nodes", _number("seq"))
    for name in ("source", "message_id"):
        op.add_column("nodes", _text(name))
    op.add_column("nodes", sa.Column("rules", sa.Integer(), server_default="0", nullable=False))
    for name in ("last_source", "last_message"):
        op.add_column("nodes", _text(name))
    op.add_column("nodes", sa.Column("apart", sa.Text()))
    op.execute("UPDATE nodes SET home = profile")  # the best that is known of what came before

    op.add_column("edges", _number("seq"))
    op.create_index("edges_by_b", "edges", ["b"], unique=False)
    op.add_column("merges", _number("seq"))
    op.add_column("merges", sa.Column("undone_by", sa.String()))
    op.create_index("merges_by_absorbed", "merges", ["absorbed"], unique=False)
    op.add_column("exceptions", sa.Column("done", sa.Text(), server_default="", nullable=False))

    op.create_table(
        "splits",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("other", sa.String(), nullable=False),
        sa.Column("merge", sa.String(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("lifted_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("splits_by_profile", "splits", ["profile"], unique=False)
    op.create_index("splits_by_other", "splits", ["other"], unique=False)
    op.create_table(
        "violations",
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("violation", sa.String(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("message_id", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("rules", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("profile", "key", "violation"),
    )
    op.create_index("violations_by_key", "violations", ["key"], unique=False)
    op.create_table(
        "links",
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("message_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("node", "account"),
    )
    op.create_index("links_by_account", "links", ["account"], unique=False)
    op.create_table(
        "identity_rules",
        sa.Column("version", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("rules", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("version"),
    )


def downgrade() -> None:
    for table in ("identity_rules", "links", "violations", "splits"):
        op.drop_table(table)
    op.drop_column("exceptions", "done")
    op.drop_index("merges_by_absorbed", table_name="merges")
    for name in ("undone_by", "seq"):
        op.drop_column("merges", name)
    op.drop_index("edges_by_b", table_name="edges")
    op.drop_column("edges", "seq")
    for name in ("apart", "last_message", "last_source", "rules", "message_id", "source", "seq", "home"):
        op.drop_column("nodes", name)
    for name in (
        "merges",
        "apart",
        "added",
        "last_message",
        "last_source",
        "message_id",
        "source",
        "seq",
        "collection",
    ):
        op.drop_column("profiles", name)

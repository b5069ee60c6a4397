"""ids that move to their latest owner"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_TEXT = (
    "key",
    "left_profile",
    "joined",
    "source",
    "message_id",
    "type",
    "was_home",
    "was_source",
    "was_message_id",
)
_NUMBERS = ("at", "seq", "was_added_at", "was_seq")


def upgrade() -> None:
    op.create_table(
        "moves",
        sa.Column("id", sa.String(), primary_key=True),
        *(sa.Column(name, sa.String(), nullable=False) for name in _TEXT),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _NUMBERS),
        sa.Column("rules", sa.Integer(), nullable=False),
    )
    for column in ("key", "left_profile", "joined"):
        op.create_index(f"moves_by_{column}", "moves", [column])


def downgrade() -> None:
    op.drop_table("moves")

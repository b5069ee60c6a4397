"""whose next events wait, once ids were taken out of a profile"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "partings",
        sa.Column("profile", sa.String(), primary_key=True),
        sa.Column("partition", sa.SmallInteger(), primary_key=True, autoincrement=False),
        sa.Column("left_profile", sa.String(), primary_key=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("partings")

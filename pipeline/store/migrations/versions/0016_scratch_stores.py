"""where recorded events are resolved once more"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "scratches",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("work", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("stale", sa.SmallInteger(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("scratches")

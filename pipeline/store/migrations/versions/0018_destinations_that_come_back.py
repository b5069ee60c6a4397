"""what destinations missed while they were not configured"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("destination_baselines", sa.Column("missed", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("destination_baselines", sa.Column("off", sa.BigInteger()))


def downgrade() -> None:
    op.drop_column("destination_baselines", "off")
    op.drop_column("destination_baselines", "missed")

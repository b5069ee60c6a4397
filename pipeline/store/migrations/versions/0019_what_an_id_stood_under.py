"""the profile under which the events that an id partitions stood last"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("former", sa.String()))


def downgrade() -> None:
    op.drop_column("nodes", "former")

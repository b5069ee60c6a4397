"""consent, kept by profile"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("consent", sa.Text()))
    op.add_column("profiles", sa.Column("consent", sa.Text()))
    op.add_column("profiles", sa.Column("disputed", sa.Text()))
    op.create_table(
        "disputes",
        sa.Column("merge", sa.String(), primary_key=True),
        sa.Column("category", sa.String(), primary_key=True),
        sa.Column("stamp", sa.Text(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("disputes")
    op.drop_column("profiles", "disputed")
    op.drop_column("profiles", "consent")
    op.drop_column("nodes", "consent")

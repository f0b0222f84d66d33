"""Who holds the database, so that other auth workers can stand by."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """The row of the authority says how often it was written, by whom, in which database."""
    count = sa.Column("num_commits", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("authority", count)
    for name in ("holder", "database_id"):
        op.add_column("authority", sa.Column(name, sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    """Nothing that an older release would miss."""
    for name in ("num_commits", "holder", "database_id"):
        op.drop_column("authority", name)

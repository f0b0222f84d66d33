"""Limits say since when they count."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Those of before count since they were made, as far as anybody knows."""
    since = sa.Column("counts_since", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("limits", since)


def downgrade() -> None:
    """A projection is told from when a limit was made, whatever its window was then."""
    op.drop_column("limits", "counts_since")

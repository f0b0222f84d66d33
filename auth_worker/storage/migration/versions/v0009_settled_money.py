"""The audit log covers the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Rows of the ledger say which entry of the audit log covers them."""
    seq = sa.Column("audit_seq", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("ledger", seq)


def downgrade() -> None:
    """The entries stay in the log, and nobody compares rows with them."""
    op.drop_column("ledger", "audit_seq")

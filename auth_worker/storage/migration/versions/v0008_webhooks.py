"""Webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """A table of webhooks, with their places in the audit log."""
    op.create_table(
        "webhooks",
        sa.Column("seq", _SERIAL, primary_key=True, autoincrement=True),
        sa.Column("webhook_id", sa.String(), nullable=False, unique=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("events", sa.String(), nullable=False),
        sa.Column("secret", sa.String(), nullable=False),
        sa.Column("suspended_at", sa.BigInteger()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("after_seq", sa.BigInteger(), nullable=False),
        sa.Column("num_failed", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("next_attempt_ms", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("last_delivered_at", sa.BigInteger()),
        sa.Column("last_error", sa.String(), nullable=False, server_default=""),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    """Nobody is told any more."""
    op.drop_table("webhooks")

"""Sums of ledger rows that were folded, and signed checkpoints of the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_SCOPES = ("key_id", "model", "user_id", "team_id", "end_user", "endpoint")
_SUMS = (
    *("num_requests", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
    "cost_micros",
)


def upgrade() -> None:
    """Nothing of before changes."""
    op.create_table(
        "ledger_hours",
        sa.Column("hour", sa.Integer(), primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.String(), primary_key=True) for name in _SCOPES),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _SUMS),
    )
    op.create_table(
        "ledger_fold",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("last_lease_id", sa.String(), nullable=False),
        sa.CheckConstraint("id = 1", name="ledger_fold_is_one_row"),
    )
    op.create_table(
        "audit_checkpoints",
        sa.Column("seq", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("key_name", sa.String(), nullable=False),
        sa.Column("signature", sa.LargeBinary(32), nullable=False),
    )


def downgrade() -> None:
    """What was folded stays in the totals of keys and days; its sums by hour are lost.

    A log whose beginning was cut off will not hold for an older release, which knows no cuts.
    """
    for table in ("audit_checkpoints", "ledger_fold", "ledger_hours"):
        op.drop_table(table)

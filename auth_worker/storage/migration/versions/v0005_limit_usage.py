"""What counts in limits and budgets, and what requests cost."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_TEXTS = {
    "ledger": ("user_id", "team_id", "end_user", "endpoint", "price_id", "charges"),
    "leases": ("endpoint", "end_user", "user_id", "team_id"),
}


def upgrade() -> None:
    """Bookings say for whom and at which price; counters of limits are rows."""
    for table, names in _TEXTS.items():
        for name in names:
            op.add_column(table, sa.Column(name, sa.String(), nullable=False, server_default=""))
    cost = sa.Column("cost_micros", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("ledger", cost)
    version = sa.Column("price_version", sa.Integer(), nullable=False, server_default="0")
    op.add_column("ledger", version)
    op.create_table(
        "limit_usage",
        sa.Column("counter_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("limit_id", sa.String(), nullable=False),
        sa.Column("end_user", sa.String(), nullable=False),
        sa.Column("begins_at", sa.BigInteger(), nullable=False),
        sa.Column("granted", sa.BigInteger(), nullable=False),
        sa.Column("carried", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
    )
    op.create_index("limit_usage_by_limit", "limit_usage", ["limit_id"])


def downgrade() -> None:
    """Counts and costs are forgotten; keys that a hard limit bounds were revoked further back."""
    op.drop_table("limit_usage")
    for table, names in _TEXTS.items():
        for name in names:
            op.drop_column(table, name)
    for name in ("cost_micros", "price_version"):
        op.drop_column("ledger", name)

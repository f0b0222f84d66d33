"""Totals by hour, for whom and at what cost."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_COUNTS = (
    *("num_requests", "prompt_tokens", "completion_tokens"),
    *("cached_tokens", "reasoning_tokens"),
)

_TO_HOURS = """
INSERT INTO usage_by_hour (
    key_id, hour, model, endpoint, end_user, user_id, team_id, num_requests, prompt_tokens,
    completion_tokens, cached_tokens, reasoning_tokens, cost_micros
)
SELECT
    key_id, day * 24, model, '', '', '', '', num_requests, prompt_tokens, completion_tokens,
    cached_tokens, reasoning_tokens, 0
FROM usage_totals
"""
_TO_DAYS = """
INSERT INTO usage_totals (
    key_id, model, day, num_requests, prompt_tokens, completion_tokens, cached_tokens,
    reasoning_tokens
)
SELECT
    key_id, model, hour / 24, SUM(num_requests), SUM(prompt_tokens), SUM(completion_tokens),
    SUM(cached_tokens), SUM(reasoning_tokens)
FROM usage_by_hour GROUP BY key_id, model, hour / 24
"""


def _counts() -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger(), nullable=False) for name in _COUNTS]


def upgrade() -> None:
    """What was counted by day stands in the day's first hour from now on."""
    texts = ("model", "endpoint", "end_user", "user_id", "team_id")
    op.create_table(
        "usage_by_hour",
        sa.Column("key_id", sa.String(), primary_key=True),
        sa.Column("hour", sa.Integer(), primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.String(), primary_key=True) for name in texts),
        *_counts(),
        sa.Column("cost_micros", sa.BigInteger(), nullable=False),
    )
    op.create_index("usage_by_time", "usage_by_hour", ["hour"])
    op.create_index("usage_by_user", "usage_by_hour", ["user_id", "hour"])
    op.create_index("usage_by_team", "usage_by_hour", ["team_id", "hour"])
    op.execute(_TO_HOURS)
    op.drop_table("usage_totals")
    cost = sa.Column("total_cost_micros", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("keys", cost)


def downgrade() -> None:
    """Days by key and model again; who else it was for, and what it cost, is forgotten."""
    op.create_table(
        "usage_totals",
        sa.Column("key_id", sa.String(), primary_key=True),
        sa.Column("model", sa.String(), primary_key=True),
        sa.Column("day", sa.Integer(), primary_key=True, autoincrement=False),
        *_counts(),
    )
    op.execute(_TO_DAYS)
    op.drop_table("usage_by_hour")
    op.drop_column("keys", "total_cost_micros")

"""Totals of keys and hours are written behind the ledger."""

import json
from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_SUMMED = (
    *("num_requests", "prompt_tokens", "completion_tokens", "cached_tokens"),
    *("reasoning_tokens", "cost_micros"),
)
_HOUR = ("key_id", "hour", "model", "endpoint", "end_user", "user_id", "team_id")


def upgrade() -> None:
    """A table of sums that wait to be added to the totals."""
    op.create_table(
        "pending_sums",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("sums", sa.String(), nullable=False),
    )


def downgrade() -> None:
    """Add to the totals what waits."""
    connection = op.get_bind()
    hours = sa.table("usage_by_hour", *(sa.column(name) for name in (*_HOUR, *_SUMMED)))
    for hour, amounts, used_at_ms in _waiting(connection):
        of_hour = sa.and_(*(hours.c[name] == value for name, value in hour.items()))
        grown = {name: hours.c[name] + amount for name, amount in amounts.items()}
        if not connection.execute(sa.update(hours).where(of_hour).values(grown)).rowcount:
            connection.execute(sa.insert(hours).values(**hour, **amounts))
        connection.execute(
            sa.text(
                "UPDATE keys SET total_requests = total_requests + :num_requests,"
                " total_prompt_tokens = total_prompt_tokens + :prompt_tokens,"
                " total_completion_tokens = total_completion_tokens + :completion_tokens,"
                " total_cost_micros = total_cost_micros + :cost_micros,"
                " last_used_at = CASE WHEN last_used_at IS NULL OR last_used_at < :used_at"
                " THEN :used_at ELSE last_used_at END WHERE key_id = :key_id"
            ),
            {
                **{name: amounts[name] for name in _SUMMED if name[0] not in "r"},
                "used_at": used_at_ms // 1000,
                "key_id": hour["key_id"],
            },
        )
    op.drop_table("pending_sums")


def _waiting(
    connection: sa.Connection,
) -> Iterator[tuple[dict[str, str | int], dict[str, int], int]]:
    """Of each hour and key its sums and the last use."""
    rows = sa.table("pending_sums", sa.column("sums"))
    for text in connection.execute(sa.select(rows.c.sums)).scalars().all():
        for line in json.loads(text):
            hour = dict(zip(_HOUR, line, strict=False))
            yield hour, dict(zip(_SUMMED, line[len(_HOUR) :], strict=False)), line[-1]

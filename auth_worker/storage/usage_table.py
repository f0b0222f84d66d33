"""Sums over the totals by hour: by time and by whom, what and how, in pages."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Connection, Row, func, literal, select

from auth_worker.records.operations import ReadUsageRows, UsagePage
from auth_worker.storage import schema
from protocol.wire.messages import UsageBucket, UsageGroup, UsageRow

_HOUR_S: Final = 3600
_columns = schema.usage_by_hour.c
_GROUPS: Final[dict[UsageGroup, Column[Any]]] = {
    "key": _columns.key_id,
    "user": _columns.user_id,
    "team": _columns.team_id,
    "end_user": _columns.end_user,
    "model": _columns.model,
    "endpoint": _columns.endpoint,
}
_BEGINS: Final[dict[UsageBucket, ColumnElement[Any]]] = {
    "hour": _columns.hour,
    "day": _columns.hour - _columns.hour % 24,
    "": literal(0),
}
"""The first hour of the bucket that an hour lies in."""
_SUMS: Final = (
    *("num_requests", "prompt_tokens", "completion_tokens"),
    *("cached_tokens", "reasoning_tokens", "cost_micros"),
)


def read_usage(connection: Connection, wanted: ReadUsageRows) -> UsagePage:
    """The rows that fit, in the order of time and then of what they are grouped by."""
    groups = [_GROUPS[name] for name in wanted.group_by]
    # As a column of a subquery: PostgreSQL doesn't group by an expression with parameters.
    begin = _BEGINS[wanted.bucket].label("begin")
    totals = [_columns[name].label(name) for name in _SUMS]
    hits = select(begin, *groups, *totals).where(*_conditions(wanted)).subquery()
    by = [hits.c.begin, *(hits.c[group.name] for group in groups)]
    sums = [func.coalesce(func.sum(hits.c[name]), 0).label(name) for name in _SUMS]
    statement = (
        select(*by, *sums).group_by(*by).order_by(*by).offset(wanted.skip).limit(wanted.limit + 1)
    )
    rows = connection.execute(statement).all()
    names = [group.name for group in groups]
    return UsagePage(
        tuple(_usage_row(row, names) for row in rows[: wanted.limit]),
        has_more=len(rows) > wanted.limit,
    )


def _usage_row(row: Row[Any], names: Sequence[str]) -> UsageRow:
    fields: dict[str, Any] = {name: getattr(row, name) for name in names}
    # Sums of PostgreSQL are decimals.
    fields |= {name: int(getattr(row, name)) for name in _SUMS}
    return UsageRow(begins_at=row.begin * _HOUR_S, **fields)


def _conditions(wanted: ReadUsageRows) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [
        _columns.hour >= wanted.since_s // _HOUR_S,
        _columns.hour < -(-wanted.until_s // _HOUR_S),
    ]
    for name in ("key_id", "user_id", "team_id", "end_user", "model"):
        value = getattr(wanted, name)
        if value:
            conditions.append(_columns[name] == value)
    return conditions

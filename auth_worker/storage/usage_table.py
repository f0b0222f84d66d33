"""Sums over the totals by hour, or of minutes over the ledger: by time and by whom, in pages."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    func,
    literal,
    select,
)

from auth_worker.records.operations import ReadUsageRows, UsagePage
from auth_worker.storage import schema
from protocol.wire.messages import UsageBucket, UsageGroup, UsageRow

_HOUR_S: Final = 3600
_MINUTE_S: Final = 60
_GROUPS: Final[dict[UsageGroup, str]] = {
    "key": "key_id",
    "user": "user_id",
    "team": "team_id",
    "end_user": "end_user",
    "model": "model",
    "endpoint": "endpoint",
}
_HOUR: Final = schema.usage_by_hour.c.hour
_HOURS: Final = select(
    schema.usage_by_hour, (_HOUR - _HOUR % 24).label("day"), literal(0).label("ever")
).subquery()
_HOUR_OF_ALL: Final = _HOURS.c.hour
_LINE: Final = schema.ledger.c
_BEGIN: Final[dict[UsageBucket, str]] = {"hour": "hour", "day": "day", "": "ever"}
"""Which column says in which bucket a row lies: the number of its first hour."""
_SUMS: Final = (
    *("num_requests", "prompt_tokens", "completion_tokens"),
    *("cached_tokens", "reasoning_tokens", "cost_micros"),
)


def read_usage(connection: Connection, wanted: ReadUsageRows) -> UsagePage:
    """The rows that fit, in the order of time and then of what they are grouped by.

    Of hours, days or all time; see `read_minutes`.
    """
    fits = (
        wanted.since_s // _HOUR_S <= _HOUR_OF_ALL,
        -(-wanted.until_s // _HOUR_S) > _HOUR_OF_ALL,
    )
    return _page(connection, wanted, _HOURS, _BEGIN[wanted.bucket], fits, _HOUR_S)


def read_minutes(connection: Connection, wanted: ReadUsageRows) -> UsagePage:
    """The rows of minutes that fit, in the same order.

    It reads every line of the ledger of that time, which may be millions: never in a transaction
    that others wait for.
    """
    return _page(connection, wanted, _minutes(wanted), "minute", (), _MINUTE_S)


def _page(
    connection: Connection,
    wanted: ReadUsageRows,
    hits: FromClause,
    begin: str,
    fits: Sequence[ColumnElement[bool]],
    seconds: int,
) -> UsagePage:
    names = [_GROUPS[name] for name in wanted.group_by]
    # Of columns of a subquery: PostgreSQL doesn't group by an expression with parameters.
    by = [hits.c[begin].label("begin"), *(hits.c[name] for name in names)]
    sums = [func.coalesce(func.sum(hits.c[name]), 0).label(name) for name in _SUMS]
    statement = (
        select(*by, *sums)
        .where(*fits, *_conditions(hits, wanted))
        .group_by(*by)
        .order_by(*by)
        .offset(wanted.skip)
        .limit(wanted.limit + 1)
    )
    rows = connection.execute(statement).all()
    return UsagePage(
        tuple(_usage_row(row, names, seconds) for row in rows[: wanted.limit]),
        has_more=len(rows) > wanted.limit,
    )


def _minutes(wanted: ReadUsageRows) -> FromClause:
    """The lines of the ledger of a time, as they would be in a table by minute."""
    return (
        select(
            (_LINE.settled_at_ms // (_MINUTE_S * 1000)).label("minute"),
            *(_LINE[name] for name in (*_GROUPS.values(), *_SUMS[1:])),
            literal(1).label("num_requests"),
        )
        .where(
            _LINE.settled_at_ms >= wanted.since_s // _MINUTE_S * _MINUTE_S * 1000,
            _LINE.settled_at_ms < -(-wanted.until_s // _MINUTE_S) * _MINUTE_S * 1000,
            _LINE.outcome != "unused",
        )
        .subquery()
    )


def _usage_row(row: Row[Any], names: Sequence[str], seconds: int) -> UsageRow:
    fields: dict[str, Any] = {name: getattr(row, name) for name in names}
    # Sums of PostgreSQL are decimals.
    fields |= {name: int(getattr(row, name)) for name in _SUMS}
    return UsageRow(begins_at=int(row.begin) * seconds, **fields)


def _conditions(hits: FromClause, wanted: ReadUsageRows) -> list[ColumnElement[bool]]:
    names = ("key_id", "user_id", "team_id", "end_user", "model")
    return [hits.c[name] == value for name in names if (value := getattr(wanted, name))]

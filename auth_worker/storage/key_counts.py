"""Counts over all keys: by role and status, and histograms of how they are used."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    and_,
    case,
    func,
    literal,
    or_,
    select,
)

from auth_worker.records.operations import KeyCounts
from auth_worker.storage import schema
from auth_worker.storage.key_table import status_conditions

_DAY_S: Final = 86_400
_AGES: Final = (
    ("hour", 3600),
    ("day", _DAY_S),
    ("week", 7 * _DAY_S),
    ("month", 30 * _DAY_S),
    ("year", 365 * _DAY_S),
)
"""Buckets of times: within the last (or next) hour, day and so on, each key in the first."""
_AMOUNTS: Final = tuple((f"up_to_{10**power}", 10**power) for power in (1, 3, 5, 7, 9))

_Bucket = tuple[ColumnElement[bool], ColumnElement[str]]

_columns = schema.keys.c


def count_keys(connection: Connection, wall_s: float) -> KeyCounts:
    """The counts of one moment."""
    now = int(wall_s)
    is_of = status_conditions(wall_s)
    status = case(*((condition, literal(name)) for name, condition in is_of.items()))
    tokens = _columns.total_prompt_tokens + _columns.total_completion_tokens
    sums = connection.execute(
        select(
            func.count(),
            func.coalesce(func.sum(_columns.total_requests), 0),
            func.coalesce(func.sum(_columns.total_prompt_tokens), 0),
            func.coalesce(func.sum(_columns.total_completion_tokens), 0),
        ).select_from(schema.keys)
    ).one()
    num_entries = connection.execute(select(func.max(schema.audit_log.c.seq))).scalar_one()
    return KeyCounts(
        num_keys=sums[0],
        by_role=_group(connection, _columns.role, ("admin", "service", "user", "readonly")),
        by_status=_group(connection, status, tuple(is_of)),
        histograms={
            "last_used": _by_time(connection, _columns.last_used_at, now, "never"),
            "created": _by_time(connection, _columns.created_at, now, "never"),
            "expires_in": _by_time(connection, _columns.expires_at, now, "never", sign=-1),
            "requests": _by_amount(connection, _columns.total_requests),
            "tokens": _by_amount(connection, tokens),
        },
        # PostgreSQL's sums are decimals.
        total_requests=int(sums[1]),
        total_prompt_tokens=int(sums[2]),
        total_completion_tokens=int(sums[3]),
        num_audit_entries=num_entries or 0,
        num_closed=_num_closed(connection, is_of["active"]),
    )


def _num_closed(connection: Connection, is_active: ColumnElement[bool]) -> int:
    """Keys that are active, but for their user or team; see `StoredKey.closed_by`."""
    users, teams, members = schema.users.c, schema.teams.c, schema.team_members.c
    has_user, has_team = _columns.user_id != "", _columns.team_id != ""
    is_theirs = and_(members.team_id == _columns.team_id, members.user_id == _columns.user_id)
    keys_of_people = (
        schema.keys.outerjoin(schema.users, users.user_id == _columns.user_id)
        .outerjoin(schema.teams, teams.team_id == _columns.team_id)
        .outerjoin(schema.team_members, is_theirs)
    )
    is_closed = or_(
        and_(has_user, or_(users.user_id.is_(None), users.suspended_at.is_not(None))),
        and_(has_team, or_(teams.team_id.is_(None), teams.suspended_at.is_not(None))),
        and_(has_user, has_team, members.user_id.is_(None)),
    )
    counted = select(func.count()).select_from(keys_of_people).where(is_active, is_closed)
    return connection.execute(counted).scalar_one()


def _by_time(
    connection: Connection, column: Column[Any], now: int, if_null: str, sign: int = 1
) -> dict[str, int]:
    """By how long ago, or with sign -1 in how long; times that are past then count as `past`."""
    distance = (now - column) * sign
    buckets: list[_Bucket] = [(column.is_(None), literal(if_null))]
    if sign < 0:
        buckets.append((distance <= 0, literal("past")))
    buckets += [(distance <= bound, literal(name)) for name, bound in _AGES]
    names = [if_null, *(("past",) if sign < 0 else ()), *(name for name, _ in _AGES), "longer"]
    return _group(connection, case(*buckets, else_=literal("longer")), names)


def _by_amount(connection: Connection, amount: ColumnElement[Any]) -> dict[str, int]:
    buckets: list[_Bucket] = [(amount == 0, literal("none"))]
    buckets += [(amount <= bound, literal(name)) for name, bound in _AMOUNTS]
    names = ["none", *(name for name, _ in _AMOUNTS), "more"]
    return _group(connection, case(*buckets, else_=literal("more")), names)


def _group(
    connection: Connection, expression: ColumnElement[Any], names: Sequence[str]
) -> dict[str, int]:
    # Grouped by its name: PostgreSQL takes no two parameters of one value for the same.
    buckets = select(expression.label("bucket")).select_from(schema.keys).subquery()
    bucket = buckets.c.bucket
    rows = connection.execute(select(bucket, func.count()).group_by(bucket))
    found = {str(name): int(number) for name, number in rows}
    return {name: found.get(name, 0) for name in names}

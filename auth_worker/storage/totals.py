"""The totals of keys and of hours, and when a key was used last."""

from collections.abc import Sequence

from sqlalchemy import Connection, Executable, delete

from auth_worker.records.operations import TouchKey
from auth_worker.storage import schema
from auth_worker.storage.bulk import BulkStatement, insert_rows, update_rows
from auth_worker.storage.pending_sums import Sums

_hours = schema.usage_by_hour.c


def touch_keys(connection: Connection, touches: Sequence[TouchKey]) -> None:
    """Move the keys' last use forward."""
    latest: dict[str, int] = {}
    for touch in touches:
        latest[touch.key_id] = max(touch.used_at, latest.get(touch.key_id, 0))
    _TOUCH_KEYS.execute(connection, list(latest.items()))


def add_to_totals(connection: Connection, sums: Sums) -> None:
    """Add sums of settlements; a key that was deleted has no totals any more.

    Their names are as the database keeps them.
    """
    by_key: dict[str, list[int]] = {}
    for (key_id, *_), total in sums.items():
        of_key = by_key.setdefault(key_id, [0, 0, 0, 0, 0])
        for index in range(3):
            of_key[index] += total[index]
        of_key[3] += total[5]
        of_key[4] = max(of_key[4], total[6] // 1000)
    _ADD_TO_KEYS.execute(connection, [(key_id, *counts) for key_id, counts in by_key.items()])
    _ADD_TO_HOURS.execute(connection, [(*hour_key, *total[:6]) for hour_key, total in sums.items()])
    taken_back = {key_id for (key_id, *_), total in sums.items() if total[0] <= 0}
    if taken_back:
        # What was unused, or booked for another model in the end, leaves no row of nothing behind.
        nothing = [_hours[name] == 0 for name in _COUNTED]
        connection.execute(
            delete(schema.usage_by_hour).where(_hours.key_id.in_(taken_back), *nothing)
        )


def _later_use(value: str) -> str:
    is_later = f"keys.last_used_at IS NULL OR keys.last_used_at < {value}"
    return f"last_used_at = CASE WHEN {is_later} THEN {value} ELSE keys.last_used_at END"


def _add_to_hours(dialect: str, num_rows: int) -> Executable:
    statement = insert_rows(dialect, schema.usage_by_hour, num_rows)
    return statement.on_conflict_do_update(
        index_elements=list(schema.usage_by_hour.primary_key),
        set_={name: _hours[name] + statement.excluded[name] for name in _COUNTED},
    )


_COUNTED = (
    "num_requests",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "cost_micros",
)

_ADD_TO_HOURS = BulkStatement(_add_to_hours)
_TOUCH_KEYS = BulkStatement(update_rows("keys", _later_use("v.column2"), "key_id", 2))
_ADD_TO_KEYS = BulkStatement(
    update_rows(
        "keys",
        "total_requests = keys.total_requests + v.column2,"
        " total_prompt_tokens = keys.total_prompt_tokens + v.column3,"
        " total_completion_tokens = keys.total_completion_tokens + v.column4,"
        f" total_cost_micros = keys.total_cost_micros + v.column5, {_later_use('v.column6')}",
        "key_id",
        6,
    )
)

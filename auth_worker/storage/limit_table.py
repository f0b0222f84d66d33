"""The counters of limits: opened, given slices, moved by bookings, forgotten."""

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import BindParameter, Connection, Executable, bindparam, delete, select

from auth_worker.records.limit_usage import CounterRow, DropCounters, SaveCounter
from auth_worker.records.operations import Operation
from auth_worker.storage import schema
from auth_worker.storage.bulk import BulkStatement, insert_rows, update_rows

_counters = schema.limit_usage.c


def load_counters(connection: Connection) -> tuple[CounterRow, ...]:
    """All counters."""
    return tuple(CounterRow(*row) for row in connection.execute(select(schema.limit_usage)))


def save_counters(connection: Connection, operations: Sequence[Operation]) -> None:
    """Open counters and move the slices of those that are open; then forget others.

    Of a counter that was both opened and dropped in one group nothing is left.
    """
    saved = {item.row.counter_id: item.row for item in operations if isinstance(item, SaveCounter)}
    _SAVE_COUNTERS.execute(connection, list(saved.values()))
    dropped = {
        counter_id
        for item in operations
        if isinstance(item, DropCounters)
        for counter_id in item.counter_ids
    }
    _DROP_COUNTERS.execute(connection, [(counter_id,) for counter_id in sorted(dropped)])


def count_use(connection: Connection, changes: Mapping[int, int]) -> None:
    """Move counters by what was booked; those that were dropped stay so."""
    _COUNT_USE.execute(connection, [change for change in changes.items() if change[1]])


def add_changes(changes: dict[int, int], more: Iterable[tuple[int, int]], sign: int = 1) -> None:
    """Add up what bookings change, or take it back with sign -1."""
    for counter_id, amount in more:
        changes[counter_id] = changes.get(counter_id, 0) + sign * amount


def _save_counters(dialect: str, num_rows: int) -> Executable:
    statement = insert_rows(dialect, schema.limit_usage, num_rows)
    return statement.on_conflict_do_update(
        index_elements=[_counters.counter_id],
        set_={"granted": statement.excluded["granted"]},
    )


def _drop_counters(_dialect: str, num_rows: int) -> Executable:
    counter_ids: list[BindParameter[int]] = [
        bindparam(f"counter_id_{row}") for row in range(num_rows)
    ]
    return delete(schema.limit_usage).where(_counters.counter_id.in_(counter_ids))


_SAVE_COUNTERS = BulkStatement(_save_counters)
_DROP_COUNTERS = BulkStatement(_drop_counters)
_COUNT_USE = BulkStatement(update_rows("limit_usage", "used = used + v.column2", "counter_id", 2))

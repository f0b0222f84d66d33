"""Books settlements: one ledger row a lease, totals a key, model and day, and the leases' end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from operator import attrgetter
from typing import Any

from sqlalchemy import BindParameter, Connection, bindparam, case, delete, select, update
from sqlalchemy.dialects.sqlite import insert

from auth_worker import schema
from auth_worker.operations import BookUsage, LeaseRow, TouchKey

SECONDS_A_DAY = 86_400
_MAX_IDS_A_QUERY = 500

_ledger = schema.ledger.c
_keys = schema.keys.c
_totals = schema.usage_totals.c


@dataclass(slots=True)
class _Sum:
    """What a group of settlements adds to one total."""

    num_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    used_at: int = 0

    def add(self, booking: BookUsage, sign: int = 1) -> None:
        self.num_requests += sign
        self.prompt_tokens += sign * booking.prompt_tokens
        self.completion_tokens += sign * booking.completion_tokens
        self.cached_tokens += sign * booking.cached_tokens
        self.reasoning_tokens += sign * booking.reasoning_tokens
        self.used_at = max(self.used_at, booking.settled_at_ms // 1000)


def save_leases(
    connection: Connection, rows: Iterable[LeaseRow], bookings: Iterable[BookUsage]
) -> None:
    """Remember leases as last given, but for those whose booking stands in the same group."""
    newest = {row.lease_id: row for row in rows}
    for booking in bookings:
        newest.pop(booking.lease_id, None)
    if not newest:
        return
    statement = insert(schema.leases)
    changing = (
        "prompt_tokens",
        "completion_tokens",
        "reported_prompt_tokens",
        "reported_completion_tokens",
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[schema.leases.c.lease_id],
            set_={name: statement.excluded[name] for name in changing},
        ),
        [_lease_values(row) for row in newest.values()],
    )


def touch_keys(connection: Connection, touches: Sequence[TouchKey]) -> None:
    """Move the keys' last use forward."""
    if touches:
        connection.execute(
            update(schema.keys)
            .where(_keys.key_id == bindparam("of_key"))
            .values(last_used_at=_later_use()),
            [{"of_key": touch.key_id, "used_at": touch.used_at} for touch in touches],
        )


def book_usage(connection: Connection, bookings: Sequence[BookUsage]) -> None:
    """Book a group of settlements, each lease once.

    The first booking of a lease counts and later ones change nothing; only an `expired` one, which
    is the last report of a lease that nobody settled, gives way to the settlement that comes late,
    or to a greater count that an engine reports late. An `unused` one counts in no total.
    It keeps its key, model and day, so that the totals stay the sums of the ledger.
    """
    if not bookings:
        return
    booked = _booked_before(connection, [booking.lease_id for booking in bookings])
    to_insert: dict[str, BookUsage] = {}
    to_update: dict[str, BookUsage] = {}
    by_key: dict[str, _Sum] = {}
    by_day: dict[tuple[str, str, int], _Sum] = {}

    def count(booking: BookUsage, sign: int) -> None:
        if booking.outcome == "unused":
            return
        day = booking.settled_at_ms // 1000 // SECONDS_A_DAY
        by_key.setdefault(booking.key_id, _Sum()).add(booking, sign)
        by_day.setdefault((booking.key_id, booking.model, day), _Sum()).add(booking, sign)

    for booking in bookings:
        before = booked.get(booking.lease_id)
        if before is None:
            to_insert[booking.lease_id] = booked[booking.lease_id] = booking
            count(booking, 1)
        elif before.outcome == "expired" and (
            booking.outcome != "expired" or _num_tokens(booking) > _num_tokens(before)
        ):
            corrected = replace(
                booking,
                key_id=before.key_id,
                model=before.model,
                granted_at_ms=before.granted_at_ms,
                settled_at_ms=before.settled_at_ms,
            )
            target = to_insert if booking.lease_id in to_insert else to_update
            target[booking.lease_id] = booked[booking.lease_id] = corrected
            count(before, -1)
            count(corrected, 1)
    if to_insert:
        rows = [_booking_values(booking) for booking in to_insert.values()]
        connection.execute(insert(schema.ledger), rows)
    if to_update:
        _correct_ledger(connection, to_update.values())
    if by_key:
        _add_to_keys(connection, by_key)
        _add_to_days(connection, by_day)
    for some in _batches([booking.lease_id for booking in bookings]):
        connection.execute(delete(schema.leases).where(schema.leases.c.lease_id.in_(some)))


def _num_tokens(booking: BookUsage) -> int:
    return booking.prompt_tokens + booking.completion_tokens


def _booked_before(connection: Connection, lease_ids: Sequence[str]) -> dict[str, BookUsage]:
    booked: dict[str, BookUsage] = {}
    for some in _batches(lease_ids):
        found = select(schema.ledger).where(_ledger.lease_id.in_(some))
        for row in connection.execute(found):
            booked[row.lease_id] = BookUsage(**row._mapping)
    return booked


def _correct_ledger(connection: Connection, bookings: Iterable[BookUsage]) -> None:
    rows = [{"of_lease": item.lease_id, **_booking_values(item)} for item in bookings]
    connection.execute(update(schema.ledger).where(_ledger.lease_id == bindparam("of_lease")), rows)


def _add_to_keys(connection: Connection, sums: dict[str, _Sum]) -> None:
    connection.execute(
        update(schema.keys)
        .where(_keys.key_id == bindparam("of_key"))
        .values(
            total_requests=_keys.total_requests + bindparam("more_requests"),
            total_prompt_tokens=_keys.total_prompt_tokens + bindparam("more_prompt"),
            total_completion_tokens=_keys.total_completion_tokens + bindparam("more_completion"),
            last_used_at=_later_use(),
        ),
        [
            {
                "of_key": key_id,
                "more_requests": total.num_requests,
                "more_prompt": total.prompt_tokens,
                "more_completion": total.completion_tokens,
                "used_at": total.used_at,
            }
            for key_id, total in sums.items()
        ],
    )


def _add_to_days(connection: Connection, sums: dict[tuple[str, str, int], _Sum]) -> None:
    statement = insert(schema.usage_totals)
    counted = (
        "num_requests",
        "prompt_tokens",
        "completion_tokens",
        "cached_tokens",
        "reasoning_tokens",
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[_totals.key_id, _totals.model, _totals.day],
            set_={name: _totals[name] + statement.excluded[name] for name in counted},
        ),
        [
            {
                "key_id": key_id,
                "model": model,
                "day": day,
                **{name: getattr(total, name) for name in counted},
            }
            for (key_id, model, day), total in sums.items()
        ],
    )


def _values_of(kind: type[LeaseRow] | type[BookUsage]) -> Callable[[object], dict[str, Any]]:
    """Turns flat dataclasses of a kind into rows; `asdict` copies deeply and costs ten times it."""
    names = [field.name for field in fields(kind)]
    get = attrgetter(*names)
    return lambda value: dict(zip(names, get(value), strict=True))


_lease_values = _values_of(LeaseRow)
_booking_values = _values_of(BookUsage)


def _later_use() -> Any:
    used_at: BindParameter[int] = bindparam("used_at")
    is_later = _keys.last_used_at.is_(None) | (_keys.last_used_at < used_at)
    return case((is_later, used_at), else_=_keys.last_used_at)


def _batches(lease_ids: Sequence[str]) -> Iterator[list[str]]:
    iterator = iter(lease_ids)
    while some := list(islice(iterator, _MAX_IDS_A_QUERY)):
        yield some

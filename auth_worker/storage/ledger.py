"""Writes bookings: one ledger row a lease, and the leases' end."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    Connection,
    Executable,
    bindparam,
    delete,
    select,
    update,
)

from auth_worker.principals.prices import Price, PriceTable, cost
from auth_worker.records.lease_names import LeaseName
from auth_worker.records.limit_usage import Booked, amounts_by, amounts_of
from auth_worker.records.operations import BookUsage, LeaseRow
from auth_worker.records.settled_money import Replaced, has_price, row_digest
from auth_worker.records.stored_names import storable, stored_name
from auth_worker.storage import schema
from auth_worker.storage.bulk import BulkStatement, insert_rows, run
from auth_worker.storage.limit_table import add_changes, count_use
from auth_worker.storage.pending_sums import Sums, add_total

_MAX_IDS_A_QUERY = 500

Charged = dict[str, list[int]]
"""Requests, prompt and completion tokens and money of the bookings that count in the same."""

_ledger = schema.ledger.c


def save_leases(connection: Connection, rows: Iterable[LeaseRow]) -> None:
    """Remember leases, each once."""
    _SAVE_LEASES.execute(connection, list(rows))


def forget_leases(connection: Connection, lease_ids: Iterable[str]) -> None:
    """Forget leases that were saved."""
    _FORGET_LEASES.execute(connection, [(lease_id,) for lease_id in lease_ids])


class NotAllNewError(Exception):
    """A group that was taken for first bookings holds others: write it once more, carefully."""


class Written(NamedTuple):
    """What a group of bookings came to.

    Attributes:
        sums: What the totals are to grow by.
        later: By the index of each booking that wasn't the first of its lease: what it changed.
        money: The rows with a price, as they stand in the ledger now.
        replaced: What was there before in place of some of them.
    """

    sums: Sums
    later: Mapping[int, Booked] = {}
    money: Sequence[BookUsage] = ()
    replaced: Sequence[Replaced] = ()


def book_usage(
    connection: Connection,
    bookings: Sequence[BookUsage],
    *,
    folded_up_to: str = "",
    saved_leases: Set[str] = frozenset(),
    audit_seq: int = 0,
    prices: Callable[[], PriceTable] = PriceTable,
    may_repeat: bool = True,
) -> Written:
    """Write a group of bookings, each lease once, and move the counters of limits by them.

    The first booking of a lease counts and later ones change nothing; only an `expired` one, which
    is the last report of a lease that nobody settled, gives way to the settlement that comes late,
    or to a greater count that an engine reports late. An `unused` one counts in no total.
    It keeps its key, hour and limits, so that the totals stay the sums of the ledger.

    Args:
        connection: In the transaction.
        bookings: In order.
        folded_up_to: The greatest lease id whose row was folded. A booking of one that is not
            greater, not in the ledger and not open was counted long ago, and changes nothing.
        saved_leases: Those that are open, as far as they were saved.
        audit_seq: Of the entry of the audit log that will cover the rows with a price.
        prices: All of them; a row that is corrected is priced as of its grant.
        may_repeat: Some may not be the first of their leases. Without that, which nearly all groups
            are, no savepoint is needed.

    Raises:
        NotAllNewError: One wasn't, although `may_repeat` is False: the transaction is of no use.
    """
    if not bookings:
        return Written({})
    sums: Sums = {}
    charged: Charged = {}
    good: set[tuple[str, str, str]] = set()
    bookings = [_with_stored_names(booking, good) for booking in bookings]
    folded: set[str] = set()
    if folded_up_to >= min(booking.lease_id for booking in bookings):  # ids grow: seldom
        folded = {
            booking.lease_id
            for booking in bookings
            if booking.lease_id <= folded_up_to and booking.lease_id not in saved_leases
        }
    money = [booking for booking in bookings if has_price(booking)]
    rows = _rows(bookings, audit_seq if money else 0)
    if not folded and not may_repeat:
        if _INSERT_BOOKINGS.execute(connection, rows) != len(rows):
            raise NotAllNewError
        is_done = True
    else:
        is_done = not folded and _insert_if_all_are_new(connection, rows)
    if is_done:
        _count(bookings, sums, charged)
        written = Written(sums, money=money)
    else:
        bookings = [BookUsage._make(row) for row in rows]
        written = _book_one_by_one(connection, bookings, sums, charged, folded, audit_seq, prices)
    if charged:
        counters: dict[int, int] = {}
        for charges, used in charged.items():
            add_changes(counters, amounts_by(charges, *used))
        count_use(connection, counters)
    return written


def _with_stored_names(booking: BookUsage, good: set[tuple[str, str, str]]) -> BookUsage:
    """As the ledger keeps it, so that its sums have the same names on either database.

    Args:
        booking: Of a group.
        good: Names that were found to be so already, which are the same for most of a group.
    """
    names = (booking.model, booking.end_user, booking.endpoint)
    if names in good and "\0" not in booking.lease_id:
        return booking
    lease_id, model = storable(booking.lease_id), stored_name(booking.model)
    end_user, endpoint = stored_name(booking.end_user), stored_name(booking.endpoint)
    if (
        model is booking.model
        and end_user is booking.end_user
        and endpoint is booking.endpoint
        and lease_id == booking.lease_id
    ):
        good.add(names)
        return booking
    return booking._replace(lease_id=lease_id, model=model, end_user=end_user, endpoint=endpoint)


def _rows(bookings: Sequence[BookUsage], audit_seq: int) -> Sequence[tuple[Any, ...]]:
    """As they stand in the ledger, those with a price under the entry that covers them."""
    if not audit_seq:
        return bookings
    return [
        (*booking[:-1], audit_seq) if booking.price_id or booking.cost_micros else booking
        for booking in bookings
    ]


def _insert_if_all_are_new(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> bool:
    """Insert a group that holds no lease twice and none of before; otherwise do nothing."""
    run(connection, "SAVEPOINT new_bookings")
    are_new = _INSERT_BOOKINGS.execute(connection, rows) == len(rows)
    if not are_new:
        run(connection, "ROLLBACK TO new_bookings")
    run(connection, "RELEASE new_bookings")
    return are_new


def _book_one_by_one(
    connection: Connection,
    bookings: Sequence[BookUsage],
    sums: Sums,
    charged: Charged,
    folded: Set[str],
    audit_seq: int,
    prices: Callable[[], PriceTable],
) -> Written:
    booked = _booked_before(connection, [booking.lease_id for booking in bookings])
    to_insert: dict[str, BookUsage] = {}
    to_update: dict[str, BookUsage] = {}
    later: dict[int, Booked] = {}
    replaced: dict[str, Replaced] = {}
    for index, booking in enumerate(bookings):
        before = booked.get(booking.lease_id)
        if before is None and booking.lease_id in folded:
            later[index] = Booked(())
            continue
        if before is None:
            to_insert[booking.lease_id] = booked[booking.lease_id] = booking
            _count([booking], sums, charged)
            continue
        changes: dict[int, int] = {}
        more = (0, 0, 0)
        if before.outcome == "expired" and (
            booking.outcome != "expired" or _num_tokens(booking) > _num_tokens(before)
        ):
            corrected = booking._replace(
                key_id=before.key_id,
                model=booking.model or before.model,
                granted_at_ms=before.granted_at_ms,
                settled_at_ms=before.settled_at_ms,
                user_id=before.user_id,
                team_id=before.team_id,
                end_user=before.end_user,
                endpoint=before.endpoint,
                charges=before.charges,
            )
            corrected = _priced(corrected, before, prices)
            corrected = corrected._replace(audit_seq=audit_seq if has_price(corrected) else 0)
            if before.audit_seq not in (0, audit_seq):
                replaced[booking.lease_id] = Replaced(
                    before.audit_seq, booking.lease_id, row_digest(before), before.cost_micros
                )
            add_changes(changes, amounts_of(before), -1)
            add_changes(changes, amounts_of(corrected))
            more = (
                corrected.prompt_tokens - before.prompt_tokens,
                corrected.completion_tokens - before.completion_tokens,
                corrected.cost_micros - before.cost_micros,
            )
            target = to_insert if booking.lease_id in to_insert else to_update
            target[booking.lease_id] = booked[booking.lease_id] = corrected
            _count([before], sums, charged, -1)
            _count([corrected], sums, charged)
        later[index] = Booked(tuple(changes.items()), more)
    if to_insert:
        _INSERT_BOOKINGS.execute(connection, list(to_insert.values()))
    if to_update:
        _correct_ledger(connection, to_update.values())
    money = [booking for booking in (*to_insert.values(), *to_update.values()) if booking.audit_seq]
    return Written(sums, later, money, list(replaced.values()))


def _priced(corrected: BookUsage, before: BookUsage, prices: Callable[[], PriceTable]) -> BookUsage:
    """A corrected row at the price of its grant; it never costs less for want of a price.

    Whoever settles late may know neither when the lease was granted nor whose it was. A row without
    tokens may name no model: the lease still does.
    """
    if corrected.outcome == "unused":
        return corrected
    lease = LeaseName.parse(before.lease_id)
    is_same_model = corrected.model == (before.model or ("" if lease is None else lease.model))
    version = (before.price_id, before.price_version)
    if is_same_model and version == (corrected.price_id, corrected.price_version):
        return corrected
    price: Price | None = None
    if is_same_model and before.price_id:
        known = prices().versions(before.price_id)
        price = next((one for one in known if one.version == before.price_version), None)
    elif before.granted_at_ms is not None:
        price = prices().price_of(corrected.model, before.granted_at_ms)
    if price is not None:
        amount = cost(
            price,
            prompt_tokens=corrected.prompt_tokens,
            completion_tokens=corrected.completion_tokens,
            cached_tokens=corrected.cached_tokens,
            reasoning_tokens=corrected.reasoning_tokens,
            endpoint=corrected.endpoint,
            # A row doesn't say whether a worker began: without, it costs nothing at any price.
            has_begun=corrected.cost_micros > 0 or not has_price(corrected),
        )
        return corrected._replace(
            cost_micros=amount, price_id=price.price_id, price_version=price.version
        )
    if not has_price(corrected) and has_price(before):
        return corrected._replace(
            cost_micros=before.cost_micros,
            price_id=before.price_id,
            price_version=before.price_version,
        )
    return corrected


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
    rows = [{"of_lease": item.lease_id, **item._asdict()} for item in bookings]
    connection.execute(update(schema.ledger).where(_ledger.lease_id == bindparam("of_lease")), rows)


def _count(bookings: Iterable[BookUsage], sums: Sums, charged: Charged, sign: int = 1) -> None:
    """Count bookings, or take them back with sign -1; an unused one counts nowhere."""
    for booking in bookings:
        if booking.outcome == "unused":
            continue
        prompt, completion = booking.prompt_tokens, booking.completion_tokens
        cached, reasoning = booking.cached_tokens, booking.reasoning_tokens
        cost_micros, used_ms = booking.cost_micros, booking.settled_at_ms
        if sign != 1:
            prompt, completion, cost_micros = sign * prompt, sign * completion, sign * cost_micros
            cached, reasoning = sign * cached, sign * reasoning
        charges = booking.charges
        if charges:
            used = charged.get(charges)
            if used is None:
                used = charged[charges] = [0, 0, 0, 0]
            used[0] += sign
            used[1] += prompt
            used[2] += completion
            used[3] += cost_micros
        hour_key = (
            booking.key_id,
            used_ms // _MS_AN_HOUR,
            booking.model,
            booking.endpoint,
            booking.end_user,
            booking.user_id,
            booking.team_id,
        )
        counted = [sign, prompt, completion, cached, reasoning, cost_micros, used_ms]
        total = sums.setdefault(hour_key, counted)
        if total is not counted:
            add_total(total, counted)


def _save_leases(dialect: str, num_rows: int) -> Executable:
    statement = insert_rows(dialect, schema.leases, num_rows)
    return statement.on_conflict_do_update(
        index_elements=[schema.leases.c.lease_id],
        set_={name: statement.excluded[name] for name in _CHANGING},
    )


def _forget_leases(_dialect: str, num_rows: int) -> Executable:
    lease_ids: list[BindParameter[str]] = [bindparam(f"lease_id_{row}") for row in range(num_rows)]
    return delete(schema.leases).where(schema.leases.c.lease_id.in_(lease_ids))


_MS_AN_HOUR = 3_600_000
_CHANGING = (
    "prompt_tokens",
    "completion_tokens",
    "reported_prompt_tokens",
    "reported_completion_tokens",
)

_SAVE_LEASES = BulkStatement(_save_leases)
_FORGET_LEASES = BulkStatement(_forget_leases)
_INSERT_BOOKINGS = BulkStatement(
    lambda dialect, num_rows: insert_rows(dialect, schema.ledger, num_rows).on_conflict_do_nothing()
)


def _batches(lease_ids: Sequence[str]) -> Iterator[list[str]]:
    iterator = iter(lease_ids)
    while some := list(islice(iterator, _MAX_IDS_A_QUERY)):
        yield some

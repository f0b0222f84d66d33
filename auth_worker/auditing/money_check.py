"""Compares the ledger with what the audit log says of money."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, func, inspect, select

from auth_worker.records.operations import BookUsage
from auth_worker.records.settled_money import FOLDED, SETTLED, group_digest, row_digest
from auth_worker.storage import schema
from auth_worker.storage.reading import Reading

_log = schema.audit_log.c
_ledger = schema.ledger.c
_PAGE_ROWS = 2000


@dataclass(slots=True)
class CheckedMoney:
    """What came of comparing.

    Attributes:
        num_rows: Of the ledger, that an entry covers.
        num_entries: That were compared with rows.
        cost_micros: Of these rows.
        num_folded: Entries whose rows are gone, into sums.
        trouble: What is wrong with the first one that doesn't hold; None when all do.
    """

    num_rows: int = 0
    num_entries: int = 0
    cost_micros: int = 0
    num_folded: int = 0
    trouble: str | None = None

    @property
    def has_any(self) -> bool:
        """Whether there was anything to compare."""
        return bool(self.num_entries or self.num_folded or self.trouble)

    def __str__(self) -> str:
        if self.trouble is not None:
            return f"the ledger is not as the audit log says: {self.trouble}"
        folded = f"; {self.num_folded} more are of rows that were folded" if self.num_folded else ""
        return (
            f"{self.num_rows} rows of the ledger are as {self.num_entries} entries of the audit"
            f" log say{folded}"
        )


@dataclass(slots=True)
class _Rows:
    """The rows of the ledger that say one entry covers them."""

    digests: dict[str, bytes] = field(default_factory=dict)
    cost_micros: int = 0


def check_money(reading: Reading) -> CheckedMoney:
    """Recompute the digest of each commit's rows; the database may be in use.

    A row that was corrected by a late settlement stands under the later entry, which says what it
    was before. Rows of before there were such entries, and those without a price, aren't looked at.

    Raises:
        StoreError: The database can't be read.
    """
    with reading() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")  # one moment for log and ledger
        columns = {column["name"] for column in inspect(connection).get_columns("ledger")}
        # A stopped auth worker's of an older release has none.
        return _check(connection) if _ledger.audit_seq.name in columns else CheckedMoney()


def _check(connection: Connection) -> CheckedMoney:
    checked = CheckedMoney()
    first_seq = connection.execute(select(func.min(_log.seq))).scalar() or 0
    folded = connection.execute(select(_log.detail).where(_log.action == FOLDED)).scalars()
    through_seq = max((json.loads(detail)["through_seq"] for detail in folded), default=0)
    replaced = _replaced(connection)
    rows = _rows_by_entry(connection, max(through_seq, first_seq - 1))
    seq, found = next(rows, (None, _Rows()))
    for entry_seq, detail in _entries(connection):
        if entry_seq <= through_seq:
            checked.num_folded += 1
            continue
        if seq is not None and seq < entry_seq:
            checked.trouble = f"rows say that entry {seq} covers them, which is none of money"
            return checked
        of_entry = _Rows()
        if seq == entry_seq:
            of_entry = found
            seq, found = next(rows, (None, _Rows()))
        checked.trouble = _trouble_of(entry_seq, detail, of_entry, replaced.get(entry_seq, {}))
        if checked.trouble is not None:
            return checked
        checked.num_entries += 1
        checked.num_rows += len(of_entry.digests)
        checked.cost_micros += of_entry.cost_micros
    if seq is not None:
        checked.trouble = f"rows say that entry {seq} covers them, which is none of money"
    return checked


def _trouble_of(
    seq: int, detail: dict[str, Any], rows: _Rows, replaced: dict[str, tuple[bytes, int]]
) -> str | None:
    digests = rows.digests | {lease_id: digest for lease_id, (digest, _) in replaced.items()}
    if len(digests) != detail["num_rows"]:
        return f"entry {seq} covers {detail['num_rows']} rows, and {len(digests)} of them are there"
    if group_digest(digests) != detail["digest"]:
        return f"a row that entry {seq} covers was changed"
    cost = rows.cost_micros + sum(cost for _, cost in replaced.values())
    cost -= sum(row[3] for row in detail.get("replaced", ()))
    if cost != detail["cost_micros"]:
        return f"the rows of entry {seq} cost {cost}, and it says {detail['cost_micros']}"
    return None


def _replaced(connection: Connection) -> dict[int, dict[str, tuple[bytes, int]]]:
    """What stood in the place of corrected rows, by the entry that covered it."""
    found: dict[int, dict[str, tuple[bytes, int]]] = {}
    for _, detail in _entries(connection):
        for seq, lease_id, digest, cost in detail.get("replaced", ()):
            found.setdefault(seq, {})[lease_id] = (bytes.fromhex(digest), cost)
    return found


def _entries(connection: Connection) -> Iterator[tuple[int, dict[str, Any]]]:
    """The entries of money, in order."""
    last = 0
    while True:
        page = (
            select(_log.seq, _log.detail)
            .where(_log.action == SETTLED, _log.seq > last)
            .order_by(_log.seq)
            .limit(_PAGE_ROWS)
        )
        rows = connection.execute(page).all()
        for row in rows:
            yield row.seq, json.loads(row.detail)
        if len(rows) < _PAGE_ROWS:
            return
        last = rows[-1].seq


def _rows_by_entry(connection: Connection, after_seq: int) -> Iterator[tuple[int, _Rows]]:
    """The rows that entries cover, entry by entry, in their order."""
    statement = (
        select(schema.ledger).where(_ledger.audit_seq > after_seq).order_by(_ledger.audit_seq)
    )
    seq, rows = 0, _Rows()
    with connection.execution_options(yield_per=_PAGE_ROWS).execute(statement) as found:
        for row in found:
            if row.audit_seq != seq:
                if rows.digests:
                    yield seq, rows
                seq, rows = row.audit_seq, _Rows()
            booking = BookUsage(**row._mapping)
            rows.digests[booking.lease_id] = row_digest(booking)
            rows.cost_micros += booking.cost_micros
    if rows.digests:
        yield seq, rows

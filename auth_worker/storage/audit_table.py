"""The rows of the audit log: appended, and read in pages."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    func,
    literal_column,
    select,
    union,
    union_all,
)

from auth_worker.records.audit_chain import ChainedEntry
from auth_worker.records.operations import AuditEntry, AuditRows, ReadAuditRows
from auth_worker.storage import schema
from auth_worker.storage.bulk import BulkStatement, insert_rows
from protocol.wire.messages import AuditRecord

LOOKED_AT: Final = 5000
"""Entries that are looked at for a page of those that aren't of one action: some milliseconds."""

_PLACE: Final = "place"
"""In the detail of a deletion: the number of the row, by which lists are in order."""
_columns = schema.audit_log.c
_EMPTY: Final[ColumnElement[str]] = literal_column("''")  # a parameter could be anything
_APPEND = BulkStatement(lambda dialect, rows: insert_rows(dialect, schema.audit_log, rows))


def append(connection: Connection, links: Sequence[ChainedEntry]) -> None:
    """Write entries that follow the last one."""
    _APPEND.execute(connection, links)


def read_page(connection: Connection, wanted: ReadAuditRows) -> AuditRows:
    """The entries that fit, in order.

    Where an action is left out, of which there may be any number, it looks at so many entries and
    says how far it came.
    """
    if not wanted.but_for:
        return _page(connection, wanted)
    after_seq = wanted.after_seq or 0
    first = connection.execute(select(func.min(_columns.seq)).where(_columns.seq > after_seq))
    last = connection.execute(select(func.max(_columns.seq))).scalar() or 0
    through_seq = min((first.scalar() or after_seq) + LOOKED_AT - 1, last)
    page = _page(connection, wanted, _columns.seq <= through_seq)
    if page.has_more:
        through_seq = page.entries[-1].seq
    return replace(page, through_seq=max(through_seq, after_seq))


def _page(
    connection: Connection, wanted: ReadAuditRows, *conditions: ColumnElement[bool]
) -> AuditRows:
    rows = connection.execute(_merged(wanted, [*_conditions(wanted), *conditions])).all()
    entries = tuple(
        AuditRecord(
            seq=row.seq,
            at_ms=row.at_ms,
            actor=row.actor_key_id,
            action=row.action,
            subject=row.subject,
            detail=row.detail,
            previous_hash=row.previous_hash,
            hash=row.hash,
            outcome=row.outcome,
            address=row.address,
            request_id=row.request_id,
        )
        for row in rows[: wanted.limit]
    )
    return AuditRows(entries, has_more=len(rows) > wanted.limit)


def _merged(wanted: ReadAuditRows, conditions: Sequence[ColumnElement[bool]]) -> Select[Any]:
    """The page by the indexes of what a key did and of what was done to it, if one is named.

    Or by the index of the first filter with several values. A page of each, which an index has in
    order, holds every entry of the page of all of them. Otherwise a database sorts all entries of
    all of them, or reads the whole log.
    """
    filters = (
        (_columns.subject, wanted.subjects),
        (_columns.actor_key_id, wanted.actors),
        (_columns.action, wanted.actions),
    )
    given = [(column, sorted(set(values))) for column, values in filters if values]
    if wanted.key_id:
        each = [_is(column, wanted.key_id) for column in (_columns.subject, _columns.actor_key_id)]
    elif given:
        (first, values), *given = given
        each = [_is(first, value) for value in values]
    else:
        return _in_order(select(schema.audit_log).where(*conditions), wanted)
    conditions = [*conditions, *(column.in_(values) for column, values in given)]
    pages = [
        _in_order(select(schema.audit_log).where(one, *conditions), wanted).subquery()
        for one in each
    ]
    # What a key did to itself stands in both of its pages.
    join = union if wanted.key_id else union_all
    merged = join(*(select(page) for page in pages)).subquery()
    return _in_order(select(merged), wanted)


def _in_order(statement: Select[Any], wanted: ReadAuditRows) -> Select[Any]:
    seq = statement.selected_columns.seq
    return statement.order_by(seq.asc() if wanted.oldest_first else seq.desc()).limit(
        wanted.limit + 1
    )


def noting_place(entry: AuditEntry, row_seq: int) -> AuditEntry:
    """The entry of a deletion that says where in lists the row stood."""
    return replace(entry, detail={**entry.detail, _PLACE: row_seq})


def place_of_deleted(connection: Connection, action: str, subject: str) -> int | None:
    """Where the row of an id stood; None when no deletion of it by this action says so.

    Whoever reads a list page by page and deletes what it reads goes on after what is gone.
    """
    conditions = (_is(_columns.subject, subject), _columns.action == action)
    newest = select(_columns.detail).where(*conditions).order_by(_columns.seq.desc()).limit(1)
    detail = connection.execute(newest).scalar_one_or_none()
    place = None if detail is None else json.loads(detail).get(_PLACE)
    return place if isinstance(place, int) else None


def first_seq(connection: Connection) -> int | None:
    """The number of the first entry that is left; None without any."""
    return connection.execute(select(func.min(_columns.seq))).scalar()


def read_chain(connection: Connection, after_seq: int, limit: int) -> list[ChainedEntry]:
    """The next entries after one, as they are stored, in order."""
    statement = (
        select(*(_columns[name] for name in ChainedEntry._fields))
        .where(_columns.seq > after_seq)
        .order_by(_columns.seq)
        .limit(limit)
    )
    return [ChainedEntry(*row) for row in connection.execute(statement)]


def _is(column: ColumnElement[str], value: str) -> ColumnElement[bool]:
    """That a column has a value, in words by which an index is found that leaves out empty ones."""
    return and_(column == value, column != _EMPTY) if value else column == value


def _conditions(wanted: ReadAuditRows) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.actor:
        conditions.append(_is(_columns.actor_key_id, wanted.actor))
    if wanted.action:
        conditions.append(_columns.action == wanted.action)
    if wanted.but_for:
        conditions.append(_columns.action != wanted.but_for)
    if wanted.outcome:
        conditions.append(_columns.outcome == wanted.outcome)
    if wanted.since_ms is not None:
        conditions.append(_columns.at_ms >= wanted.since_ms)
    if wanted.until_ms is not None:
        conditions.append(_columns.at_ms < wanted.until_ms)
    if wanted.after_seq is not None:
        is_next = _columns.seq > wanted.after_seq
        conditions.append(is_next if wanted.oldest_first else _columns.seq < wanted.after_seq)
    return conditions

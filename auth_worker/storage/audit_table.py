"""The rows of the audit log: appended, and read in pages."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from sqlalchemy import ColumnElement, Connection, func, or_, select

from auth_worker.records.audit_chain import ChainedEntry
from auth_worker.records.operations import AuditRows, ReadAuditRows
from auth_worker.storage import schema
from auth_worker.storage.bulk import BulkStatement, insert_rows
from protocol.wire.messages import AuditRecord

LOOKED_AT: Final = 5000
"""Entries that are looked at for a page of those that aren't of one action: some milliseconds."""

_columns = schema.audit_log.c
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
    order = _columns.seq.asc() if wanted.oldest_first else _columns.seq.desc()
    statement = (
        select(schema.audit_log)
        .where(*_conditions(wanted), *conditions)
        .order_by(order)
        .limit(wanted.limit + 1)
    )
    rows = connection.execute(statement).all()
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


def read_chain(connection: Connection, after_seq: int, limit: int) -> list[ChainedEntry]:
    """The next entries after one, as they are stored, in order."""
    statement = (
        select(*(_columns[name] for name in ChainedEntry._fields))
        .where(_columns.seq > after_seq)
        .order_by(_columns.seq)
        .limit(limit)
    )
    return [ChainedEntry(*row) for row in connection.execute(statement)]


def _conditions(wanted: ReadAuditRows) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.key_id:
        conditions.append(
            or_(_columns.subject == wanted.key_id, _columns.actor_key_id == wanted.key_id)
        )
    if wanted.actor:
        conditions.append(_columns.actor_key_id == wanted.actor)
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

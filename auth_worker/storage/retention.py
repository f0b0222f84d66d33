"""Lets old rows go: ledger rows into sums by hour, old entries of the audit log with a proof."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Executable, delete, insert, select, update

from auth_worker.records.audit_signing import AuditSigner, Checkpoint
from auth_worker.records.operations import AuditEntry, CutAudit, FoldLedger, Removed
from auth_worker.records.settled_money import entry_of_folding
from auth_worker.records.stored_names import stored_name
from auth_worker.storage import schema
from auth_worker.storage.bulk import BulkStatement, insert_rows
from protocol.runtime.settings import setting, whole_number

_MS_AN_HOUR: Final = 3_600_000
_MAX_IDS: Final = 500

_ledger = schema.ledger.c
_hours = schema.ledger_hours.c
_log = schema.audit_log.c
_SCOPES: Final = ("key_id", "model", "user_id", "team_id", "end_user", "endpoint")
_SUMMED: Final = (
    *("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost_micros"),
)


@dataclass(frozen=True, slots=True)
class Retention:
    """How long rows are kept."""

    ledger_days: int = setting(
        whole_number(
            "PENSTOCK_LEDGER_RETENTION_DAYS",
            90,
            minimum=0,
            meaning=(
                "each request's line in the ledger is kept so long, and its sums by hour forever; "
                "0 keeps all lines"
            ),
        )
    )
    audit_days: int = setting(
        whole_number(
            "PENSTOCK_AUDIT_RETENTION_DAYS",
            0,
            minimum=0,
            meaning=(
                "entries of the audit log are kept so long; what is left can still be verified. 0 "
                "keeps all"
            ),
        )
    )


def _add_to_hours(dialect: str, num_rows: int) -> Executable:
    statement = insert_rows(dialect, schema.ledger_hours, num_rows)
    return statement.on_conflict_do_update(
        index_elements=[_hours.hour, *(_hours[name] for name in _SCOPES)],
        set_={name: _hours[name] + statement.excluded[name] for name in ("num_requests", *_SUMMED)},
    )


_ADD_TO_HOURS = BulkStatement(_add_to_hours)


def last_folded(connection: Connection, epoch: int) -> str:
    """The greatest lease id that was folded; empty when none was.

    One of a later epoch than this one isn't of this database, and is passed over: with it, whatever
    this one grants would seem to be folded.
    """
    found = connection.execute(select(schema.ledger_fold.c.last_lease_id)).scalar_one_or_none()
    return found if found is not None and found < _end_of(epoch) else ""


def fold_ledger(
    connection: Connection, operation: FoldLedger, at_ms: int, epoch: int
) -> tuple[Removed, AuditEntry | None]:
    """Add rows of before a moment to their hours' sums and delete them, oldest first.

    The totals of keys and hours hold them already. Unused grants count in no sum.

    Args:
        connection: In the transaction.
        operation: Which rows, and how many at most.
        at_ms: Unix milliseconds, for the entry.
        epoch: Of the store.

    Returns:
        How many, and the entry that says so where entries of the audit log cover them.
    """
    old = (
        select(
            _ledger.lease_id,
            _ledger.outcome,
            _ledger.settled_at_ms,
            _ledger.audit_seq,
            *(_ledger[name] for name in (*_SCOPES, *_SUMMED)),
        )
        .where(_ledger.settled_at_ms < operation.before_ms)
        .order_by(_ledger.settled_at_ms)
        .limit(operation.limit)
    )
    rows = connection.execute(old).all()
    if not rows:
        return Removed(0), None
    sums: dict[tuple[int | str, ...], list[int]] = {}
    for row in rows:
        if row.outcome != "unused":
            names = (stored_name(getattr(row, name)) for name in _SCOPES)
            scope = (row.settled_at_ms // _MS_AN_HOUR, *names)
            total = sums.setdefault(scope, [0] * (1 + len(_SUMMED)))
            total[0] += 1
            for index, name in enumerate(_SUMMED, start=1):
                total[index] += getattr(row, name)
    _ADD_TO_HOURS.execute(connection, [(*scope, *total) for scope, total in sums.items()])
    lease_ids = [row.lease_id for row in rows]
    for begin in range(0, len(lease_ids), _MAX_IDS):
        some = lease_ids[begin : begin + _MAX_IDS]
        connection.execute(delete(schema.ledger).where(_ledger.lease_id.in_(some)))
    own = [lease_id for lease_id in lease_ids if lease_id < _end_of(epoch)]
    if own:
        _note_folded(connection, max(own), epoch)
    covered = [row for row in rows if row.audit_seq]
    if not covered:
        return Removed(len(rows)), None
    entry = entry_of_folding(
        max(row.audit_seq for row in covered),
        len(covered),
        sum(row.cost_micros for row in covered),
        at_ms,
    )
    return Removed(len(rows)), entry


def _end_of(epoch: int) -> str:
    """Greater than each lease id of this epoch and of those before."""
    return f"lease:{epoch + 1:06x}:"


def _note_folded(connection: Connection, lease_id: str, epoch: int) -> None:
    table = schema.ledger_fold
    before = connection.execute(select(table.c.last_lease_id)).scalar_one_or_none()
    if before is None:
        connection.execute(insert(table).values(id=1, last_lease_id=lease_id))
    elif lease_id > before or before >= _end_of(epoch):
        connection.execute(update(table).values(last_lease_id=lease_id))


def cut_audit(
    connection: Connection, operation: CutAudit, signer: AuditSigner | None, at_ms: int
) -> tuple[Removed, AuditEntry | None]:
    """Delete the oldest entries, up to the first one that is young enough.

    Entries of times that are still to come are of a clock that was ahead: they go with an entry
    after them that is old.

    Returns:
        How many, and the entry that says so: with the number and hash of the last one that went,
        the chain can be followed from there on.
    """
    oldest = select(_log.seq, _log.hash, _log.at_ms).order_by(_log.seq).limit(operation.limit)
    number, num_old, last_seq, last_hash = 0, 0, 0, b""
    with connection.execute(oldest) as found:
        for number, row in enumerate(found, start=1):
            if row.at_ms < operation.before_ms:
                num_old, last_seq, last_hash = number, row.seq, row.hash
            elif row.at_ms <= at_ms:
                break
        else:
            if not num_old and number == operation.limit:
                # All are of times to come; what is behind them would never go.
                after_ms = _first_time_after(connection, row.seq, at_ms)
                if after_ms is not None and after_ms < operation.before_ms:
                    num_old, last_seq, last_hash = number, row.seq, row.hash
    if not num_old:
        return Removed(0), None
    connection.execute(delete(schema.audit_log).where(_log.seq <= last_seq))
    checkpoints = schema.audit_checkpoints
    connection.execute(delete(checkpoints).where(checkpoints.c.seq <= last_seq))
    detail = {"through_seq": last_seq, "through_hash": last_hash.hex(), "num_entries": num_old}
    if signer is not None:
        detail |= {"signature": signer.cut(last_seq, last_hash), "key_name": signer.name}
    entry = AuditEntry(
        at_ms=at_ms, actor_key_id="", action="audit_cut", subject=str(last_seq), detail=detail
    )
    return Removed(num_old), entry


def _first_time_after(connection: Connection, seq: int, at_ms: int) -> int | None:
    """The time of the first entry behind one that is none to come; None where there is none."""
    # What is added keeps databases from sorting all of the index by time.
    entry = select(_log.at_ms).where(_log.seq > seq, _log.at_ms + 0 <= at_ms).order_by(_log.seq)
    return connection.execute(entry.limit(1)).scalar_one_or_none()


def last_signed(connection: Connection) -> tuple[int, int]:
    """Number and time of the newest checkpoint; zeros without any."""
    table = schema.audit_checkpoints.c
    newest = select(table.seq, table.at_ms).order_by(table.seq.desc()).limit(1)
    row = connection.execute(newest).one_or_none()
    return (0, 0) if row is None else (row.seq, row.at_ms)


def add_checkpoint(connection: Connection, checkpoint: Checkpoint) -> None:
    """Write one down."""
    connection.execute(insert(schema.audit_checkpoints).values(checkpoint._asdict()))


def read_checkpoints(connection: Connection) -> list[Checkpoint]:
    """All of them, in order."""
    table = schema.audit_checkpoints
    rows = connection.execute(select(table).order_by(table.c.seq))
    return [Checkpoint(*(getattr(row, name) for name in Checkpoint._fields)) for row in rows]

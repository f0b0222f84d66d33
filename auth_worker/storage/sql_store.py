"""The store over one SQL database: an epoch, one writer, transactions of many operations."""

import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Final, NamedTuple

from sqlalchemy import Connection, select

from auth_worker.clock import Clock
from auth_worker.errors import StoreUnavailableError
from auth_worker.principals.prices import PriceTable
from auth_worker.records.audit_chain import GENESIS_HASH, ChainedEntry, chain
from auth_worker.records.audit_signing import AuditSigner, Checkpoint
from auth_worker.records.limit_usage import Booked
from auth_worker.records.operations import (
    AddKey,
    AddResource,
    AppendAudit,
    AuditEntry,
    BookUsage,
    ChangeKey,
    ChangeResourceRow,
    ClaimAnswerRow,
    CountKeyRows,
    CutAudit,
    DropKey,
    DropResource,
    FoldLedger,
    KeepAnswerRow,
    LeaseRow,
    MoveWebhook,
    Operation,
    PutKey,
    PutMember,
    ReadAuditRows,
    ReadKeys,
    ReadResources,
    ReadUsageRows,
    Result,
    SaveLease,
    SignAudit,
    Snapshot,
    TouchKey,
)
from auth_worker.records.settled_money import entry_of_money
from auth_worker.storage import (
    answer_table,
    audit_table,
    key_counts,
    migrations,
    retention,
    schema,
    usage_table,
)
from auth_worker.storage.database import Database
from auth_worker.storage.key_table import KeyTable
from auth_worker.storage.ledger import NotAllNewError, book_usage, forget_leases, save_leases
from auth_worker.storage.limit_table import save_counters
from auth_worker.storage.pending_sums import PendingSums, SumsChange, load_sums
from auth_worker.storage.resource_table import ResourceTable
from auth_worker.storage.snapshot import read_snapshot
from auth_worker.storage.totals import add_to_totals, touch_keys

CHECKPOINT_ENTRIES: Final = 256
CHECKPOINT_INTERVAL_MS: Final = 600_000
"""The last entry is signed after so many others, or with the first one after so long."""


_Placed = tuple[int, Operation]
"""An operation and its place in its group."""


class _Done(NamedTuple):
    """What a transaction has done, for once it is known to have lasted."""

    operations: Sequence[Operation]
    results: list[Result]
    booked: Set[str]
    saved: Set[str]
    links: Sequence[ChainedEntry]
    checkpoint: Checkpoint | None
    folded_up_to: str
    sums: SumsChange


class SqlStore:
    """Keys, leases, ledger and audit log in one database; see `Store`.

    Args:
        database: Opened; closed by `close`.
        clock: For the times of the epoch and the migrations.
        signer: Signs checkpoints of the audit log; None signs nothing.
        on_checkpoint: Gets each checkpoint once it has lasted.

    Raises:
        StoreLockedError: Somebody else writes it.
        StoreTooNewError: A newer Penstock wrote it.
        StoreForeignError: It holds tables of another program.
        StoreError: As `Database.transaction` and `Database.prepare`.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        signer: AuditSigner | None = None,
        on_checkpoint: Callable[[Checkpoint], object] = lambda _: None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._signer = signer
        self._on_checkpoint = on_checkpoint
        self._is_closed = False
        self._lock = threading.Lock()  # at the start a `LeaseKeeper` writes, too
        self._num_commits = 0
        self._in_doubt: _Done | None = None
        with database.transaction() as connection:
            database.prepare(connection)
            migrations.migrate(connection, now_s=clock.wall_s())
            self._epoch = database.take(connection, int(clock.wall_s()), secrets.token_hex(8))
            self._audit_seq, self._audit_head = _audit_head(connection)
            self._signed_seq, self._signed_at_ms = retention.last_signed(connection)
            self._folded_up_to = retention.last_folded(connection, self._epoch)
            saved = connection.execute(select(schema.leases.c.lease_id)).scalars()
            # Most leases are settled before they are saved, and needn't be looked for.
            self._saved_leases = set(saved)
            self._pending = _without_pending_sums(connection)
        self.apply([AppendAudit(self._epoch_entry())])
        database.opened()

    @property
    def database(self) -> Database:
        """What it is in."""
        return self._database

    @property
    def epoch(self) -> int:
        """Grows with each authority that opens the database."""
        return self._epoch

    def load(self, *, recent_since_ms: int) -> Snapshot:
        """All keys and open leases, and what was settled since that Unix millisecond."""
        # Beside the connection that writes, on which a `LeaseKeeper` holds the database meanwhile.
        with self._database.reading() as connection:
            return read_snapshot(connection, recent_since_ms=recent_since_ms)

    def apply(self, operations: Sequence[Operation]) -> list[Result]:
        """Carry out all operations in one durable transaction, or none; see `Store.apply`."""
        with self._lock:
            return self._apply(operations)

    def _apply(self, operations: Sequence[Operation], *, may_repeat: bool = False) -> list[Result]:
        done: _Done | None = None
        number = self._num_commits + 1
        try:
            with self._database.transaction() as connection:
                if self._database.hold(connection, self._epoch, number):
                    done = self._carry_out(connection, operations, may_repeat=may_repeat)
        except NotAllNewError:
            return self._apply(operations, may_repeat=True)
        except StoreUnavailableError:
            # If all that is missing is the answer to the commit, it may have come through.
            self._in_doubt = done or self._in_doubt
            raise
        came_through = self._in_doubt if done is None else None
        done = done or came_through
        assert done is not None  # noqa: S101 - only a commit of ours has this number
        self._adopt(done)
        if came_through is not None and came_through.operations != operations:
            return self._apply(operations)
        return done.results

    def _carry_out(
        self, connection: Connection, operations: Sequence[Operation], *, may_repeat: bool
    ) -> "_Done":
        table, resources = self._tables(connection)
        saved, bookings, placed = _lease_changes(operations)
        others = [operation for _, operation in placed]
        sums = SumsChange(connection, self._pending, add_to_totals)
        sums.add_before_changes(others)
        results: list[Result] = [None] * len(operations)
        entries = _change(table, resources, placed, results)
        _answer(connection, placed, results)
        booked = {booking.lease_id for booking in bookings}
        forget_leases(connection, booked & self._saved_leases)
        save_leases(connection, saved.values())
        touch_keys(connection, [item for item in others if isinstance(item, TouchKey)])
        save_counters(connection, others)
        written = book_usage(
            connection,
            bookings,
            folded_up_to=self._folded_up_to,
            saved_leases=self._saved_leases,
            audit_seq=self._audit_seq + 1,
            prices=lambda: PriceTable(resources.all_prices()),
            may_repeat=may_repeat or any(type(booking) is not BookUsage for booking in bookings),
        )
        sums.add(written.sums)
        sums.add_due(self._wall_ms())
        sums.add_before_reading(others)
        sums.finish()
        if written.money or written.replaced:
            # First, so that it has the number that the rows say.
            entries.insert(0, entry_of_money(written.money, written.replaced, self._wall_ms()))
        folded_up_to = self._let_go(connection, placed, results, entries)
        links = self._append_audit(connection, entries)
        checkpoint = self._sign(connection, others, links)
        self._read(connection, placed, results)
        if written.later:
            _place_bookings(operations, results, written.later)
        return _Done(
            operations, results, booked, saved.keys(), links, checkpoint, folded_up_to, sums
        )

    def _let_go(
        self,
        connection: Connection,
        placed: Sequence[_Placed],
        results: list[Result],
        entries: list[AuditEntry],
    ) -> str:
        """Carry out what removes old rows; the greatest lease id that was folded."""
        has_folded = False
        for index, operation in placed:
            entry: AuditEntry | None = None
            if isinstance(operation, FoldLedger):
                results[index], entry = retention.fold_ledger(
                    connection, operation, self._wall_ms(), self._epoch
                )
                has_folded = True
            elif isinstance(operation, CutAudit):
                results[index], entry = retention.cut_audit(
                    connection, operation, self._signer, self._wall_ms()
                )
            if entry is not None:
                entries.append(entry)
        if not has_folded:
            return self._folded_up_to
        return retention.last_folded(connection, self._epoch)

    def _sign(
        self,
        connection: Connection,
        operations: Sequence[Operation],
        links: Sequence[ChainedEntry],
    ) -> Checkpoint | None:
        """A checkpoint of the last entry, when enough came since the one before, or it is asked."""
        seq, digest = (links[-1].seq, links[-1].hash) if links else self._head()
        now_ms = self._wall_ms()
        is_due = links and (
            seq - self._signed_seq >= CHECKPOINT_ENTRIES
            or now_ms - self._signed_at_ms >= CHECKPOINT_INTERVAL_MS
        )
        is_asked = any(isinstance(operation, SignAudit) for operation in operations)
        if self._signer is None or seq == self._signed_seq or not (is_due or is_asked):
            return None
        checkpoint = self._signer.checkpoint(seq, digest, now_ms)
        retention.add_checkpoint(connection, checkpoint)
        return checkpoint

    def _adopt(self, done: "_Done") -> None:
        """Only what was committed moves the head of the chain, and is known to be in the tables."""
        self._in_doubt = None
        self._num_commits += 1
        self._saved_leases -= done.booked
        self._saved_leases |= done.saved
        self._folded_up_to = done.folded_up_to
        self._pending.adopt(done.sums)
        if done.links:
            self._audit_seq, self._audit_head = done.links[-1].seq, done.links[-1].hash
        if done.checkpoint is not None:
            self._signed_seq = done.checkpoint.seq
            self._signed_at_ms = done.checkpoint.at_ms
            self._on_checkpoint(done.checkpoint)

    def close(self) -> None:
        """Release the database; once more does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._database.release(self._epoch)
        self._database.close()

    def _append_audit(
        self, connection: Connection, entries: Sequence[AuditEntry]
    ) -> list[ChainedEntry]:
        links: list[ChainedEntry] = []
        seq, head = self._head()
        for entry in entries:
            link = chain(entry, seq=seq + 1, previous_hash=head)
            seq, head = link.seq, link.hash
            links.append(link)
        audit_table.append(connection, links)
        return links

    def _tables(self, connection: Connection) -> tuple[KeyTable, ResourceTable]:
        return KeyTable(connection, self._clock.wall_s()), ResourceTable(connection)

    def _read(
        self,
        connection: Connection,
        placed: Sequence[_Placed],
        results: list[Result],
    ) -> None:
        """Put the results of what was to be read where they belong."""
        table, resources = self._tables(connection)
        for index, operation in placed:
            if isinstance(operation, ReadKeys):
                results[index] = table.page(operation)
            elif isinstance(operation, CountKeyRows):
                results[index] = key_counts.count_keys(connection, self._clock.wall_s())
            elif isinstance(operation, ReadAuditRows):
                results[index] = audit_table.read_page(connection, operation)
            elif isinstance(operation, ReadResources):
                results[index] = resources.page(operation)
            elif isinstance(operation, ReadUsageRows):
                results[index] = usage_table.read_usage(connection, operation)

    def _head(self) -> tuple[int, bytes]:
        return self._audit_seq, self._audit_head

    def _wall_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)

    def _epoch_entry(self) -> AuditEntry:
        return AuditEntry(
            at_ms=self._wall_ms(),
            actor_key_id="",
            action="epoch_started",
            subject=str(self._epoch),
            detail={"pid": os.getpid()},
        )


def _change(
    table: KeyTable,
    resources: ResourceTable,
    placed: Sequence[_Placed],
    results: list[Result],
) -> list[AuditEntry]:
    """Carry out changes in order, put their results where they belong; what goes on record."""
    entries: list[AuditEntry] = []
    for index, operation in placed:
        result: Result = None
        entry: AuditEntry | None = None
        if isinstance(operation, AddKey):
            result, entry = table.add(operation)
        elif isinstance(operation, PutKey):
            result, entry = table.put(operation)
        elif isinstance(operation, ChangeKey):
            result, entry = table.change(operation)
        elif isinstance(operation, DropKey):
            result, entry = table.drop(operation)
            resources.drop_limits_of_key(operation.key_id)
        elif isinstance(operation, AddResource):
            result, entry = resources.add(operation)
        elif isinstance(operation, MoveWebhook):
            resources.move_webhook(operation)
        elif isinstance(operation, ChangeResourceRow):
            result, entry = resources.change(operation)
        elif isinstance(operation, DropResource):
            result, entry = resources.drop(operation)
        elif isinstance(operation, PutMember):
            result, entry = resources.put_member(operation)
        elif isinstance(operation, AppendAudit):
            entry = operation.entry
        results[index] = result
        if entry is not None:
            entries.append(entry)
    return entries


def _answer(connection: Connection, placed: Sequence[_Placed], results: list[Result]) -> None:
    """Claim and keep answers, in order."""
    for index, operation in placed:
        if isinstance(operation, ClaimAnswerRow):
            results[index] = answer_table.claim(connection, operation)
        elif isinstance(operation, KeepAnswerRow):
            answer_table.keep(connection, operation)


def _lease_changes(
    operations: Sequence[Operation],
) -> tuple[dict[str, LeaseRow], list[BookUsage], list[_Placed]]:
    """The leases to remember, as last given and not booked since, what is to be booked, the rest.

    The rest is seldom much: whatever looks for operations of a kind needn't look at all of them.
    """
    saved: dict[str, LeaseRow] = {}
    bookings: list[BookUsage] = []
    placed: list[_Placed] = []
    for index, operation in enumerate(operations):
        if isinstance(operation, BookUsage):
            bookings.append(operation)
            if saved:
                saved.pop(operation.lease_id, None)
        elif isinstance(operation, SaveLease):
            saved[operation.row.lease_id] = operation.row
        else:
            placed.append((index, operation))
    return saved, bookings, placed


def _without_pending_sums(connection: Connection) -> PendingSums:
    """Add to the totals what waited when the database was left."""
    found = load_sums(connection)
    change = SumsChange(connection, found, add_to_totals)
    change.add_to_totals()
    change.finish()
    found.adopt(change)
    return found


def _audit_head(connection: Connection) -> tuple[int, bytes]:
    log = schema.audit_log.c
    newest = select(log.seq, log.hash).order_by(log.seq.desc()).limit(1)
    row = connection.execute(newest).one_or_none()
    return (0, GENESIS_HASH) if row is None else (row.seq, row.hash)


def _place_bookings(
    operations: Sequence[Operation], results: list[Result], later: Mapping[int, Booked]
) -> None:
    """Put the answers of bookings, by their place among the bookings, where they belong."""
    indices = [i for i, operation in enumerate(operations) if isinstance(operation, BookUsage)]
    for place, booked in later.items():
        results[indices[place]] = booked

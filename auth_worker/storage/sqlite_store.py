"""The store in one SQLite file: a lock on the file, an epoch, durable transactions."""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, insert, select, update
from sqlalchemy.exc import DatabaseError

from auth_worker.clock import Clock
from auth_worker.errors import (
    StoreError,
    StoreFencedError,
    StoreUnavailableError,
)
from auth_worker.records.audit_chain import GENESIS_HASH, ChainedEntry, chain
from auth_worker.records.operations import (
    AddKey,
    AppendAudit,
    AuditEntry,
    BookUsage,
    ChangeKey,
    CountKeyRows,
    DropKey,
    LeaseRow,
    Operation,
    PutKey,
    ReadAuditRows,
    ReadKeys,
    RecentUse,
    Result,
    SaveLease,
    Snapshot,
    TouchKey,
)
from auth_worker.storage import audit_table, database_files, key_counts, migrations, schema
from auth_worker.storage.bulk import run
from auth_worker.storage.durable_file import unusable
from auth_worker.storage.file_lock import take_lock
from auth_worker.storage.key_table import KeyTable, stored_key
from auth_worker.storage.ledger import book_usage, forget_leases, save_leases, touch_keys

DATABASE_NAME = "auth.sqlite3"
LOCK_NAME = "auth.lock"
BUSY_TIMEOUT_S = 5.0
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    # KiB. Settlements append, so a larger one only grows for some ten thousand requests.
    "cache_size=-512",
)
_LITTLE_ROOM_BYTES = 1024 * 1024
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class SqliteStore:
    """Keys, leases, ledger and audit log in `<directory>/auth.sqlite3`.

    WAL with synchronous=FULL: a transaction that returned is on the disk
    (https://www.sqlite.org/pragma.html#pragma_synchronous).

    Args:
        directory: Is made, with mode 0700, when it is missing.
        clock: For the times of the epoch and the migrations.
        lock_patience_s: How long to wait for another auth worker to let go of the database; one
            whose parent was killed may still be about to end.

    Raises:
        StoreLockedError: Another auth worker holds this database.
        StoreTooNewError: A newer Penstock wrote it.
        StoreMissingError: There was a database, and it is gone or empty.
        StoreDamagedError: One of its files is damaged.
        StoreUnavailableError: The disk is full or failing.
        StoreError: It can't be opened.
    """

    def __init__(self, directory: Path, *, clock: Clock, lock_patience_s: float = 0.0) -> None:
        self._clock = clock
        self._path = directory / DATABASE_NAME
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_fd: int | None = take_lock(directory / LOCK_NAME, lock_patience_s)
        except OSError as error:
            raise unusable(directory, error) from error
        self._engine = _engine(self._path)
        try:
            database_files.check_presence(self._path)
            database_files.check_log(self._path)
            with self._transaction() as connection:
                database_files.check_pages(connection, self._path)
                migrations.migrate(connection, now_s=clock.wall_s())
                self._epoch = _next_epoch(connection, int(clock.wall_s()))
                self._audit_seq, self._audit_head = _audit_head(connection)
                saved = connection.execute(select(schema.leases.c.lease_id)).scalars()
                # Most leases are settled before they are saved, and needn't be looked for.
                self._saved_leases = set(saved)
            self.apply([AppendAudit(self._epoch_entry())])
            database_files.mark(self._path)
        except BaseException:
            self.close()
            raise

    @property
    def epoch(self) -> int:
        """Grows with each authority that opens the database."""
        return self._epoch

    @property
    def path(self) -> Path:
        """The database file."""
        return self._path

    def load(self, *, recent_since_ms: int) -> Snapshot:
        """All keys and open leases, and what was settled since that Unix millisecond."""
        ledger = schema.ledger.c
        recent = (
            select(
                ledger.key_id,
                ledger.granted_at_ms,
                ledger.settled_at_ms,
                ledger.prompt_tokens + ledger.completion_tokens,
            )
            .where(ledger.settled_at_ms >= recent_since_ms, ledger.outcome != "unused")
            .order_by(ledger.settled_at_ms)
        )
        oldest_first = select(schema.leases).order_by(
            schema.leases.c.granted_at_ms, schema.leases.c.lease_id
        )
        with self._transaction() as connection:
            return Snapshot(
                keys=tuple(stored_key(row) for row in connection.execute(select(schema.keys))),
                leases=tuple(LeaseRow(*row) for row in connection.execute(oldest_first)),
                recent=tuple(RecentUse(*row) for row in connection.execute(recent)),
            )

    def apply(self, operations: Sequence[Operation]) -> list[Result]:
        """Carry out all operations in one durable transaction, or none; see `Store.apply`."""
        with self._transaction() as connection:
            self._check_fence(connection)
            table = KeyTable(connection, self._clock.wall_s())
            results, entries = _change_keys(table, operations)
            saved, bookings = _lease_changes(operations)
            booked = {booking.lease_id for booking in bookings}
            forget_leases(connection, booked & self._saved_leases)
            save_leases(connection, saved.values())
            touch_keys(connection, [item for item in operations if isinstance(item, TouchKey)])
            book_usage(connection, bookings)
            links = self._append_audit(connection, entries)
            results = self._read(connection, table, operations, results)
        # Only what was committed moves the head of the chain, and is known to be in the tables.
        self._saved_leases -= booked
        self._saved_leases |= saved.keys()
        if links:
            self._audit_seq, self._audit_head = links[-1].seq, links[-1].hash
        return results

    def close(self) -> None:
        """Close the database, then let go of its lock; once more does nothing."""
        self._engine.dispose()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _append_audit(
        self, connection: Connection, entries: Sequence[AuditEntry]
    ) -> list[ChainedEntry]:
        links: list[ChainedEntry] = []
        seq, head = self._audit_seq, self._audit_head
        for entry in entries:
            link = chain(entry, seq=seq + 1, previous_hash=head)
            seq, head = link.seq, link.hash
            links.append(link)
        if links:
            connection.execute(insert(schema.audit_log), [link._asdict() for link in links])
        return links

    def _read(
        self,
        connection: Connection,
        table: KeyTable,
        operations: Sequence[Operation],
        results: Sequence[Result],
    ) -> list[Result]:
        """The results, with those of what was to be read."""
        read: list[Result] = []
        for operation, result in zip(operations, results, strict=True):
            if isinstance(operation, ReadKeys):
                read.append(table.page(operation))
            elif isinstance(operation, CountKeyRows):
                read.append(key_counts.count_keys(connection, self._clock.wall_s()))
            elif isinstance(operation, ReadAuditRows):
                read.append(audit_table.read_page(connection, operation))
            else:
                read.append(result)
        return read

    def _check_fence(self, connection: Connection) -> None:
        (epoch,) = run(connection, "SELECT epoch FROM authority").fetchone()
        if epoch != self._epoch:
            raise StoreFencedError(
                f"Another auth worker took the database over (epoch {epoch}, mine is"
                f" {self._epoch}); this one stops."
            )

    def _epoch_entry(self) -> AuditEntry:
        return AuditEntry(
            at_ms=int(self._clock.wall_s() * 1000),
            actor_key_id="",
            action="epoch_started",
            subject=str(self._epoch),
            detail={"pid": os.getpid()},
        )

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except (DatabaseError, sqlite3.DatabaseError) as error:
            # SQLAlchemy wraps what the driver raises; `bulk.run` goes past it.
            of_driver = error.orig if isinstance(error, DatabaseError) else error
            if isinstance(of_driver, sqlite3.IntegrityError | sqlite3.DataError):
                raise  # only an operation is bad
            raise self._store_error(of_driver) from error

    def _store_error(self, error: BaseException | None) -> StoreError:
        if isinstance(error, sqlite3.OperationalError):
            return StoreUnavailableError(f"{self._path}: {error}{self._room()}")
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
            return database_files.damaged(self._path, str(error))
        return StoreError(f"{self._path}: {error}")

    def _room(self) -> str:
        """What SQLite calls a "disk I/O error" is often no more than a full disk."""
        try:
            state = os.statvfs(self._path.parent)
        except OSError:
            return ""  # the folder itself is gone
        free_bytes = state.f_bavail * state.f_frsize
        if free_bytes >= _LITTLE_ROOM_BYTES:
            return ""
        return f"; {free_bytes} bytes are free on that disk"


def _change_keys(
    table: KeyTable, operations: Sequence[Operation]
) -> tuple[list[Result], list[AuditEntry]]:
    """The results, one an operation (None for those of other kinds), and what to put on record."""
    results: list[Result] = []
    entries: list[AuditEntry] = []
    for operation in operations:
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
        elif isinstance(operation, AppendAudit):
            entry = operation.entry
        results.append(result)
        if entry is not None:
            entries.append(entry)
    return results, entries


def _lease_changes(
    operations: Sequence[Operation],
) -> tuple[dict[str, LeaseRow], list[BookUsage]]:
    """The leases to remember, as last given and not booked since, and what is to be booked."""
    saved: dict[str, LeaseRow] = {}
    bookings: list[BookUsage] = []
    for operation in operations:
        if isinstance(operation, BookUsage):
            bookings.append(operation)
            saved.pop(operation.lease_id, None)
        elif isinstance(operation, SaveLease):
            saved[operation.row.lease_id] = operation.row
    return saved, bookings


def _engine(path: Path) -> Engine:
    # One connection: there is one writer, and it reads in its own order. The driver must not open
    # transactions behind our back, so that BEGIN IMMEDIATE takes the write lock at once.
    engine = create_engine(
        f"sqlite:///{path}",
        pool_size=1,
        max_overflow=0,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def configure(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = None
        for pragma in _PRAGMAS:
            dbapi_connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _next_epoch(connection: Connection, acquired_at: int) -> int:
    before = connection.execute(select(schema.authority.c.epoch)).scalar_one_or_none()
    values = {"epoch": (before or 0) + 1, "acquired_at": acquired_at}
    if before is None:
        connection.execute(insert(schema.authority).values(id=1, **values))
    else:
        connection.execute(update(schema.authority).values(**values))
    return values["epoch"]


def _audit_head(connection: Connection) -> tuple[int, bytes]:
    log = schema.audit_log.c
    newest = select(log.seq, log.hash).order_by(log.seq.desc()).limit(1)
    row = connection.execute(newest).one_or_none()
    return (0, GENESIS_HASH) if row is None else (row.seq, row.hash)

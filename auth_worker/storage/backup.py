"""Copies an auth database into one file while it is in use, and such a file into an empty database.

A backup is an SQLite database of the newest schema, whatever it was made of, so it also carries
keys, usage and the audit log from SQLite to PostgreSQL and back.
"""

import errno
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import (
    Connection,
    ExceptionContext,
    Table,
    create_engine,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import NullPool

from auth_worker.errors import (
    StoreDamagedError,
    StoreError,
    StoreForeignError,
    StoreMissingError,
    StoreTooNewError,
    StoreUnavailableError,
)
from auth_worker.storage import migrations, schema
from auth_worker.storage.audit_key import NOTES_NAME
from auth_worker.storage.database_files import mark
from auth_worker.storage.durable_file import make_folder, unusable
from auth_worker.storage.file_lock import take_lock
from auth_worker.storage.reading import Reading
from auth_worker.storage.sqlite_database import DATABASE_NAME, LOCK_NAME, url_of

if TYPE_CHECKING:
    from auth_worker.storage.postgres_database import PostgresDatabase

BATCH_ROWS: Final = 1000
EPOCHS_A_RESTORE: Final = 0x10000
"""More than there are starts between a backup and its restore."""
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNWRITABLE: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)

RowCounts = Mapping[str, int]
"""How many rows of each table were copied."""

_logger = logging.getLogger("penstock.auth")


def back_up(reading: Reading, target: Path) -> RowCounts:
    """Write everything, as of one moment, into a new file with mode 0600.

    Args:
        reading: Of the database, which may be in use.
        target: Must not exist; there either is all of it, or nothing.

    Raises:
        StoreError: The database can't be read or is of another release, or the file not written.
    """
    if target.exists():
        raise StoreError(f"{target} exists already; a backup is always a new file.")
    new = target.with_name(target.name + ".new")
    try:
        new.unlink(missing_ok=True)
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with reading() as source, _file(new) as sink:
            if source.dialect.name == "sqlite":
                source.exec_driver_sql("BEGIN")  # one moment for all tables
            _check_version(source)
            migrations.migrate(sink, now_s=0.0)
            sink.execute(schema.schema_version.delete())
            counts = _copy_all(source, sink)
        _sync(new)
        new.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise unusable(target, error) from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
    return counts


def restore_file(backup: Path, data_dir: Path) -> RowCounts:
    """Make a backup the SQLite database of a folder that has none.

    Raises:
        StoreLockedError: An auth worker runs there.
        StoreError: There is a database, or the backup is damaged or of a newer release.
    """
    database = data_dir / DATABASE_NAME
    make_folder(data_dir)
    try:
        lock = take_lock(data_dir / LOCK_NAME)
    except OSError as error:
        raise unusable(data_dir, error) from error
    try:
        if database.exists() and database.stat().st_size:
            raise StoreError(f"{database} is there; move it away before a backup takes its place.")
        new = data_dir / f"{DATABASE_NAME}.restored"
        with _migrated(backup, new) as source:
            counts = _count_all(source)
            _begin_generation(source)
        for ending in ("-wal", "-shm"):  # of the database that was lost: not to be mixed in
            log = database.with_name(database.name + ending)
            if log.exists():
                log.replace(_aside(log))
        _put_notes_aside(data_dir)  # first: a kill in between must leave none for this database
        new.replace(database)
        _sync(data_dir)
        mark(database)
    except OSError as error:
        raise unusable(database, error) from error
    finally:
        os.close(lock)
    return counts


def restore_url(backup: Path, database: "PostgresDatabase", data_dir: Path) -> RowCounts:
    """Fill an empty PostgreSQL database from a backup, in one transaction.

    Raises:
        StoreError: It isn't empty, or the backup is damaged or of a newer release.
    """
    make_folder(data_dir)
    work = data_dir / f"{DATABASE_NAME}.restoring"
    try:
        with _migrated(backup, work) as source, database.transaction() as sink:
            database.prepare(sink)  # no worker that stands by makes tables meanwhile
            if migrations.version_of(sink) is not None:
                raise StoreError(f"{database} holds a database; restore into an empty one.")
            migrations.migrate(sink, now_s=0.0)
            sink.execute(schema.schema_version.delete())
            counts = _copy_all(source, sink)
            _begin_generation(sink)
            for table in schema.metadata.sorted_tables:
                _continue_numbers(sink, table)
            _put_notes_aside(data_dir)  # before it is committed, likewise
    finally:
        work.unlink(missing_ok=True)
    return counts


def _check_version(connection: Connection) -> None:
    version, newest = migrations.version_of(connection), migrations.newest_version()
    if version is None:
        raise StoreMissingError("There are no tables to back up.")
    if version != newest:
        raise StoreError(
            f"The auth database has schema version {version}, this Penstock's is {newest}. Back up"
            " with the release that wrote it, or start this one on it first."
        )


@contextmanager
def _migrated(backup: Path, work: Path) -> Iterator[Connection]:
    """A copy of a backup, checked and of the newest version, in a transaction."""
    try:
        shutil.copyfile(backup, work)
        work.chmod(0o600)
    except OSError as error:
        with suppress(OSError):
            work.unlink(missing_ok=True)
        raise unusable(work if error.errno in _NO_ROOM else backup, error) from error
    try:
        with _file(work) as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalars().all()
            if list(found) != ["ok"]:
                how = " ".join(str(found[0]).split())
                raise StoreDamagedError(f"{backup} is damaged: {how}.")
            _check_backup(connection, backup)
            migrations.migrate(connection, now_s=time.time())
            yield connection
    except BaseException as error:
        work.unlink(missing_ok=True)
        if isinstance(error, DatabaseError):
            raise StoreDamagedError(
                f"{backup} is no backup, or is damaged: {error.orig}."
            ) from error
        raise
    _sync(work)


def _check_backup(connection: Connection, backup: Path) -> None:
    """Refuse what is no backup, or one of a newer release, by its own name."""
    try:
        version, newest = migrations.version_of(connection), migrations.newest_version()
    except StoreForeignError as error:
        raise StoreForeignError(
            f"{backup} is no backup of an auth database: its tables are not Penstock's."
        ) from error
    if version is None:
        raise StoreMissingError(f"{backup} holds no tables.")
    if version > newest:
        raise StoreTooNewError(
            f"{backup} has schema version {version}, this Penstock knows versions up to {newest}."
            " Restore it with the release that wrote it."
        )


@contextmanager
def _file(path: Path) -> Iterator[Connection]:
    """One transaction on an SQLite file of ours.

    Raises:
        StoreUnavailableError: The disk has no room for it, or fails.
    """
    engine = create_engine(url_of(path), poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def configure(dbapi_connection: object, _record: object) -> None:
        dbapi_connection.isolation_level = None  # type: ignore[attr-defined]

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    @event.listens_for(engine, "handle_error")
    def name_file(context: ExceptionContext) -> None:
        error = context.original_exception
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNWRITABLE:
            raise StoreUnavailableError(f"{path} can't be written: {error}.") from error

    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def _copy_all(source: Connection, sink: Connection) -> RowCounts:
    counts = {}
    for table in schema.metadata.sorted_tables:
        rows = source.execution_options(stream_results=True).execute(select(table))
        counts[table.name] = 0
        for batch in rows.partitions(BATCH_ROWS):
            sink.execute(insert(table), [dict(row._mapping) for row in batch])
            counts[table.name] += len(batch)
    return counts


def _count_all(connection: Connection) -> RowCounts:
    return {
        table.name: connection.execute(select(text("count(*)")).select_from(table)).scalar_one()
        for table in schema.metadata.sorted_tables
    }


def _begin_generation(connection: Connection) -> None:
    """Epochs of before the restore must not be compared with those that come.

    Nor must they come again: leases of the epochs since the backup are still known to gateways.
    """
    table = schema.authority
    row = connection.execute(select(table)).one_or_none()
    if row is not None:
        lineage, _, number = row.database_id.partition(".")
        values = {"database_id": f"{lineage}.{int(number or 0) + 1}", "holder": ""}
        values["epoch"] = row.epoch + EPOCHS_A_RESTORE
        connection.execute(update(table).values(values))


def _continue_numbers(connection: Connection, table: Table) -> None:
    """New rows get numbers after those that were copied."""
    column = table.autoincrement_column
    if column is None:
        return
    last = connection.execute(select(column).order_by(column.desc()).limit(1)).scalar()
    if last is not None:
        connection.execute(
            text("SELECT setval(pg_get_serial_sequence(:table, :column), :last)"),
            {"table": table.name, "column": column.name, "last": last},
        )


def _put_notes_aside(data_dir: Path) -> None:
    """Checkpoints of entries that the backup doesn't have would make the log look cut off."""
    notes = data_dir / NOTES_NAME
    if notes.exists():
        aside = _aside(notes)
        notes.replace(aside)
        _logger.warning(
            "%s names entries of the audit log that may not be in the backup; it is %s now",
            notes,
            aside,
        )


def _aside(path: Path, clock: Callable[[], float] = time.time) -> Path:
    return path.with_name(f"{path.name}.before-restore-{int(clock())}")


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

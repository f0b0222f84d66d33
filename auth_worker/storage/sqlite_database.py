"""One SQLite file as a database: its lock, its checks, its durable transactions."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, insert, select, update
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import NullPool

from auth_worker.errors import StoreError, StoreFencedError, StoreUnavailableError
from auth_worker.storage import database_files, schema
from auth_worker.storage.bulk import run
from auth_worker.storage.durable_file import unusable
from auth_worker.storage.file_lock import take_lock

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
_STEPS_BETWEEN_LOOKS: Final = 100_000
"""Instructions of SQLite's virtual machine between two looks at the clock: milliseconds."""
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class SqliteDatabase:
    """`<directory>/auth.sqlite3`, held by this process alone.

    WAL with synchronous=FULL: a transaction that returned is on the disk
    (https://www.sqlite.org/pragma.html#pragma_synchronous).

    Args:
        directory: Is made, with mode 0700, when it is missing.
        lock_patience_s: How long to wait for another auth worker to release the database.

    Attributes:
        path: The file.
        engine: Of SQLAlchemy.
        database_id: Empty: nobody stands by.

    Raises:
        StoreLockedError: Another auth worker holds this database.
        StoreMissingError: There was a database, and it is gone or empty.
        StoreDamagedError: Its write-ahead log is damaged.
        StoreUnavailableError: The disk is full or failing.
        StoreError: It can't be opened.
    """

    def __init__(self, directory: Path, *, lock_patience_s: float = 0.0) -> None:
        self.path = directory / DATABASE_NAME
        self.database_id = ""
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_fd: int | None = take_lock(directory / LOCK_NAME, lock_patience_s)
        except OSError as error:
            raise unusable(directory, error) from error
        self.engine = _engine(self.path)
        self._writing: Connection | None = None
        try:
            database_files.check_presence(self.path)
            database_files.check_log(self.path)
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        return str(self.path)

    def holds(self) -> bool:
        """Always: the lock on the file goes with the process."""
        return True

    def wants_renewal(self) -> bool:
        """Never."""
        return False

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """See `Database.transaction`."""
        try:
            # The same connection each time: to fetch it from a pool costs as much as a settlement.
            if self._writing is None or self._writing.invalidated or self._writing.closed:
                self._writing = self.engine.connect()
            with _rolled_back(self._writing), self._writing.begin():
                yield self._writing
        except (DatabaseError, sqlite3.DatabaseError) as error:
            # SQLAlchemy wraps what the driver raises; `bulk.run` goes past it.
            of_driver = error.orig if isinstance(error, DatabaseError) else error
            if isinstance(of_driver, sqlite3.IntegrityError | sqlite3.DataError):
                raise  # only an operation is bad
            raise _store_error(self.path, of_driver) from error

    def reading(self, *, timeout_s: float | None = None) -> AbstractContextManager[Connection]:
        """See `Database.reading`."""
        return reading_file(self.path, timeout_s=timeout_s)

    def prepare(self, connection: Connection) -> None:
        """Look through the pages before anything is read from them."""
        database_files.check_pages(connection, self.path)

    def take(self, connection: Connection, acquired_at: int, database_id: str) -> int:
        """The next epoch; the lock on the file keeps everybody else away."""
        table = schema.authority
        before = connection.execute(select(table)).one_or_none()
        epoch = 1 if before is None else before.epoch + 1
        values = {
            "epoch": epoch,
            "acquired_at": acquired_at,
            "database_id": database_id if before is None else before.database_id or database_id,
        }
        if before is None:
            connection.execute(insert(table).values(id=1, **values))
        else:
            connection.execute(update(table).values(**values))
        return epoch

    def opened(self) -> None:
        """Note beside it that there is a database."""
        database_files.mark(self.path)

    def hold(self, connection: Connection, epoch: int, _number: int) -> bool:
        """The lock keeps others away; this shows one who went past it."""
        (found,) = run(connection, "SELECT epoch FROM authority").fetchone()
        if found != epoch:
            raise StoreFencedError(
                f"Another auth worker took the database over (epoch {found}, mine is {epoch});"
                " this one stops."
            )
        return True  # what SQLite fails to commit is not committed

    def release(self, epoch: int) -> None:
        """Nothing to do: the lock goes with `close`."""

    def close(self) -> None:
        """Close the database, then release its lock; once more does nothing."""
        if self._writing is not None:
            self._writing.close()
        self.engine.dispose()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def url_of(path: Path) -> URL:
    """What SQLAlchemy opens a file by, whatever its name holds: of a text, `?` would end it."""
    return URL.create("sqlite", database=str(path))


@contextmanager
def reading_file(path: Path, *, timeout_s: float | None = None) -> Iterator[Connection]:
    """A connection that only reads, whether an auth worker holds the file or not.

    Args:
        path: Of the file.
        timeout_s: For everything that is read; None for as long as that needs.

    Raises:
        StoreUnavailableError: The time is over, or the same may succeed later.
        StoreError: The database can't be read.
    """
    uri = f"file:{quote(str(path.absolute()))}"
    options = {"mode": "ro", "uri": "true"}
    engine = create_engine(URL.create("sqlite", database=uri, query=options))
    if timeout_s is not None:
        _limit_time(engine, time.monotonic() + timeout_s)
    try:
        with engine.connect() as connection:
            yield connection
    except DatabaseError as error:
        raise _store_error(path, error.orig) from error
    finally:
        engine.dispose()


def _store_error(path: Path, error: BaseException | None) -> StoreError:
    if isinstance(error, sqlite3.OperationalError):
        return StoreUnavailableError(f"{path}: {error}{_room(path)}")
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
        return database_files.damaged(path, str(error))
    return StoreError(f"{path}: {error}")


def _room(path: Path) -> str:
    """What SQLite calls a "disk I/O error" is often no more than a full disk."""
    try:
        state = os.statvfs(path.parent)
    except OSError:
        return ""  # the folder itself is gone
    free_bytes = state.f_bavail * state.f_frsize
    if free_bytes >= _LITTLE_ROOM_BYTES:
        return ""
    return f"; {free_bytes} bytes are free on that disk"


def _limit_time(engine: Engine, until_s: float) -> None:
    """Interrupt what runs on connections of an engine when its time is over."""

    @event.listens_for(engine, "connect")
    def configure(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.set_progress_handler(
            lambda: time.monotonic() > until_s, _STEPS_BETWEEN_LOOKS
        )


def _engine(path: Path) -> Engine:
    # No pool: there is one writer with one connection, and it reads in its own order. The driver
    # must not open transactions behind our back, so that BEGIN IMMEDIATE takes the write lock.
    engine = create_engine(
        url_of(path),
        poolclass=NullPool,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def configure(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = None
        for pragma in _PRAGMAS:
            dbapi_connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        run(connection, "BEGIN IMMEDIATE")  # of the driver, as `bulk.run` says why

    return engine


@contextmanager
def _rolled_back(connection: Connection) -> Iterator[None]:
    """SQLAlchemy rolls nothing back after a COMMIT that failed; the reset of its pool would."""
    try:
        yield
    except BaseException:
        if not (connection.invalidated or connection.closed):
            driver: Any = connection.connection.dbapi_connection
            if driver.in_transaction:
                driver.rollback()
        raise

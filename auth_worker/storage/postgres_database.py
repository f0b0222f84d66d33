"""A PostgreSQL database: connections, durable transactions, the lease of the one that writes."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import errors as pg
from psycopg.types.string import StrDumperUnknown
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, inspect
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from auth_worker.errors import (
    StoreDamagedError,
    StoreError,
    StoreFencedError,
    StoreForeignError,
    StoreLockedError,
    StoreMissingError,
    StoreUnavailableError,
)
from auth_worker.records.stored_names import storable
from auth_worker.storage.bulk import run
from auth_worker.storage.database_url import DatabaseUrl
from auth_worker.storage.durable_file import write_durably

MARKER_NAME: Final = "auth.postgresql.created"
LEASE_S: Final = 3.0
"""A holder that wrote nothing for so long has lost the database to whoever asks for it."""
HELD_S: Final = 2.4
"""A holder grants nothing so long after it began the last transaction that it knows committed.

Shorter than `LEASE_S` by more than two clocks of two machines drift apart meanwhile."""
RENEWED_S: Final = 0.5
"""A holder that has nothing to write writes nothing, to keep its lease, so often."""
STUCK_S: Final = 10.0
"""A transaction of the holder, or of one that stands by, that takes so long waits for a server or a
network that is gone. Opening, which may have tables to change, takes as long as it takes."""
_CONNECT_TIMEOUT_S: Final = 5
_LOCK_TIMEOUT_S: Final = 2.0
_IDLE_TIMEOUT_S: Final = 2.0
"""The server ends a transaction whose client says nothing for so long: it stands still, and its
row lock would keep the next holder away."""
OPENING_IDLE_TIMEOUT_S: Final = 30.0
"""The same while a store is opened, restored or brought back: to load what makes or changes tables,
and to do it, can take a busy machine longer between two statements, and would again each time that
it is tried."""
_LOCK_OF_OPENING: Final = 0x70656E73746F636B
"""One worker at a time makes tables or takes the database over: an advisory lock, `penstock`."""
_WATCH_INTERVAL_S: Final = 1.0
_LOST = ("08", "53", "57", "58", "40")
"""Classes of SQLSTATE after which the same transaction may succeed: no connection, no room, told to
stop, failing disk, serialization. https://www.postgresql.org/docs/current/errcodes-appendix.html"""
_VANISHED: Final = (pg.UndefinedTable, pg.UndefinedColumn, pg.InvalidCatalogName)
_NOT_ALLOWED: Final = (pg.InvalidAuthorizationSpecification, pg.InsufficientPrivilege)
_PASSING: Final = (
    pg.LockNotAvailable,
    pg.IdleInTransactionSessionTimeout,
    pg.ReadOnlySqlTransaction,
    pg.QueryCanceled,
)
_OF_AN_OPERATION: Final = (
    *(psycopg.IntegrityError, psycopg.DataError, psycopg.ProgrammingError),
    pg.ProgramLimitExceeded,  # as a name that is too long for an index
)
_OF_THE_STORE: Final = (*_VANISHED, *_NOT_ALLOWED)

_logger = logging.getLogger("penstock.auth")


def lineage_of(database_id: str) -> str:
    """What stays of the id of a database when it is restored, which appends to it."""
    return database_id.partition(".")[0]


def boot_time_s() -> float:
    """Seconds that never jump and go on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class PostgresDatabase:
    """A database on a PostgreSQL server, shared by auth workers of which one writes.

    The row of `authority` is the lease. Each transaction of the holder begins by counting its
    `num_commits` up, where epoch and count are its own; under READ COMMITTED that waits for
    whoever is taking over, and finds out. A count that stands still for `LEASE_S` is a holder that
    is gone. What it grants without asking the database it grants for `HELD_S` after a transaction.

    Args:
        url: Of the server and database.
        marker: A file that remembers the id of the database, so that an empty or another one in
            its place is refused; None remembers nothing.
        holder: Who this is, for people.
        clock_s: Seconds that never jump.
        idle_timeout_s: How long the server waits, amid a transaction, for the next statement.

    Attributes:
        url: As given.
        engine: Of SQLAlchemy, with one connection.
        database_id: Of the database that was taken; empty before.
    """

    def __init__(
        self,
        url: DatabaseUrl,
        *,
        marker: Path | None = None,
        holder: str | None = None,
        clock_s: Callable[[], float] = boot_time_s,
        idle_timeout_s: float = _IDLE_TIMEOUT_S,
    ) -> None:
        self.url = url
        self.engine = _engine(url, idle_timeout_s)
        self.database_id = ""
        self._marker = marker
        self._holder = holder or f"{socket.gethostname()}:{os.getpid()}"
        self._clock_s = clock_s
        self._held_until_s = 0.0
        self._seen: tuple[int, int] | None = None
        self._seen_since_s = 0.0
        self._is_held = False  # by the transaction that runs
        self._has_tables = False
        self._began_s: float | None = None
        self._socket_of: Any = None
        self._closed = threading.Event()
        event.listen(self.engine, "checkout", self._on_checkout)
        self._watch = threading.Thread(target=self._run_watch, name="database-watch", daemon=True)
        self._watch.start()

    def __str__(self) -> str:
        return str(self.url)

    def holds(self) -> bool:
        """Whether nobody else can have taken the database over by now."""
        return self._clock_s() < self._held_until_s

    def wants_renewal(self) -> bool:
        """Whether the last transaction is long enough ago for one that writes nothing."""
        return self._clock_s() >= self._held_until_s - HELD_S + RENEWED_S

    def is_free(self) -> bool:
        """Whether the database may be taken: it is new, was released, or its holder is gone.

        Called again and again by whoever stands by.

        Raises:
            StoreUnavailableError: The server can't be asked.
        """
        with self.transaction() as connection:
            self._began_s = self._clock_s()
            if not self._has_tables and not inspect(connection).has_table("authority"):
                return True
            self._has_tables = True
            row = run(
                connection, "SELECT epoch, num_commits, holder FROM authority WHERE id = 1"
            ).fetchone()
        if row is None:
            return True
        epoch, num_commits, holder = row
        now_s = self._clock_s()
        if (epoch, num_commits) != self._seen:
            self._seen = (epoch, num_commits)
            self._seen_since_s = now_s
        return not holder or now_s - self._seen_since_s >= LEASE_S

    @property
    def holder_seen(self) -> str:
        """Epoch of the holder that `is_free` saw last, for people."""
        return "" if self._seen is None else f"epoch {self._seen[0]}"

    @property
    def seen(self) -> tuple[int, int] | None:
        """Epoch and number of commits that `is_free` saw last."""
        return self._seen

    @property
    def silent_s(self) -> float:
        """For how long `is_free` has seen them stand still."""
        return self._clock_s() - self._seen_since_s

    def prepare(self, connection: Connection) -> None:
        """No other worker opens it at the same time, and it holds what it held before."""
        run(connection, f"SET LOCAL {_idle_timeout(OPENING_IDLE_TIMEOUT_S)}")
        run(connection, "SELECT pg_advisory_xact_lock(%s)", (_LOCK_OF_OPENING,))
        (encoding,) = run(connection, "SHOW server_encoding").fetchone()
        if encoding != "UTF8":
            raise StoreError(f"{self} has encoding {encoding}; make it WITH ENCODING 'UTF8'.")
        if self._remembered() and not inspect(connection).has_table("authority"):
            raise StoreMissingError(
                f"{self} is empty, but {self._marker} says that there was a database. Restore a"
                f" backup, or remove {self._marker} to start over, which loses all keys, limits and"
                " usage."
            )

    def take(self, connection: Connection, acquired_at: int, database_id: str) -> int:
        """Become the holder, in the transaction that opens a store.

        Raises:
            StoreLockedError: Somebody else is, after all.
        """
        row = run(
            connection,
            "SELECT epoch, num_commits, database_id FROM authority WHERE id = 1 FOR UPDATE",
        ).fetchone()
        if row is None:
            epoch, self.database_id = 1, database_id
            text = (
                "INSERT INTO authority (epoch, acquired_at, num_commits, holder, database_id, id)"
                " VALUES (%s, %s, 0, %s, %s, 1)"
            )
        else:
            if self._seen is None or tuple(row[:2]) != self._seen:
                raise StoreLockedError(f"Another auth worker holds {self}.")
            epoch, self.database_id = row[0] + 1, row[2] or database_id
            text = (
                "UPDATE authority SET epoch = %s, acquired_at = %s, num_commits = 0, holder = %s,"
                " database_id = %s WHERE id = 1"
            )
        remembered = self._remembered()
        if remembered and lineage_of(self.database_id) != lineage_of(remembered):
            raise StoreForeignError(
                f"{self} is another database than the one that {self._marker} was made with. Look"
                f" at the address, or remove {self._marker} to go on with this one."
            )
        run(connection, text, (epoch, acquired_at, self._holder, self.database_id))
        self._is_held = True
        return epoch

    def opened(self) -> None:
        """Note the id of the database."""
        if self._marker is not None and self._remembered() != self.database_id:
            write_durably(self._marker, self.database_id + "\n")

    def _remembered(self) -> str:
        if self._marker is None or not self._marker.exists():
            return ""
        return self._marker.read_text(encoding="ascii", errors="replace").strip()

    def hold(self, connection: Connection, epoch: int, number: int) -> bool:
        """See `Database.hold`."""
        self._began_s = self._clock_s()
        counted = run(
            connection,
            "UPDATE authority SET num_commits = %s"
            " WHERE id = 1 AND epoch = %s AND num_commits = %s",
            (number, epoch, number - 1),
        )
        if counted.rowcount == 1:
            self._is_held = True
            return True
        row = run(connection, "SELECT epoch, num_commits FROM authority WHERE id = 1").fetchone()
        if row is not None and tuple(row) == (epoch, number):
            return False
        self._held_until_s = 0.0
        if row is None:
            raise StoreMissingError(f"{self} has lost its tables. Restore a backup.")
        raise StoreFencedError(
            f"Another auth worker took {self} over (epoch {row[0]}, mine is {epoch}); this one"
            " stops."
        )

    def release(self, epoch: int) -> None:
        """See `Database.release`: whoever stands by needn't wait for the lease's end."""
        with suppress(StoreError, SQLAlchemyError), self.transaction() as connection:
            text = "UPDATE authority SET holder = '' WHERE id = 1 AND epoch = %s"
            run(connection, text, (epoch,))

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """See `Database.transaction`."""
        began_s = self._clock_s()
        self._is_held = False
        try:
            with self.engine.begin() as connection:
                yield connection
        except (DatabaseError, psycopg.Error) as error:
            # SQLAlchemy wraps what the driver raises; `bulk.run` goes past it.
            of_driver = error.orig if isinstance(error, DatabaseError) else error
            if isinstance(of_driver, _OF_AN_OPERATION) and not isinstance(of_driver, _OF_THE_STORE):
                raise  # only an operation is bad
            # Whatever the connection is good for, the next transaction gets a new one.
            self.engine.dispose()
            raise _store_error(self.url, of_driver) from error
        finally:
            self._began_s = None
        if self._is_held:
            self._held_until_s = began_s + HELD_S

    def reading(self, *, timeout_s: float | None = None) -> AbstractContextManager[Connection]:
        """See `Database.reading`."""
        return reading_url(self.url, timeout_s=timeout_s)

    def close(self) -> None:
        """Close the connection; once more does nothing."""
        self._closed.set()
        self.engine.dispose()

    def _on_checkout(self, dbapi_connection: Any, _record: Any, _proxy: Any) -> None:
        self._socket_of = dbapi_connection

    def _run_watch(self) -> None:
        """Cut a connection on which nothing comes back; the thread that waits then gets an error.

        A network that drops packets, or a proxy that keeps a connection to a server that is gone,
        would hold it forever.
        """
        while not self._closed.wait(_WATCH_INTERVAL_S):
            began_s = self._began_s
            if began_s is None or self._clock_s() - began_s < STUCK_S:
                continue
            _logger.error("%s does not answer; the connection is cut", self)
            with suppress(OSError, psycopg.Error, AttributeError):
                # A descriptor of our own: the other thread may close its one at any moment.
                own = socket.socket(fileno=os.dup(self._socket_of.pgconn.socket))
                with own:
                    own.shutdown(socket.SHUT_RDWR)
            self._began_s = None


@contextmanager
def reading_url(url: DatabaseUrl, *, timeout_s: float | None = None) -> Iterator[Connection]:
    """A connection of its own that only reads, in one snapshot.

    Args:
        url: Of the server and database.
        timeout_s: How long one statement may take; None for as long as it needs.

    Raises:
        StoreUnavailableError: A statement took longer, or the same may succeed later.
        StoreError: The database can't be read.
    """
    # Who reads page by page pauses between them.
    engine = _engine(url, 0.0, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            run(connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            if timeout_s is not None:
                text = "SELECT set_config('statement_timeout', %s, true)"
                run(connection, text, (f"{int(timeout_s * 1000)}ms",))
            yield connection
    except (DatabaseError, psycopg.Error) as error:
        of_driver = error.orig if isinstance(error, DatabaseError) else error
        raise _store_error(url, of_driver) from error
    finally:
        engine.dispose()


def _store_error(url: DatabaseUrl, error: BaseException | None) -> StoreError:
    state = getattr(error, "sqlstate", None) or ""
    said = " ".join(str(error).split())
    if state.startswith("XX") and state != "XX000":
        return StoreDamagedError(f"{url} is damaged: {said}. Restore a backup.")
    # What a server says while a connection is made comes without a code. In another language than
    # English it is taken for something that passes, and said in the log.
    is_no_database = "FATAL" in said and 'database "' in said and "does not exist" in said
    is_full = "too many connections" in said  # for that role: others will end
    is_refused = "authentication failed" in said or (
        'role "' in said and "FATAL" in said and not is_full
    )
    if isinstance(error, _VANISHED) or is_no_database:
        return StoreMissingError(f"{url} is not there or has lost its tables: {said}")
    if isinstance(error, _NOT_ALLOWED) or is_refused:
        return StoreError(f"{url} can't be used: {said}")
    is_passing = state.startswith(_LOST) or isinstance(error, _PASSING)
    if is_passing or (isinstance(error, psycopg.OperationalError) and not state):
        return StoreUnavailableError(f"{url}: {said}")
    return StoreError(f"{url}: {said}")


class _Text(StrDumperUnknown):
    """Text as PostgreSQL can hold it."""

    def dump(self, obj: str) -> Any:
        return super().dump(storable(obj))


def _idle_timeout(seconds: float) -> str:
    return f"idle_in_transaction_session_timeout = '{int(seconds * 1000)}ms'"


def _engine(url: DatabaseUrl, idle_timeout_s: float, **options: Any) -> Engine:
    if "poolclass" not in options:
        # One connection: there is one writer, and it reads in its own order.
        options |= {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1.0}
    engine = create_engine(
        url.reveal(),
        isolation_level="READ COMMITTED",
        paramstyle="format",
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "application_name": "penstock-auth",
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": int(STUCK_S * 1000),
        },
        **options,
    )

    @event.listens_for(engine, "connect")
    def configure(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.adapters.register_dumper(str, _Text)
        was_automatic = dbapi_connection.autocommit
        dbapi_connection.autocommit = True
        with dbapi_connection.cursor() as cursor:
            cursor.execute(f"SET {_idle_timeout(idle_timeout_s)}")
            cursor.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT_S}s'")
            # A statement whose client is gone ends, too, where the server can tell (PostgreSQL 14).
            cursor.execute(
                "SELECT set_config('client_connection_check_interval', '1s', false)"
                " WHERE current_setting('server_version_num')::int >= 140000"
            )
            # What is acknowledged must survive; stricter settings of the server stay.
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false)"
                " WHERE current_setting('synchronous_commit') = 'off'"
            )
        dbapi_connection.autocommit = was_automatic

    return engine

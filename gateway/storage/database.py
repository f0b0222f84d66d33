"""One connection to a database in a thread of its own; what waits together commits together."""

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gateway.errors import (
    GatewayError,
    InvalidRequestError,
    OverloadedError,
    StoreUnavailableError,
)
from gateway.storage.schema import SCHEMA_VERSION, TABLES
from protocol.errors import ConfigurationError

ResultT = TypeVar("ResultT")
_logger = logging.getLogger("penstock.gateway.storage")

MAX_WAITING = 4096
PATIENCE_S = 30.0
"""How long anybody waits for the database."""
CLOSE_PATIENCE_S = 3.0
"""How long the end of the process waits for what is under way."""
_MAX_GROUP = 64
_BUSY_S = 10.0
_MAX_TRIES = 3
"""Of one piece of work that another process got in the way of."""


class Connection(Protocol):
    """What work does with a database: statements with `?` for values, rows as tuples."""

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement; its rows, and none for one that gives none.

        Raises:
            InvalidRequestError: A text among the values can't be stored (`check_texts`).
        """
        ...


Work = Callable[[Connection], ResultT]


class Engine(Protocol):
    """A kind of database: how to reach it and what its errors mean."""

    def connect(self) -> Connection:
        """A connection that leaves transactions to its user."""
        ...

    def close(self, connection: Connection) -> None:
        """Let it go; never raises."""
        ...

    def is_failure(self, error: Exception) -> bool:
        """Whether an error is the database's own and no mistake of ours."""
        ...

    def is_conflict(self, error: Exception) -> bool:
        """Whether the same work may well succeed when it is done again."""
        ...

    def is_lost(self, error: Exception) -> bool:
        """Whether another connection is needed."""
        ...


def check_texts(values: Sequence[Any]) -> None:
    """See that every database can hold the texts among these, so that all answer the same.

    Raises:
        InvalidRequestError: One holds U+0000, which no text of PostgreSQL may, or half of a
            surrogate pair, which has no UTF-8.
    """
    for value in values:
        if isinstance(value, str) and ("\0" in value or not _has_utf8(value)):
            raise InvalidRequestError(
                "An id or a name holds U+0000 or half of a surrogate pair, which can't be stored;"
                " leave that out."
            )


def _has_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class SqliteConnection:
    """A connection to a file.

    Args:
        path: Made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.raw = sqlite3.connect(
            path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        self.raw.execute("PRAGMA journal_mode=WAL")
        # The process may be killed at any moment and nothing is lost; with the machine's power
        # the last moments may be, as docs/adr/ says.
        self.raw.execute("PRAGMA synchronous=NORMAL")

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement."""
        check_texts(values)
        return self.raw.execute(statement, values).fetchall()


class SqliteEngine:
    """A file of SQLite; several gateways of one machine may share it.

    Args:
        path: Made if missing, with its folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def connect(self) -> SqliteConnection:
        """A connection to the file."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.touch(mode=0o600, exist_ok=True)
        return SqliteConnection(self._path)

    def close(self, connection: Connection) -> None:
        """Let it go."""
        assert isinstance(connection, SqliteConnection)
        with contextlib.suppress(sqlite3.Error):
            connection.raw.close()

    def is_failure(self, error: Exception) -> bool:
        """Whether it is SQLite's own."""
        return isinstance(error, sqlite3.Error | OSError)

    def is_conflict(self, error: Exception) -> bool:
        """Another gateway wrote for longer than anybody should."""
        return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)

    def is_lost(self, error: Exception) -> bool:
        """A file doesn't go away."""
        return False


class _Waiting:
    """A piece of work and who waits for it."""

    __slots__ = ("future", "is_given_up", "loop", "num_tries", "work")

    def __init__(self, work: Work[Any]) -> None:
        self.work = work
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.num_tries = 0
        self.is_given_up = False


class Database:
    """Runs work in one thread, in order; what has queued up shares a transaction.

    Each piece is all or nothing: one that raises leaves the others of its transaction alone.

    Args:
        engine: The kind of database.
        first: Done once its tables are there.

    Raises:
        ConfigurationError: It can't be reached, or was made by a newer version.
    """

    def __init__(self, engine: Engine, first: Work[None] | None = None) -> None:
        self._engine = engine
        self._first = first
        self._queue: deque[_Waiting] = deque()
        self._wake = threading.Condition()
        self._is_closed = False
        self._connection: Connection | None = self._first_connection()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    async def run(self, work: Work[ResultT]) -> ResultT:
        """Do something within a transaction and wait until it is committed.

        Raises:
            StoreUnavailableError: The database can't be used at the moment, or takes too long; what
                was begun by then may still be committed, and nothing else is.
            OverloadedError: Too much waits for it.
            GatewayError: What the work itself raises.
        """
        waiting = _Waiting(work)
        with self._wake:
            if self._is_closed:
                raise StoreUnavailableError("The store is closed; please try again.")
            if len(self._queue) >= MAX_WAITING:
                raise OverloadedError("Too much waits for the store; please try again later.")
            self._queue.append(waiting)
            self._wake.notify()
        try:
            async with asyncio.timeout(PATIENCE_S):
                result: ResultT = await waiting.future
        except TimeoutError:
            waiting.is_given_up = True
            raise StoreUnavailableError(
                f"The store of this server has not answered within {PATIENCE_S:g} seconds; please"
                " try again."
            ) from None
        return result

    async def close(self) -> None:
        """Finish what waits, as far as that takes no longer than a moment; idempotent."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join, CLOSE_PATIENCE_S)
        if self._thread.is_alive():
            _logger.error(
                "the store has not answered within %g seconds; what waits for it is lost",
                CLOSE_PATIENCE_S,
            )

    def _first_connection(self) -> Connection:
        engine, num_tries = self._engine, 0
        while True:
            num_tries += 1
            connection: Connection | None = None
            try:
                connection = engine.connect()
                self._prepare(connection)
            except Exception as error:
                if connection is not None:
                    engine.close(connection)
                if engine.is_conflict(error) and num_tries < _MAX_TRIES:
                    continue  # another gateway makes the same tables
                if engine.is_failure(error):
                    raise ConfigurationError(f"PENSTOCK_STORE_URL: {error}") from error
                raise
            return connection

    def _prepare(self, connection: Connection) -> None:
        for statement in ("BEGIN", *TABLES):
            connection.execute(statement)
        rows = connection.execute("SELECT version FROM store_version")
        if not rows:
            connection.execute("INSERT INTO store_version VALUES (?)", (SCHEMA_VERSION,))
        elif rows[0][0] > SCHEMA_VERSION:
            raise ConfigurationError(
                f"PENSTOCK_STORE_URL: the store has version {rows[0][0]} and this gateway knows"
                f" {SCHEMA_VERSION}; run the newer one, or give it another store."
            )
        if self._first is not None:
            self._first(connection)
        connection.execute("COMMIT")

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._is_closed:
                    self._wake.wait()
                if not self._queue:
                    break
                group = [self._queue.popleft() for _ in range(min(_MAX_GROUP, len(self._queue)))]
            self._do(group)
        if self._connection is not None:
            self._engine.close(self._connection)

    def _do(self, group: list[_Waiting]) -> None:
        """One transaction; where it fails as a whole, each piece is tried alone."""
        try:
            answers = self._transaction(group)
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            self._recover(error)
            if len(group) > 1:
                for waiting in group:
                    self._do([waiting])
                return
            (waiting,) = group
            waiting.num_tries += 1
            is_worth_it = self._engine.is_conflict(error) or self._engine.is_lost(error)
            if is_worth_it and waiting.num_tries < _MAX_TRIES:
                self._do(group)
                return
            answers = [(waiting, None, error)]
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Waiting, Any, Exception | None]]] = {}
        for answer in answers:
            by_loop.setdefault(answer[0].loop, []).append(answer)
        for loop, those in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(self._tell, those)

    def _transaction(self, group: list[_Waiting]) -> list[tuple[_Waiting, Any, Exception | None]]:
        if self._connection is None:
            self._connection = self._engine.connect()
        connection = self._connection
        answers: list[tuple[_Waiting, Any, Exception | None]] = []
        connection.execute("BEGIN")
        for waiting in group:
            if waiting.is_given_up:
                continue  # it was told that it failed
            connection.execute("SAVEPOINT one")
            try:
                answers.append((waiting, waiting.work(connection), None))
            except GatewayError as error:
                connection.execute("ROLLBACK TO SAVEPOINT one")
                answers.append((waiting, None, error))
            connection.execute("RELEASE SAVEPOINT one")
        connection.execute("COMMIT")
        return answers

    def _recover(self, error: Exception) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            if self._engine.is_lost(error):
                raise error
            connection.execute("ROLLBACK")
        except Exception:  # noqa: BLE001
            # Whatever it was, a fresh connection is in no half of a transaction.
            self._engine.close(connection)
            self._connection = None

    def _tell(self, answers: list[tuple[_Waiting, Any, Exception | None]]) -> None:
        for waiting, result, error in answers:
            if waiting.future.done():
                continue  # nobody waits any more
            if error is None:
                waiting.future.set_result(result)
            elif isinstance(error, GatewayError):
                waiting.future.set_exception(error)
            else:
                _logger.error("the store failed: %s: %s", type(error).__name__, error)
                waiting.future.set_exception(
                    StoreUnavailableError(
                        "The store of this server can't be used at the moment; please try again."
                    )
                )

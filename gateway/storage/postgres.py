"""PostgreSQL as the store of several gateways."""

import contextlib
from collections.abc import Sequence
from typing import Any, Final

import psycopg

from gateway.storage.database import Connection, check_texts
from protocol.errors import ConfigurationError

_CONNECT_TIMEOUT_S = 10
STUCK_S: Final = 10.0
"""A server that acknowledges nothing for so long is lost."""
_STATEMENT_TIMEOUT_S: Final = 20.0
"""Less than anybody waits, see `database.PATIENCE_S`: a statement that is stuck on a lock ends."""


class PostgresConnection:
    """A connection that reads statements as SQLite does.

    Args:
        url: `postgresql://…`.
    """

    def __init__(self, url: str) -> None:
        self.raw = psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=_CONNECT_TIMEOUT_S,
            application_name="penstock-gateway",
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=int(STUCK_S * 1000),
        )
        try:
            self.raw.execute(f"SET statement_timeout = {int(_STATEMENT_TIMEOUT_S * 1000)}".encode())
        except BaseException:
            self.raw.close()
            raise

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement."""
        check_texts(values)
        text = statement.replace("?", "%s").replace(" BLOB ", " BYTEA ")
        cursor = self.raw.execute(text.encode(), values)
        if cursor.description is None:
            return []
        return [tuple(_plain(value) for value in row) for row in cursor.fetchall()]


class PostgresEngine:
    """A database of PostgreSQL.

    Args:
        url: `postgresql://…`; never logged.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def connect(self) -> PostgresConnection:
        """A connection to it."""
        try:
            return PostgresConnection(self._url)
        except psycopg.ProgrammingError:
            # Its message would repeat the address, and with it a password.
            raise ConfigurationError("PENSTOCK_STORE_URL is no address of PostgreSQL.") from None

    def close(self, connection: Connection) -> None:
        """Let it go."""
        assert isinstance(connection, PostgresConnection)
        with contextlib.suppress(psycopg.Error):
            connection.raw.close()

    def is_failure(self, error: Exception) -> bool:
        """Whether it is PostgreSQL's own."""
        return isinstance(error, psycopg.Error)

    def is_conflict(self, error: Exception) -> bool:
        """Another gateway's transaction got in the way."""
        return isinstance(
            error,
            psycopg.errors.DeadlockDetected
            | psycopg.errors.SerializationFailure
            | psycopg.errors.UniqueViolation,
        )

    def is_lost(self, error: Exception) -> bool:
        """The server has gone, or the way to it."""
        if isinstance(error, psycopg.errors.QueryCanceled):
            return False  # the statement took too long; its connection is well
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value

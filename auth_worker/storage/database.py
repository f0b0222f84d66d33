"""The seam between the store and one kind of database: connections, transactions, who may write."""

from contextlib import AbstractContextManager
from typing import Protocol

from sqlalchemy import Connection


class Database(Protocol):
    """What differs between the databases; used from one thread at a time, as `Store` is.

    Statements that differ by dialect alone are made in `bulk.py`.
    """

    @property
    def database_id(self) -> str:
        """Tells databases apart whose epochs can't be compared; empty where nobody stands by."""
        ...

    def holds(self) -> bool:
        """Whether nobody else can have taken the database over by now; from any thread."""
        ...

    def wants_renewal(self) -> bool:
        """Whether a transaction that writes nothing should keep the database held; any thread."""
        ...

    def transaction(self) -> AbstractContextManager[Connection]:
        """One durable transaction: it has lasted once this returns, or changed nothing.

        Raises:
            StoreUnavailableError: The same may succeed later. Nothing was written, unless it was
                the commit itself that failed; then `hold` tells.
            StoreError: The database is broken.
            sqlalchemy.exc.DatabaseError: Only what was asked for is bad, as the driver's
                IntegrityError and DataError are.
        """
        ...

    def reading(self, *, timeout_s: float | None = None) -> AbstractContextManager[Connection]:
        """A connection of its own beside the one that writes, for any thread; it changes nothing.

        Args:
            timeout_s: How long one statement may take; None for as long as it needs.

        Raises:
            StoreUnavailableError: A statement took longer, or the same may succeed later.
            StoreError: The database can't be read.
        """
        ...

    def prepare(self, connection: Connection) -> None:
        """First thing in the transaction that opens a store.

        Raises:
            StoreMissingError: There was a database, and it is gone or empty.
            StoreDamagedError: It is damaged.
        """
        ...

    def take(self, connection: Connection, acquired_at: int, database_id: str) -> int:
        """Become the one that writes, in the transaction that opens a store.

        Args:
            connection: In the transaction; the tables are there.
            acquired_at: Unix seconds.
            database_id: For a database that has none.

        Returns:
            The epoch, greater than all before.

        Raises:
            StoreLockedError: Somebody else writes.
        """
        ...

    def opened(self) -> None:
        """The transaction that opened a store has lasted."""
        ...

    def hold(self, connection: Connection, epoch: int, number: int) -> bool:
        """First thing in each further transaction of a store: nobody has taken over.

        Args:
            connection: In the transaction.
            epoch: Of the store.
            number: Of the transaction; one more than that of the last one that has lasted.

        Returns:
            False when the transaction of this number has lasted before: its commit came through,
            although the answer to it did not.

        Raises:
            StoreFencedError: Somebody has taken over.
        """
        ...

    def release(self, epoch: int) -> None:
        """Write no more, so that somebody else may take over at once; fails silently."""
        ...

    def close(self) -> None:
        """Release the database; once more does nothing."""
        ...

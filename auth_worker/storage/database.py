"""The seam between the store and one kind of database: connections, transactions, who may write."""

from contextlib import AbstractContextManager
from typing import Protocol

from sqlalchemy import Connection


class Database(Protocol):
    """What differs between the databases; used from one thread at a time, as `Store` is.

    Statements that differ by dialect alone are made in `bulk.py`.
    """

    def transaction(self) -> AbstractContextManager[Connection]:
        """One durable transaction: it has lasted once this returns, or changed nothing.

        Raises:
            StoreUnavailableError: Nothing was written; the same may succeed later.
            StoreError: The database is broken.
            sqlalchemy.exc.DatabaseError: Only what was asked for is bad, as the driver's
                IntegrityError and DataError are.
        """
        ...

    def check_fence(self, connection: Connection, epoch: int) -> None:
        """First thing in each transaction of a store: nobody has taken over since it was opened.

        Raises:
            StoreFencedError: Somebody has.
        """
        ...

    def close(self) -> None:
        """Let go of the database; once more does nothing."""
        ...

"""The port of the authority's memory: one epoch, one writer, transactions of many operations."""

from collections.abc import Sequence
from typing import Protocol

from auth_worker.records.operations import Operation, Result, Snapshot


class Store(Protocol):
    """A durable store, held by one authority at a time.

    Used from one thread at a time: the starting thread first, then the commit thread.
    """

    @property
    def epoch(self) -> int:
        """Grows with each authority that opens the store; fences those before it."""
        ...

    def load(self, *, recent_since_ms: int) -> Snapshot:
        """All keys and open leases, and what was settled since that Unix millisecond."""
        ...

    def apply(self, operations: Sequence[Operation]) -> list[Result]:
        """Carry out all operations in one durable transaction, or none.

        Keys are changed first, then leases are remembered, usage is booked and the audit log grows,
        then pages are read; each kind in order. When this returns, the results survive the loss of
        the process and of power.

        Raises:
            StoreUnavailableError: Nothing was written; the same call may succeed later.
            StoreFencedError: Another authority took over; nothing may be written any more.
            StoreError: The database is broken.
        """
        ...

    def close(self) -> None:
        """Release the database, so that another authority may take it."""
        ...

"""What a database holds, in memory: groups are committed when the test says so, a kill loses
them."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from auth_worker.records.limit_usage import (
    Booked,
    CounterRow,
    DropCounters,
    SaveCounter,
    amounts_of,
)
from auth_worker.records.operations import (
    BookUsage,
    LeaseRow,
    Operation,
    RecentUse,
    Result,
    SaveLease,
    Snapshot,
)

OnDone = Callable[[Result], None]


class MemoryStore:
    """Leases, bookings and counters as `SqlStore` keeps them; the real one has tests of its own.

    Attributes:
        snapshot: What never changes here: keys, users, teams, limits and prices.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.leases: dict[str, LeaseRow] = {}
        self.ledger: dict[str, BookUsage] = {}
        self.counters: dict[int, CounterRow] = {}
        self._pending: list[tuple[Operation, OnDone | None]] = []

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def emit(self, operation: Operation) -> None:
        self._pending.append((operation, None))

    def submit(self, operation: Operation, on_done: OnDone) -> None:
        self._pending.append((operation, on_done))

    def commit(self, *, tells: bool = True) -> None:
        """Make everything durable that was submitted by now, then tell who waits."""
        group, self._pending = self._pending, []
        done = [(on_done, self._apply(operation)) for operation, on_done in group]
        for on_done, result in done:
            if on_done is not None and tells:
                on_done(result)

    def lose(self) -> None:
        """The process was killed."""
        self._pending.clear()

    def load(self, recent_since_ms: int) -> Snapshot:
        recent = tuple(
            RecentUse(
                one.key_id,
                one.granted_at_ms,
                one.settled_at_ms,
                one.prompt_tokens,
                one.completion_tokens,
                one.model,
                one.endpoint,
                one.user_id,
                one.team_id,
                one.end_user,
                one.cost_micros,
                "" if one.outcome == "expired" else one.lease_id,
            )
            for one in self.ledger.values()
            if one.settled_at_ms >= recent_since_ms and one.outcome != "unused"
        )
        oldest_first = sorted(self.leases.values(), key=lambda row: row.granted_at_ms)
        counters = tuple(self.counters.values())
        return replace(self.snapshot, leases=tuple(oldest_first), recent=recent, counters=counters)

    def _apply(self, operation: Operation) -> Result:
        if isinstance(operation, SaveLease):
            self.leases[operation.row.lease_id] = operation.row
        elif isinstance(operation, SaveCounter):
            row = operation.row
            known = self.counters.get(row.counter_id, row._replace(used=0))
            self.counters[row.counter_id] = known._replace(granted=row.granted)
        elif isinstance(operation, DropCounters):
            for counter_id in operation.counter_ids:
                self.counters.pop(counter_id, None)
        elif isinstance(operation, BookUsage):
            return self._book(operation)
        return None

    def _book(self, booking: BookUsage) -> Result:
        self.leases.pop(booking.lease_id, None)
        before = self.ledger.get(booking.lease_id)
        if before is None:
            self.ledger[booking.lease_id] = booking
            self._count(amounts_of(booking))
            return None
        changes: dict[int, int] = {}
        more = (0, 0, 0)
        is_more = booking.prompt_tokens + booking.completion_tokens > (
            before.prompt_tokens + before.completion_tokens
        )
        if before.outcome == "expired" and (booking.outcome != "expired" or is_more):
            corrected = booking._replace(charges=before.charges, settled_at_ms=before.settled_at_ms)
            self.ledger[booking.lease_id] = corrected
            for sign, one in ((-1, before), (1, corrected)):
                for counter_id, amount in amounts_of(one):
                    changes[counter_id] = changes.get(counter_id, 0) + sign * amount
            more = (
                corrected.prompt_tokens - before.prompt_tokens,
                corrected.completion_tokens - before.completion_tokens,
                corrected.cost_micros - before.cost_micros,
            )
        self._count(changes.items())
        return Booked(tuple(changes.items()), more)

    def _count(self, changes: Iterable[tuple[int, int]]) -> None:
        for counter_id, amount in changes:
            row = self.counters.get(counter_id)
            if row is not None:
                self.counters[counter_id] = row._replace(used=row.used + amount)

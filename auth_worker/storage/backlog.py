"""What waits to be written: in order, and of what is only remembered just the newest state."""

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from auth_worker.records.operations import BookUsage, Flush, Operation, Result, SaveLease, TouchKey

MAX_GROUP = 1024

OnDone = Callable[[Result], None]


class Item(NamedTuple):
    """An operation, and who waits for its result.

    Attributes:
        is_patient: Whether whoever waits has nothing else to wait for it.
    """

    operation: Operation
    on_done: OnDone | None
    is_patient: bool = False


class Backlog:
    """The operations of the next groups; no thread, no clock.

    However long the disk is stuck, a lease that is renewed again and again stands here once, and so
    does a key that is used. A lease that is booked needn't be remembered any more, so most leases
    are never written at all.

    Args:
        linger_s: What nobody waits for may wait so long for company.
        patience_s: So long may what somebody waits for without hurry.
    """

    def __init__(self, linger_s: float, patience_s: float = 0.0) -> None:
        self._linger_s = linger_s
        self._patience_s = patience_s
        self._items: list[Item] = []
        # Newer than anything about the same lease among the items; with the time of the first.
        self._leases: dict[str, tuple[SaveLease, float]] = {}
        self._touches: dict[str, TouchKey] = {}
        self._num_urgent = 0
        self._num_patient = 0
        self._oldest_s = 0.0  # of the items and touches
        self._patient_since_s = 0.0

    def __len__(self) -> int:
        return len(self._items) + len(self._leases) + len(self._touches)

    @property
    def num_urgent(self) -> int:
        """Operations that somebody waits for in a hurry."""
        return self._num_urgent

    @property
    def num_patient(self) -> int:
        """Operations that somebody waits for without one."""
        return self._num_patient

    @property
    def is_full(self) -> bool:
        """Whether a whole group is there."""
        return len(self._items) >= MAX_GROUP or len(self._leases) >= MAX_GROUP

    def add(
        self,
        operation: Operation,
        on_done: OnDone | None,
        now_s: float,
        *,
        is_patient: bool = False,
    ) -> None:
        """Take an operation in; moments must not run backwards."""
        if isinstance(operation, SaveLease) and on_done is None:
            lease_id = operation.row.lease_id
            known = self._leases.get(lease_id)
            self._leases[lease_id] = (operation, now_s if known is None else known[1])
            return
        if not self._items and not self._touches:
            self._oldest_s = now_s
        if isinstance(operation, TouchKey) and on_done is None:
            self._touches[operation.key_id] = operation
            return
        if isinstance(operation, BookUsage):
            self._leases.pop(operation.lease_id, None)
        elif isinstance(operation, SaveLease):
            self._leases.pop(operation.row.lease_id, None)
        elif isinstance(operation, Flush):
            self._items += self._take_leases(len(self._leases))
        self._items.append(Item(operation, on_done, is_patient))
        if is_patient:
            if not self._num_patient:
                self._patient_since_s = now_s
            self._num_patient += 1
        elif on_done is not None:
            self._num_urgent += 1

    def due_s(self) -> float | None:
        """When what nobody waits for in a hurry is to be written; None when there is nothing."""
        dues = [self._oldest_s + self._linger_s] if self._items or self._touches else []
        if self._num_patient:
            dues.append(self._patient_since_s + self._patience_s)
        for _, since_s in self._leases.values():
            dues.append(since_s + self._linger_s)
            break  # the first is the oldest
        return min(dues, default=None)

    def take(self, now_s: float, *, everything: bool = False) -> list[Item]:
        """Take out a group, in order.

        Args:
            now_s: As in `add`.
            everything: Also leases that could linger on. The group is empty only when nothing is
                left at all.
        """
        items, self._items = self._items[:MAX_GROUP], self._items[MAX_GROUP:]
        num_patient = sum(item.is_patient for item in items)
        self._num_patient -= num_patient
        self._num_urgent -= sum(item.on_done is not None for item in items) - num_patient
        self._oldest_s = self._patient_since_s = now_s
        items += [Item(touch, None) for touch in self._touches.values()]
        self._touches.clear()
        if not self._items and (everything or self._are_leases_due(now_s)):
            items += self._take_leases(MAX_GROUP)
        return items

    def _are_leases_due(self, now_s: float) -> bool:
        if len(self._leases) >= MAX_GROUP:
            return True
        return any(
            now_s >= since_s + self._linger_s for _, since_s in islice(self._leases.values(), 1)
        )

    def _take_leases(self, max_leases: int) -> list[Item]:
        lease_ids = list(islice(self._leases, max_leases))
        return [Item(self._leases.pop(lease_id)[0], None) for lease_id in lease_ids]

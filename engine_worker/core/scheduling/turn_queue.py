"""A bounded queue that gives each tenant its turn: what waits for a thread beside the step loop."""

from collections import OrderedDict, deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


@dataclass(slots=True)
class _Line(Generic[ItemT]):
    """What one tenant has waiting, in order of arrival, each with the places that it takes."""

    items: deque[tuple[ItemT, int]] = field(default_factory=deque)
    num_places: int = 0


class TurnQueue(Generic[ItemT]):
    """Round robin over tenants, first in first out within one; for use under the owner's lock.

    However much a tenant has waiting, it is served once before another tenant's first.

    Args:
        max_places: Of all tenants together.
        max_tenant_places: Of one tenant.
    """

    def __init__(self, max_places: int, max_tenant_places: int) -> None:
        self._max_places = max_places
        self._max_tenant_places = max_tenant_places
        self._num_places = 0
        # The first tenant is the next one; whoever was served goes to the end.
        self._lines: OrderedDict[str, _Line[ItemT]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(line.items) for line in self._lines.values())

    def __bool__(self) -> bool:
        return bool(self._lines)

    def has_others(self, tenants: Container[str]) -> bool:
        """Whether a tenant waits that is none of these."""
        return any(tenant not in tenants for tenant in self._lines)

    def push(self, tenant: str, item: ItemT, num_places: int = 1) -> bool:
        """Take an item in, at the end of its tenant's line.

        Args:
            tenant: Whose turn it will be.
            item: What waits.
            num_places: How much it counts; what is larger than a tenant's share counts as that.

        Returns:
            False when the tenant, or all together, would have more waiting than they may.
        """
        num_places = min(num_places, self._max_tenant_places)
        line = self._lines.get(tenant)
        num_before = 0 if line is None else line.num_places
        if (
            num_before + num_places > self._max_tenant_places
            or self._num_places + num_places > self._max_places
        ):
            return False
        if line is None:
            line = self._lines[tenant] = _Line()
        line.items.append((item, num_places))
        line.num_places += num_places
        self._num_places += num_places
        return True

    def take(self, is_allowed: Callable[[ItemT], bool] = lambda item: True) -> ItemT | None:
        """The next item, which is removed; None when nothing waits that may be taken now.

        Args:
            is_allowed: Whether an item may be taken; one that may not keeps its place, and a later
                one of its tenant may overtake it.
        """
        for tenant, line in self._lines.items():
            for index, (item, num_places) in enumerate(line.items):
                if is_allowed(item):
                    del line.items[index]
                    self._lines.move_to_end(tenant)
                    self._vacate(tenant, line, num_places)
                    return item
        return None

    def let_in(self, tenant: str, item: ItemT) -> None:
        """Take an item in, at the end of its tenant's line; it takes no place.

        For what has had its place in another queue, and so is never refused.
        """
        self._lines.setdefault(tenant, _Line()).items.append((item, 0))

    def put_back(self, tenant: str, item: ItemT) -> None:
        """An item that was taken isn't finished: it is first at its tenant's next turn.

        It takes no place: what was let in once is never refused.
        """
        self._lines.setdefault(tenant, _Line()).items.appendleft((item, 0))

    def drop(self, is_unwanted: Callable[[ItemT], bool]) -> list[ItemT]:
        """Remove items, in whatever order they wait; which ones."""
        dropped: list[ItemT] = []
        for tenant, line in list(self._lines.items()):
            unwanted = [entry for entry in line.items if is_unwanted(entry[0])]
            if unwanted:
                line.items = deque(entry for entry in line.items if not is_unwanted(entry[0]))
                self._vacate(tenant, line, sum(num_places for _, num_places in unwanted))
                dropped += [item for item, _ in unwanted]
        return dropped

    def _vacate(self, tenant: str, line: _Line[ItemT], num_places: int) -> None:
        line.num_places -= num_places
        self._num_places -= num_places
        if not line.items:
            del self._lines[tenant]

"""Puts waiting requests in order: by priority with aging, and fair between tenants by tokens."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import chain, count, islice
from typing import Generic, TypeVar

AGING_S = 10.0
"""Seconds of waiting that make up for one level of priority."""
MAX_TENANTS = 10_000
_MAX_STALE = 64
_LEARNING_RATE = 0.2

ItemT = TypeVar("ItemT")


@dataclass(slots=True)
class _Flow(Generic[ItemT]):
    """One tenant's requests of one priority, in order of arrival.

    Attributes:
        items: Each with its cost and the virtual time at its arrival.
        finish: Virtual time up to which the tenant has been served.
        version: Entries of the heap with another one are void.
    """

    items: OrderedDict[ItemT, tuple[int, float]] = field(default_factory=OrderedDict)
    finish: float = 0.0
    version: int = 0

    def start(self) -> float:
        """Virtual time at which the first request is due."""
        _, arrival = next(iter(self.items.values()))
        return max(arrival, self.finish)


class _PriorityClass(Generic[ItemT]):
    """The requests of one priority: start-time fair queueing (Goyal, Vin, Cheng 1996).

    Attributes:
        num_tenants: Those that have requests here.
        finish: Virtual time of all classes up to which this one has been served.
    """

    def __init__(self) -> None:
        self.num_tenants = 0
        self.finish = 0.0
        self._flows: dict[str, _Flow[ItemT]] = {}
        self._tenants: OrderedDict[ItemT, tuple[str, float]] = OrderedDict()
        self._heap: list[tuple[float, int, int, str]] = []
        self._versions = count(1)
        self._virtual_time = 0.0

    def __len__(self) -> int:
        return len(self._tenants)

    @property
    def oldest_arrival(self) -> float:
        """When the request came that waits longest."""
        return next(iter(self._tenants.values()))[1]

    def push(self, item: ItemT, tenant: str, cost: int, now: float) -> None:
        flow = self._flows.setdefault(tenant, _Flow())
        self._tenants[item] = tenant, now
        flow.items[item] = cost, self._virtual_time
        if len(flow.items) == 1:
            self.num_tenants += 1
            self._plan(tenant, flow)

    def first(self) -> ItemT:
        while True:
            _, _, version, tenant = self._heap[0]
            flow = self._flows.get(tenant)
            if flow is not None and flow.version == version:
                return next(iter(flow.items))
            heappop(self._heap)

    def in_order(self) -> Iterator[ItemT]:
        """The tenant that is due first with all its requests, then the next one.

        A request that is passed over costs its tenant nothing, so the next of the same tenant is
        due at the same time.
        """
        yield self.first()
        # Only who can't serve that one asks for more.
        due = sorted(
            ((flow.start(), flow.version, flow) for flow in self._flows.values() if flow.items),
            key=lambda entry: entry[:2],
        )
        yield from islice(chain.from_iterable(flow.items for _, _, flow in due), 1, None)

    def take(self, item: ItemT) -> int:
        """Its cost."""
        tenant, _ = self._tenants[item]
        flow = self._flows[tenant]
        cost, arrival = flow.items[item]
        start = max(arrival, flow.finish)
        self._virtual_time = max(self._virtual_time, start)
        flow.finish = start + cost
        self.discard(item)
        return cost

    def discard(self, item: ItemT) -> None:
        tenant, _ = self._tenants.pop(item)
        flow = self._flows[tenant]
        del flow.items[item]
        self.num_tenants -= not flow.items
        if self._tenants:
            self._plan(tenant, flow)
        else:
            # Nobody waits: no debts are carried over.
            self._flows.clear()
            self._heap.clear()

    def charge(self, tenant: str, tokens: int) -> None:
        flow = self._flows.get(tenant)
        if flow is not None:
            flow.finish += tokens
            self._plan(tenant, flow)

    def _plan(self, tenant: str, flow: _Flow[ItemT]) -> None:
        """Put a tenant where its first request belongs."""
        flow.version = next(self._versions)
        if flow.items:
            heappush(self._heap, (flow.start(), flow.version, flow.version, tenant))
        if len(self._heap) + len(self._flows) > _MAX_STALE + 4 * len(self._tenants):
            self._tidy()

    def _tidy(self) -> None:
        """Forget tenants that neither wait nor owe anything, and void entries of the heap."""
        self._flows = {
            tenant: flow
            for tenant, flow in self._flows.items()
            if flow.items or flow.finish > self._virtual_time
        }
        self._heap = [
            entry
            for entry in self._heap
            if entry[3] in self._flows and self._flows[entry[3]].version == entry[2]
        ]
        heapify(self._heap)


class FairQueue(Generic[ItemT]):
    """Requests in the order in which they should be served.

    Among requests of one priority each tenant gets the same share of tokens, however many requests
    it has waiting. A more important priority goes first, but a request that waits ages: every
    `AGING_S` seconds make up for one level, so that nobody waits forever. Who has aged goes before
    more important ones as far as that is the fair share of its tenants, and no further: those with
    many requests must not gain by saying that they aren't important.
    """

    def __init__(self) -> None:
        self._classes: dict[int, _PriorityClass[ItemT]] = {}
        self._priorities: dict[ItemT, int] = {}
        self._virtual_time = 0.0

    def __len__(self) -> int:
        return len(self._priorities)

    def __iter__(self) -> Iterator[ItemT]:
        """Everybody, in no particular order."""
        return iter(tuple(self._priorities))

    def __contains__(self, item: ItemT) -> bool:
        return item in self._priorities

    def push(self, item: ItemT, *, tenant: str, priority: int, cost: int, now: float) -> None:
        """Take a request in.

        Args:
            item: Hashed by identity.
            tenant: Whose it is.
            priority: Lower goes first.
            cost: Tokens, as far as they can be known.
            now: Monotonic seconds.
        """
        self._priorities[item] = priority
        self._classes.setdefault(priority, _PriorityClass()).push(item, tenant, cost, now)

    def first(self, now: float) -> ItemT | None:
        """Who is next; stays in."""
        return next(self.in_order(now), None)

    def in_order(self, now: float) -> Iterator[ItemT]:
        """Everybody from who is next on; the queue may not change meanwhile."""
        left = sorted(
            self._classes.items(),
            key=lambda one: (one[0] - (now - one[1].oldest_arrival) / AGING_S, one[0]),
        )
        while left:
            chosen = left[0]
            for other in left[1:]:
                is_more_important = other[0] < chosen[0]
                if is_more_important and self._start(other[1]) < self._start(chosen[1]):
                    chosen = other
            left.remove(chosen)
            yield from chosen[1].in_order()

    def take(self, item: ItemT) -> None:
        """A request is served: it leaves, and its tenant is charged its cost."""
        self._leave(item, is_served=True)

    def discard(self, item: ItemT) -> None:
        """A request gave up; its tenant is charged nothing."""
        self._leave(item, is_served=False)

    def charge(self, *, tenant: str, priority: int, tokens: int) -> None:
        """A served request of a tenant needed more tokens than its cost; fewer if negative."""
        found = self._classes.get(priority)
        if found is not None and tokens:
            found.charge(tenant, tokens)
            found.finish += tokens / found.num_tenants

    def _start(self, found: _PriorityClass[ItemT]) -> float:
        """Virtual time at which a class is due."""
        return max(self._virtual_time, found.finish)

    def _leave(self, item: ItemT, *, is_served: bool) -> None:
        priority = self._priorities.pop(item)
        found = self._classes[priority]
        if is_served:
            start, num_tenants = self._start(found), found.num_tenants
            self._virtual_time = start
            found.finish = start + found.take(item) / num_tenants
        else:
            found.discard(item)
        if not found:
            del self._classes[priority]


class CostEstimate:
    """What requests of a tenant will probably use of what they may use.

    A share that is charged upper bounds would let a tenant whose answers end early have too few
    requests at a time.
    """

    def __init__(self) -> None:
        self._shares: OrderedDict[str, float] = OrderedDict()

    def of(self, tenant: str, bound: int) -> int:
        """The tokens that are expected, at least one; the bound for an unknown tenant."""
        return max(1, round(bound * self._shares.get(tenant, 1.0)))

    def learn(self, tenant: str, bound: int, used: int) -> None:
        """A request has ended."""
        share = min(1.0, used / max(1, bound))
        known = self._shares.pop(tenant, share)
        self._shares[tenant] = known + _LEARNING_RATE * (share - known)
        if len(self._shares) > MAX_TENANTS:
            self._shares.popitem(last=False)

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
_NO_DEBT = 1e-6
"""Tokens: what rounding may leave of a debt that is paid."""

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
        debt: Tokens that more important classes are to get before this one goes ahead of them
            again.
    """

    def __init__(self) -> None:
        self.num_tenants = 0
        self.debt = 0.0
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
    more important ones as far as that is the fair share of its tenants beside theirs, and no
    further: those with many requests must not gain by saying that they aren't important. So a
    priority that went first owes the others' part of what that cost, and gets its own part of what
    more important ones are served meanwhile.
    """

    def __init__(self) -> None:
        self._classes: dict[int, _PriorityClass[ItemT]] = {}
        self._priorities: dict[ItemT, int] = {}

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
            most_important = min(priority for priority, _ in left)
            chosen = next(one for one in left if one[0] == most_important or one[1].debt < _NO_DEBT)
            left.remove(chosen)
            yield from chosen[1].in_order()

    def take(self, item: ItemT) -> float:
        """A request is served: it leaves, and its tenant is charged its cost.

        Returns:
            What part of that its priority owes to more important ones, for `charge`.
        """
        priority = self._priorities.pop(item)
        owed = {one: self._owed_part(one) for one in self._classes if one >= priority}
        found = self._classes[priority]
        cost = found.take(item)
        found.debt += cost * owed[priority]
        for less_important in owed.keys() - {priority}:
            other = self._classes[less_important]
            other.debt = max(0.0, other.debt - cost * (1 - owed[less_important]))
        self._forget_if_empty(priority)
        return owed[priority]

    def discard(self, item: ItemT) -> None:
        """A request gave up; its tenant is charged nothing."""
        priority = self._priorities.pop(item)
        self._classes[priority].discard(item)
        self._forget_if_empty(priority)

    def charge(self, *, tenant: str, priority: int, tokens: int, owed_part: float) -> None:
        """A served request of a tenant needed more tokens than its cost; fewer if negative.

        Args:
            tenant: Whose it was.
            priority: Its own.
            tokens: The difference.
            owed_part: What `take` said.
        """
        found = self._classes.get(priority)
        if found is not None and tokens:
            found.charge(tenant, tokens)
            found.debt = max(0.0, found.debt + tokens * owed_part)

    def _owed_part(self, priority: int) -> float:
        """The part of more important tenants among those that wait with at least this priority."""
        num_tenants = sum(
            found.num_tenants for one, found in self._classes.items() if one <= priority
        )
        return 1 - self._classes[priority].num_tenants / num_tenants

    def _forget_if_empty(self, priority: int) -> None:
        if not self._classes[priority]:
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
        """A request has ended; one that could use nothing tells nothing."""
        if bound <= 0:
            return
        share = min(1.0, used / bound)
        known = self._shares.pop(tenant, share)
        self._shares[tenant] = known + _LEARNING_RATE * (share - known)
        if len(self._shares) > MAX_TENANTS:
            self._shares.popitem(last=False)

"""The fair queue serves whom its definition allows, written down with lists and exact numbers."""

from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dispatch.fair_queue import AGING_S, FairQueue


@dataclass(eq=False)
class Waiting:
    """A request that waits.

    Attributes:
        virtual_arrival: Its priority's virtual time when it came.
    """

    tenant: str
    priority: int
    cost: int
    arrived_at: float
    virtual_arrival: int


@dataclass
class Definition:
    """Who may be served next.

    Attributes:
        waiting: In order of arrival.
        clocks: Virtual time of each priority.
        finishes: Up to which virtual time each tenant of a priority was served.
        debts: What each priority owes to more important ones.
    """

    waiting: list[Waiting] = field(default_factory=list)
    clocks: dict[int, int] = field(default_factory=dict)
    finishes: dict[tuple[int, str], int] = field(default_factory=dict)
    debts: dict[int, Fraction] = field(default_factory=dict)

    def push(self, tenant: str, priority: int, cost: int, now: float) -> Waiting:
        clock = self.clocks.setdefault(priority, 0)
        self.finishes.setdefault((priority, tenant), 0)
        self.debts.setdefault(priority, Fraction(0))
        self.waiting.append(one := Waiting(tenant, priority, cost, now, clock))
        return one

    def may_be_next(self, now: float) -> list[Waiting]:
        """One, or several that are due at the same time."""
        priorities = {one.priority for one in self.waiting}

        def level(priority: int) -> tuple[float, int]:
            oldest = min(one.arrived_at for one in self.waiting if one.priority == priority)
            return priority - (now - oldest) / AGING_S, priority

        for priority in sorted(priorities, key=level):
            if priority == min(priorities) or not self.debts[priority]:
                first_ones: dict[str, Waiting] = {}
                for one in self.waiting:
                    if one.priority == priority:
                        first_ones.setdefault(one.tenant, one)
                due = min(map(self._start, first_ones.values()))
                return [one for one in first_ones.values() if self._start(one) == due]
        return []

    def chosen_by(self, queue: FairQueue[Waiting], now: float) -> Waiting:
        """Whom a queue serves next, which must be right."""
        one = queue.first(now)
        assert one is not None
        assert one in self.may_be_next(now)
        return one

    def take(self, one: Waiting) -> Fraction:
        shares = {
            priority: Fraction(
                len({other.tenant for other in self.waiting if other.priority == priority}),
                len({(o.tenant, o.priority) for o in self.waiting if o.priority <= priority}),
            )
            for priority in {other.priority for other in self.waiting}
        }
        owed_part = 1 - shares[one.priority]
        self.debts[one.priority] += one.cost * owed_part
        for priority, share in shares.items():
            if priority > one.priority:
                self.debts[priority] = max(Fraction(0), self.debts[priority] - one.cost * share)
        start = self._start(one)
        self.clocks[one.priority] = max(self.clocks[one.priority], start)
        self.finishes[one.priority, one.tenant] = start + one.cost
        self.leave(one)
        return owed_part

    def leave(self, one: Waiting) -> None:
        self.waiting.remove(one)
        if all(other.priority != one.priority for other in self.waiting):
            del self.clocks[one.priority]
            del self.debts[one.priority]
            for known in [known for known in self.finishes if known[0] == one.priority]:
                del self.finishes[known]

    def charge(self, one: Waiting, tokens: int, owed_part: Fraction) -> None:
        if one.priority in self.debts and tokens:
            owed = self.debts[one.priority] + tokens * owed_part
            self.debts[one.priority] = max(Fraction(0), owed)
        if (one.priority, one.tenant) in self.finishes:
            self.finishes[one.priority, one.tenant] += tokens

    def _start(self, one: Waiting) -> int:
        return max(one.virtual_arrival, self.finishes[one.priority, one.tenant])


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["push", "push", "push", "take", "take", "discard", "charge"]),
            st.sampled_from("abcd"),
            st.integers(-1, 2),
            st.integers(1, 50),
            st.sampled_from([0.0, 0.5, 7.0, 30.0]),
        ),
        max_size=60,
    )
)
def test_whoever_is_served_may_be_by_the_definition(
    events: list[tuple[str, str, int, int, float]],
) -> None:
    queue: FairQueue[Waiting] = FairQueue()
    definition = Definition()
    served: list[tuple[Waiting, float, Fraction]] = []
    # So few that no tenant that was served is forgotten.
    now = 0.0
    for kind, tenant, priority, cost, pause_s in events:
        now += pause_s
        if kind == "push":
            one = definition.push(tenant, priority, cost, now)
            queue.push(one, tenant=tenant, priority=priority, cost=cost, now=now)
        elif kind == "charge" and served:
            one, owed_part, exactly = served.pop()
            tokens = cost - one.cost
            queue.charge(
                tenant=one.tenant, priority=one.priority, tokens=tokens, owed_part=owed_part
            )
            definition.charge(one, tokens, exactly)
        elif kind == "discard" and definition.waiting:
            one = definition.waiting[cost % len(definition.waiting)]
            queue.discard(one)
            definition.leave(one)
        elif kind == "take" and definition.waiting:
            one = definition.chosen_by(queue, now)
            owed_part, exactly = queue.take(one), definition.take(one)
            assert owed_part == pytest.approx(float(exactly))
            served.append((one, owed_part, exactly))
    while definition.waiting:
        now += 0.5
        one = definition.chosen_by(queue, now)
        queue.take(one)
        definition.take(one)
    assert queue.first(now) is None

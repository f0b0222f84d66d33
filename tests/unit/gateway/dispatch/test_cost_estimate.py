"""What a tenant's requests are expected to cost, and what its share pays in the end."""

import asyncio

import pytest

from gateway.dispatch import fair_queue
from gateway.dispatch.fair_queue import CostEstimate, FairQueue
from gateway.dispatch.slots import Share
from gateway.dispatch.waiting_line import WaitingLine
from tests.fakes.engine_handles import Desk, engine


def test_a_tenant_of_whom_nothing_is_known_is_expected_to_use_all_it_may() -> None:
    assert CostEstimate().of("t", 100) == 100


def test_a_tenant_is_expected_to_use_what_it_used_lately() -> None:
    costs = CostEstimate()
    costs.learn("t", 100, 50)
    assert costs.of("t", 100) == 50
    costs.learn("t", 200, 200)
    assert costs.of("t", 100) == 60
    costs.learn("t", 100, 0)
    assert costs.of("t", 100) == 48
    assert costs.of("other", 100) == 100


def test_nobody_is_expected_to_use_nothing_or_more_than_it_may() -> None:
    costs = CostEstimate()
    costs.learn("little", 100, 0)
    costs.learn("much", 100, 150)
    costs.learn("none", 0, 1)
    assert costs.of("little", 1000) == 1
    assert costs.of("much", 100) == 100
    assert costs.of("none", 100) == 100


def test_a_request_that_can_use_nothing_tells_nothing() -> None:
    costs = CostEstimate()
    costs.learn("t", 100, 50)
    for _ in range(20):  # it tokenises
        costs.learn("t", 0, 0)
    assert costs.of("t", 100) == 50


def test_the_tenants_that_ended_a_request_last_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fair_queue, "MAX_TENANTS", 2)
    costs = CostEstimate()
    for tenant in ("a", "b", "a"):
        costs.learn(tenant, 100, 10)
    assert [costs.of(tenant, 100) for tenant in "ab"] == [10, 10]
    costs.learn("c", 100, 10)
    assert [costs.of(tenant, 100) for tenant in "abc"] == [10, 100, 10]


async def test_a_share_pays_for_what_was_used_and_for_nothing_that_was_not_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    charged: list[tuple[str, int, int]] = []

    def spy(_line: WaitingLine, share: Share, tokens: int) -> None:
        charged.append((share.tenant, share.priority, tokens))

    monkeypatch.setattr(WaitingLine, "charge", spy)
    desk = Desk(engine())
    at_once = await desk.slot("t")
    waiting = await desk.queued("t", priority=2, tokens=40)
    desk.admission.release(at_once, 3)
    # Nobody waited for the first one, so nothing was charged.
    assert charged == []
    slot = await waiting
    waiting = await desk.queued("t", priority=1, tokens=40)
    desk.admission.release(slot, 25)
    # Its bound was the cost: of the tenant nothing was known when it came.
    assert charged == [("t", 2, 25 - 40)]
    slot = await waiting
    desk.admission.release(slot)
    # By then it was known to use three of ten.
    assert charged[1:] == [("t", 1, -12)]


async def test_a_slot_that_is_taken_again_costs_its_tenant_as_much_as_the_lost_one() -> None:
    desk = Desk(engine())
    busy = await desk.slot("x")
    waiting = [
        await desk.queued(tenant, tokens=tokens)
        for tenant, tokens in (("a", 15), ("a", 10), ("b", 10), ("b", 10))
    ]
    desk.admission.release(busy)
    lost = await waiting[0]
    returning = await desk.again(tokens=15, share=lost.share)
    desk.admission.release(lost)  # an engine refused it
    slot = await returning
    desk.admission.release(slot, slot.tokens)
    # One tenant has had 15 tokens now, so the other one's ten and ten are next.
    left_in = set(waiting[1:])
    while left_in:
        admitted, left_in = await asyncio.wait(left_in, return_when=asyncio.FIRST_COMPLETED)
        for one in admitted:
            desk.admission.release(one.result(), one.result().tokens)
    assert desk.order == ["x", "a", "b", "b", "a"]


def test_a_debt_and_its_return_put_a_tenant_where_it_was() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(4):
        queue.push(f"a{number}", tenant="a", priority=0, cost=10, now=0.0)
        queue.push(f"b{number}", tenant="b", priority=0, cost=10, now=0.0)
    queue.charge(tenant="a", priority=0, tokens=15, owed_part=0.0)
    served = []
    for _ in range(3):
        item = queue.first(0.0)
        assert item is not None
        served.append(item)
        queue.take(item)
    assert served == ["b0", "b1", "a0"]
    queue.charge(tenant="a", priority=0, tokens=-15, owed_part=0.0)
    queue.charge(tenant="a", priority=9, tokens=500, owed_part=0.0)
    queue.charge(tenant="unknown", priority=0, tokens=500, owed_part=0.0)
    assert queue.first(0.0) == "a1"


def test_who_gave_up_is_charged_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    for item, cost in (("b1", 10), ("a1", 100), ("b2", 10), ("a2", 10)):
        queue.push(item, tenant=item[0], priority=0, cost=cost, now=0.0)
    queue.discard("a1")
    queue.take("b1")
    # Ten tokens of the other tenant are served, and none of this one.
    assert queue.first(0.0) == "a2"


def test_in_order_are_all_of_the_tenant_that_is_due_then_the_next_by_priority() -> None:
    queue: FairQueue[str] = FairQueue()
    for item, priority in (("a1", 0), ("b1", 0), ("a2", 0), ("c1", 1), ("b2", 0), ("a3", 0)):
        queue.push(item, tenant=item[0], priority=priority, cost=10, now=0.0)
    assert list(queue.in_order(0.0)) == ["a1", "a2", "a3", "b1", "b2", "c1"]
    queue.take("a1")
    assert list(queue.in_order(0.0)) == ["b1", "b2", "a2", "a3", "c1"]
    # Where one that is not first is served, its tenant pays as for any other.
    queue.take("a3")
    queue.take("b2")
    assert list(queue.in_order(0.0)) == ["b1", "a2", "c1"]

"""Fair shares between tenants, priorities and aging, on a clock that the test moves."""

import asyncio
import heapq
import itertools
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dispatch.admission import Admission
from gateway.dispatch.fair_queue import AGING_S, FairQueue
from gateway.dispatch.slots import EngineHandle, Slot
from protocol.version import PROTOCOL_VERSION
from protocol.wire.messages import Credits, EngineOffer
from protocol.wire.peers import Peer


class Item:
    """A request; compared by identity."""

    def __init__(self, tenant: str = "t") -> None:
        self.tenant = tenant


def push(
    queue: FairQueue[Item],
    tenant: str = "t",
    *,
    priority: int = 0,
    cost: int = 10,
    now: float = 0.0,
) -> Item:
    item = Item(tenant)
    queue.push(item, tenant=tenant, priority=priority, cost=cost, now=now)
    return item


def serve(queue: FairQueue[Item], now: float = 0.0) -> Item:
    item = queue.first(now)
    assert item is not None
    queue.take(item)
    return item


def test_requests_of_one_tenant_are_served_in_order() -> None:
    queue: FairQueue[Item] = FairQueue()
    items = [push(queue) for _ in range(5)]
    assert [serve(queue) for _ in range(5)] == items
    assert queue.first(0.0) is None


def test_a_newcomer_waits_for_one_request_of_a_tenant_with_many() -> None:
    queue: FairQueue[Item] = FairQueue()
    for _ in range(50):
        push(queue, "many")
    serve(queue)
    one = push(queue, "one")
    assert one in (serve(queue), serve(queue))


def test_who_used_less_than_its_cost_is_served_sooner() -> None:
    queue: FairQueue[Item] = FairQueue()
    for _ in range(20):
        push(queue, "guesses high", cost=100)
        push(queue, "guesses right", cost=10)
    served = []
    for _ in range(20):
        item = serve(queue)
        served.append(item.tenant)
        if item.tenant == "guesses high":
            queue.charge(tenant=item.tenant, priority=0, tokens=10 - 100, owed_part=0.0)
    assert served.count("guesses high") == 10


def test_a_more_important_one_goes_first_until_another_has_waited_for_its_levels() -> None:
    queue: FairQueue[Item] = FairQueue()
    old = push(queue, priority=2, now=0.0)
    just_before, just_after = 2 * AGING_S - 0.1, 2 * AGING_S + 0.1
    important = push(queue, priority=0, now=just_before)
    assert queue.first(just_before) is important
    queue.discard(important)
    push(queue, priority=0, now=just_after)
    assert queue.first(just_after) is old


def test_equal_in_age_the_more_important_goes_first() -> None:
    queue: FairQueue[Item] = FairQueue()
    push(queue, priority=1, now=0.0)
    important = push(queue, priority=0, now=AGING_S)
    assert queue.first(AGING_S) is important


def test_who_floods_gains_nothing_by_a_lower_priority() -> None:
    # Its requests have all waited for longer than makes up for a level.
    for priority in (0, 1, 2):
        queue: FairQueue[Item] = FairQueue()
        for number in range(50):
            push(queue, "many", priority=priority, now=float(number))
        now = 100.0
        serve(queue, now)
        one = push(queue, "one", now=now)
        assert one in (serve(queue, now), serve(queue, now)), priority


def test_who_has_aged_gets_the_share_of_its_tenants_beside_more_important_ones() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(200):
        push(queue, f"low {number % 2}", priority=1, now=0.0)
        push(queue, f"normal {number % 6}", priority=0, now=30.0)
    served = [serve(queue, 40.0).tenant.partition(" ")[0] for _ in range(80)]
    assert 19 <= served.count("low") <= 21


def test_who_has_waited_as_long_as_others_keeps_the_place_of_its_priority() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(20):
        push(queue, f"normal {number}", priority=0, now=0.0)
    important = {push(queue, "high", priority=-1, now=1.0) for _ in range(10)}
    assert {serve(queue, 60.0) for _ in range(10)} == important


def test_who_has_aged_gets_its_share_though_one_more_important_request_waits_at_a_time() -> None:
    # With each request the more important priority is empty for a moment, and comes back.
    queue: FairQueue[Item] = FairQueue()
    for _ in range(100):
        push(queue, "low", priority=1, now=0.0)
    important: Item | None = None
    served = []
    for step in range(100):
        now = AGING_S + 0.1 + step
        important = important or push(queue, "high", priority=0, now=now)
        item = serve(queue, now)
        served.append(item.tenant)
        if item is important:
            important = None
    assert served.count("low") == 50


def test_a_priority_in_between_gains_nothing_by_a_lower_one_that_has_aged() -> None:
    queue: FairQueue[Item] = FairQueue()
    for _ in range(90):
        push(queue, "low", priority=2, now=0.0)
        push(queue, "between", priority=1, now=100.0)
        push(queue, "high", priority=0, now=100.0)
    served = [serve(queue, 105.0).tenant for _ in range(90)]
    assert [served.count(tenant) for tenant in ("low", "between", "high")] == [30, 0, 60]


def test_who_went_first_owes_what_it_used_and_not_what_was_expected() -> None:
    queue: FairQueue[Item] = FairQueue()
    for _ in range(20):
        push(queue, "low", priority=1, cost=100, now=0.0)
        push(queue, "high", priority=0, cost=10, now=100.0)
    now = 105.0
    owed_part = queue.take(first := next(queue.in_order(now)))
    assert (first.tenant, owed_part) == ("low", 0.5)
    # It owes 50, of which each request of the other pays 5: one more is to come.
    assert [serve(queue, now).tenant for _ in range(9)] == ["high"] * 9
    queue.charge(tenant="low", priority=1, tokens=-20, owed_part=owed_part)
    assert serve(queue, now).tenant == "low"
    # Nobody more important waited beside this one, so it owes nothing.
    alone: FairQueue[Item] = FairQueue()
    push(alone, "low", priority=1)
    push(alone, "low", priority=1)
    assert alone.take(next(alone.in_order(0.0))) == 0.0
    alone.charge(tenant="low", priority=1, tokens=1000, owed_part=0.0)
    push(alone, "high", priority=0, now=now)
    assert serve(alone, now).tenant == "low"


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["push", "push", "take", "discard", "charge"]),
            st.sampled_from("abc"),
            st.integers(0, 2),
            st.integers(1, 50),
        ),
        max_size=60,
    )
)
def test_whoever_comes_or_gives_up_everybody_is_served_once(
    events: list[tuple[str, str, int, int]],
) -> None:
    queue: FairQueue[Item] = FairQueue()
    inside: set[Item] = set()
    for number, (kind, tenant, priority, cost) in enumerate(events):
        now = float(number)
        if kind == "push":
            inside.add(push(queue, tenant, priority=priority, cost=cost, now=now))
        elif kind == "charge":
            queue.charge(tenant=tenant, priority=priority, tokens=cost - 25, owed_part=0.0)
        elif inside:
            item = queue.first(now)
            assert item is not None
            if kind == "take":
                queue.take(item)
            else:
                item = sorted(inside, key=lambda one: one.tenant)[0]
                queue.discard(item)
            inside.remove(item)
        assert len(queue) == len(inside)
        assert set(queue) == inside
    while inside:
        inside.remove(serve(queue, 100.0))
    assert queue.first(100.0) is None


def test_tenants_that_came_and_went_are_forgotten() -> None:
    queue: FairQueue[Item] = FairQueue()
    push(queue, "always", cost=1)
    for number in range(1000):
        push(queue, "always", cost=1)
        queue.discard(push(queue, f"gone {number}"))
        serve(queue)
    flows = queue._classes[0]
    assert len(flows._flows) + len(flows._heap) < 100


@dataclass
class Client:
    """Sends one request after the other."""

    tenant: str
    bound: int
    used: int
    priority: int = 0
    served: int = 0
    waits: list[float] = field(default_factory=list)
    asked_at: float = 0.0


class World:
    """Engines that make 100 tokens a second for each of four slots, and clients that never rest."""

    def __init__(self, clients: list[Client], num_slots: int = 4) -> None:
        self.now = 0.0
        credits_now = Credits(max_requests=num_slots, max_tokens=10**9)
        offer = EngineOffer(
            model="m",
            fingerprint="f",
            resume_version=1,
            max_model_len=100,
            created=0,
            credits=credits_now,
        )
        peer = Peer(
            identity=b"e",
            role="engine",
            instance_id="e",
            protocol_version=PROTOCOL_VERSION,
            build="",
            last_heard=0.0,
            progress_since=0.0,
            phase_since=0.0,
            phase="ready",
            engine=offer,
        )
        engines = [EngineHandle(peer, offer)]
        self.admission = Admission(lambda _: engines, 10**6, lambda: self.now)
        self.clients = clients
        self.tasks: dict[asyncio.Task[Slot], Client] = {}
        self.finishing: list[tuple[float, int, Slot, Client]] = []
        self.numbers = itertools.count()

    def ask(self, client: Client) -> None:
        client.asked_at = self.now
        request = self.admission.acquire(
            "m", tenant=client.tenant, priority=client.priority, tokens=client.bound
        )
        self.tasks[asyncio.ensure_future(request)] = client

    async def run(self, duration_s: float) -> None:
        for client in self.clients:
            self.ask(client)
        while self.now < duration_s:
            for _ in range(3):
                await asyncio.sleep(0)
            for task in [task for task in self.tasks if task.done()]:
                client = self.tasks.pop(task)
                client.waits.append(self.now - client.asked_at)
                end = self.now + client.used / 100
                entry = (end, next(self.numbers), task.result(), client)
                heapq.heappush(self.finishing, entry)
            self.now, _, slot, client = heapq.heappop(self.finishing)
            client.served += client.used
            self.admission.release(slot, client.used)
            self.ask(client)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_tenants_share_a_minute_within_ten_percent_whatever_they_ask_for() -> None:
    clients = [
        *(Client("many small", bound=30, used=30) for _ in range(40)),
        *(Client("few large", bound=150, used=150) for _ in range(6)),
        *(Client("guesses high", bound=2000, used=50) for _ in range(12)),
    ]
    await World(clients).run(60.0)
    served = {
        tenant: sum(client.served for client in clients if client.tenant == tenant)
        for tenant in ("many small", "few large", "guesses high")
    }
    fair = sum(served.values()) / 3
    assert sum(served.values()) > 0.95 * 60 * 400
    assert all(abs(tokens - fair) < 0.1 * fair for tokens in served.values()), served


async def test_few_important_clients_that_never_rest_starve_nobody() -> None:
    # One of them waits at a time: whenever a slot is free, it leaves its priority empty.
    important = [Client("a", bound=50, used=50, priority=0) for _ in range(5)]
    unimportant = [Client("b", bound=50, used=50, priority=1) for _ in range(50)]
    await World([*important, *unimportant]).run(60.0)
    waited = [wait for client in unimportant for wait in client.waits]
    assert len(waited) > 0.4 * 4 * 2 * (60 - AGING_S)


async def test_an_important_class_is_served_first_and_starves_nobody() -> None:
    important = [Client("a", bound=50, used=50, priority=0) for _ in range(40)]
    unimportant = Client("b", bound=50, used=50, priority=1)
    await World([*important, unimportant]).run(60.0)
    # Forty clients on four slots with half a second each wait about five seconds.
    assert all(max(client.waits) < AGING_S for client in important)
    assert unimportant.waits
    assert min(unimportant.waits) > AGING_S
    assert max(unimportant.waits) < 2 * AGING_S

"""Turns between tenants, bounds by tenant and in sum, and what is dropped."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from engine_worker.core.scheduling.turn_queue import TurnQueue


def drained(queue: TurnQueue[str]) -> list[str]:
    items = []
    while (item := queue.take()) is not None:
        items.append(item)
    return items


def test_a_tenant_with_two_hundred_waiting_delays_anothers_first_by_one() -> None:
    queue = TurnQueue[str](1000, 1000)
    for number in range(200):
        queue.push("flood", f"flood {number}")
    assert queue.take() == "flood 0"
    queue.push("calm", "calm 0")
    queue.push("calm", "calm 1")
    assert [queue.take() for _ in range(4)] == ["flood 1", "calm 0", "flood 2", "calm 1"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_within_a_tenant_the_first_in_is_the_first_out_and_nobody_waits_two_rounds(
    events: list[tuple[str, bool]],
) -> None:
    queue = TurnQueue[str](100, 100)
    waiting: dict[str, list[str]] = {}
    num_served_before: dict[str, Counter[str]] = {}
    for number, (tenant, is_push) in enumerate(events):
        if is_push:
            item = f"{tenant}{number}"
            assert queue.push(tenant, item)
            if not waiting.setdefault(tenant, []):
                num_served_before[tenant] = Counter()
            waiting[tenant].append(item)
            continue
        taken = queue.take()
        if taken is None:
            assert not any(waiting.values())
            continue
        owner = taken[0]
        assert taken == waiting[owner].pop(0)
        num_served_before[owner] = Counter()
        for other, counts in num_served_before.items():
            if other != owner and waiting.get(other):
                counts[owner] += 1
                assert counts[owner] <= 1, f"{owner} was served twice while {other} waited"
    assert len(queue) == sum(map(len, waiting.values()))


def test_places_are_bounded_by_tenant_and_in_sum() -> None:
    queue = TurnQueue[str](5, 3)
    assert queue.push("a", "1", 2)
    assert not queue.push("a", "2", 2)
    assert queue.push("a", "3", 1)
    assert not queue.push("a", "4")
    assert queue.push("b", "5", 2)
    assert not queue.push("c", "6")
    assert queue.take() == "1"
    assert queue.push("c", "7", 2)
    assert drained(queue) == ["5", "3", "7"]
    assert queue.push("a", "8", 3)


def test_what_is_larger_than_a_share_takes_the_whole_share() -> None:
    queue = TurnQueue[str](5, 3)
    assert queue.push("a", "huge", 100)
    assert not queue.push("a", "small")
    assert queue.push("b", "small", 2)


def test_what_may_not_be_taken_now_keeps_its_place_and_lets_others_pass() -> None:
    queue = TurnQueue[str](10, 10)
    for tenant, item in (("a", "large 1"), ("a", "small 1"), ("b", "large 2"), ("b", "small 2")):
        queue.push(tenant, item)

    def is_small(item: str) -> bool:
        return item.startswith("small")

    assert queue.take(is_small) == "small 1"
    assert queue.take(is_small) == "small 2"
    assert queue.take(is_small) is None
    assert drained(queue) == ["large 1", "large 2"]


def test_what_is_put_back_comes_first_at_its_tenants_next_turn() -> None:
    queue = TurnQueue[str](10, 10)
    queue.push("a", "a1")
    queue.push("a", "a2")
    queue.push("b", "b1")
    taken = queue.take()
    assert taken == "a1"
    queue.put_back("a", taken)
    assert drained(queue) == ["b1", "a1", "a2"]
    queue.put_back("c", "alone")
    assert drained(queue) == ["alone"]


def test_what_is_let_in_comes_last_of_its_tenant_and_takes_no_place() -> None:
    queue = TurnQueue[str](2, 2)
    assert queue.push("a", "a1")
    for item in ("a2", "a3", "a4"):
        queue.let_in("a", item)
    assert queue.push("a", "a5")
    assert not queue.push("a", "too much")
    queue.let_in("b", "b1")
    assert drained(queue) == ["a1", "b1", "a2", "a3", "a4", "a5"]
    assert queue.push("a", "again", 2)


def test_what_is_dropped_frees_its_places() -> None:
    queue = TurnQueue[str](4, 4)
    queue.push("a", "a1", 2)
    queue.push("b", "b1", 1)
    queue.push("b", "b2", 1)
    assert sorted(queue.drop(lambda item: item in ("a1", "b2"))) == ["a1", "b2"]
    assert queue.push("c", "c1", 3)
    assert drained(queue) == ["b1", "c1"]
    assert not queue
    assert queue.drop(lambda item: True) == []

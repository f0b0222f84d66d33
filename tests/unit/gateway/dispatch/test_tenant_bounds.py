"""Bounds of the queue, in sum and by tenant, and what those who are refused are told."""

import pytest

from gateway.dispatch.waiting_line import (
    MAX_RETRY_AFTER_S,
    MIN_RETRY_AFTER_S,
    MIN_TENANT_PLACES,
    WaitingLine,
)
from gateway.errors import OverloadedError
from tests.fakes.engine_handles import Desk, engine, left


async def full_desk(max_queue: int) -> Desk:
    """Everybody waits."""
    desk = Desk(engine(), max_queue=max_queue)
    await desk.slot("running")
    return desk


async def flood(desk: Desk, *tenants: str) -> dict[str, int]:
    """Each tenant in turn asks until it is refused; how many of its requests wait then."""
    counts = dict.fromkeys(tenants, 0)
    asking = list(tenants)
    while asking:
        for tenant in list(asking):
            task = await desk.queued(tenant)
            if task.done():
                assert isinstance(task.exception(), OverloadedError)
                asking.remove(tenant)
            else:
                counts[tenant] += 1
    return counts


async def test_one_tenant_takes_half_of_the_queue_and_others_find_room() -> None:
    desk = await full_desk(100)
    assert await flood(desk, "many") == {"many": 50}
    assert await flood(desk, "other") == {"other": 25}
    assert await flood(desk, "third") == {"third": MIN_TENANT_PLACES}
    assert desk.admission.num_waiting("m") == 91


async def test_two_tenants_that_flood_get_a_third_each() -> None:
    desk = await full_desk(120)
    assert await flood(desk, "a", "b") == {"a": 40, "b": 40}


async def test_a_tenant_has_its_least_places_while_there_are_any() -> None:
    desk = await full_desk(20)
    assert await flood(desk, "many") == {"many": MIN_TENANT_PLACES}
    assert await flood(desk, "other") == {"other": 20 - MIN_TENANT_PLACES}


async def test_each_refusal_names_what_is_full() -> None:
    desk = await full_desk(40)
    await flood(desk, "many")
    with pytest.raises(OverloadedError) as one_has_too_many:
        await desk.slot("many")
    assert str(one_has_too_many.value) == (
        "20 requests of yours wait for the model `m` already, and one caller may not take all of "
        "the 40 places; please try again later."
    )
    await flood(desk, *(str(number) for number in range(9)))
    with pytest.raises(OverloadedError) as full:
        await desk.slot("new")
    assert str(full.value) == (
        "40 requests wait for the model `m` already; please try again later."
    )


async def test_places_are_free_again_when_requests_leave_or_are_admitted() -> None:
    desk = Desk(engine(), max_queue=32)
    slot = await desk.slot("running")
    tasks = [await desk.queued("t") for _ in range(16)]
    assert (await desk.queued("t")).done()
    await left(tasks[0])
    assert not (await desk.queued("t")).done()
    assert (await desk.queued("t")).done()
    desk.admission.release(slot)
    await tasks[1]
    assert not (await desk.queued("t")).done()


async def test_further_choices_are_never_refused_and_take_no_place() -> None:
    desk = await full_desk(2)
    for _ in range(5):
        assert not (await desk.queued("t", is_extra=True)).done()
    assert desk.admission.num_waiting("m") == 0
    assert await flood(desk, "t") == {"t": 2}


async def test_questions_have_places_of_their_own() -> None:
    desk = await full_desk(1)
    await flood(desk, "t")
    desk.engines[0].back_off(1.0)
    assert not (await desk.queued("t", kind="question")).done()
    assert desk.admission.num_waiting("m") == 2


async def serve(desk: Desk, tenant: str, *, every_s: float, count: int) -> None:
    for _ in range(count):
        desk.now += every_s
        desk.admission.release(await desk.slot(tenant))


async def refused(desk: Desk, tenant: str) -> float | None:
    with pytest.raises(OverloadedError) as caught:
        await desk.slot(tenant)
    return caught.value.retry_after_s


async def test_a_tenant_is_told_the_time_that_its_own_requests_need() -> None:
    desk = Desk(engine(), max_queue=32)
    for _ in range(3):
        await serve(desk, "many", every_s=1.0, count=1)
        await serve(desk, "other", every_s=1.0, count=1)
    await desk.slot("running")
    await flood(desk, "many")
    assert desk.admission.num_waiting("m") == 16
    # Three of its own were admitted in the five seconds since the first.
    assert await refused(desk, "many") == 27.0
    # Seven of all.
    assert desk.admission.retry_after_s("m") == 12.0


async def test_requests_admitted_from_the_line_count_for_their_tenant() -> None:
    desk = Desk(engine(), max_queue=32)
    slot = await desk.slot("running")
    waiting = [await desk.queued(tenant) for tenant in ("many", "other")]
    extra = await desk.queued("many", is_extra=True)
    for task in (*waiting, extra):
        desk.now += 4.0
        desk.admission.release(slot)
        slot = await task
    await flood(desk, "many")
    # One of its own and two of others in twelve seconds, sixteen waiting.
    assert await refused(desk, "many") == MAX_RETRY_AFTER_S
    assert desk.admission.retry_after_s("m") == 60.0
    line = desk.admission._models["m"].lines["work"]
    assert [tenant for _, tenant in line._departures] == ["running", "many", "other"]


def line_with(*departures: tuple[float, str], now: float, waiting: int = 0) -> WaitingLine:
    clock = [0.0]
    line = WaitingLine(100, lambda: clock[0])
    for at, tenant in departures:
        clock[0] = at
        line.note_departure(tenant, is_extra=False)
    clock[0] = now
    line.num_waiting = waiting
    line._by_tenant["a"] = waiting
    return line


def test_two_departures_make_a_rate_and_one_makes_none() -> None:
    assert line_with((0.0, "a"), now=50.0, waiting=3).retry_after_s() == MIN_RETRY_AFTER_S
    assert line_with((0.0, "a"), (4.0, "a"), now=8.0, waiting=3).retry_after_s() == 12.0


def test_who_was_never_admitted_or_does_not_wait_counts_as_one() -> None:
    line = line_with((0.0, "a"), (4.0, "a"), now=8.0, waiting=3)
    assert line.retry_after_s("b") == 8.0
    assert line.retry_after_s("a") == 12.0
    assert line_with((0.0, "a"), (4.0, "b"), now=8.0).retry_after_s() == 4.0


def test_parts_of_seconds_are_rounded_up() -> None:
    assert line_with((0.0, "a"), (4.0, "b"), now=8.5).retry_after_s() == 5.0


async def test_nobody_is_told_to_wait_for_more_than_a_minute() -> None:
    desk = Desk(engine(), max_queue=40)
    await serve(desk, "other", every_s=100.0, count=3)
    await desk.slot("running")
    await flood(desk, "many")
    assert MAX_RETRY_AFTER_S == 60.0
    assert await refused(desk, "many") == 60.0
    assert desk.admission.retry_after_s("m") == 60.0


async def test_without_a_measured_rate_the_shortest_time_is_told() -> None:
    desk = await full_desk(1)
    await flood(desk, "t")
    desk.now = 50.0
    assert await refused(desk, "t") == MIN_RETRY_AFTER_S
    assert desk.admission.retry_after_s("never heard of") == MIN_RETRY_AFTER_S


async def test_the_rate_is_that_of_the_latest_and_further_choices_are_not_in_it() -> None:
    desk = Desk(engine(max_requests=1000, max_tokens=10**6), max_queue=1)
    await serve(desk, "t", every_s=100.0, count=10)
    for _ in range(128):
        desk.now += 2.0
        await desk.slot("t")
        await desk.slot("t", is_extra=True)
    desk.engines[0].back_off(1.0)
    await desk.queued("t")
    assert desk.admission.retry_after_s("m") == 2.0


async def test_of_who_left_nothing_stays_anywhere() -> None:
    desk = await full_desk(1000)
    stays = await desk.queued("stays")
    for number in range(300):
        await left(
            await desk.queued(f"t{number}", priority=number % 3),
            await desk.queued(f"t{number}", is_extra=True),
            await desk.queued(f"t{number}", kind="question", accepts=lambda _: False),
            await desk.again(accepts=()),
        )
    model = desk.admission._models["m"]
    line = model.lines["work"]
    assert (line.num_in_line, line.num_waiting, dict(line._by_tenant)) == (1, 1, {"stays": 1})
    assert model.lines["question"].num_in_line == 0
    assert not any(one.waiters for one in model.returning.values())
    assert not model.lines["question"]._by_tenant
    classes = line._queue._classes
    assert list(classes) == [0]
    assert len(classes[0]._flows) + len(classes[0]._heap) < 100
    await left(stays)
    assert not classes


async def test_work_that_began_ahead_of_its_grant_counts_in_the_rate_that_is_told() -> None:
    desk = Desk(engine(max_requests=2))
    for now in (0.0, 4.0):
        desk.now = now
        assert desk.admission.take_now("m", tenant="t", priority=0, tokens=10) is not None
    waiting = [await desk.queued() for _ in range(3)]
    desk.now = 8.0
    assert desk.admission.retry_after_s("m") == 12.0
    await left(*waiting)

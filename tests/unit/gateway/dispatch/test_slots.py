"""Slots: what each counts at its engine, whatever happens to it, and engines left alone."""

import asyncio

import pytest

from gateway.dispatch.slots import MAX_QUESTIONS, EngineHandle, Slot, least_loaded
from gateway.errors import WorkerUnavailableError
from protocol.wire.messages import Credits, Load
from tests.fakes.engine_handles import Desk, engine, left


def counts(one: EngineHandle) -> tuple[int, int, int]:
    return one.num_requests, one.num_tokens, one.num_questions


async def test_a_lease_that_grows_is_counted_where_its_slot_is_now() -> None:
    desk = Desk(engine("a", max_requests=9), engine("b", max_requests=9))
    slot = await desk.slot(tokens=21)
    first = slot.engine
    second = next(one for one in desk.engines if one is not first)
    desk.admission.resize(slot, 176)
    assert counts(first) == (1, 176, 0)
    desk.admission.move(slot, second)
    assert (counts(first), counts(second)) == ((0, 0, 0), (1, 176, 0))
    desk.admission.resize(slot, 200)
    assert (counts(first), counts(second)) == ((0, 0, 0), (1, 200, 0))
    desk.admission.release(slot)
    desk.admission.resize(slot, 300)
    desk.admission.move(slot, first)
    assert (counts(first), counts(second)) == ((0, 0, 0), (0, 0, 0))


async def test_a_slot_of_returning_work_grows_and_shrinks_as_others_do() -> None:
    desk = Desk(engine(max_requests=9))
    slot = await (await desk.again(tokens=21))
    desk.admission.resize(slot, 176)
    assert counts(desk.engines[0]) == (1, 176, 0)
    assert slot.tokens == 176
    desk.admission.release(slot)
    assert counts(desk.engines[0]) == (0, 0, 0)


async def test_what_a_slot_gives_up_is_given_out_at_once() -> None:
    desk = Desk(engine(max_requests=9, max_tokens=100))
    slot = await desk.slot(tokens=95)
    newcomer = await desk.queued(tokens=20)
    desk.admission.resize(slot, 96)
    desk.admission.resize(slot, 81)
    assert not newcomer.done()
    desk.admission.resize(slot, 80)
    await newcomer
    assert counts(desk.engines[0]) == (2, 100, 0)


async def test_a_slot_that_moves_makes_room_for_who_waits() -> None:
    desk = Desk(engine("a"))
    slot = await desk.slot()
    waiting = await desk.queued()
    other = engine("b")
    other.num_requests = 1
    desk.admission.move(slot, other)
    assert (await waiting).engine is desk.engines[0]
    assert counts(other) == (2, 10, 0)


async def test_a_slot_moved_to_its_own_engine_changes_nothing() -> None:
    desk = Desk(engine())
    slot = await desk.slot()
    desk.admission.move(slot, slot.engine)
    assert counts(slot.engine) == (1, 10, 0)


async def test_a_slot_that_is_alone_stays_where_nothing_else_is() -> None:
    desk = Desk(engine("a"))
    slot = await (await desk.again(is_alone=True))
    other = engine("b")
    desk.admission.move(slot, other)
    assert slot.engine is desk.engines[0]
    assert counts(other) == (0, 0, 0)
    desk.admission.release(slot)
    assert not desk.engines[0].is_reserved


async def test_an_engine_that_is_overloaded_is_left_alone_as_long_as_it_asked() -> None:
    busy, other = engine("busy"), engine("other")
    desk = Desk(busy, other)
    busy.back_off(5.0)
    assert (await desk.slot()).engine is other
    waiting = await desk.queued()
    busy.back_off(9.0)
    busy.back_off(7.0)
    for until in (5.0, 7.0):
        assert not busy.end_back_off(until)
        desk.admission.pump("m")
        assert not waiting.done()
    assert busy.end_back_off(9.0)
    desk.admission.pump("m")
    assert (await waiting).engine is busy
    # The next time counts from anew.
    busy.back_off(20.0)
    assert not busy.takes_work


async def test_questions_take_no_credit_and_wait_for_no_work() -> None:
    desk = Desk(engine(max_requests=1, max_tokens=10))
    work = await desk.slot(tokens=10)
    waiting = await desk.queued(tokens=10)
    question = await desk.slot(tokens=5000, kind="question")
    assert counts(desk.engines[0]) == (1, 10, 1)
    desk.admission.resize(question, 7000)
    assert counts(desk.engines[0]) == (1, 10, 1)
    desk.admission.release(question)
    assert counts(desk.engines[0]) == (1, 10, 0)
    assert not waiting.done()
    desk.admission.release(work)
    await waiting


async def test_questions_are_bounded_at_an_engine_and_the_others_wait_in_turn() -> None:
    desk = Desk(engine(max_requests=0))
    slots = [await desk.slot(kind="question") for _ in range(MAX_QUESTIONS)]
    waiting = await desk.queued(kind="question")
    assert not waiting.done()
    assert desk.admission.num_waiting("m") == 1
    desk.admission.release(slots[0])
    await waiting
    assert counts(desk.engines[0]) == (0, 0, MAX_QUESTIONS)


async def test_questions_spread_over_engines_by_how_many_each_has() -> None:
    desk = Desk(engine("a", num_running=3), engine("b"))
    slots = [await desk.slot(kind="question") for _ in range(4)]
    assert [slot.engine.peer.instance_id for slot in slots] == ["b", "a", "b", "a"]


async def test_work_goes_where_least_work_is_however_many_questions_are_there() -> None:
    desk = Desk(engine("a"), engine("b", num_running=1))
    desk.engines[0].num_questions = 5
    assert (await desk.slot()).engine is desk.engines[0]


async def test_questions_do_not_go_beside_a_suspect() -> None:
    desk = Desk(engine())
    slot = await (await desk.again(is_alone=True))
    question = await desk.queued(kind="question")
    assert not question.done()
    desk.admission.share(slot)
    await question


async def test_questions_learn_that_the_last_engine_went() -> None:
    desk = Desk(engine())
    desk.engines[0].back_off(1.0)
    question = await desk.queued(kind="question")
    desk.engines.clear()
    desk.admission.pump("m")
    with pytest.raises(WorkerUnavailableError):
        await question
    assert desk.admission.num_waiting("m") == 0


async def test_returning_work_does_not_hold_up_questions() -> None:
    desk = Desk(engine())
    await desk.slot()
    back = await desk.again()
    assert (await desk.slot(kind="question")).kind == "question"
    await left(back)


def test_credit_bounds_requests_and_tokens_but_one_alone_may_always_go() -> None:
    one = engine(max_requests=2, max_tokens=100)
    assert one.can_take(1000)
    Slot(one, 60).occupy()
    assert one.can_take(40)
    assert not one.can_take(41)
    Slot(one, 10).occupy()
    assert not one.can_take(1)
    assert not one.can_take(0)


def test_the_credit_reported_last_counts_not_the_one_offered() -> None:
    one = engine(max_requests=2)
    one.peer.credits = Credits(max_requests=0, max_tokens=1000)
    assert not one.can_take(1)


def test_what_an_engine_has_is_as_reported_or_as_sent_if_that_is_more() -> None:
    one = engine(num_running=2)
    one.peer.load = Load(num_running=2, num_waiting=3)
    assert one.num_unfinished == 5
    one.num_requests = 7
    assert one.num_unfinished == 7


def test_of_engines_with_equal_work_the_one_with_fewer_tokens_is_chosen() -> None:
    a, b = (engine(name, max_requests=9) for name in "ab")
    a.num_tokens, b.num_tokens = 50, 40
    assert [least_loaded([a, b], 1, turn) for turn in range(2)] == [b, b]
    a.num_tokens = 40
    assert [least_loaded([a, b], 1, turn) for turn in range(3)] == [a, b, a]
    b.peer.load = Load(num_running=1)
    assert [least_loaded([a, b], 1, turn) for turn in range(2)] == [a, a]


async def test_a_slot_is_released_once() -> None:
    desk = Desk(engine(max_requests=3))
    slot, other = await desk.slot(), await desk.slot()
    desk.admission.release(slot)
    desk.admission.release(slot)
    assert counts(other.engine) == (1, 10, 0)
    await asyncio.sleep(0)

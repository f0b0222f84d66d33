"""The queue before the engines: credits, bounds, fairness, priorities."""

import asyncio

import pytest

from gateway.dispatch.admission import Admission
from gateway.dispatch.slots import EngineHandle, Slot
from gateway.errors import OverloadedError, WorkerLostError, WorkerUnavailableError
from protocol.wire.messages import Load
from tests.fakes.engine_handles import Desk, engine


async def serve_all(desk: Desk, slot: Slot, tasks: list["asyncio.Task[Slot]"]) -> None:
    """Release one slot after the other until everybody was served."""
    desk.admission.release(slot)
    left = set(tasks)
    while left:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            desk.admission.release(task.result(), task.result().tokens)


async def test_a_free_engine_is_given_at_once() -> None:
    desk = Desk(engine())
    slot = await desk.slot()
    assert (slot.engine.num_requests, slot.engine.num_tokens) == (1, 10)
    desk.admission.release(slot)
    desk.admission.release(slot)
    assert (slot.engine.num_requests, slot.engine.num_tokens) == (0, 0)


async def test_without_an_engine_nobody_waits() -> None:
    with pytest.raises(WorkerUnavailableError):
        await Desk().slot()


async def test_each_model_has_engines_and_a_queue_of_its_own() -> None:
    engines = {"m": [engine("a")], "other": [engine("b")]}
    admission = Admission(lambda model: engines.get(model, ()), 100, lambda: 0.0)

    async def slot(model: str) -> Slot:
        return await admission.acquire(model, tenant="t", priority=0, tokens=10)

    first = await slot("m")
    waiting = asyncio.create_task(slot("m"))
    await asyncio.sleep(0)
    assert (await slot("other")).engine is engines["other"][0]
    with pytest.raises(WorkerUnavailableError):
        await slot("third")
    admission.pump("third")
    assert (admission.num_waiting("m"), admission.num_waiting("other")) == (1, 0)
    admission.release(first)
    assert (await waiting).engine is engines["m"][0]


async def test_requests_beyond_the_credit_wait_for_a_slot() -> None:
    desk = Desk(engine(max_requests=2))
    first, _ = await desk.slot(), await desk.slot()
    waiting = await desk.queued("t")
    assert not waiting.done()
    desk.admission.release(first)
    assert (await waiting).engine.num_requests == 2


async def test_tokens_count_too_but_one_request_alone_may_always_go() -> None:
    desk = Desk(engine(max_requests=9, max_tokens=15))
    large = await desk.slot(tokens=50)
    waiting = await desk.queued("t", tokens=1)
    assert not waiting.done()
    desk.admission.resize(large, 5)
    desk.admission.pump("m")
    await waiting


async def test_the_least_loaded_engine_is_chosen_and_ties_go_round() -> None:
    busy, idle, other = engine("a", max_requests=9), engine("b", max_requests=9), engine("c")
    busy.peer.load = Load(num_running=5)
    desk = Desk(busy, idle, other)
    chosen = {(await desk.slot()).engine.peer.instance_id for _ in range(2)}
    assert chosen == {"b", "c"}


async def test_an_engine_that_is_silent_or_backs_off_gets_nothing() -> None:
    silent, backing_off = engine("a"), engine("b")
    silent.peer.is_silent = True
    backing_off.is_backing_off = True
    desk = Desk(silent, backing_off)
    waiting = await desk.queued("t")
    assert not waiting.done()
    backing_off.is_backing_off = False
    desk.admission.pump("m")
    assert (await waiting).engine is backing_off


async def test_a_full_queue_refuses_with_the_time_that_it_needs() -> None:
    desk = Desk(engine(), max_queue=2)
    for second in range(5):
        desk.now = float(second * 4)
        desk.admission.release(await desk.slot())
    slot = await desk.slot()
    tasks = [await desk.queued("t"), await desk.queued("t")]
    with pytest.raises(OverloadedError) as caught:
        await desk.slot()
    # Six slots in sixteen seconds, two waiting.
    assert caught.value.retry_after_s == 6.0
    await serve_all(desk, slot, tasks)


async def test_a_tenant_with_many_requests_delays_another_by_one_only() -> None:
    desk = Desk(engine())
    slot = await desk.slot("first")
    tasks = [await desk.queued("many") for _ in range(6)]
    tasks.append(await desk.queued("one"))
    desk.order.clear()
    await serve_all(desk, slot, tasks)
    assert desk.order.index("one") <= 1


async def test_turns_are_fair_by_tokens_not_by_requests() -> None:
    desk = Desk(engine())
    slot = await desk.slot("first")
    tasks = [await desk.queued("large", tokens=40) for _ in range(3)]
    tasks += [await desk.queued("small", tokens=10) for _ in range(9)]
    desk.order.clear()
    await serve_all(desk, slot, tasks)
    second_large = [i for i, tenant in enumerate(desk.order) if tenant == "large"][1]
    assert desk.order[:second_large].count("small") >= 4


async def test_a_lower_priority_number_goes_first() -> None:
    desk = Desk(engine())
    slot = await desk.slot("first")
    tasks = [await desk.queued("later", priority=5), await desk.queued("sooner", priority=-1)]
    desk.order.clear()
    await serve_all(desk, slot, tasks)
    assert desk.order == ["sooner", "later"]


async def test_who_gives_up_waiting_leaves_no_trace() -> None:
    desk = Desk(engine())
    slot = await desk.slot()
    waiting = await desk.queued("t")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert desk.admission.num_waiting("m") == 0
    desk.admission.release(slot)
    assert slot.engine.num_requests == 0


async def test_who_is_leaving_but_has_not_left_yet_gets_no_slot() -> None:
    desk = Desk(engine())
    slot = await desk.slot()
    leaving, next_one = await desk.queued("t"), await desk.queued("t")
    leaving.cancel()
    desk.admission.release(slot)  # before the one who leaves runs again
    assert slot.engine.num_requests == 1
    assert (await next_one).engine is slot.engine
    await asyncio.gather(leaving, return_exceptions=True)
    assert desk.admission.num_waiting("m") == 0


async def test_a_slot_granted_to_somebody_who_just_left_is_given_back() -> None:
    desk = Desk(engine())
    slot = await desk.slot()
    waiting = await desk.queued("t")
    desk.admission.release(slot)  # slots the waiter …
    waiting.cancel()  # … who leaves before it runs
    await asyncio.gather(waiting, return_exceptions=True)
    assert desk.engines[0].num_requests == 0


async def test_when_the_last_engine_goes_everybody_learns_it() -> None:
    desk = Desk(engine())
    await desk.slot()
    tasks = [await desk.queued("a"), await desk.queued("b")]
    desk.engines.clear()
    desk.admission.pump("m")
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, WorkerUnavailableError) for result in results)
    assert desk.admission.num_waiting("m") == 0


async def test_who_gave_up_does_not_stay_in_the_queue() -> None:
    desk = Desk(engine())
    slot = await desk.slot()
    patient = await desk.queued("patient")
    for _ in range(50):
        leaving = await desk.queued("t")
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    assert desk.admission._models["m"].lines["work"].num_in_line == 1
    desk.admission.release(slot)
    assert (await patient).engine.num_requests == 1


async def test_who_did_not_fit_and_gave_up_makes_room_for_the_next() -> None:
    desk = Desk(engine(max_requests=9, max_tokens=100))
    await desk.slot(tokens=90)
    large = await desk.queued("large", tokens=50)
    small = await desk.queued("small", tokens=5)
    assert not small.done()
    large.cancel()
    await asyncio.gather(large, return_exceptions=True)
    async with asyncio.timeout(60):
        assert (await small).tokens == 5


async def test_a_newcomer_does_not_overtake_a_further_choice() -> None:
    desk = Desk(engine(max_requests=9, max_tokens=100))
    slot = await desk.slot(tokens=90)
    further = asyncio.create_task(
        desk.admission.acquire("m", tenant="t", priority=0, tokens=50, is_extra=True)
    )
    await asyncio.sleep(0)
    newcomer = await desk.queued("t", tokens=5)
    assert not newcomer.done()
    desk.admission.release(slot)
    await further
    await newcomer


def again(
    desk: Desk,
    *,
    accepts: tuple[EngineHandle, ...] | None = None,
    is_alone: bool = False,
    is_patient: bool = True,
) -> "asyncio.Task[Slot]":
    """Work that lost its engine asks for another one."""
    return asyncio.create_task(
        desk.admission.acquire_again(
            "m",
            tokens=10,
            accepts=lambda engine: accepts is None or engine in accepts,
            is_alone=is_alone,
            may_come=lambda: is_patient,
        )
    )


async def test_work_that_lost_its_engine_goes_before_everybody_who_waits() -> None:
    desk = Desk(engine())
    slot = await desk.slot()
    waiting = await desk.queued("t", priority=-5)
    back = again(desk)
    await asyncio.sleep(0)
    desk.admission.release(slot)
    await back
    assert not waiting.done()
    desk.admission.release(back.result())
    await waiting


async def test_work_that_lost_its_engine_waits_for_one_to_come_back() -> None:
    desk = Desk(engine())
    gone = desk.engines.pop()
    back = again(desk)
    await asyncio.sleep(0)
    desk.admission.pump("m")
    assert not back.done()
    desk.engines.append(gone)
    desk.admission.pump("m")
    assert (await back).engine is gone


async def test_a_further_choice_waits_where_a_newcomer_is_sent_away() -> None:
    desk = Desk()
    further = asyncio.create_task(
        desk.admission.acquire("m", tenant="t", priority=0, tokens=5, is_extra=True)
    )
    await asyncio.sleep(0)
    with pytest.raises(WorkerUnavailableError):
        await desk.slot()
    desk.admission.pump("m")
    desk.engines.append(engine())
    desk.admission.pump("m")
    assert (await further).tokens == 5


async def test_work_goes_on_only_where_it_can() -> None:
    desk = Desk(engine("old"), engine("new"))
    old, new = desk.engines
    busy = await again(desk, accepts=(old,))
    waiting = again(desk, accepts=(old,))
    await asyncio.sleep(0)
    assert busy.engine is old
    assert not waiting.done()
    # A newcomer goes where this work can't, and waits its turn for where it can.
    assert (await desk.slot()).engine is new
    newcomer = await desk.queued("t")
    desk.admission.release(busy)
    assert (await waiting).engine is old
    assert not newcomer.done()
    desk.admission.release(waiting.result())
    assert (await newcomer).engine is old


async def test_who_is_not_patient_learns_that_only_other_versions_are_left() -> None:
    desk = Desk(engine("new"))
    with pytest.raises(WorkerLostError, match="another version"):
        await again(desk, accepts=(), is_patient=False)
    patient = again(desk, accepts=())
    await asyncio.sleep(0)
    assert not patient.done()
    patient.cancel()
    await asyncio.gather(patient, return_exceptions=True)
    assert (await desk.slot()).engine is desk.engines[0]


async def test_alone_means_that_nothing_else_is_there_before_and_meanwhile() -> None:
    desk = Desk(engine(max_requests=9))
    other = await desk.slot()
    alone = again(desk, is_alone=True)
    await asyncio.sleep(0)
    newcomer = await desk.queued("t")
    assert not alone.done()
    assert not newcomer.done()
    desk.admission.release(other)
    slot = await alone
    assert slot.is_alone
    assert not newcomer.done()
    desk.admission.share(slot)
    await newcomer
    assert slot.engine.num_requests == 2


async def test_an_engine_is_emptied_for_one_suspect_while_others_go_on() -> None:
    desk = Desk(engine("a"), engine("b"))
    first, second = await desk.slot(), await desk.slot()
    alone = again(desk, is_alone=True)
    await asyncio.sleep(0)
    emptied = next(one for one in desk.engines if one.is_reserved)
    kept = first if first.engine is not emptied else second
    desk.admission.release(kept)
    assert not alone.done()
    assert (await desk.slot()).engine is kept.engine
    alone.cancel()
    await asyncio.gather(alone, return_exceptions=True)
    assert not emptied.is_reserved

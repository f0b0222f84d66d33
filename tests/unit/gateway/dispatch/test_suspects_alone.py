"""Work that runs alone: which engine is emptied for it, and when that is let go."""

import asyncio

import pytest

from gateway.errors import WeightsReplacedError, WorkerLostError, WorkerUnavailableError
from tests.fakes.engine_handles import Desk, engine, left


async def test_by_default_returning_work_is_patient_and_not_alone() -> None:
    desk = Desk(engine(max_requests=2))
    slot = await desk.admission.acquire_again("m", tokens=10, accepts=lambda _: True)
    assert not slot.is_alone
    assert not slot.engine.is_reserved
    waiting = asyncio.create_task(
        desk.admission.acquire_again("m", tokens=10, accepts=lambda _: False)
    )
    await asyncio.sleep(0)
    assert not waiting.done()
    await left(waiting)


async def test_two_suspects_wait_for_two_engines() -> None:
    desk = Desk(engine("a", num_running=1), engine("b", num_running=2))
    for one in desk.engines:
        one.num_requests = 1
    suspects = [await desk.again(is_alone=True) for _ in range(3)]
    assert all(one.is_reserved for one in desk.engines)
    for one in desk.engines:
        one.num_requests = 0
    desk.admission.pump("m")
    assert [(await task).engine for task in suspects[:2]] == desk.engines
    assert not suspects[2].done()
    await left(suspects[2])


@pytest.mark.parametrize("why", ["silent", "gone"])
async def test_a_suspect_whose_engine_takes_nothing_any_more_waits_for_another(why: str) -> None:
    first, second = engine("a"), engine("b", num_running=1)
    desk = Desk(first, second)
    first.num_requests = second.num_requests = 1
    alone = await desk.again(is_alone=True)
    assert (first.is_reserved, second.is_reserved) == (True, False)
    if why == "silent":
        first.peer.is_silent = True
    else:
        desk.engines.remove(first)
    desk.admission.pump("m")
    assert (first.is_reserved, second.is_reserved) == (False, True)
    second.num_requests = 0
    desk.admission.pump("m")
    assert (await alone).engine is second


async def test_a_suspect_whose_engine_has_other_weights_now_leaves_it_to_others() -> None:
    one = engine(fingerprint="old")
    desk = Desk(one)
    one.num_requests = 1
    alone = asyncio.create_task(
        desk.admission.acquire_again(
            "m",
            tokens=10,
            accepts=lambda other: other.offer.fingerprint == "old",
            is_alone=True,
            may_come=lambda: False,
        )
    )
    await asyncio.sleep(0)
    assert [each.is_reserved for each in (one,)] == [True]
    one.offer = engine(fingerprint="new").offer
    desk.admission.pump("m")
    with pytest.raises(WeightsReplacedError):
        await alone
    assert not one.is_reserved
    one.num_requests = 0
    assert (await desk.slot()).engine is one


async def test_an_engine_that_is_shared_again_can_be_kept_for_the_next_suspect() -> None:
    desk = Desk(engine(max_requests=9))
    (one,) = desk.engines
    first = await (await desk.again(is_alone=True))
    desk.admission.share(first)
    beside = await desk.slot()
    second = await desk.again(is_alone=True)
    kept = [one.is_reserved]
    # Neither sharing twice nor the end of the first one lets anybody in.
    desk.admission.share(first)
    kept.append(one.is_reserved)
    desk.admission.release(first)
    kept.append(one.is_reserved)
    assert kept == [True, True, True]
    newcomer = await desk.queued()
    desk.admission.release(beside)
    assert (await second).is_alone
    assert not newcomer.done()
    desk.admission.release(second.result())
    kept.append(one.is_reserved)
    assert kept[3:] == [False]
    await newcomer


async def test_an_engine_is_emptied_for_a_suspect_though_others_wait_for_all_of_them() -> None:
    desk = Desk(engine("a"), engine("b"))
    slots = [await desk.slot() for _ in desk.engines]
    before = await desk.again()
    alone = await desk.again(is_alone=True)
    (kept,) = [one for one in desk.engines if one.is_reserved]
    for slot in slots:
        desk.admission.release(slot)
    assert (await alone).engine is kept
    assert (await before).engine is not kept


async def test_returning_work_that_gives_up_makes_room_for_those_behind_it() -> None:
    desk = Desk(engine(max_requests=9, max_tokens=100))
    await desk.slot(tokens=90)
    large = await desk.again(tokens=50)
    newcomer = await desk.queued(tokens=5)
    assert not newcomer.done()
    await left(large)
    await newcomer


async def test_returning_work_that_is_leaving_is_passed_over_for_the_next() -> None:
    desk = Desk(engine())
    slot = await desk.slot()
    leaving, next_one = await desk.again(), await desk.again()
    leaving.cancel()
    desk.admission.release(slot)  # before the one who leaves runs again
    assert slot.engine.num_requests == 1
    assert (await next_one).engine is slot.engine
    await asyncio.wait([leaving])
    assert leaving.cancelled()


async def test_of_returning_work_that_left_while_no_engine_was_there_nothing_stays() -> None:
    desk = Desk()
    await left(await desk.again(), await desk.queued(is_extra=True))
    model = desk.admission._models["m"]
    assert not any(one.waiters for one in model.returning.values())
    assert model.lines["work"].num_in_line == 0


async def test_a_slot_given_to_returning_work_that_just_left_is_given_back() -> None:
    desk = Desk(engine())
    slot = await desk.slot()
    back = await desk.again()
    desk.admission.release(slot)
    await left(back)
    assert desk.engines[0].num_requests == 0


async def test_errors_name_what_is_missing() -> None:
    desk = Desk()
    expected = "No engine serves the model `m` at the moment; please try again."
    with pytest.raises(WorkerUnavailableError) as nobody:
        await desk.slot()
    assert str(nobody.value) == expected
    desk.engines.append(engine())
    await desk.slot()
    waiting = await desk.queued()
    desk.engines.clear()
    desk.admission.pump("m")
    with pytest.raises(WorkerUnavailableError) as went:
        await waiting
    assert str(went.value) == expected
    desk.engines.append(engine("other"))
    with pytest.raises(WorkerLostError) as replaced:
        await (await desk.again(accepts=(), is_patient=False))
    assert str(replaced.value) == (
        "The engines that began this answer were replaced by another version that can't go on "
        "with it; please try again."
    )
    assert desk.admission.num_waiting("m") == 0
    assert desk.admission.num_waiting("never heard of") == 0

"""Two fingerprints of one model side by side: each piece of work finds its own engines."""

import pytest

from gateway.dispatch.routing import PrefixRouter, Route
from gateway.dispatch.slots import EngineHandle
from gateway.errors import WorkerLostError
from protocol.wire.messages import CachedBlocks
from tests.fakes.engine_handles import Desk, engine, left


@pytest.fixture
def old() -> EngineHandle:
    return engine("old", fingerprint="1", max_tokens=100, max_requests=2)


@pytest.fixture
def new() -> EngineHandle:
    return engine("new", fingerprint="2", max_tokens=100, max_requests=2)


@pytest.fixture
def desk(old: EngineHandle, new: EngineHandle) -> Desk:
    return Desk(old, new)


def is_old(one: EngineHandle) -> bool:
    return one.offer.fingerprint == "1"


def is_new(one: EngineHandle) -> bool:
    return one.offer.fingerprint == "2"


async def test_returning_work_whose_engine_is_full_holds_up_nobody_at_the_others(
    desk: Desk, old: EngineHandle, new: EngineHandle
) -> None:
    busy = [await desk.slot(accepts=is_old) for _ in range(2)]
    back = await desk.again(accepts=(old,))
    assert not back.done()
    assert (await desk.slot()).engine is new
    assert (await desk.slot()).engine is new
    newcomer = await desk.queued()
    # Where both could go, returning work is first.
    desk.admission.release(busy[0])
    assert (await back).engine is old
    assert not newcomer.done()
    desk.admission.release(busy[1])
    assert (await newcomer).engine is old


@pytest.mark.parametrize("why", ["backs off", "silent", "gone"])
async def test_returning_work_whose_engine_takes_nothing_holds_up_nobody(
    desk: Desk, old: EngineHandle, new: EngineHandle, why: str
) -> None:
    if why == "backs off":
        old.back_off(5.0)
    elif why == "silent":
        old.peer.is_silent = True
    else:
        desk.engines.remove(old)
    back = await desk.again(accepts=(old,))
    newcomers = [await desk.slot() for _ in range(2)]
    assert [slot.engine for slot in newcomers] == [new, new]
    assert not back.done()
    await left(back)


async def test_small_returning_work_does_not_overtake_a_larger_one_at_its_engine(
    desk: Desk, old: EngineHandle, new: EngineHandle
) -> None:
    slot = await desk.slot(tokens=60, accepts=is_old)
    large = await desk.again(accepts=(old,), tokens=50)
    small = await desk.again(accepts=(old,), tokens=5)
    either = await desk.again(tokens=5)
    assert (await either).engine is new
    assert not small.done()
    desk.admission.release(slot)
    assert (await large).engine is old
    assert (await small).engine is old


async def test_impatient_work_without_a_fitting_engine_learns_it_behind_others_that_wait(
    desk: Desk, old: EngineHandle, new: EngineHandle
) -> None:
    slots = [await desk.slot() for _ in range(4)]
    waiting, behind = await desk.again(), await desk.again()
    assert not waiting.done()
    with pytest.raises(WorkerLostError, match="another version"):
        await (await desk.again(accepts=(), is_patient=False))
    patient = await desk.again(accepts=())
    impatient = await desk.again(accepts=(old,), is_patient=False)
    assert not patient.done()
    assert not impatient.done()
    for slot in slots:
        desk.admission.release(slot)
    await waiting
    await behind
    assert (await impatient).engine is old
    await left(patient)


async def test_a_suspect_waits_for_an_empty_engine_of_its_own_fingerprint_only(
    desk: Desk, old: EngineHandle, new: EngineHandle
) -> None:
    slot = await desk.slot(accepts=is_old)
    alone = await desk.again(accepts=(old,), is_alone=True)
    assert old.is_reserved
    assert not new.is_reserved
    assert (await desk.slot()).engine is new
    desk.admission.release(slot)
    assert (await alone).engine is old


async def test_a_further_choice_waits_for_the_engines_that_read_its_prompt_alike(
    desk: Desk, old: EngineHandle, new: EngineHandle
) -> None:
    slots = [await desk.slot(accepts=is_old) for _ in range(2)]
    assert [slot.engine for slot in slots] == [old, old]
    further = await desk.queued(accepts=is_old, is_extra=True)
    assert not further.done()
    # It is first in the queue, and those behind it go where it can't.
    assert [(await desk.slot()).engine for _ in range(2)] == [new, new]
    newcomer = await desk.queued()
    assert not newcomer.done()
    desk.admission.release(slots[0])
    assert (await further).engine is old
    desk.admission.release(slots[1])
    assert (await newcomer).engine is old


async def test_those_behind_one_that_must_wait_keep_their_order(
    desk: Desk, old: EngineHandle, new: EngineHandle
) -> None:
    slots = [await desk.slot() for _ in range(4)]
    further = [await desk.queued("first", accepts=is_old, is_extra=True) for _ in range(3)]
    behind = [
        await desk.queued("first"),
        await desk.queued("second", accepts=is_new),
        await desk.queued("second", priority=1),
    ]
    desk.order.clear()
    for slot in slots:
        if slot.engine is new:
            desk.admission.release(slot)
    for task in behind[:2]:
        await task
    assert desk.order == ["first", "second"]
    assert not behind[2].done()
    assert not any(task.done() for task in further)
    await left(*further, behind[2])


async def test_without_an_engine_of_its_fingerprint_a_newcomer_waits_and_holds_up_nobody(
    desk: Desk,
) -> None:
    waiting = await desk.queued(accepts=lambda _: False)
    assert not waiting.done()
    await desk.slot()
    await left(waiting)


def test_a_prompt_is_never_routed_to_an_engine_that_reads_it_otherwise(
    old: EngineHandle, new: EngineHandle
) -> None:
    router = PrefixRouter()
    names = (b"1" * 16, b"2" * 16)
    router.on_cached_blocks(new.peer, CachedBlocks(added=names))
    assert router.choose([old, new], old, names, 10, is_old) == Route(old, "none")
    assert router.choose([old, new], old, names, 10, lambda _: True) == Route(new, "cached")
    # An engine that is gone from the list, or that work is moved from, changes nothing in that.
    assert router.choose([new], old, names, 10, is_old) == Route(old, "none")

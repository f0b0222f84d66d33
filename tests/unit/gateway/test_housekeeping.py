"""Periodic work: one chore's trouble is its own, is logged, and shows while it lasts."""

import asyncio

import pytest

from gateway.housekeeping import Housekeeping
from tests.fakes.virtual_time import VirtualTimeLoop

LOOP = VirtualTimeLoop


class Chore:
    """Work that a test breaks and mends."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.times: list[float] = []

    def __call__(self) -> None:
        self.times.append(asyncio.get_running_loop().time())
        if self.error is not None:
            raise self.error


def housekeeping() -> Housekeeping:
    return Housekeeping(asyncio.get_running_loop().time)


async def test_chores_are_done_at_their_intervals_until_they_are_stopped() -> None:
    harness, often, seldom = housekeeping(), Chore(), Chore()
    harness.add("often", 1.0, often)
    harness.add("seldom", 2.5, seldom)
    await asyncio.sleep(10.0)
    assert often.times == []
    harness.start()
    await asyncio.sleep(5.25)
    assert often.times == [11.0, 12.0, 13.0, 14.0, 15.0]
    assert seldom.times == [12.5, 15.0]
    assert harness.broken() == ()
    harness.stop()
    harness.stop()
    await asyncio.sleep(10.0)
    assert len(often.times) == 5


async def test_a_chore_that_raises_goes_on_and_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first exception ended the renewal of all leases, silently."""
    harness, bad, good = housekeeping(), Chore(), Chore()
    bad.error = RuntimeError("a bug")
    harness.add("bad", 1.0, bad)
    harness.add("good", 1.0, good)
    harness.start()
    await asyncio.sleep(2.5)
    assert (len(bad.times), len(good.times)) == (2, 2)
    assert caplog.messages == ["bad failed; it will run again"] * 2
    assert caplog.records[0].exc_info is not None
    harness.stop()


async def test_three_failures_in_a_row_show_until_it_works_again() -> None:
    harness, chore = housekeeping(), Chore()
    harness.add("renewing", 1.0, chore)
    harness.start()
    chore.error = RuntimeError("a bug")
    seen = []
    for _ in range(3):
        await asyncio.sleep(1.0)
        seen.append(harness.broken())
    assert seen == [(), (), ("renewing",)]
    chore.error = None
    await asyncio.sleep(1.0)
    assert harness.broken() == ()
    chore.error = RuntimeError("again")
    await asyncio.sleep(2.0)
    assert harness.broken() == ()
    harness.stop()


@pytest.mark.parametrize(("interval_s", "patience_s"), [(1.0, 5.0), (10.0, 30.0)])
async def test_a_chore_that_is_not_done_any_more_shows(
    interval_s: float, patience_s: float
) -> None:
    harness = housekeeping()
    harness.add("forgotten", interval_s, Chore())
    harness.start()
    harness.stop()  # as if its timer had been lost
    await asyncio.sleep(patience_s)
    assert harness.broken() == ()
    await asyncio.sleep(0.1)  # longer than three intervals, and than five seconds
    assert harness.broken() == ("forgotten",)


async def test_what_is_not_started_yet_is_not_overdue_from_the_first_second_on() -> None:
    harness = housekeeping()
    await asyncio.sleep(100.0)
    harness.add("later", 1.0, Chore())
    assert harness.broken() == ()
    await asyncio.sleep(100.0)
    harness.start()
    assert harness.broken() == ()
    harness.stop()


async def test_work_that_goes_on_behind_is_waited_for_and_its_failures_show() -> None:
    """A store that couldn't be swept, or a look that failed each time, counted as done."""
    harness, begun = housekeeping(), []

    def sweep() -> "asyncio.Future[None]":
        begun.append(asyncio.get_running_loop().create_future())
        return begun[-1]

    harness.add("sweeping", 1.0, sweep, is_essential=False)
    harness.start()
    await asyncio.sleep(30.5)
    assert len(begun) == 1
    assert harness.broken(is_essential=False) == ()
    for number in range(1, 4):
        assert harness.broken(is_essential=False) == ()
        begun[-1].set_exception(RuntimeError("a bug"))
        await asyncio.sleep(1.0)
        assert len(begun) == number + 1
    assert harness.broken(is_essential=False) == ("sweeping",)
    assert harness.broken() == ()
    begun[-1].set_result(None)
    await asyncio.sleep(1.0)
    assert harness.broken(is_essential=False) == ()
    await asyncio.sleep(125.0)
    assert harness.broken(is_essential=False) == ("sweeping",)
    harness.stop()

"""The time that a connection may be idle, with one timer for many requests."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from gateway.http.connections.idle_timer import IdleTimer


class Loop:
    """A clock and its timers."""

    def __init__(self) -> None:
        self.now = 100.0
        self.num_set = 0
        self._timers: list[tuple[float, Callable[[], object]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        self.num_set += 1
        timer = (self.now + delay, callback)
        self._timers.append(timer)
        return cast(asyncio.TimerHandle, _Handle(lambda: self._timers.remove(timer)))

    def run_until(self, now: float) -> None:
        while due := [timer for timer in self._timers if timer[0] <= now]:
            timer = min(due, key=lambda one: one[0])
            self._timers.remove(timer)
            self.now = timer[0]
            timer[1]()
        self.now = now

    @property
    def num_timers(self) -> int:
        return len(self._timers)


class _Handle:
    def __init__(self, cancel: Callable[[], object]) -> None:
        self.cancel = cancel


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def late(loop: Loop) -> list[float]:
    """When the time was over."""
    return []


@pytest.fixture
def timer(loop: Loop, late: list[float]) -> IdleTimer:
    on_late: Callable[[], object] = lambda: late.append(loop.now)  # noqa: E731
    return IdleTimer(cast(asyncio.AbstractEventLoop, loop), 5.0, on_late)


def test_the_time_counts_from_the_last_answer(
    loop: Loop, late: list[float], timer: IdleTimer
) -> None:
    timer.begin()
    loop.run_until(103.0)
    timer.end()
    timer.begin()
    loop.run_until(107.9)
    assert late == []
    loop.run_until(120.0)
    assert late == [108.0]
    assert (timer.is_idle, loop.num_timers) == (False, 0)


def test_many_requests_need_one_timer(loop: Loop, late: list[float], timer: IdleTimer) -> None:
    for number in range(400):
        timer.end()
        timer.begin()
        loop.run_until(100.0 + number / 100)
    assert (late, loop.num_set, loop.num_timers) == ([], 1, 1)


def test_no_request_is_cut_however_long_it_takes(
    loop: Loop, late: list[float], timer: IdleTimer
) -> None:
    timer.begin()
    timer.end()
    loop.run_until(1000.0)
    assert (late, loop.num_timers) == ([], 0)
    timer.begin()
    loop.run_until(2000.0)
    assert late == [1005.0]


def test_a_connection_that_has_ended_is_told_nothing(
    loop: Loop, late: list[float], timer: IdleTimer
) -> None:
    timer.begin()
    timer.stop()
    assert loop.num_timers == 0
    timer.begin()
    loop.run_until(1000.0)
    assert (late, loop.num_set) == ([], 1)

"""Periodic work that is supervised: it logs what it raises, goes on, and says when it can't."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_logger = logging.getLogger("penstock.gateway.housekeeping")


def logs_failure(name: str) -> Callable[["asyncio.Future[Any]"], None]:
    """A done callback for work that nobody waits for: what it raises goes to the log.

    Args:
        name: Of the work.
    """

    def on_done(future: "asyncio.Future[Any]") -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            _logger.error("%s failed", name, exc_info=error)

    return on_done


_MAX_MISSED = 3
"""So many failures in a row, or intervals without a run, and the work counts as broken."""


@dataclass(slots=True)
class _Chore:
    """One kind of periodic work."""

    name: str
    interval_s: float
    work: Callable[[], None]
    num_failures: int = 0
    done_at: float = 0.0


class Housekeeping:
    """Runs chores at their intervals, each alone with its trouble.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._chores: list[_Chore] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def add(self, name: str, interval_s: float, work: Callable[[], None]) -> None:
        """Do something every so many seconds; it returns at once."""
        self._chores.append(_Chore(name, interval_s, work, done_at=self._clock()))

    def start(self) -> None:
        """Begin; called in the event loop."""
        for chore in self._chores:
            chore.done_at = self._clock()
            self._plan(chore)

    def stop(self) -> None:
        """No more of it; idempotent."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def broken(self) -> tuple[str, ...]:
        """The chores that fail again and again, or are not done any more."""
        now = self._clock()
        return tuple(
            chore.name
            for chore in self._chores
            if chore.num_failures >= _MAX_MISSED
            or now - chore.done_at > max(5.0, _MAX_MISSED * chore.interval_s)
        )

    def _plan(self, chore: _Chore) -> None:
        loop = asyncio.get_running_loop()
        self._timers[chore.name] = loop.call_later(chore.interval_s, self._on_time, chore)

    def _on_time(self, chore: _Chore) -> None:
        self._plan(chore)
        self._do(chore)

    def _do(self, chore: _Chore) -> None:
        try:
            chore.work()
        except Exception:
            chore.num_failures += 1
            _logger.exception("%s failed; it will run again", chore.name)
        else:
            chore.num_failures = 0
            chore.done_at = self._clock()

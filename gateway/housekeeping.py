"""Periodic work that is supervised: it logs what it raises, goes on, and says when it can't."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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


Work = Callable[[], "asyncio.Future[Any] | None"]
"""Returns at once; a future (with `logs_failure`) where the rest of it goes on behind."""

_MAX_MISSED = 3
"""So many failures in a row, or intervals without a run, and the work counts as broken."""
_MAX_BEHIND_S = 120.0
"""What goes on behind for longer counts as broken: each of its questions has a deadline."""


@dataclass(slots=True)
class _Chore:
    """One kind of periodic work."""

    name: str
    interval_s: float
    work: Work
    is_essential: bool
    num_failures: int = 0
    done_at: float = 0.0
    behind: "asyncio.Future[Any] | None" = None

    def is_broken(self, now: float) -> bool:
        """Whether it fails again and again, or isn't done any more."""
        longest_s = _MAX_MISSED * self.interval_s
        if self.behind is not None:
            longest_s += _MAX_BEHIND_S
        return self.num_failures >= _MAX_MISSED or now - self.done_at > max(5.0, longest_s)


class Housekeeping:
    """Runs chores at their intervals, each alone with its trouble.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._chores: list[_Chore] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def add(self, name: str, interval_s: float, work: Work, *, is_essential: bool = True) -> None:
        """Do something every so many seconds, and not again before it is done.

        Args:
            name: Of the work, for logs and `/ready`.
            interval_s: From one begin to the next.
            work: See `Work`.
            is_essential: Whether no request may be served while it fails.
        """
        self._chores.append(_Chore(name, interval_s, work, is_essential, done_at=self._clock()))

    def start(self) -> None:
        """Begin; called in the event loop."""
        for chore in self._chores:
            chore.done_at = self._clock()
            self._plan(chore)

    def stop(self) -> None:
        """Begin nothing more; idempotent."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def broken(self, *, is_essential: bool = True) -> tuple[str, ...]:
        """The chores that fail again and again, or are not done any more."""
        now = self._clock()
        return tuple(
            chore.name
            for chore in self._chores
            if chore.is_essential is is_essential and chore.is_broken(now)
        )

    def _plan(self, chore: _Chore) -> None:
        loop = asyncio.get_running_loop()
        self._timers[chore.name] = loop.call_later(chore.interval_s, self._on_time, chore)

    def _on_time(self, chore: _Chore) -> None:
        self._plan(chore)
        self._do(chore)

    def _do(self, chore: _Chore) -> None:
        if chore.behind is not None:
            return
        try:
            chore.behind = chore.work()
        except Exception:
            _logger.exception("%s failed; it will run again", chore.name)
            self._note(chore, is_done=False)
            return
        if chore.behind is None:
            self._note(chore, is_done=True)
        else:
            chore.behind.add_done_callback(partial(self._on_done, chore))

    def _on_done(self, chore: _Chore, future: "asyncio.Future[Any]") -> None:
        chore.behind = None
        if not future.cancelled():
            self._note(chore, is_done=future.exception() is None)

    def _note(self, chore: _Chore, *, is_done: bool) -> None:
        if is_done:
            chore.num_failures = 0
            chore.done_at = self._clock()
        else:
            chore.num_failures += 1

"""Closes a connection that waits for its next request for too long."""

import asyncio
import math
from collections.abc import Callable


class IdleTimer:
    """The time that a connection may be idle.

    It is set once for many requests: to set a timer for each, and to take it back, costs as much as
    to parse the request. One that goes off too early goes on.

    Args:
        loop: Whose clock counts.
        seconds: May pass.
        on_late: Called then; let go with `stop`.
    """

    __slots__ = ("_due", "_loop", "_on_late", "_seconds", "_timer")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, on_late: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._on_late: Callable[[], object] | None = on_late
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether the time runs."""
        return self._due < math.inf

    def begin(self) -> None:
        """The connection is idle from now on."""
        if self._on_late is None:
            return
        self._due = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def end(self) -> None:
        """It isn't, or not any more."""
        self._due = math.inf

    def stop(self) -> None:
        """It has ended."""
        self._due = math.inf
        self._on_late = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        left_s = self._due - self._loop.time()
        if left_s == math.inf or self._on_late is None:
            return  # the next `begin` sets it again
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self._due = math.inf
            self._on_late()

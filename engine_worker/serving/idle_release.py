"""Gives memory back that the cache doesn't need, once an engine has had nothing to do for long."""

import time
from collections.abc import Callable
from typing import Final

from engine_worker.core.engine import Engine

IDLE_S: Final = 60.0
"""Longer than most pauses between requests: memory that is needed again has to be zeroed again."""


class IdleRelease:
    """Has an idle engine release the memory of blocks that hold nothing, once after each burst.

    Args:
        engine: Of the thread that calls.
        clock: Monotonic seconds.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._num_steps = engine.num_steps
        self._due: float | None = None

    def poll(self) -> None:
        """Release what is due; called after each round of the loop, and in each second of rest."""
        now = self._clock()
        if self._engine.has_work() or self._engine.num_steps != self._num_steps:
            self._num_steps = self._engine.num_steps
            self._due = now + IDLE_S
        elif self._due is not None and now >= self._due:
            self._due = None
            self._engine.release_memory()

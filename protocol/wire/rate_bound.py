"""Bounds how often something may happen, such as a log line that a peer can provoke."""

import time
from collections.abc import Callable


class RateBound:
    """A token bucket: `max_burst` at once, `max_per_s` in the long run."""

    def __init__(
        self,
        max_per_s: float,
        max_burst: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_per_s = max_per_s
        self._max_burst = max_burst
        self._clock = clock
        self._tokens = float(max_burst)
        self._filled_at = clock()

    def allow(self) -> bool:
        """Whether it may happen now; if so, it counts."""
        now = self._clock()
        refill = (now - self._filled_at) * self._max_per_s
        self._tokens = min(float(self._max_burst), self._tokens + refill)
        self._filled_at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

"""When a process that died is started again, and when it is given up; pure, with an injected clock."""

from dataclasses import dataclass

MAX_EARLY_DEATHS = 5
"""So many deaths in a row within a minute of the start, and the process is given up."""

EARLY_S = 60.0
_FIRST_DELAY_S = 0.25
_MAX_DELAY_S = 10.0


@dataclass
class RestartPolicy:
    """The deaths of one process.

    Attributes:
        num_early_deaths: Deaths in a row that came within `EARLY_S` of the start.
    """

    num_early_deaths: int = 0
    _started_at: float = 0.0

    def started(self, now: float) -> None:
        """The process was started at `now`, seconds of a monotonic clock."""
        self._started_at = now

    def died(self, now: float) -> float | None:
        """The process died at `now`.

        Returns:
            Seconds to wait before the next start, or None when it is given up.
        """
        if now - self._started_at >= EARLY_S:
            self.num_early_deaths = 0
        self.num_early_deaths += 1
        if self.num_early_deaths >= MAX_EARLY_DEATHS:
            return None
        return min(_FIRST_DELAY_S * 2.0 ** (self.num_early_deaths - 1), _MAX_DELAY_S)

"""When a process that died is started again, and what is said about it; pure, time is injected.

A process is started again forever, ever more slowly, because most causes pass: a full disk is
emptied, a lock is released, memory becomes free. Only an exit code that stands for wrong settings
ends that, since another start would read the same settings.
"""

import os
from dataclasses import dataclass
from typing import Final

EXIT_USAGE: Final = 2
"""What argparse and the gateway exit with when an option or a setting is wrong."""

EXIT_CANNOT_START: Final = 1
"""What a worker exits with when it can't start, and any Python program after an exception."""

EARLY_S: Final = 60.0
"""A death within so long of the start counts as one of a row, and makes the next pause longer."""

MAX_DELAY_S: Final = 30.0
SETTLED_S: Final = 5.0
REMINDER_S: Final = 60.0
_FIRST_DELAY_S: Final = 0.25
_MAX_DOUBLINGS: Final = 16  # 2.0**n overflows when it is counted forever.


def may_pass(status: int) -> bool:
    """Whether another start can help after an exit status; a negative one is a signal's."""
    return status not in (EXIT_USAGE, os.EX_CONFIG)


@dataclass
class RestartPolicy:
    """The deaths of one process. Times are seconds of a monotonic clock.

    Attributes:
        num_deaths: Deaths in a row that came within `EARLY_S` of the start.
        away_since: Of the first of those since the process was last said to be back; None while
            it is there.
    """

    num_deaths: int = 0
    away_since: float | None = None
    _started_at: float = 0.0
    _last_life_s: float = 0.0
    _last_cause: str = ""
    _said_at: float = 0.0

    def started(self, now: float) -> None:
        """The process was started at `now`."""
        self._started_at = now

    def died(self, now: float, cause: str) -> tuple[float, bool]:
        """The process died at `now`, or could not be started.

        Returns:
            Seconds to wait before the next start; whether this death is news: the first one, or
            one of another cause than the one before.
        """
        self._last_life_s = now - self._started_at
        if self._last_life_s >= EARLY_S:
            self.num_deaths, self._last_life_s = 0, 0.0
        self.num_deaths += 1
        is_news = self.away_since is None or cause != self._last_cause
        if self.away_since is None:
            self.away_since = now
        self._last_cause = cause
        if is_news:
            self._said_at = now
        doublings = min(self.num_deaths - 1, _MAX_DOUBLINGS)
        return min(_FIRST_DELAY_S * 2.0**doublings, MAX_DELAY_S), is_news

    def came_back(self, now: float) -> float | None:
        """Asked while the process runs: whether it counts as back, which is said once.

        It does when it lived `SETTLED_S` longer than the last time.

        Returns:
            How long it was away, in seconds; None when there is nothing to say.
        """
        if self.away_since is None or now - self._started_at < self._last_life_s + SETTLED_S:
            return None
        away_s = self._started_at - self.away_since
        self.away_since = None
        return away_s

    def is_reminder_due(self, now: float) -> bool:
        """Whether a minute has gone by since something was said about an absence; asked once."""
        if self.away_since is None or now - self._said_at < REMINDER_S:
            return False
        self._said_at = now
        return True

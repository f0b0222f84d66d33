"""When waiting for a server that starts has become hopeless."""

import time
from collections.abc import Callable
from typing import Any, Final

from penstock.errors import CommandError
from penstock.terminal import visible_line

SILENT_S: Final = 300.0
"""A gateway whose process runs answers within it, on a machine however busy."""
IDLE_S: Final = 300.0
"""So long after the last worker has nothing left to do, a private server serves."""
STANDSTILL_S: Final = 3600.0
"""The longest that one program compiles, or one file loads, without any news of it."""

_BUSY: Final = frozenset({"starting", "downloading", "loading", "compiling"})


class StartWatch:
    """Follows what `/health` says while a server starts.

    Args:
        is_private: The server waits for nobody else. Others may stand by for another one's end,
            or wait for workers of other machines, as long as it takes.
        clock: Monotonic seconds.
    """

    def __init__(
        self, *, is_private: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._is_private = is_private
        self._clock = clock
        self._last: Any = None
        self._since = self._answered_at = clock()

    def check(self, status: dict[str, Any] | None) -> None:
        """Take one more answer of a server that does not serve yet; None for no answer.

        Raises:
            CommandError: It won't serve; says what is known.
        """
        now = self._clock()
        if status is None:
            if now - self._answered_at >= SILENT_S:
                raise CommandError(
                    f"The gateway runs but has not answered for {SILENT_S:.0f} s; its log is above."
                )
            return
        self._answered_at = now
        workers = [worker for worker in status.get("workers", ()) if isinstance(worker, dict)]
        if workers != self._last:
            self._last, self._since = workers, now
        is_busy = any(worker.get("phase") in _BUSY for worker in workers)
        limit_s = STANDSTILL_S if is_busy else IDLE_S
        if self._is_private and now - self._since >= limit_s:
            raise CommandError(
                f"The server does not come to serve: for {limit_s:.0f} s nothing has changed, and "
                f"{_missing(status)}; its log is above."
            )


def _missing(status: dict[str, Any]) -> str:
    missing = status.get("missing")
    if not isinstance(missing, list) or not missing:
        return "it doesn't say what it waits for"
    return visible_line(f"it lacks: {', '.join(map(str, missing))}")

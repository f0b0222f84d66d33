"""Calls a function at regular intervals from a thread of its own."""

import threading
from collections.abc import Callable


class Ticker:
    """A heartbeat for what must happen even when no command comes.

    Args:
        interval_s: Between two calls.
        function: Quick, and safe to call from this thread.
    """

    def __init__(self, interval_s: float, function: Callable[[], object]) -> None:
        self._interval_s = interval_s
        self._function = function
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; no call begins after this returns."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self._function()

"""Ends a worker whose I/O thread stands still, for its supervisor to start it again."""

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

STALL_S: Final = 60.0
"""Four times as long as a gateway waits until it gives a silent worker up."""
LOOK_S: Final = 1.0
_logger = logging.getLogger("penstock.worker")


def _exit(exit_code: int) -> None:
    logging.shutdown()
    os._exit(exit_code)


class StallWatch:
    """Looks whether a thread has done anything, from a thread of its own.

    A worker finds by its heartbeats that its work hangs, but not that these hang themselves, as
    where one command of a client takes hours. Gateways give such a worker up after some seconds and
    the request to another one; its process lives and would never serve again.

    What counts is how often this thread has looked: if the process was stopped, or another thread
    held the interpreter, neither of both has run.

    Args:
        last_beat: When the watched thread was here last, by any clock.
        stall_s: How long it may stand still, seconds.
        on_stall: Ends the process; takes the exit code.
        exit_code: For the supervisor to start it again.
    """

    def __init__(
        self,
        last_beat: Callable[[], float],
        *,
        stall_s: float,
        exit_code: int,
        on_stall: Callable[[int], object] = _exit,
    ) -> None:
        self._last_beat = last_beat
        self._max_looks = max(1, round(stall_s / LOOK_S))
        self._exit_code = exit_code
        self._on_stall = on_stall
        self._seen: float | None = None
        self._num_looks = 0
        self._stop = threading.Event()

    def start(self, watched: threading.Thread) -> None:
        """Begin; ends with the process, or with `stop`."""
        thread = threading.Thread(target=self._run, args=(watched,), name="stall-watch")
        thread.daemon = True
        thread.start()

    def stop(self) -> None:
        """Look no more: the thread is about to end."""
        self._stop.set()

    def look(self, watched: threading.Thread) -> None:
        """Look once; called every `LOOK_S`."""
        beat = self._last_beat()
        self._num_looks = self._num_looks + 1 if beat == self._seen else 0
        self._seen = beat
        if self._num_looks < self._max_looks:
            return
        frame = sys._current_frames().get(watched.ident or 0)
        where = "" if frame is None else "".join(traceback.format_stack(frame)[-8:])
        _logger.critical(
            "the I/O thread of this worker stands still for %.0f s; it exits\n%s",
            self._num_looks * LOOK_S,
            where,
        )
        self._stop.set()
        self._on_stall(self._exit_code)

    def _run(self, watched: threading.Thread) -> None:
        while not self._stop.is_set():
            before = time.monotonic()
            if self._stop.wait(LOOK_S):
                return
            if time.monotonic() - before < 2 * LOOK_S:
                self.look(watched)

"""Ends Python code in a thread that computes for too long, such as a chat template that loops.

Templates come with models, and nothing in Jinja bounds what nested loops take. The thread itself
can't look at a clock in the middle of one, so another one does, and raises an exception in it.
"""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

_INTERVAL_S: Final = 0.1


class OutOfTimeError(BaseException):
    """Raised in the thread between any two of its steps; no `except Exception` in it stops it."""


@dataclass(slots=True, eq=False)
class _Watched:
    """A thread, the clock of its processor time, and when that is over."""

    thread_id: int
    clock: int
    until_s: float


class _Watch:
    """All threads that are limited now; a thread of its own looks at them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: set[_Watched] = set()
        self._is_started = False

    def add(self, watched: _Watched) -> None:
        with self._lock:
            self._watched.add(watched)
            if not self._is_started:
                self._is_started = True
                threading.Thread(target=self._run, name="time-limit", daemon=True).start()

    def remove(self, watched: _Watched) -> None:
        with self._lock:
            self._watched.discard(watched)

    def _run(self) -> None:
        while True:
            time.sleep(_INTERVAL_S)
            with self._lock:
                over = [one for one in self._watched if _now_s(one.clock) >= one.until_s]
                for one in over:
                    # Once only: it may be on its way out already.
                    self._watched.discard(one)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(one.thread_id), ctypes.py_object(OutOfTimeError)
                    )


_watch = _Watch()


def _now_s(clock: int) -> float:
    return time.clock_gettime(clock)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Bounds what the code inside computes, in this thread's own processor time.

    Python code alone is ended, and between two of its steps: one call of a C function runs to its
    end.

    Args:
        seconds: Of processor time, so that busy neighbours don't count.

    Raises:
        OutOfTimeError: It took longer.
    """
    thread_id = threading.get_ident()
    clock = time.pthread_getcpuclockid(thread_id)
    watched = _Watched(thread_id, clock, _now_s(clock) + seconds)
    _watch.add(watched)
    try:
        yield
    finally:
        _watch.remove(watched)

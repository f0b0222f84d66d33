"""Lets the compiler have only what others leave of the cores."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_TASKS: Final = Path("/proc/self/task")
_COMPUTES: Final = "tf_XLAEigen"
"""How XLA names the threads in which programs run; they must keep their priority."""
_BUSY_TICKS: Final = 10
"""A tenth of a second of CPU time, in the ticks of `/proc`."""
_LEAST_PRIORITY: Final = 19
_UTIME, _STIME = 11, 12
"""Fields of `/proc/self/task/*/stat` behind the name, see proc_pid_stat(5)."""

_log = logging.getLogger("penstock.runner")

SetPriority = Callable[[int, int], None]
"""Sets the niceness of a thread by its id in the system."""


class CompilerThreads:
    """The native threads in which XLA:CPU compiles, which have no names of their own.

    They are found by the CPU time that they take while something compiles: they are those threads
    that neither Python knows nor run programs. They never hold the interpreter's lock and no step
    waits for them, so a low priority of theirs delays nobody. Linux only; elsewhere nothing is
    found.

    Args:
        tasks: Folder of this process's threads.
        set_priority: See `SetPriority`.
    """

    def __init__(self, tasks: Path = _TASKS, set_priority: SetPriority | None = None) -> None:
        self._tasks = tasks
        self._set_priority = set_priority or _set_niceness
        self._found: set[int] = set()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Find those that work meanwhile; what is compiled within is compiled as fast as it can."""
        before = self._ticks()
        yield
        known = {thread.native_id for thread in threading.enumerate()}
        for thread_id, ticks in self._ticks().items():
            if ticks - before.get(thread_id, 0) >= _BUSY_TICKS and thread_id not in known:
                self._found.add(thread_id)

    def give_way(self) -> None:
        """From now on the threads that were found work when nobody else wants to."""
        for thread_id in self._found:
            try:
                self._set_priority(thread_id, _LEAST_PRIORITY)
            except OSError as error:  # it is gone, or a sandbox forbids it
                _log.debug("thread %d keeps its priority: %s", thread_id, error)

    def _ticks(self) -> dict[int, int]:
        """CPU time of each thread so far, those that run programs left out."""
        ticks: dict[int, int] = {}
        for folder in self._tasks.iterdir() if self._tasks.is_dir() else ():
            try:
                stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:  # it has ended
                continue
            _, _, rest = stat.partition("(")
            name, _, rest = rest.rpartition(")")
            fields = rest.split()
            if name != _COMPUTES and len(fields) > _STIME:
                ticks[int(folder.name)] = int(fields[_UTIME]) + int(fields[_STIME])
        return ticks


def _set_niceness(thread_id: int, niceness: int) -> None:
    os.setpriority(os.PRIO_PROCESS, thread_id, niceness)

"""Has the compiler give way to the steps of the engine."""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_TASKS: Final = Path("/proc/self/task")
_COMPUTES: Final = "tf_XLAEigen"
"""How XLA names the threads in which programs run; they must keep their priority."""
_BUSY_TICKS: Final = 10
"""A tenth of a second of CPU time, in the ticks of `/proc`."""
NICENESS: Final = 5
"""Added to that of the process. With as much to do, a thread of a niceness of 5 gets a third of
what one of 0 gets, so a program that steps need is there soon, on a machine with other work too."""
_UTIME, _STIME = 11, 12
"""Fields of `/proc/self/task/*/stat` behind the name, see proc_pid_stat(5)."""

_log = logging.getLogger("penstock.runner")

AddNiceness = Callable[[int, int], None]
"""Makes a thread, by its id in the system, nicer than the calling one."""


class CompilerThreads:
    """The native threads in which XLA:CPU compiles, which have no names of their own.

    They are found by the CPU time that they take while something compiles: they are those threads
    that neither Python knows nor run programs. They never hold the interpreter's lock and no step
    waits for them, so a lower priority of theirs delays nobody. Linux only; elsewhere nothing is
    found.

    Args:
        tasks: Folder of this process's threads.
        add_niceness: See `AddNiceness`.
    """

    def __init__(self, tasks: Path = _TASKS, add_niceness: AddNiceness | None = None) -> None:
        self._tasks = tasks
        self._add_niceness = add_niceness or _add_niceness

    @contextmanager
    def watch(self) -> Iterator[set[int]]:
        """Find those that work meanwhile; their ids are there afterwards."""
        found: set[int] = set()
        before = self._ticks()
        yield found
        known = {thread.native_id for thread in threading.enumerate()}
        for thread_id, ticks in self._ticks().items():
            if ticks - before.get(thread_id, 0) >= _BUSY_TICKS and thread_id not in known:
                found.add(thread_id)

    def give_way(self, thread_ids: Iterable[int]) -> None:
        """From now on these threads get less of the cores than others."""
        for thread_id in thread_ids:
            try:
                self._add_niceness(thread_id, NICENESS)
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


def _add_niceness(thread_id: int, niceness: int) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, thread_id, own + niceness)

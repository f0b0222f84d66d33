"""How C's allocator gives memory back, where it can be told: in glibc."""

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from protocol.runtime.large_pages import LargePages

LARGE_BLOCK_BYTES = 256 * 1024
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_TRIM_BYTES = 1024 * 1024
ENOUGH_BYTES = 4 * 1024 * 1024
"""A heap that has changed by more since it was trimmed is trimmed again; a large one by a share."""
_ENOUGH_SHARE = 64
"""A change of so small a part of what the process holds is none."""
TRIM_INTERVAL_S = 5.0
_logger = logging.getLogger("penstock.memory")
_USERS_OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def return_large_blocks(environ: Mapping[str, str] = os.environ) -> bool:
    """Let every large block go back to the system as soon as it is freed.

    By default glibc learns from the first large block that it frees, and takes blocks up to 32 MB
    from its heap from then on. There a small one that stays keeps all that was freed below it: a
    server that once read large bodies would hold them for good.

    Args:
        environ: Where somebody has set the allocator's own variables, they count.

    Returns:
        Whether the allocator was told; elsewhere than with glibc it can't be.
    """
    if any(name in environ for name in _USERS_OWN):
        return False
    try:
        mallopt = _libc().mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES) and mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    )


@dataclass(frozen=True)
class Heap:
    """What a process holds.

    Attributes:
        resident_bytes: Of the whole process.
        used_bytes: Of the allocator's heap: what is not freed.
    """

    resident_bytes: int
    used_bytes: int


class HeapTrimmer:
    """Gives what was freed in small pieces back to the system.

    glibc gives back only the top of its heap by itself, where nearly always something small stands:
    what five thousand connections took that are gone would be held for good.

    Args:
        measure: What the process holds now; None where that can't be told.
        trim: Gives back what it can; takes milliseconds, in which other threads go on.
    """

    def __init__(
        self,
        measure: Callable[[], Heap | None] | None = None,
        trim: Callable[[], object] | None = None,
    ) -> None:
        self._measure = measure or _measure
        self._trim = trim or _malloc_trim
        self._least_resident = 0
        self._most_used = 0
        self._was_busy = False

    def look(self) -> bool:
        """Trim if much was freed since the last time, or if there is much more than then.

        And once more at the next look: what was in use at this one may be free by then, without
        having been seen in use.

        Returns:
            Whether it trimmed.
        """
        heap = self._measure()
        if heap is None:
            return False
        self._most_used = max(self._most_used, heap.used_bytes)
        was_busy = self._was_busy
        enough = max(ENOUGH_BYTES, heap.resident_bytes // _ENOUGH_SHARE)
        self._was_busy = (
            heap.resident_bytes > self._least_resident + enough
            or heap.used_bytes < self._most_used - enough
        )
        if self._was_busy or was_busy:
            self._trim()
            heap = self._measure() or heap
            self._least_resident, self._most_used = heap.resident_bytes, heap.used_bytes
        self._least_resident = min(self._least_resident, heap.resident_bytes)
        return self._was_busy or was_busy

    def take_for_used(self) -> None:
        """What the process holds now is not to be given back: it was put into large pages."""
        heap = self._measure()
        if heap is not None:
            self._least_resident = heap.resident_bytes


@dataclass(frozen=True)
class HeapKeeper:
    """Looks at the heap of a process that runs for long.

    Attributes:
        trimmer: Gives back what is free.
        large_pages: Then puts what is in use into large pages; None for a process that holds too
            little for that, or has it in arrays.
    """

    trimmer: HeapTrimmer
    large_pages: LargePages | None = None

    def look(self) -> None:
        """Do what there is to do; takes milliseconds, in which other threads go on."""
        # What was given back would come with the large page around it; so only when that is over.
        if not self.trimmer.look() and self.large_pages is not None and self.large_pages.look():
            self.trimmer.take_for_used()


def trim_in_background(
    trimmer: HeapTrimmer | None = None, large_pages: LargePages | None = None
) -> threading.Thread:
    """Have a thread of this process look at its heap every few seconds, until the process ends.

    What a look raises is logged, and the next one follows nevertheless; see `HeapKeeper`.
    """
    keeper = HeapKeeper(trimmer or HeapTrimmer(), large_pages)
    never = threading.Event()

    def run() -> None:
        while not never.wait(TRIM_INTERVAL_S):
            try:
                keeper.look()
            except Exception:
                _logger.exception("what the process holds could not be looked at")

    thread = threading.Thread(target=run, name="heap", daemon=True)
    thread.start()
    return thread


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    )


def _measure() -> Heap | None:
    try:
        mallinfo = _libc().mallinfo2
        mallinfo.restype = _MallInfo
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        used: int = mallinfo().uordblks
    except (AttributeError, OSError, TypeError, ValueError, IndexError):
        return None
    return Heap(pages * os.sysconf("SC_PAGE_SIZE"), used)


def _malloc_trim() -> None:
    _libc().malloc_trim(0)  # a library that can be measured has it


@cache
def _libc() -> Any:
    # Made once: each has a class of its own, which only the collector of garbage ends.
    return ctypes.CDLL(None)

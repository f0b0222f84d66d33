"""Memory that a process holds for long, put into large pages, where Linux does so when asked.

Before the processor reads what is in none of its caches it has to find out where the page lies. It
keeps some thousand answers; with pages of 4 KiB they are for a few megabytes, and each further one
takes longer than the reading, above all in a virtual machine. One page of 2 MiB is one answer.
https://docs.kernel.org/admin-guide/mm/transhuge.html
"""

import ctypes
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

ENOUGH_BYTES: Final = 4 * 1024 * 1024
"""A process that has grown by so much is looked at again."""
_ENOUGH_SHARE: Final = 16
"""And by such a share of what it holds."""
_MADV_COLLAPSE: Final = 25
"""Of Linux since 6.1; before, the call fails and nothing changes."""
_DENSE_SHARE: Final = 4
"""All but a quarter of a stretch must be in use: it takes at most a third more memory."""
_THP: Final = Path("/sys/kernel/mm/transparent_hugepage")
_HEADER: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+) *(.*)")


class Stretch(NamedTuple):
    """A part of the address space, in bytes."""

    begin: int
    num_bytes: int


class LargePages:
    """Looks for what is in use of a process, and has it put into large pages.

    Args:
        resident_bytes: What the process holds now; None where that can't be told.
        stretches: What may be put into large pages.
        collapse: Puts a stretch into large pages as far as it can; takes 1 to 15 ms for
            each, in which other threads go on.
    """

    def __init__(
        self,
        resident_bytes: Callable[[], int | None] | None = None,
        stretches: Callable[[], Iterable[Stretch]] | None = None,
        collapse: Callable[[Stretch], object] | None = None,
    ) -> None:
        self._resident_bytes = resident_bytes or _resident_bytes
        self._stretches = stretches or _own_stretches
        self._collapse = collapse or _collapse
        self._least_bytes = -(2**62)

    def look(self) -> bool:
        """Have all of it put into large pages, if the process has grown since the last time.

        Returns:
            Whether it had.
        """
        resident = self._resident_bytes()
        if resident is None:
            return False
        has_grown = resident >= self._least_bytes + max(ENOUGH_BYTES, resident // _ENOUGH_SHARE)
        if has_grown:
            for stretch in self._stretches():
                self._collapse(stretch)
            resident = self._resident_bytes() or resident
            self._least_bytes = resident
        self._least_bytes = min(self._least_bytes, resident)
        return has_grown


def dense_stretches(smaps: Iterable[str], page_bytes: int) -> Iterator[Stretch]:
    """The parts of a process's own memory that are nearly all in use, by `/proc/self/smaps`.

    Stacks of threads and what is mapped from files are no such parts.

    Args:
        smaps: Its lines; see https://man7.org/linux/man-pages/man5/proc_pid_smaps.5.html.
        page_bytes: Of a large page. Parts begin and end at its multiples.
    """
    begin = end = 0
    for line in smaps:
        header = _HEADER.match(line)
        if header is not None:
            begin, end = int(header[1], 16), int(header[2], 16)
            if header[3] != "rw-p" or header[4] != "0" or header[5] not in ("", "[heap]"):
                end = begin
        elif line.startswith("Rss:"):
            used_bytes = int(line.split()[1]) * 1024
            first, last = -(-begin // page_bytes) * page_bytes, end // page_bytes * page_bytes
            if first < last and used_bytes >= (end - begin) * (_DENSE_SHARE - 1) // _DENSE_SHARE:
                yield Stretch(first, last - first)


def _own_stretches() -> Iterator[Stretch]:
    page_bytes = large_page_bytes()
    if not page_bytes:
        return
    try:
        smaps = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    yield from dense_stretches(smaps.splitlines(), page_bytes)


def large_page_bytes(folder: Path = _THP) -> int:
    """The size of a large page; 0 where there is none, or an administrator wants none."""
    try:
        if "[never]" in (folder / "enabled").read_text(encoding="ascii"):
            return 0
        return int((folder / "hpage_pmd_size").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _collapse(stretch: Stretch) -> None:
    """What can't be done now, for want of memory that lies together, is left as it is."""
    _madvise()(stretch.begin, stretch.num_bytes, _MADV_COLLAPSE)


@cache
def _madvise() -> Any:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise

"""Code of libraries that is not run any more, let go.

A start runs far more of XLA and its compiler than steps do, and what a process has run stays mapped
and counts as its memory. The system keeps files that were read anyway, while it has room: a page
that is let go and runs again is mapped again from there, 16 at once.

Linux only; elsewhere nothing is let go and nothing is lost.
"""

import gc
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from engine_worker.compute.memory.host_memory import advise_unneeded, trim_heap

_MIN_BYTES: Final = 4 * 2**20
"""Of smaller libraries not enough is mapped to be worth it."""
_CODE: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-x\S \S+ \S+ \d+ +/.*\.so[\w.-]*$")
_FIELD: Final = re.compile(r"(Rss|Anonymous): +(\d+) kB")


def release_after_compiling() -> None:
    """Give back what nothing but loading and compiling needed: heap, and code of libraries."""
    # Tracing leaves cycles, which the collector would find much later.
    gc.collect()
    trim_heap()
    release_library_code()


def release_library_code() -> int:
    """Let the code of large libraries go; it is mapped again where it runs.

    Returns:
        Bytes that were mapped.
    """
    if sys.platform != "linux":
        return 0
    try:
        smaps = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return sum(
        resident
        for begin, end, resident in large_code(smaps.splitlines())
        if advise_unneeded(begin, end - begin)
    )


def large_code(smaps: Iterable[str]) -> Iterator[tuple[int, int, int]]:
    """Code of libraries that is as their files have it, and of which much is mapped.

    Args:
        smaps: Lines of `/proc/self/smaps`, see
            https://man7.org/linux/man-pages/man5/proc_pid_smaps.5.html.

    Yields:
        First address, the one after the last, and the bytes that are mapped.
    """
    place: tuple[int, int] | None = None
    sizes: dict[str, int] = {}
    for line in smaps:
        field = _FIELD.match(line)
        if field is not None:
            sizes[field[1]] = int(field[2]) * 1024
        elif line.startswith("VmFlags:"):
            if place is not None and sizes["Rss"] >= _MIN_BYTES and sizes["Anonymous"] == 0:
                yield *place, sizes["Rss"]
        elif not line[:1].isupper():
            code = _CODE.match(line)
            place = None if code is None else (int(code[1], 16), int(code[2], 16))
            sizes = {}

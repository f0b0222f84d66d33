"""Gives memory that holds nothing back to the system: pages of the cache, and what malloc keeps.

Linux only; elsewhere nothing is given back and nothing is lost.
"""

import ctypes
import mmap
import sys
from typing import Any, Final

import jax

_MADV_DONTNEED: Final = 4
"""Of <linux/mman.h>: private anonymous pages are dropped and read as zeros when touched again."""


def release_pages(array: jax.Array) -> bool:
    """Drops the pages of an array in the host's memory; it then reads as zeros.

    XLA:CPU fills what it allocates, so a cache would take all its memory at once, used or not.
    Pages dropped take none until something is written to them.

    Args:
        array: Made by a program, so that nothing else owns its memory. Its content is lost.

    Returns:
        Whether the pages were dropped; False where the system or the device has no such thing.
    """
    device = next(iter(array.devices()))
    if sys.platform != "linux" or device.platform != "cpu":
        return False
    start = array.unsafe_buffer_pointer()
    page = mmap.PAGESIZE
    # Whole pages only: what lies beside the array in the first and the last is not ours.
    first, end = -(-start // page) * page, (start + array.nbytes) // page * page
    if end <= first:
        return False
    size = ctypes.c_size_t(end - first)
    failed: int = _libc().madvise(ctypes.c_void_p(first), size, _MADV_DONTNEED)
    return not failed


def trim_heap() -> None:
    """Has malloc give back what was freed: compiling and loading leave hundreds of megabytes."""
    if sys.platform == "linux" and hasattr(_libc(), "malloc_trim"):
        _libc().malloc_trim(0)


def _libc() -> Any:
    return ctypes.CDLL(None)

"""The host's memory: large pages for what steps read, and memory that holds nothing given back.

A step reads all weights and the cache from end to end. In pages of 4 KiB each of them has its own
entry in the processor's tables of addresses; of these only some thousand are kept, and finding
another takes several reads of memory, many more in a virtual machine. Pages of 2 MiB need a five
hundredth of them. Linux gives these to private memory that asks for it (where
`/sys/kernel/mm/transparent_hugepage/enabled` says `madvise` or `always`), but to no mapped file.

Linux only; elsewhere memory is as it is, nothing is given back and nothing is lost.
"""

import ctypes
import mmap
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, Protocol

import jax
import numpy as np
import numpy.typing as npt

from engine_worker.errors import ModelMemoryError

ALIGNMENT: Final = 64
"""Bytes; the kernels ask for it, and jax takes memory of this alignment without a copy."""
LARGE_PAGE_BYTES: Final = 2 * 2**20
"""Of x86, and of ARM where usual pages have 4 KiB."""
_MADV_HUGEPAGE: Final = 14
"""Of <linux/mman.h>, as the next two."""
_MADV_DONTNEED: Final = 4
_MAP_FIXED: Final = 16


class ArraySpec(Protocol):
    """Of an array that isn't there yet."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...


class HostArena:
    """Memory for arrays that are read again and again: one piece, in large pages where there are.

    Args:
        specs: The arrays that it is for.

    Attributes:
        arrays: Of these shapes and types, filled with zeros; each at a multiple of `ALIGNMENT`.
            They keep the memory.

    Raises:
        ModelMemoryError: The system doesn't give so much.
    """

    def __init__(self, specs: Sequence[ArraySpec]) -> None:
        sizes = [int(np.prod(spec.shape, dtype=np.int64)) * spec.dtype.itemsize for spec in specs]
        starts = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)]).tolist()
        memory = _anonymous_memory(starts[-1])
        self.arrays: list[npt.NDArray[Any]] = [
            memory[start : start + size].view(spec.dtype).reshape(spec.shape)
            for spec, start, size in zip(specs, starts[:-1], sizes, strict=True)
        ]


class DeviceArrays:
    """Puts arrays on a device, one after the other; on the CPU into a `HostArena`.

    Args:
        specs: The arrays, in their order.
        device: Where to; None is the default device.

    Raises:
        ModelMemoryError: As `HostArena`.
    """

    def __init__(
        self,
        specs: Sequence[ArraySpec],
        device: jax.Device | jax.sharding.Sharding | None = None,
    ) -> None:
        self._device = device
        self._specs = iter(specs)
        platform = jax.default_backend() if device is None else getattr(device, "platform", "")
        self._places = iter(HostArena(specs).arrays) if platform == "cpu" else None

    def put(self, array: npt.NDArray[Any]) -> jax.Array:
        """The next array, copied."""
        if self._places is None:
            return self._placed(array)

        def copy(place: npt.NDArray[Any]) -> None:
            assert (array.shape, array.dtype) == (place.shape, place.dtype), (array, place)
            place[...] = array

        return self.fill(copy)

    def fill(self, fill: Callable[[npt.NDArray[Any]], object]) -> jax.Array:
        """The next array, as it is when `fill` has filled it."""
        spec = next(self._specs)
        # For another device the host holds one at a time.
        place = next(self._places) if self._places else np.empty(spec.shape, spec.dtype)
        fill(place)
        return self._placed(place)

    def _placed(self, array: npt.NDArray[Any]) -> jax.Array:
        # Aligned memory of the host is taken as it is: no further copy.
        placed: jax.Array = jax.device_put(array, self._device)
        return placed.block_until_ready()


def _anonymous_memory(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Zeros that take no memory until they are written to, from a large page's start on."""
    if sys.platform != "linux":
        raw = np.zeros(num_bytes + ALIGNMENT, np.uint8)
        return raw[-raw.ctypes.data % ALIGNMENT :][:num_bytes]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        mapped = mmap.mmap(-1, num_bytes + LARGE_PAGE_BYTES, flags=flags)
    except OSError as error:
        raise ModelMemoryError(
            f"The system gives no {num_bytes / 2**20:.0f} MiB of memory for the weights"
            f" ({error.strerror}): serve a smaller model or type of weights, or raise the limit"
            " (ulimit -v, vm.overcommit_memory)."
        ) from error
    raw = np.frombuffer(mapped, np.uint8)
    start = -raw.ctypes.data % LARGE_PAGE_BYTES
    _advise(raw.ctypes.data, len(raw), _MADV_HUGEPAGE)
    return raw[start : start + num_bytes]


def use_large_pages(array: jax.Array) -> bool:
    """Has what is written to an array from now on lie in large pages.

    Args:
        array: As `release_pages` takes it; what it holds already stays where it is.

    Returns:
        Whether the system will try; False where it or the device has no such thing.
    """
    if not _is_on_linux(array):
        return False
    # From the whole page that it begins in: for a neighbour there it changes nothing.
    start = array.unsafe_buffer_pointer() // mmap.PAGESIZE * mmap.PAGESIZE
    return _advise(start, array.unsafe_buffer_pointer() + array.nbytes - start, _MADV_HUGEPAGE)


def drops_pages() -> bool:
    """Whether `release_pages` empties arrays of the default device."""
    return sys.platform == "linux" and jax.default_backend() == "cpu"


def release_pages(array: jax.Array) -> bool:
    """Drops the pages of an array in the host's memory; it then reads as zeros.

    XLA:CPU fills what it allocates, so a cache would take all its memory at once, used or not.
    Pages dropped take none until something is written to them.

    Args:
        array: Made by a program, so that nothing else owns its memory. Its content is lost.

    Returns:
        Whether the pages were dropped; False where the system or the device has no such thing.

    Raises:
        ModelMemoryError: The array has no memory any more.
    """
    if not _is_on_linux(array):
        return False
    start, page = array.unsafe_buffer_pointer(), mmap.PAGESIZE
    # Whole pages only: what lies beside the array in the first and the last is not ours.
    first, end = -(-start // page) * page, (start + array.nbytes) // page * page
    if end <= first:
        return False
    # Mapped again, because of pages that are only dropped the kernel keeps the tables, and where
    # one is there before Linux 6.14 gives no large page.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
    place: int | None = _libc().mmap(
        first, end - first, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0
    )
    if place != first:
        raise ModelMemoryError("The system takes memory for the cache away and gives none back.")
    return True


def release_rows(array: jax.Array, runs: Sequence[tuple[int, int]]) -> int:
    """Drops the large pages that lie wholly within some rows of an array; they then read as zeros.

    A large page of which something is kept stays: cut into small ones it would be slower to read.

    Args:
        array: As `release_pages` takes it, and no program is at work on it.
        runs: First row and the one after the last, along the first axis; their content is lost.

    Returns:
        Bytes of the pages, whether or not they took memory.
    """
    if not _is_on_linux(array):
        return 0
    start, page = array.unsafe_buffer_pointer(), LARGE_PAGE_BYTES
    row_bytes = array.nbytes // len(array)
    num_bytes = 0
    for first_row, end_row in runs:
        first = -(-(start + first_row * row_bytes) // page) * page
        end = (start + end_row * row_bytes) // page * page
        # Not mapped again as in `release_pages`: each hole would be a mapping of its own.
        if advise_unneeded(first, end - first):
            num_bytes += end - first
    return num_bytes


def _is_on_linux(array: jax.Array) -> bool:
    device: jax.Device = next(iter(array.devices()))
    return sys.platform == "linux" and str(device.platform) == "cpu"


def advise_unneeded(start: int, num_bytes: int) -> bool:
    """Drops pages: of a file they are read again where they are used, others are zeros then.

    Args:
        start: Address of a page.
        num_bytes: Up to the end of a page.

    Returns:
        Whether they were dropped; False where the kernel refuses.
    """
    return _advise(start, num_bytes, _MADV_DONTNEED)


def _advise(start: int, num_bytes: int, advice: int) -> bool:
    """False where the kernel refuses, or there is no page."""
    if num_bytes <= 0:
        return False
    failed: int = _libc().madvise(start, num_bytes, advice)
    return not failed


def trim_heap() -> None:
    """Has malloc give back what was freed: compiling and loading leave hundreds of megabytes."""
    if sys.platform == "linux" and hasattr(_libc(), "malloc_trim"):
        _libc().malloc_trim(0)


@cache
def _libc() -> Any:
    library = ctypes.CDLL(None)
    if sys.platform == "linux":
        address, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        library.madvise.argtypes = [address, size, number]
        library.mmap.argtypes = [address, size, number, number, number, ctypes.c_long]
        library.mmap.restype = address
    return library

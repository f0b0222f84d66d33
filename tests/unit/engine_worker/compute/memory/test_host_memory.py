"""Memory of arrays: aligned, in large pages where the system has them, and none that isn't used."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.backends.packing_plan import PartSpec
from engine_worker.compute.memory.host_memory import (
    ALIGNMENT,
    LARGE_PAGE_BYTES,
    DeviceArrays,
    HostArena,
    release_pages,
    use_large_pages,
)

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_large_pages = pytest.mark.skipif(
    not _ENABLED.exists() or "[never]" in _ENABLED.read_text(),
    reason="the system gives out no large pages",
)


def large_bytes_at(address: int) -> int:
    """Of the area of memory that holds an address, what lies in large pages."""
    is_here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if area := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_here = int(area[1], 16) <= address < int(area[2], 16)
        elif is_here and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such area")


def test_arrays_have_their_shapes_and_types_and_addresses_that_jax_takes() -> None:
    specs = [
        PartSpec((5, 7), np.dtype(np.uint8)),
        PartSpec((0,), np.dtype(np.float32)),
        PartSpec((), np.dtype(np.float32)),
        PartSpec((3, 2), jnp.dtype(jnp.bfloat16)),
    ]
    arrays = HostArena(specs).arrays
    for number, (array, spec) in enumerate(zip(arrays, specs, strict=True)):
        assert (array.shape, array.dtype) == (spec.shape, spec.dtype)
        assert array.ctypes.data % ALIGNMENT == 0
        assert not array.any()
        array[...] = number
    assert [float(array.sum()) for array in arrays] == [0.0, 0.0, 2.0, 18.0]
    assert HostArena([]).arrays == []


def test_arrays_keep_their_memory_when_nobody_else_does() -> None:
    array = HostArena([PartSpec((LARGE_PAGE_BYTES,), np.dtype(np.uint8))]).arrays[0]
    array[...] = 7
    others = [
        HostArena([PartSpec((LARGE_PAGE_BYTES,), np.dtype(np.uint8))]).arrays[0] for _ in range(3)
    ]
    for other in others:
        other[...] = 1
    assert int(array.min()) == int(array.max()) == 7


@needs_large_pages
def test_what_is_written_lies_in_large_pages_and_the_rest_nowhere() -> None:
    size = 4 * LARGE_PAGE_BYTES
    array = HostArena([PartSpec((size,), np.dtype(np.uint8))]).arrays[0]
    assert large_bytes_at(array.ctypes.data) == 0
    array[:LARGE_PAGE_BYTES] = 1
    assert large_bytes_at(array.ctypes.data) == LARGE_PAGE_BYTES


def test_arrays_on_the_device_are_those_of_the_arena_and_equal_what_was_put() -> None:
    values = [np.arange(9, dtype=np.float32).reshape(3, 3), np.arange(4, dtype=np.uint8)]
    device = DeviceArrays([PartSpec(value.shape, value.dtype) for value in values])
    arrays = [device.put(value) for value in values]
    for array, value in zip(arrays, values, strict=True):
        np.testing.assert_array_equal(np.asarray(array), value)
    if jax.default_backend() == "cpu":
        # One behind the other, without a copy that jax owns.
        first, second = (array.unsafe_buffer_pointer() for array in arrays)
        assert second - first == ALIGNMENT


def test_an_array_of_another_shape_or_type_is_not_taken() -> None:
    spec = PartSpec((2,), np.dtype(np.float32))
    for wrong in (np.zeros(3, np.float32), np.zeros(2, np.float64)):
        with pytest.raises(AssertionError):
            DeviceArrays([spec]).put(wrong)


@needs_large_pages
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="memory of another device")
def test_an_array_of_a_program_gets_large_pages_for_what_is_written_later() -> None:
    array = jax.jit(lambda: jnp.zeros(8 * LARGE_PAGE_BYTES, jnp.uint8))()
    place = array.unsafe_buffer_pointer() + 4 * LARGE_PAGE_BYTES
    assert release_pages(array)
    assert use_large_pages(array)
    assert large_bytes_at(place) == 0
    filled = jax.jit(lambda x: x + 1, donate_argnums=0)(array)
    assert filled.unsafe_buffer_pointer() == place - 4 * LARGE_PAGE_BYTES
    # The first and the last may be shared with neighbours.
    assert large_bytes_at(place) >= 6 * LARGE_PAGE_BYTES


@pytest.mark.skipif(sys.platform == "linux", reason="of other systems")
def test_elsewhere_nothing_is_asked_for() -> None:
    assert not use_large_pages(jnp.zeros(4))
    assert not release_pages(jnp.zeros(4))

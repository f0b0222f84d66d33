"""Memory of arrays: aligned, in large pages where the system has them, and none that isn't used."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
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
from engine_worker.errors import ModelMemoryError
from tests.fakes.tiny_checkpoint import TINY_LLAMA, write_checkpoint

_ROOT = Path(__file__).parents[5]
_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_large_pages = pytest.mark.skipif(
    not _ENABLED.exists() or "[never]" in _ENABLED.read_text(),
    reason="the system gives out no large pages",
)
on_the_cpu = pytest.mark.skipif(
    # A text, which is asked when a test is about to run.
    "jax.default_backend() != 'cpu'",
    reason="arrays lie in another device's memory",
)


# In a process of its own: neighbouring areas of memory may be one, as the system counts them.
_SCRIPT = """
import re
from pathlib import Path
import jax
import jax.numpy as jnp
import numpy as np
from engine_worker.compute.backends.packing_plan import PartSpec
from engine_worker.compute.memory.host_memory import (
    LARGE_PAGE_BYTES, HostArena, release_pages, use_large_pages)

def area(address, name):
    for part in re.split(r"\\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        begin, end = (int(one, 16) for one in part.split(" ", 1)[0].split("-"))
        if begin <= address < end:
            return re.search(rf"^{name}:(.*)$", part, re.M)[1].split()

def large_mib(address):
    return int(area(address, "AnonHugePages")[0]) >> 10
"""


def told_by(script: str) -> list[str]:
    """What a process prints that can do as `_SCRIPT` says."""
    command = [sys.executable, "-c", _SCRIPT + script]
    done = subprocess.run(
        command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=300
    )
    return done.stdout.split()


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
    told = told_by("""
array = HostArena([PartSpec((4 * LARGE_PAGE_BYTES,), np.dtype(np.uint8))]).arrays[0]
print(large_mib(array.ctypes.data))
array[:2 * LARGE_PAGE_BYTES] = 1
print(large_mib(array.ctypes.data))
""")
    assert told == ["0", "4"]


def test_arrays_on_the_device_are_those_of_the_arena_and_equal_what_was_put() -> None:
    values: list[npt.NDArray[Any]] = [
        np.arange(9, dtype=np.float32).reshape(3, 3),
        np.arange(4, dtype=np.uint8),
    ]
    device = DeviceArrays([PartSpec(value.shape, value.dtype) for value in values])
    arrays = [device.put(value) for value in values]
    for array, value in zip(arrays, values, strict=True):
        np.testing.assert_array_equal(np.asarray(array), value)
    if jax.default_backend() == "cpu":
        # One behind the other, without a copy that jax owns.
        first, second = (array.unsafe_buffer_pointer() for array in arrays)
        assert second - first == ALIGNMENT


@pytest.mark.skipif(sys.platform != "linux", reason="others give out more than they have")
def test_memory_that_cant_be_had_is_an_error_of_the_model() -> None:
    with pytest.raises(ModelMemoryError, match=r"gives no 1099511627776 MiB .*smaller model"):
        HostArena([PartSpec((2**40, 2**20), np.dtype(np.uint8))])


def test_an_array_of_another_shape_or_type_is_not_taken() -> None:
    spec = PartSpec((2,), np.dtype(np.float32))
    for wrong in (np.zeros(3, np.float32), np.zeros(2, np.float64)):
        with pytest.raises(AssertionError):
            DeviceArrays([spec]).put(wrong)


@needs_large_pages
@on_the_cpu
def test_an_array_of_a_program_gets_large_pages_for_what_is_written_later() -> None:
    told = told_by("""
array = jax.jit(lambda: jnp.zeros(8 * LARGE_PAGE_BYTES, jnp.uint8))()
place = array.unsafe_buffer_pointer() + 4 * LARGE_PAGE_BYTES
assert release_pages(array) and use_large_pages(array)
print(large_mib(place))
filled = jax.jit(lambda x: x + 1, donate_argnums=0)(array).block_until_ready()
assert filled.unsafe_buffer_pointer() == place - 4 * LARGE_PAGE_BYTES
print(large_mib(place))
""")
    # The first and the last may be shared with neighbours.
    assert told[0] == "0"
    assert int(told[1]) >= 12


@needs_large_pages
@on_the_cpu
def test_weights_and_cache_of_an_engine_ask_for_large_pages(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_checkpoint(tmp_path / "model", TINY_LLAMA)
    told = told_by(f"""
from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.weights.loader import load_weights
from engine_worker.loading.weights import load_for_backend
folder, cache = Path({str(tmp_path / "model")!r}), Path({str(tmp_path / "cache")!r})
graph = declare(load_spec(folder), "float32")
plain, packed = XlaBackend(graph), XlaBackend(graph, "int8")
loaded = [
    load_weights(folder, graph).leaves,
    load_for_backend(folder, plain, None, lambda *_: None).leaves,
    load_for_backend(folder, packed, cache, lambda *_: None).leaves,
    load_for_backend(folder, packed, cache, lambda *_: None).leaves,
]
pages = plain.kv_layout(num_blocks=4096, block_size=16).allocate()[0]
arrays = [leaves[number] for leaves in loaded for number in (0, -1)] + [pages.keys, pages.values]
for array in arrays:
    print("hg" in area(array.unsafe_buffer_pointer() + array.nbytes // 2, "VmFlags"))
for leaves in loaded:
    print(leaves[0].unsafe_buffer_pointer() % LARGE_PAGE_BYTES == 0)
""")
    assert told == ["True"] * 14


@pytest.mark.skipif(sys.platform == "linux", reason="of other systems")
def test_elsewhere_nothing_is_asked_for() -> None:
    assert not use_large_pages(jnp.zeros(4))
    assert not release_pages(jnp.zeros(4))

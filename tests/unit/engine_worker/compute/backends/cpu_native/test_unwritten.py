"""A cache of the kernels is zeros that a start never writes."""

import sys
from functools import partial

import jax
import numpy as np
import psutil
import pytest

from engine_worker.compute.backends.cpu_native import calls
from engine_worker.compute.backends.cpu_native.backend import CpuNativeBackend
from engine_worker.compute.backends.cpu_native.library import load
from engine_worker.compute.models.decoder import declare
from tests.fakes.packed_decoder import needs_native
from tests.fakes.tiny_decoder import tiny_spec

pytestmark = [
    needs_native,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are dropped on Linux"),
]


@pytest.fixture(autouse=True)
def _library() -> None:
    load()


def test_an_array_takes_no_memory_although_a_program_made_it() -> None:
    make = jax.jit(partial(calls.unwritten, (2**20, 64), np.float32))
    process = psutil.Process()
    before = process.memory_info().rss
    array = make().block_until_ready()
    assert array.nbytes == 2**28
    assert process.memory_info().rss - before < 2**25


@pytest.mark.parametrize("num_blocks", [1, 2, 7, 100, 1000])
def test_all_of_a_cache_reads_as_zeros_whatever_its_memory_held(num_blocks: int) -> None:
    backend = CpuNativeBackend(declare(tiny_spec([None, None]), np.float32), "float32", 4)
    # What such small arrays are made of has been used before.
    dirt = [np.full(2**size, 255, np.uint8) for size in range(8, 18) for _ in range(8)]
    del dirt
    cache = backend.kv_layout(num_blocks=num_blocks, block_size=4).allocate(backend.unwritten)
    for array in jax.tree.leaves(cache):
        assert not np.asarray(array).any()


def test_a_type_that_no_cache_has_is_an_error_of_the_program() -> None:
    make = jax.jit(partial(calls.unwritten, (8,), np.int32))
    with pytest.raises(jax.errors.JaxRuntimeError, match="unwritten: no cache has type"):
        make().block_until_ready()

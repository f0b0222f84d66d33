"""The cache's layout, size and writes."""

import mmap
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from engine_worker.compute.backends.cache_type import dequantized, quantized_tokens
from engine_worker.compute.backends.kv_layout import LayerPages
from engine_worker.compute.backends.kv_memory import (
    CacheShape,
    choose_num_blocks,
    default_kv_memory_bytes,
)
from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.backends.xla.pages import load_pages, store_tokens, xla_kv_layout
from engine_worker.compute.memory.host_memory import release_pages
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.spec import LayerSpec
from engine_worker.errors import KvMemoryError
from tests.fakes.container import v2_container
from tests.fakes.tiny_decoder import tiny_spec

SPEC = tiny_spec([None, None])
BACKEND = XlaBackend(declare(SPEC, np.float32))
# Two layers, keys and values, two heads of eight float32 numbers, for four tokens.
BLOCK_BYTES = 2 * 2 * 2 * 8 * 4 * 4


def test_the_layout_states_the_bytes_that_are_allocated() -> None:
    layout = xla_kv_layout(SPEC, np.float32, num_blocks=7, block_size=4)
    arrays = jax.tree.leaves(layout.allocate())
    assert sum(array.nbytes for array in arrays) == layout.size_bytes == 8 * BLOCK_BYTES
    assert BACKEND.kv_layout(num_blocks=1, block_size=4).block_bytes == (BLOCK_BYTES,)


def test_bfloat16_is_stored_as_bits_and_loaded_rounded() -> None:
    layout = xla_kv_layout(SPEC, jnp.bfloat16, num_blocks=3, block_size=4)
    pages = layout.allocate()[0]
    assert isinstance(pages, LayerPages)
    assert pages.keys.dtype == jnp.uint16
    keys = np.random.default_rng(0).standard_normal((2, 2, 8), np.float32)
    block_ids, offsets = jnp.array([2, 0]), jnp.array([3, 1])
    pages = store_tokens(pages, jnp.asarray(keys), jnp.asarray(-keys), block_ids, offsets)
    loaded, values = load_pages(pages, jnp.array([[0, 2]]))
    assert loaded.shape == (1, 2, 2, 8, 4)
    assert values.shape == (1, 2, 8, 8)
    rounded = keys.astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(loaded)[0, :, 1, :, 3], rounded[0])
    np.testing.assert_array_equal(np.asarray(values)[0, :, 1], -rounded[1])


def test_int8_is_stored_with_a_scale_for_each_token_and_head_and_loaded_rounded() -> None:
    layout = xla_kv_layout(SPEC, np.int8, num_blocks=3, block_size=4)
    # Eight numbers and a float32, for two heads in two layers.
    assert layout.block_bytes == (2 * 2 * 2 * 4 * (8 + 4),)
    pages = layout.allocate()[0]
    assert isinstance(pages, LayerPages)
    numbers = np.random.default_rng(0).standard_normal((2, 2, 8), np.float32)
    numbers *= np.array([[[1e-3], [40.0]], [[1.0], [1e20]]], np.float32)
    block_ids, offsets = jnp.array([2, 0]), jnp.array([3, 1])
    pages = store_tokens(pages, jnp.asarray(numbers), jnp.asarray(-numbers), block_ids, offsets)
    loaded, values = load_pages(pages, jnp.array([[0, 2]]))
    assert loaded.shape == (1, 2, 2, 8, 4)
    assert values.shape == (1, 2, 8, 8)
    scales = np.abs(numbers).max(axis=-1, keepdims=True) / 127
    rounded = np.rint(numbers / scales) * scales
    np.testing.assert_allclose(np.asarray(loaded)[0, :, 1, :, 3], rounded[0], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(values)[0, :, 1], -rounded[1], rtol=1e-6)


def test_in_int8_zeros_stay_zeros_and_what_is_no_number_leaves_none_beside_it() -> None:
    tokens = np.ones((4, 8), np.float32)
    tokens[0] = 0.0
    tokens[1] *= 1e-35
    tokens[2, 3], tokens[3, 3] = np.nan, -np.inf
    found = np.asarray(dequantized(quantized_tokens(jnp.asarray(tokens)), -1))
    assert not found[:2].any()
    assert np.isnan(found[2:]).all()


def test_scales_of_int8_are_quotients_to_the_last_bit_as_those_of_the_kernels_are() -> None:
    tokens = np.random.default_rng(0).standard_normal((4096, 16), np.float32)
    stored = np.asarray(jax.jit(quantized_tokens)(tokens))
    scales = np.ascontiguousarray(stored[:, 16:]).view(np.float32)[:, 0]
    np.testing.assert_array_equal(scales, np.abs(tokens).max(axis=1) / np.float32(127))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int8])
def test_a_donated_write_aliases_the_cache_and_needs_little_beside_it(
    dtype: np.dtype[np.generic],
) -> None:
    layout = xla_kv_layout(SPEC, dtype, num_blocks=1000, block_size=4)
    cache = layout.allocate()
    new = jnp.ones((4, 2, 8), jnp.float32)
    places = jnp.arange(4, dtype=jnp.int32)

    def write(cache: object, new: jax.Array) -> object:
        return jax.tree.map(
            lambda pages: store_tokens(pages, new, new, places, places % 2),
            cache,
            is_leaf=lambda node: hasattr(node, "keys"),
        )

    compiled = jax.jit(write, donate_argnums=0).lower(cache, new).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes == layout.size_bytes
    assert memory.temp_size_in_bytes < layout.size_bytes // 20


def test_blocks_fill_the_given_memory_with_one_block_kept_for_padding() -> None:
    shape = CacheShape(BACKEND, block_size=4, num_step_tokens=16)
    assert shape.longest_request(10 * BLOCK_BYTES + 5, 1000) == 9
    assert shape.longest_request(10 * BLOCK_BYTES + 5, 30) == 8
    assert shape.longest_request(BLOCK_BYTES, 1000) == 0


def test_a_runner_gets_what_fits_and_no_more_than_all_rows_need() -> None:
    def choose(kv_memory_bytes: int) -> tuple[int, ...]:
        return choose_num_blocks(
            CacheShape(BACKEND, block_size=4, num_step_tokens=16),
            max_num_seqs=3,
            max_model_len=30,
            kv_memory_bytes=kv_memory_bytes,
        )

    assert choose(18 * BLOCK_BYTES) == (17,)
    assert choose(2**40) == (3 * 8,)


def test_the_same_memory_holds_nearly_twice_as_many_blocks_in_int8() -> None:
    spec = tiny_spec([None, None])
    wide = replace(spec, layers=tuple(widened(layer, head_dim=64) for layer in spec.layers))
    found = []
    for kv_dtype in ("bfloat16", "int8"):
        backend = XlaBackend(declare(wide, np.float32), None, kv_dtype)
        shape = CacheShape(backend, block_size=4, num_step_tokens=16)
        (num_blocks,) = choose_num_blocks(
            shape, max_num_seqs=1000, max_model_len=30, kv_memory_bytes=2**20
        )
        assert shape.layout(num_blocks).size_bytes <= 2**20
        found.append(num_blocks)
    assert found[1] / found[0] == pytest.approx(2 * 64 / (64 + 4), rel=0.02)


def widened(layer: LayerSpec, head_dim: int) -> LayerSpec:
    return replace(layer, mixer=replace(layer.attention, head_dim=head_dim))


def test_memory_for_less_than_one_request_is_refused_with_both_numbers() -> None:
    with pytest.raises(KvMemoryError, match=r"gets 0\.0 MiB.*30 tokens needs 0\.0 MiB"):
        choose_num_blocks(
            CacheShape(BACKEND, block_size=4, num_step_tokens=16),
            max_num_seqs=3,
            max_model_len=30,
            kv_memory_bytes=3 * BLOCK_BYTES,
        )


def test_a_device_with_memory_of_its_own_gives_most_of_what_the_weights_leave() -> None:
    stats = {"bytes_limit": 1000, "bytes_in_use": 100}
    assert default_kv_memory_bytes(device_stats=stats) == int(900 * 0.85)
    assert default_kv_memory_bytes(400, stats) == int(500 * 0.85)
    assert default_kv_memory_bytes(2000, stats) == 0


def test_a_cpu_gives_a_share_of_the_systems_memory_that_a_restart_gets_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def share_of(available_bytes: int) -> int:
        memory = SimpleNamespace(available=available_bytes)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        return default_kv_memory_bytes(root=tmp_path)

    assert share_of(21 * 2**30) == share_of(21 * 2**30 - 2**28) == 6 * 2**30
    assert share_of(100 * 2**30) == 28 * 2**30
    assert share_of(0) == 0


def test_in_a_container_its_limit_is_the_memory_that_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A share of the machine's memory was more than the container might have: it was killed."""
    memory = SimpleNamespace(available=100 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    v2_container(tmp_path, limit_bytes=10 * 2**30, used_bytes=0)
    assert default_kv_memory_bytes(root=tmp_path) == 3 * 2**30
    v2_container(tmp_path, limit_bytes=10 * 2**30, used_bytes=5 * 2**30)
    assert default_kv_memory_bytes(root=tmp_path) == 3 * 2**29
    # Weights that are still to be loaded take their part first.
    assert default_kv_memory_bytes(2**32 + 2**28, root=tmp_path) < 2**28


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are dropped on Linux only")
def test_a_cache_takes_no_memory_until_something_is_stored_and_only_that_then() -> None:
    """All of it was filled at the start: 7 GB for a model of 135M that used 20 MB of them."""
    layout = xla_kv_layout(SPEC, np.float32, num_blocks=2**16, block_size=16)
    assert layout.size_bytes > 2**27
    layout.allocate()
    before = resident_bytes()
    pages = layout.allocate()[0]
    assert resident_bytes() - before < layout.size_bytes // 8
    write = jax.jit(store_tokens, donate_argnums=0)
    tokens, place = jnp.ones((1, 2, 8), jnp.float32), jnp.array([2**15], jnp.int32)
    pages = write(pages, tokens, tokens, place, place % 16)
    assert float(pages.values[2**15, 1, 0, 3]) == 1.0
    assert float(pages.values[2**15 + 1].max()) == 0.0
    assert resident_bytes() - before < layout.size_bytes // 8


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are dropped on Linux only")
def test_blocks_that_hold_nothing_give_their_memory_back_and_others_keep_theirs() -> None:
    layout = xla_kv_layout(SPEC, np.float32, num_blocks=2**15, block_size=16)
    fill = jax.jit(lambda cache: jax.tree.map(lambda pages: pages + 1.0, cache), donate_argnums=0)
    cache = jax.block_until_ready(fill(layout.allocate()))  # type: ignore[no-untyped-call]
    # Free are the first half, and in the last quarter every second block.
    kept = [*range(2**14, 3 * 2**13), *range(3 * 2**13, 2**15, 2)]
    free = sorted(set(range(2**15)) - set(kept))
    before = resident_bytes()
    assert layout.release(cache, [free]) > layout.size_bytes * 0.4
    # Of the process, which may take some for something else meanwhile.
    assert before - resident_bytes() > layout.size_bytes * 0.25
    for array in jax.tree.leaves(cache):
        assert float(array[np.asarray(kept)].min()) == 1.0
        assert float(array[2**13].max()) == 0.0
    # What was given back is written to as if nothing had been.
    for array in jax.tree.leaves(fill(cache)):
        assert float(array[np.asarray(kept)].min()) == 2.0
        assert float(array[2**13].min()) == 1.0


def test_dropped_pages_read_as_zeros_and_neighbours_keep_theirs() -> None:
    arrays = [jax.jit(lambda: jnp.ones(100_001, jnp.float32))() for _ in range(3)]
    dropped = release_pages(arrays[1])
    assert float(arrays[0].sum()) == float(arrays[2].sum()) == 100_001
    if dropped:
        # Less than a page at each end is left as it was.
        assert float(arrays[1].sum()) < 2 * mmap.PAGESIZE // 4

"""Cache groups: which layers share blocks, and how memory is divided between them."""

from dataclasses import replace

import pytest

from engine_worker.compute.backends.kv_memory import CacheShape, choose_num_blocks, num_kv_tokens
from engine_worker.compute.backends.layer_groups import LayerGroups, layer_groups
from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.spec import LayerSpec
from engine_worker.errors import KvMemoryError
from tests.fakes.tiny_decoder import tiny_attention, tiny_hybrid_spec, tiny_spec

PLAIN = XlaBackend(declare(tiny_spec((None, None)), "float32"))
GEMMA_LIKE = XlaBackend(declare(tiny_spec((20, 20, 20, 20, 20, None)), "float32"))
ALL_WINDOWS = XlaBackend(declare(tiny_spec((20, 20)), "float32"))


def shape_of(backend: XlaBackend) -> CacheShape:
    return CacheShape(backend, block_size=4, num_step_tokens=16)


def test_a_request_behind_windows_takes_its_window_and_a_chunk() -> None:
    assert shape_of(ALL_WINDOWS).blocks_of_request(400) == (10,)
    assert shape_of(GEMMA_LIKE).blocks_of_request(400) == (100, 10)
    assert shape_of(GEMMA_LIKE).blocks_of_request(20) == (5, 5)
    assert shape_of(PLAIN).blocks_of_request(400) == (100,)


@pytest.mark.parametrize(("backend", "num_fitting"), [(ALL_WINDOWS, 29), (GEMMA_LIKE, 6)])
def test_the_same_memory_holds_more_requests_of_windowed_layers(
    backend: XlaBackend, num_fitting: int
) -> None:
    # What three requests of 400 tokens take where every layer keeps all of them.
    kv_memory_bytes = 3 * 100 * sum(shape_of(backend).layout(0).block_bytes)
    num_blocks = choose_num_blocks(
        shape_of(backend), max_num_seqs=40, max_model_len=400, kv_memory_bytes=kv_memory_bytes
    )
    layout = shape_of(backend).layout(num_blocks)
    assert layout.size_bytes <= kv_memory_bytes
    per_request = shape_of(backend).blocks_of_request(400)
    fitting = min(num // each for num, each in zip(num_blocks, per_request, strict=True))
    assert fitting == num_fitting
    assert num_kv_tokens(shape_of(backend), num_blocks, 400) >= fitting * 400


@pytest.mark.parametrize("kv_blocks", [30, 60, 200, 1000])
@pytest.mark.parametrize("max_num_seqs", [1, 8, 64])
def test_memory_is_divided_so_that_the_longest_request_fits_and_nothing_is_left_over(
    kv_blocks: int, max_num_seqs: int
) -> None:
    shape = shape_of(GEMMA_LIKE)
    block_bytes = shape.layout(0).block_bytes
    kv_memory_bytes = kv_blocks * sum(block_bytes)
    num_blocks = choose_num_blocks(
        shape, max_num_seqs=max_num_seqs, max_model_len=100, kv_memory_bytes=kv_memory_bytes
    )
    size_bytes = shape.layout(num_blocks).size_bytes
    assert size_bytes <= kv_memory_bytes
    least, most = shape.blocks_of_request(100), shape.most_blocks(max_num_seqs, 100)
    for num, low, high in zip(num_blocks, least, most, strict=True):
        assert low <= num <= high
    left = kv_memory_bytes - size_bytes
    assert left < min(block_bytes) * 6 or num_blocks == most


@pytest.mark.parametrize(("max_num_seqs", "num_more"), [(1, 1), (2, 25)])
def test_a_request_alone_may_be_a_score_and_has_a_block_for_its_question(
    max_num_seqs: int, num_more: int
) -> None:
    shape = shape_of(GEMMA_LIKE)
    least, _ = shape.blocks_of_request(100)
    kv_memory_bytes = 1000 * sum(shape.layout(0).block_bytes)
    num_blocks, _ = choose_num_blocks(
        shape, max_num_seqs=max_num_seqs, max_model_len=100, kv_memory_bytes=kv_memory_bytes
    )
    assert num_blocks == least + num_more


def test_a_context_is_cut_to_what_the_layers_that_see_all_tokens_hold() -> None:
    all_windows = shape_of(ALL_WINDOWS)
    (block_bytes,) = all_windows.layout(0).block_bytes
    assert all_windows.longest_request(11 * block_bytes, 4000) == 1000
    assert all_windows.longest_request(10 * block_bytes, 4000) == 9
    mixed = shape_of(GEMMA_LIKE)
    whole, windows = mixed.layout(0).block_bytes
    assert mixed.longest_request(51 * whole + 11 * windows, 4000) == 50
    # One request more than that, and no number of tokens, is refused with the memory it needs.
    with pytest.raises(KvMemoryError, match="one request of 204 tokens needs"):
        choose_num_blocks(
            mixed,
            max_num_seqs=1,
            max_model_len=204,
            kv_memory_bytes=51 * whole + 11 * windows,
        )


def test_layers_are_grouped_by_what_they_see() -> None:
    def groups(*windows: int | None) -> LayerGroups:
        return layer_groups(tiny_spec(windows))

    assert groups(None, None) == LayerGroups((0, 0), (None,))
    assert groups(20, 30) == LayerGroups((0, 0), (30,))
    assert groups(20, None, 30) == LayerGroups((1, 0, 1), (None, 30))
    # The longest sequence has 512 tokens.
    assert groups(None, 512) == LayerGroups((0, 0), (None,))
    chunked = replace(tiny_attention(), chunk=64)
    spec = replace(
        tiny_spec(), layers=(LayerSpec(chunked, None), LayerSpec(tiny_attention(), None))
    )
    assert layer_groups(spec) == LayerGroups((1, 0), (None, 64))
    hybrid = layer_groups(tiny_hybrid_spec())
    assert hybrid == LayerGroups((0, 0, 0, 1, 0), (None, 20))


def test_pages_that_a_layer_shares_reach_as_far_as_their_widest_reader() -> None:
    def shared(window: int | None, owner: int) -> LayerSpec:
        return LayerSpec(replace(tiny_attention(window), shared_from=owner), None)

    own = (LayerSpec(tiny_attention(20), None), LayerSpec(tiny_attention(), None))
    spec = replace(tiny_spec(), layers=(*own, shared(20, 0), shared(None, 1)))
    assert layer_groups(spec) == LayerGroups((1, 0, 1, 0), (None, 20))
    spec = replace(tiny_spec(), layers=(*own, shared(30, 0), shared(20, 1)))
    assert layer_groups(spec) == LayerGroups((1, 0, 1, 0), (None, 30))
    spec = replace(tiny_spec(), layers=(*own, shared(None, 0)))
    assert layer_groups(spec) == LayerGroups((0, 0, 0), (None,))

"""Sizes of blocks and rings: what recurrent states ask for, and what was configured."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from engine_worker.compute.backends.kv_memory import CacheShape, choose_num_blocks, state_rings
from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.recurrent.specs import DeltaNetSpec, ShortConvSpec
from engine_worker.compute.models.spec import DecoderSpec, LayerSpec, MlpSpec
from engine_worker.config import ModelSettings
from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.errors import KvMemoryError
from engine_worker.loading.cache_shape import (
    block_size_of,
    cache_shape_of,
    choose_max_model_len,
    max_num_seqs_of,
    rings_of,
    with_fitting_requests,
)
from engine_worker.loading.memory_estimate import estimate_memory
from tests.fakes.tiny_decoder import tiny_attention, tiny_hybrid_spec, tiny_spec

SETTINGS = ModelSettings(path=Path("/m"), name="m", max_num_seqs=4)
ATTENTION = tiny_attention()
HYBRID = XlaBackend(declare(tiny_hybrid_spec(), "float32"))
# A token's keys and values take 64 bytes in a layer.
LARGE = DeltaNetSpec(2, 4, 32, 32, 4)
HUGE = DeltaNetSpec(4, 8, 256, 256, 4)


def spec_with(mixer: ShortConvSpec | DeltaNetSpec) -> DecoderSpec:
    layers = (LayerSpec(mixer, MlpSpec(8)), LayerSpec(ATTENTION, MlpSpec(8)))
    return replace(tiny_spec(), layers=layers)


def test_a_block_grows_until_its_state_is_not_most_of_it_or_prompts_would_share_too_little() -> (
    None
):
    assert block_size_of(SETTINGS, tiny_spec()) == 32
    assert block_size_of(SETTINGS, spec_with(ShortConvSpec(32, 3))) == 32
    assert LARGE.state_bytes == 19456
    assert block_size_of(SETTINGS, spec_with(LARGE)) == 128
    assert block_size_of(SETTINGS, spec_with(HUGE)) == 256
    stated = replace(SETTINGS, block_size=16)
    assert block_size_of(stated, spec_with(HUGE)) == 16
    # In int8 it takes 48: a number a byte, and a scale of four for each head.
    assert (ATTENTION.num_kv_heads, ATTENTION.head_dim) == (2, 8)
    assert block_size_of(replace(SETTINGS, kv_dtype="int8"), spec_with(LARGE)) == 256


@pytest.mark.parametrize(
    ("mixer", "mode", "num_states"),
    [
        (ShortConvSpec(32, 3), SpeculationMode.AUTO, 17),
        (ShortConvSpec(32, 3), SpeculationMode.OFF, 2),
        (replace(HUGE, num_value_heads=32), SpeculationMode.AUTO, 5),
        (replace(HUGE, num_value_heads=256), SpeculationMode.AUTO, 3),
        (replace(HUGE, num_value_heads=256), SpeculationMode.OFF, 2),
    ],
)
def test_rings_hold_fewer_drafts_where_states_are_large_and_none_that_nobody_makes(
    mixer: ShortConvSpec | DeltaNetSpec, mode: SpeculationMode, num_states: int
) -> None:
    settings = replace(SETTINGS, speculation=mode)
    rings = rings_of(settings, spec_with(mixer))
    assert (rings.num_slots, rings.num_states) == (4, num_states)


def test_states_count_in_the_cache_that_is_allocated_estimated_and_divided() -> None:
    rings = state_rings(HYBRID.spec, num_slots=4, max_draft_tokens=3)
    layout = HYBRID.kv_layout(num_blocks=6, block_size=8, rings=rings)
    arrays = jax.tree.leaves(layout.allocate())
    assert sum(array.nbytes for array in arrays) == layout.size_bytes
    state_bytes = HYBRID.spec.state_bytes
    # One of the two layers that attend is behind a window.
    attention = sum(HYBRID.kv_layout(num_blocks=6, block_size=8).block_bytes) - state_bytes
    assert layout.size_bytes == 7 * (attention + state_bytes) + 5 * 5 * state_bytes
    assert attention == 2 * 2 * 2 * 8 * 4 * 8

    def num_blocks(kv_memory_bytes: int) -> tuple[int, ...]:
        return choose_num_blocks(
            CacheShape(HYBRID, block_size=8, num_step_tokens=16, rings=rings),
            max_num_seqs=4,
            max_model_len=48,
            kv_memory_bytes=kv_memory_bytes,
        )

    assert num_blocks(layout.size_bytes) == (6, 6)
    with pytest.raises(KvMemoryError, match=r"fewer than 4 requests run at once.* MiB of states"):
        num_blocks(layout.size_bytes - 1)
    settings = replace(SETTINGS, block_size=8)
    estimate = estimate_memory(HYBRID, settings, kv_memory_bytes=None)
    least = HYBRID.kv_layout(num_blocks=1, block_size=8, rings=rings_of(settings, HYBRID.spec))
    assert estimate.kv_bytes == least.size_bytes


def test_states_are_float32_whatever_the_caches_type_is() -> None:
    backend = XlaBackend(declare(tiny_hybrid_spec(), "bfloat16"))
    layout = backend.kv_layout(num_blocks=1, block_size=8)
    states = jax.tree.leaves(layout.abstract()[0])
    assert {array.dtype for array in states} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("kv_memory_of_rings", "expected"), [(2.0, 32), (1.9, 16), (0.6, 8), (0.1, 1), (0.001, 1)]
)
def test_without_a_number_as_many_requests_run_as_leave_half_of_the_memory_to_blocks(
    kv_memory_of_rings: float, expected: int
) -> None:
    states = (32 + 1) * rings_of(SETTINGS, HYBRID.spec).num_states * HYBRID.spec.state_bytes
    settings = replace(
        SETTINGS, max_num_seqs=None, kv_memory_bytes=int(kv_memory_of_rings * states)
    )
    assert with_fitting_requests(settings, HYBRID).max_num_seqs == expected
    stated = replace(settings, max_num_seqs=32)
    assert with_fitting_requests(stated, HYBRID) is stated


def test_decoders_without_states_run_as_many_requests_as_usual() -> None:
    settings = replace(SETTINGS, max_num_seqs=None, kv_memory_bytes=1)
    plain = XlaBackend(declare(tiny_spec(), "float32"))
    assert with_fitting_requests(settings, plain).max_num_seqs == 32


def test_memory_that_is_left_by_fewer_requests_holds_a_context() -> None:
    """With the usual number the states alone would be more than the memory is."""
    rings = rings_of(replace(SETTINGS, max_num_seqs=32), HYBRID.spec)
    settings = replace(
        SETTINGS,
        max_num_seqs=None,
        block_size=8,
        kv_memory_bytes=rings.num_all * HYBRID.spec.state_bytes,
    )
    with pytest.raises(KvMemoryError, match=r"PENSTOCK_KV_MEMORY, or let fewer than 32 requests"):
        choose_max_model_len(replace(settings, max_num_seqs=32), HYBRID)
    fitting = with_fitting_requests(settings, HYBRID)
    assert fitting.max_num_seqs == 8
    assert choose_max_model_len(fitting, HYBRID) == HYBRID.spec.max_position_embeddings
    assert max_num_seqs_of(settings, HYBRID.spec) == 1
    assert cache_shape_of(settings, HYBRID).rings.num_slots == 1

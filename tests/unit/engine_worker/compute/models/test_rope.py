"""Frequencies and rotation, against the formulas written out and against transformers."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.rope import (
    for_length,
    inverse_frequencies,
    query_scales,
    rope_factors,
    rope_table,
    rotate,
)
from engine_worker.compute.models.spec import QueryScale, RopeKind, RopeSpec
from tests.fakes.late import modeling_rope_utils, transformers
from tests.fakes.tiny_checkpoint import TINY_LLAMA


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "factor": 3.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
        {
            # As Llama 4 Scout has it.
            "rope_type": "llama3",
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 512,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "truncate": False,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
        },
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 64,
            "mscale": 0.707,
            "mscale_all_dim": 1.0,
        },
        {
            "rope_type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": 64,
            "attention_factor": 1.25,
        },
    ],
)
def test_frequencies_and_attention_factor_are_those_of_transformers(
    parameters: dict[str, Any],
) -> None:
    values = TINY_LLAMA | {
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_theta": 10_000.0, **parameters},
    }
    config = transformers.LlamaConfig(**{k: v for k, v in values.items() if k != "rope_theta"})
    theirs, attention_factor = modeling_rope_utils.ROPE_INIT_FUNCTIONS[parameters["rope_type"]](
        config
    )
    rope = decoder_spec(values).layers[0].attention.rope
    assert rope is not None
    np.testing.assert_allclose(inverse_frequencies(rope, 64), theirs.numpy(), rtol=2e-6)
    assert rope.attention_factor == pytest.approx(attention_factor)


LONGROPE = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 128,
    "short_factor": [1.0 + 0.05 * pair for pair in range(24)],
    "long_factor": [2.0 + 0.3 * pair for pair in range(24)],
    "partial_rotary_factor": 0.75,
}


@pytest.mark.parametrize(
    ("parameters", "served_length"),
    [
        (LONGROPE, 128),
        (LONGROPE, 129),
        (LONGROPE | {"factor": 3.0}, 2048),
        (LONGROPE | {"attention_factor": 1.7}, 2048),
        ({"rope_type": "dynamic", "factor": 4.0}, 2048),
        ({"rope_type": "proportional", "partial_rotary_factor": 0.25, "factor": 2.0}, 2048),
        ({"rope_type": "linear", "partial_rotary_factor": 0.5, "factor": 2.0}, 2048),
    ],
)
def test_frequencies_of_the_length_that_is_served_are_those_of_transformers(
    parameters: dict[str, Any], served_length: int
) -> None:
    values = TINY_LLAMA | {
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_theta": 10_000.0, **parameters},
    }
    config = transformers.LlamaConfig(**{k: v for k, v in values.items() if k != "rope_theta"})
    init = modeling_rope_utils.ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    theirs, attention_factor = init(config, seq_len=served_length)
    spec = for_length(decoder_spec(values), served_length)
    rope = spec.layers[0].attention.rope
    assert rope is not None
    ours = inverse_frequencies(rope, 64, served_length)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-6)
    assert rope.attention_factor == pytest.approx(attention_factor)
    is_longrope = rope.kind is RopeKind.LONGROPE
    factors = "long" if served_length > 128 else "short"
    assert rope_factors(spec) == ((factors,) if is_longrope else ())
    assert spec.served_length == (served_length if is_longrope else 0)


def test_neighbouring_pairs_turn_as_halves_do_once_they_are_sorted() -> None:
    x = np.random.default_rng(3).standard_normal((5, 2, 12)).astype(np.float32)
    table = rope_table(RopeSpec(theta=50.0, partial_factor=2 / 3), 12, jnp.arange(5))
    halves = [0, 2, 4, 6, 1, 3, 5, 7, 8, 9, 10, 11]
    sorted_first = np.asarray(rotate(jnp.asarray(x[..., halves]), table))
    turned = np.asarray(rotate(jnp.asarray(x), table, is_interleaved=True))
    np.testing.assert_allclose(turned[..., halves], sorted_first, rtol=1e-6)
    np.testing.assert_array_equal(turned[..., 8:], x[..., 8:])


def test_queries_grow_with_every_original_length_that_lies_behind_them() -> None:
    scales = query_scales(QueryScale(0.1, 16), jnp.asarray([0, 15, 16, 47, 48]))[:, 0, 0]
    expected = [1 + 0.1 * math.log(1 + steps) for steps in (0, 0, 1, 2, 3)]
    np.testing.assert_allclose(scales, expected, rtol=1e-6)


def test_default_frequencies_fall_geometrically_with_theta() -> None:
    expected = [100.0 ** (-2 * i / 8) for i in range(4)]
    np.testing.assert_allclose(inverse_frequencies(RopeSpec(theta=100.0), 8), expected, rtol=1e-6)


def test_rotation_turns_each_pair_of_halves_by_position_times_frequency() -> None:
    table = rope_table(RopeSpec(theta=100.0), 4, jnp.asarray([3], jnp.int32))
    x = jnp.asarray([[[1.0, 2.0, 3.0, 4.0]]])
    rotated = np.asarray(rotate(x, table))[0, 0]
    for index, angle in enumerate((3.0, 0.3)):
        a, b = float(x[0, 0, index]), float(x[0, 0, index + 2])
        assert rotated[index] == pytest.approx(a * math.cos(angle) - b * math.sin(angle), rel=1e-5)
        assert rotated[index + 2] == pytest.approx(
            b * math.cos(angle) + a * math.sin(angle), rel=1e-5
        )


def test_scores_depend_only_on_the_distance_of_positions() -> None:
    q = jnp.asarray(np.random.default_rng(0).standard_normal((1, 1, 8)), jnp.float32)
    k = jnp.asarray(np.random.default_rng(1).standard_normal((1, 1, 8)), jnp.float32)

    def score(q_position: int, k_position: int) -> float:
        at = [jnp.asarray([position], jnp.int32) for position in (q_position, k_position)]
        tables = [rope_table(RopeSpec(), 8, position) for position in at]
        return float(jnp.sum(rotate(q, tables[0]) * rotate(k, tables[1])))

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 8), abs=1e-2)


def test_the_attention_factor_scales_the_rotation() -> None:
    x = jnp.ones((1, 1, 4))
    plain = rotate(x, rope_table(RopeSpec(), 4, jnp.asarray([2], jnp.int32)))
    scaled = rotate(x, rope_table(RopeSpec(attention_factor=1.5), 4, jnp.asarray([2], jnp.int32)))
    np.testing.assert_allclose(scaled, 1.5 * plain, rtol=1e-6)

"""Configs and tensor names of Llama 4, and its chunks over pages."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.backends.cpu_native import coverage
from engine_worker.compute.backends.kv_layout import LayerPages
from engine_worker.compute.backends.xla.paged_attention import attend_pages
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.reference import dense_attention
from engine_worker.compute.models.rope import query_scales
from engine_worker.compute.models.spec import (
    AttentionSpec,
    MlpSpec,
    MoeSpec,
    QkNorm,
    QueryScale,
    RouterScore,
)
from engine_worker.compute.weights.sources import weight_sources
from engine_worker.errors import ModelConfigError, UnsupportedFeatureError

# Of meta-llama/Llama-4-Scout-17B-16E-Instruct, but for fewer layers.
LLAMA4: dict[str, Any] = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "model_type": "llama4",
    "text_config": {
        "attention_bias": False,
        "attention_chunk_size": 8192,
        "attn_scale": 0.1,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "head_dim": 128,
        "hidden_size": 5120,
        "interleave_moe_layer_step": 1,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 10485760,
        "no_rope_layers": [1, 1, 1, 0],
        "num_attention_heads": 40,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 4,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "rope_theta": 500000.0,
        "use_qk_norm": True,
        "vocab_size": 202048,
    },
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**LLAMA4, "text_config": {**LLAMA4["text_config"], **changes}}


def test_three_of_four_layers_rotate_within_chunks_and_the_fourth_sees_all() -> None:
    spec = decoder_spec(LLAMA4)
    rotated, plain = spec.layers[0].attention, spec.layers[3].attention
    assert (rotated.chunk, rotated.qk_norm) == (8192, QkNorm.WEIGHTLESS)
    assert rotated.rope is not None
    assert rotated.rope.interleaved
    assert rotated.query_scale is None
    assert (plain.chunk, plain.rope, plain.qk_norm) == (None, None, QkNorm.NONE)
    assert plain.query_scale == QueryScale(0.1, 8192, offset=1)
    moe = spec.layers[0].mlp
    assert moe == MoeSpec(
        num_experts=16,
        num_experts_per_token=1,
        expert=MlpSpec(8192),
        score=RouterScore.SIGMOID,
        normalize_weights=False,
        weighs_input=True,
        shared=MlpSpec(8192),
    )
    listed = changed(layer_types=["chunked_attention"] * 3 + ["full_attention"])
    assert decoder_spec(listed) == spec
    assert decoder_spec(changed(attention_chunk_size=None)).layers[0].attention.chunk is None


def test_the_norm_behind_the_rotation_takes_its_factor_away() -> None:
    """Scores had the square of YaRN's factor."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    normed, plain = (
        decoder_spec(changed(rope_scaling=scaling, use_qk_norm=flag)).layers[0].attention.rope
        for flag in (True, False)
    )
    assert normed is not None
    assert plain is not None
    assert (normed.attention_factor, plain.attention_factor > 1) == (1.0, True)


def test_maverick_has_experts_in_every_second_layer() -> None:
    spec = decoder_spec(changed(interleave_moe_layer_step=2))
    assert [isinstance(layer.mlp, MoeSpec) for layer in spec.layers] == [False, True] * 2
    assert spec.layers[0].mlp == MlpSpec(16384)
    assert decoder_spec(changed(moe_layers=[1, 3])) == spec


def test_tensors_are_those_of_the_hub() -> None:
    spec = decoder_spec(changed(interleave_moe_layer_step=2))
    graph, names = declare(spec, "float32"), {"language_model.model.embed_tokens.weight"}
    sources = dict(
        zip(
            (parameter.path for parameter in graph.parameters),
            weight_sources(graph, names),
            strict=True,
        )
    )
    block = "language_model.model.layers.1.feed_forward."
    (gate_up,) = sources["layers.1.mlp.gate_up.weight"]
    assert (gate_up.name, gate_up.shape) == (f"{block}experts.gate_up_proj", (16, 5120, 16384))
    assert gate_up.is_transposed
    (router,) = sources["layers.1.mlp.router.weight"]
    assert router.name == f"{block}router.weight"
    assert [part.name for part in sources["layers.1.mlp.shared.gate_up.weight"]] == [
        f"{block}shared_expert.gate_proj.weight",
        f"{block}shared_expert.up_proj.weight",
    ]
    (down,) = sources["layers.0.mlp.down.weight"]
    assert down.name == "language_model.model.layers.0.feed_forward.down_proj.weight"


def test_queries_grow_one_position_early() -> None:
    positions = jnp.asarray([0, 6, 7, 8, 15])
    found = np.asarray(query_scales(QueryScale(0.5, 8, offset=1), positions)).reshape(-1)
    steps = np.asarray([0, 0, 1, 1, 2])
    np.testing.assert_allclose(found, 1 + 0.5 * np.log1p(steps), rtol=1e-6)


@pytest.mark.parametrize(("chunk", "group_blocks"), [(3, 1), (8, 2), (20, 2)])
def test_chunks_over_pages_are_those_of_the_oracle(chunk: int, group_blocks: int) -> None:
    attention = AttentionSpec(2, 1, 4, 0.5, rope=None, chunk=chunk)
    generator, num_tokens, block_size = np.random.default_rng(chunk), 14, 4
    q, k, v = (
        jnp.asarray(generator.standard_normal((num_tokens, heads, 4), np.float32))
        for heads in (2, 1, 1)
    )
    positions = jnp.arange(num_tokens, dtype=jnp.int32)
    dense = dense_attention(q, k, v, positions, attention)
    pages = LayerPages(jnp.full((5, 1, 4, 4), jnp.nan), jnp.full((5, 1, 4, 4), jnp.nan))
    places = (positions // block_size, positions % block_size)
    pages = LayerPages(
        pages.keys.at[places[0], :, :, places[1]].set(k),
        pages.values.at[places[0], :, places[1], :].set(v),
    )
    found = attend_pages(
        q[None],
        pages,
        jnp.arange(4, dtype=jnp.int32)[None],
        jnp.asarray([num_tokens]),
        positions[None],
        attention,
        group_blocks,
    )
    np.testing.assert_allclose(found[0], dense, atol=1e-5)
    # Later rows begin with the chunk of their first token.
    rows = attend_pages(
        q[-2:, None],
        pages,
        jnp.tile(jnp.arange(4, dtype=jnp.int32), (2, 1)),
        positions[-2:] + 1,
        positions[-2:, None],
        attention,
        group_blocks,
    )
    np.testing.assert_allclose(rows[:, 0], dense[-2:], atol=1e-5)


def test_kernels_attend_within_chunks() -> None:
    spec = decoder_spec(LLAMA4)
    for layer in spec.layers:
        assert coverage.uncovered(spec, layer, "attention", "float32", "float32", 32) is None


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (changed(no_rope_layers=[1]), ModelConfigError, "must name all 4 layers"),
        (changed(layer_types=["full_attention"]), ModelConfigError, "must name all 4 layers"),
        (changed(layer_types=["conv"] * 4), UnsupportedFeatureError, "'conv'"),
        (changed(attention_chunk_size=0), ModelConfigError, "attention_chunk_size"),
    ],
)
def test_what_a_config_may_not_say_is_refused_by_name(
    config: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        decoder_spec(config)

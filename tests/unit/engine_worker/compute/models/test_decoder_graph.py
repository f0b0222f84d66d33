"""The split decoder: leaves, shapes, types, and what the trace hands to `attend`."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from engine_worker.compute.models.decoder import declare, random_weights
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.reference import ReferenceCache, dense_attention, reference_step
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    RopeSpec,
)
from engine_worker.errors import UnsupportedFeatureError
from tests.fakes.tiny_checkpoint import TINY_LLAMA

ATTENTION = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=4, scale=0.5, rope=RopeSpec())
TWELVE_LAYERS = TINY_LLAMA | {"num_hidden_layers": 12}


def spec_with(attention: AttentionSpec = ATTENTION, **differences: Any) -> DecoderSpec:
    spec = decoder_spec(TINY_LLAMA)
    layers = tuple(replace(layer, mixer=attention) for layer in spec.layers)
    return replace(spec, **({"layers": layers} | differences))


def test_leaves_are_flat_fused_and_in_the_order_of_the_parameters() -> None:
    graph = declare(decoder_spec(TWELVE_LAYERS), jnp.bfloat16)
    weights = random_weights(graph, seed=0)
    assert len(weights.leaves) == len(graph.parameters) == 2 + 12 * 6
    for leaf, parameter in zip(weights.leaves, graph.parameters, strict=True):
        assert (leaf.shape, leaf.dtype) == (parameter.shape, parameter.dtype)
    shapes = {parameter.path: parameter.shape for parameter in graph.parameters}
    assert shapes["layers.11.attention.qkv.weight"] == (16 + 2 * 8, 16)
    assert shapes["layers.2.mlp.gate_up.weight"] == (2 * 24, 16)


def test_each_leaf_reaches_its_own_layer() -> None:
    graph = declare(decoder_spec(TWELVE_LAYERS), jnp.float32)
    weights = random_weights(graph, seed=0)
    baseline = keys_of(weights.leaves, graph)
    for layer in (2, 10):
        path = f"layers.{layer}.attention.qkv.weight"
        leaves = tuple(
            leaf * 2 if parameter.path == path else leaf
            for leaf, parameter in zip(weights.leaves, graph.parameters, strict=True)
        )
        changed = keys_of(leaves, graph)
        np.testing.assert_array_equal(changed[:layer], baseline[:layer])
        np.testing.assert_allclose(changed[layer], 2 * baseline[layer], rtol=1e-5)


def keys_of(leaves: tuple[jax.Array, ...], graph: Any) -> Any:
    """The unrotated-at-position-zero keys that each layer hands to `attend`: [layers, T, KH, D]."""
    seen: list[jax.Array] = []

    def attend(layer: int, q: jax.Array, k: Any, v: Any, _: object) -> jax.Array:
        assert layer == len(seen)
        seen.append(k)
        return q

    def run(leaves: tuple[jax.Array, ...]) -> list[jax.Array]:
        seen.clear()
        zeros = jnp.zeros(2, jnp.int32)
        graph.forward(leaves, jnp.asarray([3, 5], jnp.int32), zeros, attend)
        return list(seen)

    return np.asarray(jax.jit(run)(leaves))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_attend_gets_float32_heads_and_logits_come_back_in_float32(dtype: Any) -> None:
    graph = declare(spec_with(), dtype)
    weights = random_weights(graph, seed=1)
    calls = []

    def attend(layer: int, q: jax.Array, k: Any, v: Any, _: object) -> jax.Array:
        calls.append((layer, q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype))
        return q.astype(jnp.bfloat16)

    def run(leaves: tuple[jax.Array, ...], ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = graph.forward(leaves, ids, ids, attend)
        return hidden, graph.logits(leaves, hidden[:2])

    hidden, logits = jax.eval_shape(run, weights.leaves, jnp.arange(5, dtype=jnp.int32))
    f32 = jnp.dtype(jnp.float32)
    assert calls == [(i, (5, 4, 4), (5, 2, 4), (5, 2, 4), f32, f32, f32) for i in range(2)]
    assert (hidden.shape, hidden.dtype) == ((5, 16), f32)
    assert (logits.shape, logits.dtype) == ((2, 64), f32)


def test_no_product_mixes_types_or_returns_bfloat16() -> None:
    graph = declare(spec_with(), jnp.bfloat16)
    leaves = random_weights(graph, seed=1).leaves
    ids = jnp.arange(4, dtype=jnp.int32)

    def run(leaves: tuple[jax.Array, ...]) -> jax.Array:
        return graph.logits(leaves, graph.forward(leaves, ids, ids, lambda _, q, k, v, sinks: q))

    dots = [e for e in jax.make_jaxpr(run)(leaves).eqns if e.primitive.name == "dot_general"]
    assert len(dots) == 2 * 4 + 1
    for dot in dots:
        assert {str(operand.aval.dtype) for operand in dot.invars} == {"bfloat16"}
        assert str(dot.outvars[0].aval.dtype) == "float32"


def test_an_untied_head_has_a_matrix_of_its_own() -> None:
    tied, untied = (
        declare(spec_with(tied_head=tied_head), jnp.float32) for tied_head in (True, False)
    )
    assert untied.num_parameters - tied.num_parameters == 64 * 16
    assert "head.weight" in {parameter.path for parameter in untied.parameters}


def test_token_ids_beyond_the_vocabulary_are_clamped_not_nan() -> None:
    graph = declare(spec_with(), jnp.float32)
    leaves = random_weights(graph, seed=1).leaves
    ids = jnp.asarray([63, 64, 10_000], jnp.int32)
    zeros = jnp.zeros(3, jnp.int32)
    hidden = np.asarray(graph.forward(leaves, ids, zeros, lambda _, q, k, v, sinks: q))
    np.testing.assert_array_equal(hidden[0], hidden[1])
    np.testing.assert_array_equal(hidden[0], hidden[2])


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (spec_with(vocab_size=2**19 + 1), "vocabulary of 524289 tokens"),
        (spec_with(layers=(LayerSpec(ATTENTION, MlpSpec(8, clamp=7.0)),)), "clamped MLP 7.0"),
        (spec_with(layers=(LayerSpec(ATTENTION, MlpSpec(8, up_offset=1.0)),)), "1.0 added to"),
        (
            spec_with(layers=(LayerSpec(ATTENTION, MoeSpec(4, 2, MlpSpec(8, gate_multiplier=2))),)),
            "experts whose gate is multiplied by 2",
        ),
        (
            spec_with(layers=(LayerSpec(ATTENTION, MoeSpec(4, 2, MlpSpec(8, gate_cutoff=1.5))),)),
            "experts whose gate is cut",
        ),
    ],
)
def test_an_axis_value_without_an_implementation_is_refused_by_name(
    spec: DecoderSpec, named: str
) -> None:
    with pytest.raises(UnsupportedFeatureError, match=named):
        declare(spec, jnp.float32)


@pytest.mark.parametrize("sinks", [None, np.asarray([0.7, -1.2], np.float32)])
def test_the_reference_attention_honours_window_scale_softcap_and_sinks(
    sinks: npt.NDArray[np.float32] | None,
) -> None:
    generator = np.random.default_rng(0)
    q = generator.standard_normal((3, 2, 4)).astype(np.float32)
    k = generator.standard_normal((5, 1, 4)).astype(np.float32)
    v = generator.standard_normal((5, 1, 4)).astype(np.float32)
    attention = AttentionSpec(2, 1, 4, scale=0.3, rope=None, window=2, softcap=1.5)
    positions = jnp.asarray([0, 1, 4], jnp.int32)
    heads = (jnp.asarray(q), jnp.asarray(k), jnp.asarray(v))
    ours = dense_attention(
        *heads, positions, attention, None if sinks is None else jnp.asarray(sinks)
    )
    for row, visible in enumerate(([0], [0, 1], [3, 4])):
        for head in range(2):
            scores = 1.5 * np.tanh(0.3 * (k[visible, 0] @ q[row, head]) / 1.5)
            beside = 0.0 if sinks is None else np.exp(sinks[head])
            shares = np.exp(scores) / (np.exp(scores).sum() + beside)
            np.testing.assert_allclose(ours[row, head], shares @ v[visible, 0], atol=1e-5)


def test_chunks_give_the_same_logits_as_the_whole() -> None:
    graph = declare(spec_with(replace(ATTENTION, window=3)), jnp.float32)
    leaves = random_weights(graph, seed=5, scale=0.3).leaves
    step = jax.jit(functools.partial(reference_step, graph))
    ids = np.arange(7, 17, dtype=np.int32)
    positions = np.arange(10, dtype=np.int32)
    empty = ReferenceCache.empty(graph.spec, 10).layers
    whole, _ = step(leaves, empty, ids, positions)
    first, cache = step(leaves, empty, ids[:5], positions[:5])
    second, _ = step(leaves, cache, ids[5:], positions[5:])
    np.testing.assert_allclose(np.concatenate([first, second]), whole, atol=1e-5)

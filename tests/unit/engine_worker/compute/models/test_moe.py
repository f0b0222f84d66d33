"""The mixture of experts: routing, what is computed, and that nothing else is read."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from flax import nnx

from engine_worker.compute.models.moe import (
    MoeBlock,
    choose_experts,
    expert_tiles,
    tile_rows,
)
from engine_worker.compute.models.quantized import QuantizedMatrix, quantize
from engine_worker.compute.models.spec import (
    Activation,
    DecoderSpec,
    MlpSpec,
    MoeSpec,
    RouterScore,
)

HIDDEN, INNER, NUM_EXPERTS, NUM_CHOSEN = 24, 16, 12, 3
MOE = MoeSpec(NUM_EXPERTS, NUM_CHOSEN, MlpSpec(INNER))
FULL = replace(
    MOE,
    expert=MlpSpec(INNER, Activation.QUICK_GELU, bias=True, clamp=1.5, up_offset=1.0),
    score=RouterScore.SIGMOID,
    weights_multiplier=2.5,
    router_bias=True,
    correction_bias=True,
    num_groups=4,
    num_groups_per_token=2,
    num_group_scores=2,
    shared=MlpSpec(20),
    shared_gate=True,
)
Values = dict[str, npt.NDArray[np.float32]]


def decoder_spec() -> DecoderSpec:
    return DecoderSpec("Any", 8, HIDDEN, (), 64, norm_eps=1e-6, tied_head=True)


def random_values(moe: MoeSpec, seed: int = 0) -> Values:
    """A value for each weight, by its path in the block."""
    block = nnx.eval_shape(lambda: MoeBlock(decoder_spec(), moe, jnp.float32))
    generator = np.random.default_rng(seed)
    return {
        ".".join(map(str, path)): generator.standard_normal(leaf.get_value().shape, np.float32)
        * np.float32(0.4)
        for path, leaf in nnx.to_flat_state(nnx.state(block))
    }


def block_of(moe: MoeSpec, values: dict[str, Any]) -> MoeBlock:
    block = nnx.eval_shape(lambda: MoeBlock(decoder_spec(), moe, jnp.float32))
    graphdef, state = nnx.split(block)
    flat, treedef = jax.tree_util.tree_flatten_with_path(state)
    paths = [".".join(str(key.key) for key in path if hasattr(key, "key")) for path, _ in flat]
    leaves = [jax.tree.map(jnp.asarray, values[path.removesuffix(".value")]) for path in paths]
    merged: MoeBlock = nnx.merge(graphdef, jax.tree_util.tree_unflatten(treedef, leaves))
    return merged


def expected(moe: MoeSpec, values: Values, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """What the block computes, token by token and expert by expert."""
    w = {path: value.astype(np.float64) for path, value in values.items()}
    normed = x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-6) * w["norm.weight"]
    logits = normed @ w["router.weight"].T + w.get("router.bias", 0.0)
    out = np.zeros(x.shape)
    choice = jax.tree.map(
        np.asarray,
        choose_experts(
            moe,
            jnp.asarray(logits, jnp.float32),
            values.get("correction_bias"),  # type: ignore[arg-type]
        ),
    )
    for token, row in enumerate(normed):
        for expert, weight in zip(choice.experts[token], choice.weights[token], strict=True):
            fed = row * weight if moe.weighs_input else row
            gate_up = w["gate_up.weight"][expert] @ fed
            if moe.expert.bias:
                gate_up += w["gate_up.bias"][expert]
            y = w["down.weight"][expert] @ activated(moe.expert, gate_up)
            if moe.expert.bias:
                y += w["down.bias"][expert]
            out[token] += y if moe.weighs_input else weight * y
        if moe.shared is not None:
            inner = activated(moe.shared, w["shared.gate_up.weight"] @ row)
            shared = w["shared.down.weight"] @ inner
            if moe.shared_gate:
                shared = shared * sigmoid(w["shared_gate.weight"] @ row)
            out[token] += shared
    return out


def sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-x))


def activated(mlp: MlpSpec, gate_up: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    gate, up = np.split(gate_up, 2)
    if mlp.clamp is not None:
        gate, up = np.minimum(gate, mlp.clamp), np.clip(up, -mlp.clamp, mlp.clamp)
    slope = 1.702 if mlp.activation is Activation.QUICK_GELU else 1.0
    return gate * sigmoid(slope * gate) * (up + mlp.up_offset)


def rows_of(num_rows: int, seed: int = 1) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((num_rows, HIDDEN), np.float32)


@pytest.mark.parametrize("num_rows", [1, 33])
@pytest.mark.parametrize(
    "moe",
    [MOE, FULL, replace(MOE, weighs_input=True, normalize_weights=False, shared=MlpSpec(20))],
    ids=["plain", "everything", "weighed_input"],
)
def test_the_block_adds_the_chosen_experts_weighed(moe: MoeSpec, num_rows: int) -> None:
    values, x = random_values(moe), rows_of(num_rows)
    ours = jax.jit(block_of(moe, values).__call__)(x)
    np.testing.assert_allclose(ours, expected(moe, values, x), rtol=2e-4, atol=2e-4)


def test_experts_in_bfloat16_and_int8_compute_what_their_numbers_say() -> None:
    values, x = random_values(MOE), rows_of(9)
    for path in ("gate_up.weight", "down.weight"):
        values[path] = values[path].astype(ml_dtypes.bfloat16).astype(np.float32)
    bits: dict[str, Any] = dict(values)
    for path in ("gate_up.weight", "down.weight"):
        bits[path] = values[path].astype(ml_dtypes.bfloat16).view(np.uint16)
    theirs = expected(MOE, values, x)
    ours = jax.jit(block_of(MOE, bits).__call__)(x)
    assert 0 < np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()

    eighths: dict[str, Any] = dict(values)
    for path in ("gate_up.weight", "down.weight"):
        numbers, scales = quantize(values[path])
        eighths[path] = QuantizedMatrix(numbers, scales)  # type: ignore[arg-type]
        values[path] = numbers.astype(np.float32) * scales[..., None]
    theirs = expected(MOE, values, x)
    ours = jax.jit(block_of(MOE, eighths).__call__)(x)
    assert 0 < np.abs(ours - theirs).max() < 0.04 * np.abs(theirs).max()


def chosen_by(moe: MoeSpec, values: Values, x: npt.NDArray[np.float32]) -> set[int]:
    normed = x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-6) * values["norm.weight"]
    choice = choose_experts(moe, jnp.asarray(normed @ values["router.weight"].T))
    return {int(expert) for expert in np.asarray(choice.experts).reshape(-1)}


@pytest.mark.parametrize("num_rows", [1, 4])
def test_an_expert_that_no_token_chose_is_never_read(num_rows: int) -> None:
    """What would come of reading one is NaN; padding chooses nothing."""
    values, x = random_values(MOE), rows_of(num_rows)
    padded = np.concatenate([x, rows_of(5, seed=2)])
    is_token = np.arange(len(padded)) < num_rows
    chosen = chosen_by(MOE, values, x)
    assert chosen_by(MOE, values, padded) > chosen
    theirs = expected(MOE, values, x)
    for path in ("gate_up.weight", "down.weight"):
        others = [expert for expert in range(NUM_EXPERTS) if expert not in chosen]
        values[path][others] = np.nan
    ours = jax.jit(block_of(MOE, values).__call__)(padded, is_token)[:num_rows]
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("num_rows", [1, 8, 32])
def test_a_turn_of_the_loop_reads_one_expert_for_each_tile(num_rows: int) -> None:
    """Bytes of a decode: as many experts as tiles; with few rows a tile is an expert."""
    num_experts = 64
    experts = np.random.default_rng(3).permuted(
        np.tile(np.arange(num_experts), (num_rows, 1)), axis=1
    )[:, :NUM_CHOSEN]
    tiles = expert_tiles(jnp.asarray(experts.reshape(-1), jnp.int32), num_experts)
    counts = np.bincount(experts.reshape(-1), minlength=num_experts)
    assert int(tiles.num_tiles) == int(np.ceil(counts / tiles.num_rows).sum())
    assert set(np.asarray(tiles.experts[: int(tiles.num_tiles)])) == set(np.nonzero(counts)[0])
    assert int(tiles.num_tiles) <= 1.25 * np.count_nonzero(counts)
    assert len(tiles.experts) >= int(tiles.num_tiles)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_no_program_copies_more_than_a_few_experts(dtype: str) -> None:
    """XLA:CPU would convert all experts before the loop where it can; see `moe`."""
    hidden, inner, num_experts = 64, 96, 256
    moe = MoeSpec(num_experts, 4, MlpSpec(inner))
    spec = replace(decoder_spec(), hidden_size=hidden)
    size = {"float32": 4, "bfloat16": 2, "int8": 1}[dtype]

    def matrices(*shape: int) -> Any:
        if dtype == "int8":
            return QuantizedMatrix(jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:-1], jnp.float32))
        return jnp.zeros(shape, jnp.uint16 if dtype == "bfloat16" else jnp.float32)

    values: dict[str, Any] = {
        "norm.weight": jnp.zeros(hidden),
        "router.weight": jnp.zeros((num_experts, hidden)),
        "gate_up.weight": matrices(num_experts, 2 * inner, hidden),
        "down.weight": matrices(num_experts, hidden, inner),
    }

    def compute(values: dict[str, Any], x: jax.Array) -> jax.Array:
        block = nnx.eval_shape(lambda: MoeBlock(spec, moe, jnp.float32))
        graphdef, state = nnx.split(block)
        flat, treedef = jax.tree_util.tree_flatten_with_path(state)
        paths = [".".join(str(key.key) for key in path if hasattr(key, "key")) for path, _ in flat]
        leaves = [values[path.removesuffix(".value")] for path in paths]
        y: jax.Array = nnx.merge(graphdef, jax.tree_util.tree_unflatten(treedef, leaves))(x)
        return y

    compiled = jax.jit(compute).lower(values, jnp.zeros((8, hidden))).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 8 * (3 * hidden * inner * size)


def test_tiles_are_as_high_as_most_experts_need() -> None:
    for num_rows, num_experts, rows in (
        (8, 64, 2), (64, 64, 2), (96, 64, 4), (256, 64, 8), (1024, 64, 16), (4096, 64, 64),
        (2**16, 8, 64),
    ):  # fmt: skip
        assert tile_rows(num_rows, num_experts) == rows


def test_the_matrices_of_experts_are_quantised_one_by_one() -> None:
    matrices = np.random.default_rng(0).standard_normal((3, 4, 5), np.float32)
    numbers, scales = quantize(matrices)
    for index in range(3):
        alone, scale = quantize(matrices[index])
        np.testing.assert_array_equal(numbers[index], alone)
        np.testing.assert_array_equal(scales[index], scale)

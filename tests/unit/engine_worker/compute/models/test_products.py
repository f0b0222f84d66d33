"""Products of the decoder's blocks: the form for few rows, and what layers share."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.models.decoder import declare, random_weights
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.layers import Linear
from tests.fakes.tiny_checkpoint import TINY_LLAMA


def linear_of(dtype: type[np.generic]) -> Linear:
    linear = Linear(24, 16, dtype, bias=False)
    linear.weight[...] = jnp.asarray(np.random.default_rng(0).standard_normal((24, 16)), dtype)
    return linear


@pytest.mark.parametrize(
    ("dtype", "num_rows", "is_turned"),
    [
        (jnp.float32, 1, True),
        (jnp.float32, 64, True),
        (jnp.float32, 65, False),
        (jnp.bfloat16, 1, False),
        (jnp.bfloat16, 2, True),
        (jnp.bfloat16, 64, True),
        (jnp.bfloat16, 65, False),
    ],
)
def test_products_of_few_rows_are_turned_and_equal(
    dtype: type[np.generic], num_rows: int, is_turned: bool
) -> None:
    linear = linear_of(dtype)
    x = np.random.default_rng(1).standard_normal((num_rows, 16)).astype(np.float32)
    traced = str(jax.make_jaxpr(linear)(x))
    assert ("optimization_barrier" in traced) is is_turned
    rounded = np.asarray(jnp.asarray(x, dtype), np.float64)
    expected = rounded @ np.asarray(linear.weight[...], np.float64).T
    np.testing.assert_allclose(np.asarray(jax.jit(linear)(x)), expected, rtol=1e-5, atol=1e-5)


def test_rotations_are_computed_once_for_all_layers() -> None:
    graph = declare(decoder_spec(TINY_LLAMA | {"num_hidden_layers": 3}), jnp.float32)
    weights = random_weights(graph, seed=0)
    ids = np.arange(4, dtype=np.int32)

    def forward(leaves: tuple[jax.Array, ...], ids: jax.Array) -> jax.Array:
        return graph.forward(leaves, ids, ids, attend)

    def attend(layer: int, q: jax.Array, k: Any, v: Any, sinks: object) -> jax.Array:
        summed: jax.Array = q + k.sum() + v.sum()
        return summed

    compiled = jax.jit(forward).lower(weights.leaves, ids).compile()
    assert len(re.findall(r" cosine\(", compiled.as_text() or "")) == 1

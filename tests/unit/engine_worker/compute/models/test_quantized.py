"""int8 matrices: what they stand for, their products, and a decoder made of them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.models.quantized import QuantizedMatrix, quantize, quantized_matmul
from engine_worker.compute.models.spec import AttentionSpec, LayerSpec, QkNorm
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from tests.fakes.packed_decoder import packed
from tests.fakes.runner_requests import RunnerRequest, generate
from tests.fakes.tiny_decoder import GreedyReference, tiny_spec, tiny_weights

GENERATOR = np.random.default_rng(0)


def test_numbers_are_off_by_half_a_step_of_their_row_at_most() -> None:
    values = GENERATOR.standard_normal((9, 33), np.float32) * np.logspace(-6, 3, 9)[:, None]
    integers, scales = quantize(values)
    assert integers.dtype == np.int8
    assert (np.abs(integers).max(axis=1) == 127).all()
    assert (np.abs(integers * scales[:, None] - values) <= scales[:, None] * 0.5001).all()


def test_a_row_of_zeros_stays_one() -> None:
    integers, scales = quantize(np.zeros((2, 5), np.float32))
    assert not integers.any()
    assert np.isfinite(scales).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    values = np.ones((3, 4), np.float32)
    values[1, 2] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize(values)


@pytest.mark.parametrize("num_rows", [1, 2, 7])
def test_a_product_is_that_of_the_rounded_operands(num_rows: int) -> None:
    x = GENERATOR.standard_normal((num_rows, 40), np.float32)
    integers, scales = quantize(GENERATOR.standard_normal((24, 40), np.float32))
    matrix = QuantizedMatrix(jnp.asarray(integers), jnp.asarray(scales))
    actual = np.asarray(jax.jit(quantized_matmul)(x, matrix))
    rounded, token_scales = quantize(x)
    exact = (rounded.astype(np.int64) @ integers.astype(np.int64).T).astype(np.float64)
    expected = exact * token_scales[:, None].astype(np.float64) * scales.astype(np.float64)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_nan_in_a_row_is_nan_in_its_scores_and_in_no_others() -> None:
    x = np.ones((3, 8), np.float32)
    x[1, 3], x[2, 0] = np.nan, np.inf
    matrix = QuantizedMatrix(jnp.ones((4, 8), jnp.int8), jnp.ones(4, jnp.float32))
    scores = np.asarray(quantized_matmul(jnp.asarray(x), matrix))
    assert np.isfinite(scores[0]).all()
    assert not np.isfinite(scores[1:]).any()


def test_a_decoder_in_int8_chooses_near_the_best_tokens_and_keeps_its_cache_in_bfloat16() -> None:
    weights = tiny_weights(spec=tiny_spec([None]))
    decoder = packed(weights, "xla", "int8")
    runner = JaxModelRunner.create(
        decoder, num_blocks=40, max_model_len=64, block_size=8, max_num_seqs=2
    )
    assert runner.decode_rows[0] == 2
    assert all(array.dtype == jnp.uint16 for array in jax.tree.leaves(runner.state.cache))
    request = RunnerRequest(0, [3, 1, 4, 1, 5, 9], list(range(8)))
    output = generate(runner, request, 12)
    logits = GreedyReference(weights, 64).logits([*request.prompt, *output])
    for index, token_id in enumerate(output):
        row = logits[len(request.prompt) - 1 + index]
        assert row.max() - row[token_id] < 0.5 * row.std()
    # Half of bfloat16, and the scales.
    assert decoder.size_bytes < 0.6 * 2 * decoder.backend.graph.num_parameters


def test_norms_with_a_weight_for_each_head_are_no_matrices() -> None:
    def normed(layer: LayerSpec) -> LayerSpec:
        assert isinstance(layer.mixer, AttentionSpec)
        return replace(layer, mixer=replace(layer.mixer, qk_norm=QkNorm.EACH_HEAD))

    spec = tiny_spec([None])
    spec = replace(spec, layers=tuple(map(normed, spec.layers)))
    decoder = packed(tiny_weights(spec=spec), "xla", "int8")
    runner = JaxModelRunner.create(
        decoder, num_blocks=20, max_model_len=32, block_size=8, max_num_seqs=1
    )
    request = RunnerRequest(0, [3, 1, 4, 1, 5, 9], list(range(4)))
    assert len(generate(runner, request, 3)) == 3

"""Products of integers in blocks, as checkpoints keep them, held to float64 at every level."""

from dataclasses import replace
from itertools import cycle, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.backends.cpu_native import calls, packing
from engine_worker.compute.backends.cpu_native.calls import AttentionConfig, MlpConfig
from engine_worker.compute.backends.cpu_native.library import Library
from engine_worker.compute.models.integer_blocks import SCALE_DTYPES, BlockFormat
from tests.fakes.block_oracle import Problem, Row, StepShape, distance, rounded
from tests.fakes.integer_blocks import random_blocks
from tests.fakes.native_levels import at_levels

FORMATS = [
    BlockFormat(bits, group, 64 if has_scales else group, dtype, has_scales, has_minima)
    for (bits, has_scales, has_minima), group, dtype in zip(
        product((4, 6, 8), (False, True), (False, True)),
        cycle((16, 32)),
        cycle(SCALE_DTYPES),
        strict=False,
    )
]
MXFP4 = BlockFormat(4, 32, 32, "float8_e8m0fnu", codes="fp4")
IQ4_XS = BlockFormat(4, 32, 256, has_scales=True, codes="iq4")
FORMATS += [
    MXFP4,
    BlockFormat(4, 16, 16, "float32", codes="fp4"),
    BlockFormat(4, 32, 32, codes="iq4"),
    BlockFormat(4, 16, 64, "bfloat16", has_scales=True, codes="iq4"),
]
WIDE_GROUPS = [
    BlockFormat(bits, 64, 64, dtype, has_minima=has_minima)
    for bits, dtype, has_minima in (
        (4, "bfloat16", False),
        (8, "float16", True),
        (4, "float32", True),
    )
]
FORMATS += WIDE_GROUPS
"""Every tile, with every type of scales."""
K4 = BlockFormat(4, 32, 256, has_scales=True, has_minima=True)
K6 = BlockFormat(6, 16, 256, has_scales=True)
TOLERANCE = 1e-2
"""As of int8: an activation that was rounded the other way."""


def test_a_product_in_every_format_is_that_of_the_numbers(level: str) -> None:
    outputs, inputs = 75, 192
    random = np.random.default_rng(3)
    # Whole numbers with 127 among them are activations that nothing is lost of.
    x = random.integers(-126, 127, (37, inputs)).astype(np.float32)
    x[:, 5] = 127
    for form in FORMATS:
        matrix = random_blocks(form, outputs, inputs)
        (packed,) = packing.pack_blocks(matrix, "table")
        expected = x.astype(np.float64) @ matrix.numbers().T.astype(np.float64)
        for rows in (1, 11, 37):
            found = calls.head(
                jnp.asarray(x[:rows]), jnp.asarray(packed), outputs, "bfloat16", blocks=form
            )
            assert distance(np.asarray(found), expected[:rows]) < 1e-6, (form, rows)


def test_a_row_of_a_table_in_every_format_is_that_of_the_numbers(level: str) -> None:
    ids = jnp.arange(33, dtype=jnp.int32)
    for form in FORMATS:
        matrix = random_blocks(form, 33, 128)
        (packed,) = packing.pack_blocks(matrix, "table")
        found = calls.embedding(ids, jnp.asarray(packed), 33, 128, "bfloat16", blocks=form)
        np.testing.assert_allclose(found, matrix.numbers(), rtol=1e-6, atol=1e-6)


def test_half_floats_without_an_exponent_are_what_they_are(level: str) -> None:
    matrix = random_blocks(BlockFormat(8, 32, 32), 32, 32)
    tiny = np.arange(32, dtype=np.uint16).reshape(32, 1).view(np.float16)
    matrix = replace(matrix, scales=tiny)
    (packed,) = packing.pack_blocks(matrix, "table")
    ids = jnp.arange(32, dtype=jnp.int32)
    found = calls.embedding(
        ids, jnp.asarray(packed), 32, 32, "bfloat16", blocks=matrix.format, multiplier=2.0**20
    )
    np.testing.assert_array_equal(found, matrix.numbers() * np.float32(2**20))


@pytest.mark.parametrize("weight_type", ["bfloat16", "float32"])
def test_blocks_of_a_decoder_may_mix_formats_and_types(level: str, weight_type: str) -> None:
    shape = StepShape((Row(0, 5), Row(70, 1), Row(31, 2)), 32, num_padding=2)
    problem = Problem(shape, 256)
    config = AttentionConfig(4, 2, 64, 0.125, 1e-5, weight_type, qkv_blocks=K6)
    for attention in (config, replace(config, qkv_blocks=None, o_blocks=K4)):
        block = problem.attention(attention, 16)
        found, _ = calls.run_blocks(
            jnp.asarray(problem.x), problem.step, block.ropes, [block.block(0)]
        )
        assert distance(np.asarray(found), block.oracle(problem.x)[0]) < TOLERANCE
    # More rows than stand together in what AMX reads: gates come in pieces of another length.
    many = Problem(StepShape((Row(0, 44),), 32), 256)
    mlp_config = MlpConfig(256, 1e-5, weight_type, gate_up_blocks=K4, down_blocks=K6)
    for case, mlp_of in (
        (problem, mlp_config),
        (problem, replace(mlp_config, down_blocks=None)),
        (many, replace(mlp_config, down_blocks=None)),
        (many, replace(mlp_config, gate_up_blocks=BlockFormat(8, 32, 32), down_blocks=None)),
        (problem, replace(mlp_config, is_gated=False)),
    ):
        mlp = case.mlp(mlp_of)
        (found, _) = calls.run_blocks(jnp.asarray(case.x), case.step, [], [mlp.block()])
        assert distance(np.asarray(found), mlp.oracle(case.x)) < TOLERANCE


@pytest.mark.parametrize("form", [K4, K6, BlockFormat(4, 32, 32), MXFP4, IQ4_XS, *WIDE_GROUPS])
def test_a_rows_bits_are_the_same_alone_and_in_any_company(
    kernels: Library, form: BlockFormat
) -> None:
    (packed,) = packing.pack_blocks(random_blocks(form, 96, 512), "table")
    x = np.random.default_rng(0).standard_normal((23, 512), np.float32)

    def scores(rows: np.ndarray) -> np.ndarray:
        found = calls.head(jnp.asarray(rows), jnp.asarray(packed), 96, "bfloat16", blocks=form)
        return np.asarray(found)

    together = scores(x)
    for row in (0, 7, 22):
        np.testing.assert_array_equal(scores(x[row : row + 1])[0], together[row])


def test_activations_are_rounded_as_those_of_int8(kernels: Library) -> None:
    form = BlockFormat(4, 32, 32)
    matrix = random_blocks(form, 64, 256)
    (packed,) = packing.pack_blocks(matrix, "table")
    x = np.random.default_rng(1).standard_normal((5, 256), np.float32)
    found = calls.head(jnp.asarray(x), jnp.asarray(packed), 64, "bfloat16", blocks=form)
    expected = rounded(x, "int8", 0) @ matrix.numbers().T.astype(np.float64)
    assert distance(np.asarray(found), expected) < 1e-3


@at_levels("size", [1e-45, 1e-38, 2e-37, 9e-31, 2e-30])
def test_activations_too_small_for_an_inverse_of_their_scale_are_zeros(
    level: str, size: float
) -> None:
    x = np.random.default_rng(2).integers(-100, 100, (3, 192)).astype(np.float32)
    x[:, 5] = 100
    x = (x.astype(np.float64) / 100 * size).astype(np.float32)
    for form in FORMATS:
        matrix = random_blocks(form, 33, 192)
        (packed,) = packing.pack_blocks(matrix, "table")
        found = calls.head(jnp.asarray(x), jnp.asarray(packed), 33, "bfloat16", blocks=form)
        expected = x.astype(np.float64) @ matrix.numbers().T.astype(np.float64)
        if size < 1e-30:
            expected = np.zeros_like(expected)
        worst = TOLERANCE * float(np.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=0, atol=worst, err_msg=str(form))


def test_what_no_kernel_multiplies_is_refused(kernels: Library) -> None:
    with pytest.raises(ValueError, match="has 96 inputs, which can't be packed as int4"):
        packing.pack_blocks(
            random_blocks(BlockFormat(4, 64, 64), 32, 128).each(
                lambda part: part[:, : part.shape[1] * 3 // 4]
            ),
            "linear",
        )
    assert not packing.are_blocks_covered(96, BlockFormat(4, 24, 24))
    assert not packing.are_blocks_covered(512, BlockFormat(8, 32, 512, has_scales=True))
    broken = random_blocks(BlockFormat(8, 32, 32), 32, 64)
    broken.scales[3, 1] = np.inf
    with pytest.raises(ValueError, match="scale that is not a finite number"):
        packing.pack_blocks(broken, "linear")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (BlockFormat(8, 24, 24), "no multiple of 16"),
        (BlockFormat(8, 0, 0), "no multiple of 16"),
        (BlockFormat(8, 32, 48), "blocks no multiple of a group"),
        (BlockFormat(8, 32, 64), "more than one group without scales"),
        (BlockFormat(8, 32, 512, has_scales=True), "more than 256 inputs"),
        (BlockFormat(8, 16, 16), "head is"),
        (BlockFormat(4, 32, 32, has_minima=True, codes="fp4"), "neither scales nor minima"),
        (BlockFormat(4, 32, 32, has_minima=True, codes="iq4"), "no minima of groups"),
    ],
)
def test_the_border_refuses_formats_that_are_none(
    kernels: Library, form: BlockFormat, message: str
) -> None:
    (packed,) = packing.pack_blocks(random_blocks(BlockFormat(8, 32, 32), 32, 64), "table")
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        calls.head(
            jnp.ones((1, 64)), jnp.asarray(packed), 32, "bfloat16", blocks=form
        ).block_until_ready()

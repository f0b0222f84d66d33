"""Products that are computed in pieces: more inputs than the first cache holds, and many rows."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from engine_worker.compute.backends.cpu_native import calls, packing
from engine_worker.compute.models.integer_blocks import BlockFormat
from tests.fakes.integer_blocks import random_blocks
from tests.fakes.native_levels import at_levels

Head = Callable[[jax.Array], jax.Array]
Numbers = npt.NDArray[np.float32]
OUTPUTS, INPUTS = 150, 1306
WIDE_BLOCKS = [
    BlockFormat(8, 128, 128),
    # More steps of tiles than stand in a piece.
    BlockFormat(4, 1536, 1536, "float32", has_minima=True),
]


@cache
def activations(inputs: int) -> Numbers:
    """Rows of whole numbers with 127 among them: of these nothing is lost in int8."""
    x = np.random.default_rng(0).integers(-60, 60, (580, inputs)).astype(np.float32)
    x[:, 3] = 127
    return x


def check(x: Numbers, numbers: Numbers, head: Head, tolerance: float) -> None:
    """Rows have their bits in any company, and are near float64."""
    expected = x.astype(np.float64) @ numbers.T.astype(np.float64)
    whole = np.asarray(head(jnp.asarray(x)))
    np.testing.assert_allclose(whole, expected, rtol=0, atol=tolerance * expected.std())
    for first, count in ((0, 1), (7, 20), (40, 33), (100, 300), (579, 1)):
        rows = slice(first, first + count)
        np.testing.assert_array_equal(np.asarray(head(jnp.asarray(x[rows]))), whole[rows])


@at_levels("weight_type", packing.WEIGHT_TYPES)
def test_a_wide_product_is_exact_and_the_same_in_any_company(level: str, weight_type: str) -> None:
    # float32 and bfloat16 hold multiples of an eighth; int8 and int4 are what was packed of them.
    values = np.random.default_rng(1).integers(-7, 8, (OUTPUTS, INPUTS)).astype(np.float32) / 8
    (packed,) = packing.pack(values, weight_type, "table")
    numbers = packing.unpack(packed, values.shape, weight_type, "table")

    def head(x: jax.Array) -> jax.Array:
        return calls.head(x, jnp.asarray(packed), OUTPUTS, weight_type)

    check(activations(INPUTS), numbers, head, 1e-5)


@pytest.mark.parametrize("form", WIDE_BLOCKS, ids=lambda form: form.name)
def test_wide_groups_are_too(level: str, form: BlockFormat) -> None:
    matrix = random_blocks(form, OUTPUTS, 1536)
    (packed,) = packing.pack_blocks(matrix, "table")

    def head(x: jax.Array) -> jax.Array:
        return calls.head(x, jnp.asarray(packed), OUTPUTS, "bfloat16", blocks=form)

    check(activations(1536), matrix.numbers(), head, 1e-5)

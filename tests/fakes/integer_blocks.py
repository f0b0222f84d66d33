"""Random matrices of numbers in blocks."""

import numpy as np

from engine_worker.compute.models.integer_blocks import SCALE_DTYPES, BlockFormat, BlockMatrix


def random_blocks(form: BlockFormat, outputs: int, inputs: int, seed: int = 0) -> BlockMatrix:
    """Any integers, and scales of about 0.01."""
    random = np.random.default_rng(seed)
    groups, blocks = inputs // form.group_size, inputs // form.block_size

    def scales() -> np.ndarray:
        values = random.standard_normal((outputs, blocks)) * 0.01
        # Powers of two have no sign.
        values = np.abs(values) if "e8m0" in form.scale_dtype else values
        return values.astype(SCALE_DTYPES[form.scale_dtype])

    def whole() -> np.ndarray:
        return random.integers(-128, 128, (outputs, groups)).astype(np.int8)

    return BlockMatrix(
        form,
        random.integers(0, 2**form.bits, (outputs, inputs)).astype(np.uint8),
        scales(),
        whole() if form.has_scales else None,
        whole() if form.has_minima else None,
        scales() if form.has_minima else None,
    )

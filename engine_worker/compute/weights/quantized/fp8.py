"""Weights in eight-bit floats with one scale a tensor, a row or a block.

DeepSeek's and Qwen's checkpoints name the scales of blocks `weight_scale_inv`, though they are
multiplied as the others, `weight_scale`, are. Sources: `finegrained_fp8.py` and `fbgemm_fp8.py` of
transformers/integrations.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.weights.quantized.derived import (
    DerivedTensor,
    StoredTensors,
    broken,
    derived_info,
    of_type,
)
from engine_worker.compute.weights.quantized.mxfp4 import check_scales
from engine_worker.compute.weights.tensor_info import ReadTensor, TensorInfo

FLOAT8: Final = ("F8_E4M3", "F8_E5M2")
_SUFFIXES: Final = ("_scale_inv", "_scale")
_SCALE_TYPES: Final = ("F32", "F16", "BF16", "F8_E8M0", "U8")
_BLOCK: Final = (128, 128)
_ACTIVATIONS: Final = ("input_scale", "activation_scale", "input_scale_ub", "k_scale", "v_scale")
"""Scales of what is computed with the weight. Nothing is quantised when it is computed here."""


def read_fp8(stored: StoredTensors, fields: ConfigFields) -> Iterator[DerivedTensor]:
    """`X` in fp8 and `X_scale_inv` or `X_scale` beside it become X.

    Raises:
        CheckpointError: A scale is missing, or the shapes disagree.
        ModelConfigError: The size of blocks is none.
    """
    block = fields.integers("weight_block_size") or _BLOCK
    if len(block) != 2 or 0 in block:
        raise fields.error("weight_block_size", "must be two numbers above 0", list(block))
    for name, weight in stored.ending_in(""):
        if weight.dtype not in FLOAT8:
            continue
        found = [stored.get(f"{name}{suffix}") for suffix in _SUFFIXES]
        scale = next((part for part in found if part is not None), None)
        if scale is None:
            scale = stored.need(f"{name}{_SUFFIXES[1]}", weight)
        module = name.rpartition(".")[0]
        unused = [stored.get(f"{module}.{suffix}") for suffix in _ACTIVATIONS]
        yield scaled_weight(weight, scale, (block[0], block[1]), *unused)


def scaled_weight(
    weight: TensorInfo, scale: TensorInfo, block: tuple[int, int], *unused: TensorInfo | None
) -> DerivedTensor:
    """A matrix, or a stack of them, times its scales.

    Args:
        weight: [..., out, in] of numbers of one byte.
        scale: [], [1], [out], [out, 1], or [..., blocks of out, blocks of in].
        block: Rows and columns that share a scale in the last case.
        unused: Stored tensors that nothing here needs.

    Raises:
        CheckpointError: The scales are of another shape or type.
    """
    if len(weight.shape) < 2 or 0 in weight.shape:
        raise broken(weight, f"has shape {list(weight.shape)}, which is no matrix")
    of_type(scale, *_SCALE_TYPES)
    *lead, outputs, inputs = weight.shape
    grid = (*lead, -(-outputs // block[0]), -(-inputs // block[1]))
    repeats: tuple[int, int] | None = None
    whole = {(), (1,), (1, 1), (*lead, 1, 1), tuple(lead)}
    rows = {(outputs,), (*lead, outputs), (*lead, outputs, 1)}
    if scale.shape == grid:
        repeats = block
    elif scale.shape not in whole | rows:
        raise broken(
            scale,
            f"has shape {list(scale.shape)}; a weight {list(weight.shape)} has one scale, "
            f"{outputs} or, in blocks of {block[0]} x {block[1]}, {list(grid)}",
        )
    is_by_row = repeats is None and scale.shape in rows and scale.shape not in whole

    def compute(read: ReadTensor) -> npt.NDArray[np.float32]:
        stored_scales = read(scale.name)
        if stored_scales.dtype.itemsize == 1:
            check_scales(scale, stored_scales.view(np.uint8))
        factors = scale_values(stored_scales)
        values: npt.NDArray[np.float32] = read(weight.name).astype(np.float32)
        if repeats is not None:
            return _times_blocks(values, factors, repeats)
        if is_by_row:
            values *= factors.reshape(*factors.shape[: len(lead)], outputs, 1)
        elif factors.size == 1:
            values *= factors.reshape(())
        else:
            values *= factors.reshape(*lead, 1, 1)
        return values

    return DerivedTensor(
        derived_info(weight.name, "F32", weight.shape, weight, scale, *unused), compute
    )


def scale_values(scales: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Scales as float32; bytes are exponents of two with a bias of 127."""
    if scales.dtype == np.uint8:
        return np.exp2(scales.astype(np.float32) - 127)
    return scales.astype(np.float32)


def _times_blocks(
    values: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], block: tuple[int, int]
) -> npt.NDArray[np.float32]:
    inputs = values.shape[-1]
    # A block may be said to be far larger than the matrix.
    columns = np.repeat(scales, min(block[1], inputs), axis=-1)[..., :inputs]
    for row in range(scales.shape[-2]):
        values[..., row * block[0] : (row + 1) * block[0], :] *= columns[..., row : row + 1, :]
    return values

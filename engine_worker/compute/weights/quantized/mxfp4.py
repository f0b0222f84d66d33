"""MXFP4: fp4 numbers (E2M1) in blocks of 32 that share a power of two, as GPT-OSS keeps experts.

Source: OCP Microscaling Formats 1.0, 5.3 and 6.3. Every value but those beyond bfloat16's range is
exact in bfloat16.
"""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.integer_blocks import (
    FP4_VALUES,
    SCALE_DTYPES,
    BlockFormat,
    BlockMatrix,
)
from engine_worker.compute.weights.quantized.derived import (
    DerivedTensor,
    StoredBlocks,
    StoredTensors,
    broken,
    derived_info,
    of_shape,
    of_type,
)
from engine_worker.compute.weights.tensor_info import ReadTensor, TensorInfo

BLOCK_VALUES: Final = 32
"""Numbers that share a scale."""
_BLOCK_BYTES: Final = BLOCK_VALUES // 2
_NOT_A_NUMBER: Final = 255
MXFP4: Final = BlockFormat(4, BLOCK_VALUES, BLOCK_VALUES, "float8_e8m0fnu", codes="fp4")
_CHUNK_BYTES: Final = 2**22


def read_mxfp4(stored: StoredTensors, _: ConfigFields) -> Iterator[DerivedTensor]:
    """`X_blocks` [E, out, G, 16] and `X_scales` [E, out, G] become X [E, in, out], as in bfloat16.

    Raises:
        CheckpointError: A part is missing, or the shapes disagree.
    """
    for name, blocks in stored.ending_in("_blocks"):
        of_type(blocks, "U8")
        if len(blocks.shape) != 4 or blocks.shape[-1] != _BLOCK_BYTES:
            raise broken(
                blocks, f"has shape {list(blocks.shape)}, blocks are [experts, rows, groups, 16]"
            )
        scales = of_shape(stored.need(f"{name}_scales", blocks, "U8"), blocks.shape[:-1])
        experts, outputs, groups, _size = blocks.shape
        shape = (experts, groups * BLOCK_VALUES, outputs)
        yield DerivedTensor(
            derived_info(name, "BF16", shape, blocks, scales),
            _reader(blocks, scales),
            StoredBlocks(MXFP4, partial(_read_expert, blocks, scales), is_transposed=True),
        )


def _reader(blocks: TensorInfo, scales: TensorInfo) -> Any:
    def compute(read: ReadTensor) -> npt.NDArray[Any]:
        exponents = read(scales.name)
        check_scales(scales, exponents)
        values = dequantize_mxfp4(read(blocks.name), exponents)
        return np.swapaxes(values, -1, -2)

    return compute


def _read_expert(blocks: TensorInfo, scales: TensorInfo, read: ReadTensor) -> BlockMatrix:
    exponents = read(scales.name)
    check_scales(scales, exponents)
    codes = codes_of(read(blocks.name)).reshape(len(exponents), -1)
    return BlockMatrix(MXFP4, codes, exponents.view(SCALE_DTYPES[MXFP4.scale_dtype]))


def codes_of(octets: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The two codes of each byte side by side: [.., 2 n] of [.., n]."""
    codes: npt.NDArray[np.uint8] = np.stack([octets & 15, octets >> 4], axis=-1)
    return codes.reshape(*octets.shape[:-1], -1)


def check_scales(tensor: TensorInfo, exponents: npt.NDArray[np.uint8]) -> None:
    """Refuses a power of two that is not a number.

    Raises:
        CheckpointError: One is 255.
    """
    if (exponents == _NOT_A_NUMBER).any():
        raise broken(tensor, "holds a scale of 255, which is not a number")


def dequantize_mxfp4(
    blocks: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]
) -> npt.NDArray[Any]:
    """Numbers of blocks, in bfloat16.

    Args:
        blocks: [..., G, 16]; the low half of a byte is the first of its two numbers.
        scales: [..., G], exponents of two with a bias of 127; 255 gives NaN.

    Returns:
        [..., G * 32] bfloat16.
    """
    pairs = np.empty((scales.size, _BLOCK_BYTES), np.uint32)
    rows, exponents = blocks.reshape(-1, _BLOCK_BYTES), scales.reshape(-1, 1)
    step = _CHUNK_BYTES // _BLOCK_BYTES
    for start in range(0, len(rows), step):
        index = exponents[start : start + step].astype(np.uint16) << 8
        index = index | rows[start : start + step]
        np.take(_pairs_by_scale_and_byte(), index, out=pairs[start : start + step])
    numbers: npt.NDArray[Any] = pairs.view(ml_dtypes.bfloat16)
    return numbers.reshape(*scales.shape[:-1], -1)


@cache
def _pairs_by_scale_and_byte() -> npt.NDArray[np.uint32]:
    """[65536]: the two bfloat16 numbers of a byte under a scale, side by side."""
    codes = np.arange(256, dtype=np.uint8)
    pairs = np.stack([FP4_VALUES[codes & 15], FP4_VALUES[codes >> 4]], axis=-1)
    scales = np.arange(256, dtype=np.float64) - 127
    factors = np.exp2(scales)
    factors[_NOT_A_NUMBER] = np.nan
    with np.errstate(over="ignore", invalid="ignore"):
        values = (pairs[None] * factors[:, None, None]).astype(np.float32)
        numbers = values.astype(ml_dtypes.bfloat16)
    table: npt.NDArray[np.uint32] = np.ascontiguousarray(numbers).reshape(-1).view(np.uint32)
    return table

"""How matrices are packed for the native kernels: once, when a model is loaded.

A packed matrix is one uint8 array [num_panels, panel_bytes]. A panel holds the weights of 32
outputs in the order in which a product reads them, with their scales behind them; its layout is
the same for every instruction level (docs/kernels.md has a picture, `calls.h` the sizes).
"""

from enum import StrEnum
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from engine_worker.compute.backends.cpu_native.library import load
from engine_worker.compute.models.integer_blocks import SCALE_DTYPES, BlockFormat, BlockMatrix

LAYOUT_VERSION: Final = 1
"""Of everything below; files of packed weights carry it."""
PANEL_OUTPUTS: Final = 32
GROUP_SIZES: Final = (32, 64, 128)
"""Inputs that share an int4 scale."""
_ROW_BYTES: Final = PANEL_OUTPUTS * 4
_OK, _NOT_FINITE = 0, 1


class MatrixKind(StrEnum):
    """What a matrix is used for; `gate_up` has its two halves interleaved by 16 outputs."""

    LINEAR = "linear"
    GATE_UP = "gate_up"
    TABLE = "table"


WEIGHT_TYPES: Final = ("float32", "bfloat16", "int8", "int4")
"""In the order of `WeightType` in `calls.h`, which has `BLOCK_TYPES` behind them."""
BLOCK_TYPES: Final = ("int8", "int4", "fp4", "iq4", "int6")
"""`BlockFormat.numbers_type`s in the order of `WeightType`, behind `WEIGHT_TYPES`."""
MAX_BLOCK_INPUTS: Final = 65536
_MAX_SCALED_INPUTS: Final = 256
_INPUTS_BY_LANE: Final = {"float32": 1, "bfloat16": 2, "int8": 4}


def panel_bytes(num_inputs: int, weight_type: str, group_size: int = 64) -> int:
    """Bytes of one panel of a matrix with so many inputs."""
    if weight_type == "int4":
        num_groups = -(-num_inputs // group_size)
        return num_groups * (group_size // 8 * _ROW_BYTES + PANEL_OUTPUTS * 2)
    num_lanes = -(-num_inputs // _INPUTS_BY_LANE[weight_type])
    return num_lanes * _ROW_BYTES + (PANEL_OUTPUTS * 4 if weight_type == "int8" else 0)


def block_type(form: BlockFormat) -> int:
    """The number in `WeightType` of a matrix in blocks."""
    return len(WEIGHT_TYPES) + BLOCK_TYPES.index(form.numbers_type)


def block_panel_bytes(num_inputs: int, form: BlockFormat) -> int:
    """Bytes of one panel of a matrix in blocks."""
    words = form.block_size * form.bits // 32 * _ROW_BYTES
    groups = form.block_size // form.group_size * (form.has_scales + form.has_minima)
    floats = SCALE_DTYPES[form.scale_dtype].itemsize * (1 + form.has_minima)
    return num_inputs // form.block_size * (words + PANEL_OUTPUTS * (groups + floats))


def are_blocks_covered(num_inputs: int, form: BlockFormat) -> bool:
    """Whether the kernels multiply a matrix of so many inputs in a format."""
    most = _MAX_SCALED_INPUTS if form.has_scales else MAX_BLOCK_INPUTS
    return (
        form.group_size % 16 == 0
        and (form.has_scales or form.block_size == form.group_size)
        and form.block_size <= most
        and num_inputs % form.block_size == 0
    )


def packed_parts(
    shape: tuple[int, int], weight_type: str, kind: str, group_size: int = 64
) -> tuple[tuple[tuple[int, int], np.dtype[Any]], ...]:
    """Shapes and types of what `pack` returns.

    Args:
        shape: (outputs, inputs) of the matrix.
        weight_type: One of `WEIGHT_TYPES`.
        kind: A `MatrixKind`.
        group_size: Of int4, one of `GROUP_SIZES`.
    """
    _check(weight_type, group_size)
    outputs, inputs = shape
    size = panel_bytes(inputs, weight_type, group_size)
    return (((_num_panels(outputs, kind), size), np.dtype(np.uint8)),)


def packed_block_parts(
    shape: tuple[int, int], form: BlockFormat, kind: str
) -> tuple[tuple[tuple[int, int], np.dtype[Any]], ...]:
    """Shapes and types of what `pack_blocks` returns; arguments as in `packed_parts`."""
    outputs, inputs = shape
    panels = _num_panels(outputs, kind), block_panel_bytes(inputs, form)
    return ((panels, np.dtype(np.uint8)),)


def _num_panels(outputs: int, kind: str) -> int:
    if MatrixKind(kind) is MatrixKind.GATE_UP:
        return -(-(outputs // 2) // (PANEL_OUTPUTS // 2))
    return -(-outputs // PANEL_OUTPUTS)


def pack(
    values: npt.NDArray[Any], weight_type: str, kind: str, *, group_size: int = 64
) -> tuple[npt.NDArray[np.uint8], ...]:
    """Packs, and quantises where the type asks for it, with all threads of the library.

    int8 has one scale for each output: its largest weight becomes 127. int4 has one for each
    output and group of inputs, that of a few candidates with the least squared error.

    Args:
        values: [outputs, inputs] float32 or bfloat16.
        weight_type: One of `WEIGHT_TYPES`.
        kind: A `MatrixKind`.
        group_size: Of int4, one of `GROUP_SIZES`.

    Raises:
        ValueError: A weight is NaN or infinite (also: too large for bfloat16).
        NativeUnavailableError: There is no library.
    """
    return (pack_experts(values[None], weight_type, kind, group_size=group_size)[0][0],)


def pack_experts(
    values: npt.NDArray[Any], weight_type: str, kind: str, *, group_size: int = 64
) -> tuple[npt.NDArray[np.uint8], ...]:
    """Packs [E, outputs, inputs] as E matrices one behind the other: [E, panels, panel bytes].

    Args and Raises: As in `pack`.
    """
    num_experts, *rest = values.shape
    (shape, _), *_ = packed_parts((rest[0], rest[1]), weight_type, kind, group_size)
    is_bfloat16 = values.dtype == ml_dtypes.bfloat16
    if not is_bfloat16 and values.dtype != np.float32:
        raise ValueError(f"weights to pack are float32 or bfloat16, not {values.dtype}")
    values = np.ascontiguousarray(values)
    packed = aligned_empty((num_experts, *shape))
    for matrix, place in zip(values, packed, strict=True):
        status = load().handle.penstock_pack(
            matrix.ctypes.data,
            is_bfloat16,
            *matrix.shape,
            WEIGHT_TYPES.index(weight_type),
            MatrixKind(kind) is MatrixKind.GATE_UP,
            group_size,
            place.ctypes.data,
            place.nbytes,
        )
        if status == _NOT_FINITE:
            raise ValueError(f"holds a weight that is not a finite number in {weight_type}")
        if status != _OK:
            raise ValueError(f"a matrix {matrix.shape} can't be packed as {weight_type} {kind}")
    return (packed,)


def pack_heads(
    values: npt.NDArray[Any], plain_dim: int, weight_type: str
) -> tuple[npt.NDArray[np.uint8], ...]:
    """Packs the matrices of each head of latent attention: [H, bytes].

    First that which brings queries to latents, then that which makes values of these, from
    `head_offset` on.

    Args:
        values: [H, plain_dim + value_dim, latent] float32 or bfloat16.
        plain_dim: Of queries.
        weight_type: `float32` or `bfloat16`.

    Raises: As in `pack`.
    """
    num_heads = len(values)
    of_queries = values[:, :plain_dim].swapaxes(1, 2)
    both = [
        pack_experts(matrices, weight_type, MatrixKind.LINEAR)[0].reshape(num_heads, -1)
        for matrices in (of_queries, values[:, plain_dim:])
    ]
    packed = aligned_empty((num_heads, sum(part.shape[1] for part in both)))
    np.concatenate(both, axis=1, out=packed)
    return (packed,)


def head_offset(latent_dim: int, plain_dim: int, weight_type: str) -> int:
    """Where the second matrix of a head begins, in bytes; see `pack_heads`."""
    ((panels, size), _), *_ = packed_parts((latent_dim, plain_dim), weight_type, MatrixKind.LINEAR)
    return panels * size


def pack_blocks(matrix: BlockMatrix, kind: str) -> tuple[npt.NDArray[np.uint8], ...]:
    """Packs numbers in blocks as they are: nothing is quantised, rounded or lost.

    Args:
        matrix: In a format that `are_blocks_covered` says yes to.
        kind: A `MatrixKind`.

    Raises:
        ValueError: A scale is NaN or infinite, or the matrix can't be packed so.
        NativeUnavailableError: There is no library.
    """
    outputs, inputs = matrix.integers.shape
    ((panels, _),) = packed_block_parts((outputs, inputs), matrix.format, kind)
    packed = aligned_empty(panels)
    pack_blocks_into(packed, matrix, kind)
    return (packed,)


def pack_blocks_into(packed: npt.NDArray[np.uint8], matrix: BlockMatrix, kind: str) -> None:
    """As `pack_blocks`, to where the panels belong.

    Args:
        packed: Of the shape that `packed_block_parts` says, in C order.
        matrix: As in `pack_blocks`.
        kind: As in `pack_blocks`.

    Raises:
        ValueError: As in `pack_blocks`.
        NativeUnavailableError: There is no library.
    """
    form, shape = matrix.format, matrix.integers.shape
    if not matrix.is_finite():
        raise ValueError("holds a scale that is not a finite number")
    if not are_blocks_covered(shape[1], form):
        raise ValueError(f"has {shape[1]} inputs, which can't be packed as {form.name}")
    parts = [
        None if part is None else np.ascontiguousarray(part)
        for part in (
            matrix.integers,
            matrix.group_scales,
            matrix.minima,
            matrix.scales,
            matrix.minimum_scales,
        )
    ]
    status = load().handle.penstock_pack_blocks(
        *(None if part is None else part.ctypes.data for part in parts),
        *shape,
        block_type(form),
        MatrixKind(kind) is MatrixKind.GATE_UP,
        form.group_size,
        form.block_size,
        list(SCALE_DTYPES).index(form.scale_dtype),
        packed.ctypes.data,
        packed.nbytes,
    )
    if status != _OK:
        raise ValueError(f"has shape {list(shape)}, which can't be packed as {form.name} {kind}")


def aligned_empty(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Bytes that start at a multiple of 64, as the kernels ask for and jax takes without a copy."""
    size = int(np.prod(shape))
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].reshape(shape)


def unpack(
    packed: npt.NDArray[np.uint8],
    shape: tuple[int, int],
    weight_type: str,
    kind: str,
    *,
    group_size: int = 64,
) -> npt.NDArray[np.float32]:
    """The numbers that a packed matrix stands for: [outputs, inputs] float32.

    Args:
        packed: From `pack`.
        shape: (outputs, inputs) before it was packed.
        weight_type: As packed.
        kind: As packed.
        group_size: As packed.
    """
    _check(weight_type, group_size)
    outputs, inputs = shape
    num_panels = packed.shape[0]
    if weight_type == "int4":
        lanes = _int4_values(packed, group_size)
    else:
        end = -(-inputs // _INPUTS_BY_LANE[weight_type]) * _ROW_BYTES
        words = np.ascontiguousarray(packed[:, :end]).reshape(num_panels, -1, PANEL_OUTPUTS, 4)
        scales = np.ascontiguousarray(packed[:, end:]).view(np.float32)
        lanes = _values(words, weight_type, scales)
    # [panel, group, output, input] to [panel, output, input].
    rows = lanes.transpose(0, 2, 1, 3).reshape(num_panels, PANEL_OUTPUTS, -1)[:, :, :inputs]
    if MatrixKind(kind) is MatrixKind.GATE_UP:
        half = PANEL_OUTPUTS // 2
        gate, up = (part.reshape(-1, inputs) for part in (rows[:, :half], rows[:, half:]))
        inner = outputs // 2
        return np.concatenate([gate[:inner], up[:inner]])
    return rows.reshape(-1, inputs)[:outputs]


def _values(
    words: npt.NDArray[np.uint8], weight_type: str, scales: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """[panel, lane group, output, inputs of a lane] float32."""
    numbers: npt.NDArray[np.float32]
    if weight_type == "float32":
        numbers = words.view(np.float32)
    elif weight_type == "bfloat16":
        numbers = words.view(ml_dtypes.bfloat16).astype(np.float32)
    else:
        numbers = (words.astype(np.float32) - np.float32(128)) * scales[:, None, :, None]
    return numbers


def _int4_values(packed: npt.NDArray[np.uint8], group_size: int) -> npt.NDArray[np.float32]:
    num_panels, words_bytes = packed.shape[0], group_size // 8 * _ROW_BYTES
    groups = packed.reshape(num_panels, -1, words_bytes + PANEL_OUTPUTS * 2)
    words = groups[:, :, :words_bytes].reshape(num_panels, -1, group_size // 8, PANEL_OUTPUTS, 4)
    nibbles = np.stack([words & 15, words >> 4], axis=4).astype(np.float32) - np.float32(8)
    scales = np.ascontiguousarray(groups[:, :, words_bytes:]).view(ml_dtypes.bfloat16)
    scaled: npt.NDArray[np.float32] = nibbles * scales.astype(np.float32)[:, :, None, :, None, None]
    return scaled.reshape(num_panels, -1, PANEL_OUTPUTS, 8)


def _check(weight_type: str, group_size: int) -> None:
    if weight_type not in WEIGHT_TYPES:
        raise ValueError(f"no weight type {weight_type!r}; there are {', '.join(WEIGHT_TYPES)}")
    if weight_type == "int4" and group_size not in GROUP_SIZES:
        raise ValueError(f"the group size of int4 is 32, 64 or 128, not {group_size}")

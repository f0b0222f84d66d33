"""compressed-tensors: what LLM Compressor writes (packed integers, int8, fp8, fp4).

What a module is follows from its tensors: the config's groups and ignore list say only which
modules were quantised. Source: the package compressed-tensors 0.20, `compressors/`.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

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
    block_format,
    broken,
    derived_info,
    matrix,
    of_shape,
    of_type,
)
from engine_worker.compute.weights.quantized.fp8 import FLOAT8, scale_values, scaled_weight
from engine_worker.compute.weights.quantized.gptq import column_groups
from engine_worker.compute.weights.quantized.integers import (
    WORD_BITS,
    num_words,
    scaled,
    unpack,
)
from engine_worker.compute.weights.quantized.mxfp4 import check_scales, codes_of
from engine_worker.compute.weights.safetensors_files import read_bytes
from engine_worker.compute.weights.tensor_info import STORED_DTYPES, ReadTensor, TensorInfo
from engine_worker.errors import UnsupportedFormatError

_FORMATS: Final = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mixed-precision",
    "dense",
)
_PACKED_BITS: Final = (2, 4, 8)
"""Others are packed in two ways, by the library's version, which the file doesn't tell."""
_SCALES: Final = ("F32", "F16", "BF16")
_BLOCK: Final = (128, 128)
_ACTIVATIONS: Final = (
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
    "k_scale",
    "v_scale",
)
_SHAPE_VALUES: Final = 2
_FP4_GROUPS: Final = (16, 32)


def read_compressed_tensors(stored: StoredTensors, fields: ConfigFields) -> Iterator[DerivedTensor]:
    """Modules with `weight_packed`, or with a `weight` in int8 or fp8 and its `weight_scale`.

    Raises:
        UnsupportedFormatError: A format, a sparsity or a rotation of weights that is not read.
        CheckpointError: A part is missing, or the shapes disagree.
    """
    _check_config(fields)
    block = _block_of(fields)
    for module, packed in stored.ending_in(".weight_packed"):
        if packed.dtype == "U8":
            yield fp4_module(stored, module, packed, "weight_global_scale", divides=True)
        else:
            yield _packed_module(stored, module, packed)
    for module, weight in stored.ending_in(".weight"):
        if weight.dtype == "I8":
            yield _int8_module(stored, module, weight)
        elif weight.dtype in FLOAT8:
            scale = stored.need(f"{module}.weight_scale", weight)
            unused = [*_unused(stored, module), stored.get(f"{module}.weight_zero_point")]
            yield scaled_weight(weight, scale, block, *unused)


def _check_config(fields: ConfigFields) -> None:
    names = {fields.text("format", "dense")}
    for name, group in (fields.mapping("config_groups") or {}).items():
        if isinstance(group, dict):
            names.add(ConfigFields(group, f"config_groups: {name}").text("format", "dense"))
    other = sorted(names - set(_FORMATS))
    if other:
        raise UnsupportedFormatError(
            f"the weights are in the format {other[0]!r:.80} of compressed-tensors, which is not "
            f"read; {', '.join(_FORMATS)} are. Use such a checkpoint or the original model"
        )
    sparsity = ConfigFields(fields.mapping("sparsity_config") or {}).text("format", "dense")
    if sparsity != "dense":
        raise UnsupportedFormatError(
            f"the weights are stored sparse ({sparsity!r:.80}), which is not read; use the "
            "original model"
        )
    if (fields.mapping("transform_config") or {}).get("config_groups"):
        raise UnsupportedFormatError(
            "the weights are rotated (transform_config), which is not computed; use a checkpoint "
            "without transforms or the original model"
        )


def _block_of(fields: ConfigFields) -> tuple[int, int]:
    """Rows and columns that share a scale, where any group says so."""
    for name, group in (fields.mapping("config_groups") or {}).items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and weights.get("block_structure") is not None:
            inner = ConfigFields(weights, f"config_groups: {name}: weights")
            block = inner.integers("block_structure") or ()
            if len(block) != 2 or 0 in block:
                raise inner.error("block_structure", "must be two numbers above 0", list(block))
            return block[0], block[1]
    return _BLOCK


def _unused(stored: StoredTensors, module: str) -> list[TensorInfo | None]:
    return [stored.get(f"{module}.{name}") for name in _ACTIVATIONS]


def _scale_groups(scale: TensorInfo, outputs: int, inputs: int) -> int:
    """How many scales a row has; all may share one."""
    of_type(scale, *_SCALES)
    if scale.shape in ((), (1,), (1, 1), (outputs,)):
        return 1
    rows, groups = matrix(scale)
    if rows != outputs or groups > inputs or inputs % groups:
        raise broken(
            scale,
            f"has shape {list(scale.shape)}, which doesn't divide a weight {[outputs, inputs]} "
            "into groups",
        )
    return groups


def _as_columns(values: npt.NDArray[Any], groups: int) -> npt.NDArray[Any]:
    """[out or 1, G]."""
    return values.reshape(-1, groups)


def _of_each_row(values: npt.NDArray[Any], outputs: int, groups: int) -> npt.NDArray[Any]:
    """[out, G], where all rows may share one."""
    return np.broadcast_to(_as_columns(values, groups), (outputs, groups))


def _order_of(stored: StoredTensors, module: str, inputs: int) -> TensorInfo | None:
    """The tensor that says which group each input is of, where activations order them."""
    g_idx = stored.get(f"{module}.weight_g_idx")
    return g_idx if g_idx is None else of_shape(of_type(g_idx, "I32", "I64"), (inputs,))


def _columns(
    g_idx: TensorInfo, order: npt.NDArray[Any], groups: int
) -> npt.NDArray[np.int64] | None:
    """The group of each input, as `scaled` takes it."""
    # -1 throughout is what the library initialises it with: no order of activations.
    return None if (order == -1).all() else column_groups(g_idx, order, groups)


def _is_in_order(g_idx: TensorInfo | None, groups: int) -> bool:
    if g_idx is None:
        return True
    order = read_bytes(g_idx).reshape(-1).view(STORED_DTYPES[g_idx.dtype])
    return _columns(g_idx, order, groups) is None


def _packed_module(stored: StoredTensors, module: str, packed: TensorInfo) -> DerivedTensor:
    outputs, words = matrix(of_type(packed, "I32"))
    scale = stored.need(f"{module}.weight_scale", packed, *_SCALES)
    shape = of_shape(stored.need(f"{module}.weight_shape", packed, "I64", "I32"), (_SHAPE_VALUES,))
    stated = stored.values(shape)
    inputs = int(stated[1])
    bits = words * WORD_BITS // inputs if 0 < inputs <= words * WORD_BITS else 0
    if int(stated[0]) != outputs or bits not in _PACKED_BITS or words != num_words(inputs, bits):
        raise broken(
            packed,
            f"has shape {list(packed.shape)}, which is no weight {[int(n) for n in stated]} of "
            f"{', '.join(map(str, _PACKED_BITS))} bits",
        )
    groups = _scale_groups(scale, outputs, inputs)
    zero_point = stored.get(f"{module}.weight_zero_point")
    if zero_point is not None:
        of_shape(of_type(zero_point, "I32"), (num_words(outputs, bits), groups))
    g_idx = _order_of(stored, module, inputs)
    offset = 2 ** (bits - 1)

    def compute(read: ReadTensor) -> npt.NDArray[np.float32]:
        zeros: npt.NDArray[Any] = np.full((1, groups), offset)
        if zero_point is not None:
            # Both are stored with the offset.
            zeros = unpack(read(zero_point.name).T, bits, outputs).T
        columns = None if g_idx is None else _columns(g_idx, read(g_idx.name), groups)
        scales = _as_columns(read(scale.name).astype(np.float32), groups)
        return scaled(unpack(read(packed.name), bits, inputs), scales, zeros, columns)

    parts = (packed, scale, shape, zero_point, g_idx, *_unused(stored, module))
    info = derived_info(f"{module}.weight", "F32", (outputs, inputs), *parts)
    form = block_format(bits, inputs, groups, scale, has_minima=zero_point is not None)
    if form is None:
        return DerivedTensor(info, compute)

    def read_blocks(read: ReadTensor) -> BlockMatrix:
        integers = unpack(read(packed.name), bits, inputs)
        scales = _of_each_row(read(scale.name), outputs, groups)
        if zero_point is None:
            # Stored with the offset of their own bits.
            return BlockMatrix(form, integers + np.uint8(form.zero - offset), scales)
        zeros = unpack(read(zero_point.name).T, bits, outputs).T
        minima = (zeros.astype(np.int16) - form.zero).astype(np.int8)
        return BlockMatrix(form, integers, scales, None, minima, scales)

    blocks = StoredBlocks(form, read_blocks, partial(_is_in_order, g_idx, groups))
    return DerivedTensor(info, compute, blocks)


def _int8_module(stored: StoredTensors, module: str, weight: TensorInfo) -> DerivedTensor:
    outputs, inputs = matrix(weight)
    scale = stored.need(f"{module}.weight_scale", weight, *_SCALES)
    groups = _scale_groups(scale, outputs, inputs)
    zero_point = stored.get(f"{module}.weight_zero_point")
    if zero_point is not None:
        of_shape(of_type(zero_point, "I8"), scale.shape)
    g_idx = _order_of(stored, module, inputs)

    def compute(read: ReadTensor) -> npt.NDArray[np.float32]:
        zeros = None if zero_point is None else _as_columns(read(zero_point.name), groups)
        columns = None if g_idx is None else _columns(g_idx, read(g_idx.name), groups)
        scales = _as_columns(read(scale.name).astype(np.float32), groups)
        return scaled(read(weight.name), scales, zeros, columns)

    parts = (weight, scale, zero_point, g_idx, *_unused(stored, module))
    info = derived_info(weight.name, "F32", weight.shape, *parts)
    form = block_format(8, inputs, groups, scale, has_minima=zero_point is not None)
    if form is None:
        return DerivedTensor(info, compute)

    def read_blocks(read: ReadTensor) -> BlockMatrix:
        integers = read(weight.name).view(np.uint8) ^ np.uint8(128)
        scales = _of_each_row(read(scale.name), outputs, groups)
        if zero_point is None:
            return BlockMatrix(form, integers, scales)
        zeros = _of_each_row(read(zero_point.name), outputs, groups)
        return BlockMatrix(form, integers, scales, None, zeros, scales)

    blocks = StoredBlocks(form, read_blocks, partial(_is_in_order, g_idx, groups))
    return DerivedTensor(info, compute, blocks)


def fp4_module(
    stored: StoredTensors, module: str, packed: TensorInfo, of_all: str, *, divides: bool
) -> DerivedTensor:
    """NVFP4 (16 numbers share an fp8 scale, all a float32 one) or MXFP4 (32 share an exponent).

    Args:
        stored: The checkpoint's tensors.
        module: What stands before their names.
        packed: [out, in / 2] octets of two numbers, the first in the lower half.
        of_all: The name of the one scale, behind the module.
        divides: Whether the others are divided by it, or multiplied with it.

    Raises:
        CheckpointError: A part is missing, or the shapes disagree.
    """
    outputs, inputs = matrix(packed)[0], packed.shape[1] * 2
    scale = stored.need(f"{module}.weight_scale", packed, "F8_E4M3", "F8_E8M0", "U8")
    of_shape(scale, *((outputs, inputs // size) for size in _FP4_GROUPS if inputs % size == 0))
    overall = stored.get(f"{module}.{of_all}")
    if overall is not None:
        of_shape(of_type(overall, "F32"), (1,), ())
    elif scale.dtype == "F8_E4M3":
        overall = stored.need(f"{module}.{of_all}", packed, "F32")
    g_idx = _order_of(stored, module, inputs)

    def read_scales(read: ReadTensor) -> npt.NDArray[np.float32]:
        stored_scales = read(scale.name)
        if stored_scales.dtype == np.uint8:
            check_scales(scale, stored_scales)
        scales = scale_values(stored_scales)
        if overall is None:
            return scales
        factor = np.float32(read(overall.name).reshape(()))
        if not factor > 0:
            raise broken(overall, f"is {factor}, not a scale")
        return scales / factor if divides else scales * factor

    def compute(read: ReadTensor) -> npt.NDArray[np.float32]:
        columns = None if g_idx is None else _columns(g_idx, read(g_idx.name), scale.shape[1])
        return scaled(FP4_VALUES[codes_of(read(packed.name))], read_scales(read), None, columns)

    groups = scale.shape[1]
    is_power = overall is None and scale.dtype != "F8_E4M3"
    scale_dtype = "float8_e8m0fnu" if is_power else "float32"
    form = BlockFormat(4, inputs // groups, inputs // groups, scale_dtype, codes="fp4")

    def read_blocks(read: ReadTensor) -> BlockMatrix:
        scales = read_scales(read).astype(SCALE_DTYPES[scale_dtype])
        return BlockMatrix(form, codes_of(read(packed.name)), scales)

    parts = (packed, scale, overall, g_idx, *_unused(stored, module))
    info = derived_info(f"{module}.weight", "F32", (outputs, inputs), *parts)
    blocks = StoredBlocks(form, read_blocks, partial(_is_in_order, g_idx, groups))
    return DerivedTensor(info, compute, blocks)

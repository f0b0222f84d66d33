"""AWQ's GEMM format: four bits, packed along the outputs in an order of its own.

Source: AutoAWQ, awq/modules/linear/gemm.py and awq/utils/packing_utils.py.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.integer_blocks import BlockMatrix
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
from engine_worker.compute.weights.quantized.integers import scaled, unpack
from engine_worker.compute.weights.tensor_info import ReadTensor, TensorInfo
from engine_worker.errors import UnsupportedFormatError

_BITS: Final = 4
_IN_WORD: Final = 8
_ORDER: Final = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""Which four bits of a word hold each of its eight outputs."""
SCALE_TYPES: Final = ("F16", "BF16", "F32")


def read_awq(stored: StoredTensors, fields: ConfigFields) -> Iterator[DerivedTensor]:
    """`qweight` [in, out/8], `qzeros` [G, out/8] and `scales` [G, out] of a module.

    Raises:
        UnsupportedFormatError: Another number of bits, or another packing than that of GEMM.
        CheckpointError: A part is missing, or the shapes disagree.
    """
    bits = fields.size("w_bit" if fields.present("w_bit") else "bits", _BITS)
    version = fields.text("version", fields.text("format", "gemm")).lower()
    if bits != _BITS or version != "gemm":
        raise UnsupportedFormatError(
            f"AWQ with {bits} bits in the format {version!r:.40} is not read, only that with 4 "
            "bits in the format 'gemm'; use such a checkpoint or the original model"
        )
    group_size = read_group_size(
        fields, "q_group_size" if fields.present("q_group_size") else "group_size"
    )
    for module, qweight in stored.ending_in(".qweight"):
        of_type(qweight, "I32")
        inputs, words = matrix(qweight)
        outputs = words * _IN_WORD
        scales = stored.need(f"{module}.scales", qweight, *SCALE_TYPES)
        groups, _ = matrix(scales)
        of_shape(scales, (groups, outputs))
        check_groups(scales, groups, inputs, group_size)
        qzeros = of_shape(stored.need(f"{module}.qzeros", qweight, "I32"), (groups, words))
        yield DerivedTensor(
            derived_info(f"{module}.weight", "F32", (outputs, inputs), qweight, scales, qzeros),
            _reader(qweight, scales, qzeros, inputs, group_size),
            _blocks(qweight, scales, qzeros, inputs, groups, group_size),
        )


def read_group_size(fields: ConfigFields, name: str) -> int:
    """Inputs that share a scale; -1 is all.

    Raises:
        ModelConfigError: It is missing, or no such number.
    """
    group_size = fields.size(name, minimum=-1)
    if group_size == 0:
        raise fields.error(name, "must be -1 or a number of inputs", group_size)
    return group_size


def num_groups(inputs: int, group_size: int) -> int:
    """Groups of a row; the last may be narrower."""
    return 1 if group_size == -1 else -(-inputs // group_size)


def check_groups(scales: TensorInfo, groups: int, inputs: int, group_size: int) -> None:
    """Refuses scales that are not one a group.

    Raises:
        CheckpointError: They aren't.
    """
    if groups != num_groups(inputs, group_size):
        raise broken(
            scales, f"has {groups} groups, but {inputs} inputs are in groups of {group_size}"
        )


def _reader(
    qweight: TensorInfo, scales: TensorInfo, qzeros: TensorInfo, inputs: int, group_size: int
) -> Any:
    # The last group is narrower where the size doesn't divide the inputs.
    is_even = group_size == -1 or inputs % group_size == 0

    def compute(read: ReadTensor) -> npt.NDArray[np.float32]:
        return scaled(
            _in_order(read(qweight.name)).T,
            read(scales.name).astype(np.float32).T,
            _in_order(read(qzeros.name)).T,
            None if is_even else np.arange(inputs) // group_size,
        )

    return compute


def _blocks(
    qweight: TensorInfo,
    scales: TensorInfo,
    qzeros: TensorInfo,
    inputs: int,
    groups: int,
    group_size: int,
) -> StoredBlocks | None:
    form = block_format(_BITS, inputs, groups, scales, has_minima=True, group_size=group_size)
    if form is None:
        return None

    def read_blocks(read: ReadTensor) -> BlockMatrix:
        values = read(scales.name).T
        zeros = _in_order(read(qzeros.name)).T.astype(np.int8)
        return BlockMatrix(form, _in_order(read(qweight.name)).T, values, None, zeros, values)

    return StoredBlocks(form, read_blocks)


def _in_order(words: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """[rows, out] of [rows, out / 8] words."""
    rows, count = words.shape
    fields = unpack(words, _BITS, count * _IN_WORD).reshape(rows, count, _IN_WORD)
    return fields[:, :, _ORDER].reshape(rows, -1)

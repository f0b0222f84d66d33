"""GPTQ: 2, 3, 4 or 8 bits, packed along the inputs, whose groups may be in any order.

Source: AutoGPTQ and GPTQModel, `pack_original` and `dequantize_weight`. In the first version of the
format zeros are stored less one.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.integer_blocks import BlockMatrix
from engine_worker.compute.weights.quantized.awq import (
    SCALE_TYPES,
    check_groups,
    num_groups,
    read_group_size,
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
from engine_worker.compute.weights.quantized.integers import (
    WORD_BITS,
    num_words,
    scaled,
    unpack,
)
from engine_worker.compute.weights.safetensors_files import read_bytes
from engine_worker.compute.weights.tensor_info import STORED_DTYPES, ReadTensor, TensorInfo
from engine_worker.errors import UnsupportedFormatError

_BITS: Final = (2, 3, 4, 8)
FIRST: Final = "gptq"
"""The version of the format that a config which doesn't say is of: zeros are stored less one."""
SECOND: Final = "gptq_v2"
"""Zeros stand as they are."""
_ONES: Final = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
"""A one in each integer of a word."""


def read_gptq(
    stored: StoredTensors, fields: ConfigFields, version: str = FIRST
) -> Iterator[DerivedTensor]:
    """`qweight` [in*bits/32, out], `qzeros` [G, out*bits/32], `scales` [G, out], `g_idx` [in].

    Args:
        stored: What the files hold.
        fields: What the quantiser says.
        version: Where it doesn't say which one it is.

    Raises:
        UnsupportedFormatError: Another number of bits, or packed for a kernel.
        CheckpointError: A part is missing, or the shapes disagree.
    """
    bits = fields.size("bits", 4)
    form = fields.text("checkpoint_format", fields.text("format", version)).lower()
    if bits not in _BITS or form not in (FIRST, SECOND) or fields.flag("is_marlin_format", False):
        raise UnsupportedFormatError(
            f"GPTQ with {bits} bits in the format {form!r:.40} is not read, only that with "
            f"{', '.join(map(str, _BITS))} bits in the formats '{FIRST}' and '{SECOND}'; use "
            "such a checkpoint or the original model"
        )
    if fields.text("pack_dtype", "int32") != "int32":
        raise fields.error("pack_dtype", "is read as int32 only", fields.text("pack_dtype"))
    group_size = read_group_size(fields, "group_size")
    # Modules may differ from the rest; their shapes say how.
    differ = fields.present("dynamic") or fields.present("extra_config")
    for module, qweight in stored.ending_in(".qweight"):
        yield _module(
            stored,
            module,
            qweight,
            _BITS if differ else (bits,),
            group_size,
            sizes_differ=differ,
            is_first=form == FIRST,
            is_ordered=fields.flag("desc_act", False),
        )


def _module(
    stored: StoredTensors,
    module: str,
    qweight: TensorInfo,
    candidates: tuple[int, ...],
    group_size: int,
    *,
    sizes_differ: bool,
    is_first: bool,
    is_ordered: bool,
) -> DerivedTensor:
    words, outputs = matrix(of_type(qweight, "I32"))
    scales = stored.need(f"{module}.scales", qweight, *SCALE_TYPES)
    groups, _ = matrix(scales)
    of_shape(scales, (groups, outputs))
    qzeros = stored.need(f"{module}.qzeros", qweight, "I32")
    fitting = [n for n in candidates if qzeros.shape == (groups, num_words(outputs, n))]
    if not fitting:
        of_shape(qzeros, *((groups, num_words(outputs, bits)) for bits in candidates))
    g_idx = stored.get(f"{module}.g_idx")
    bits = fitting[0]
    inputs = words * WORD_BITS // bits
    if g_idx is not None:
        of_type(g_idx, "I32", "I64")
        inputs = g_idx.shape[0] if len(g_idx.shape) == 1 else 0
        if not inputs or words != num_words(inputs, bits):
            raise broken(
                g_idx,
                f"has shape {list(g_idx.shape)}, which is not [inputs] of {words} words of "
                f"{bits}-bit integers",
            )
    elif is_ordered and groups > 1:
        stored.need(f"{module}.g_idx", qweight)
    else:
        if sizes_differ and inputs % groups == 0 and groups != num_groups(inputs, group_size):
            group_size = inputs // groups
        check_groups(scales, groups, inputs, group_size)

    def compute(read: ReadTensor) -> npt.NDArray[np.float32]:
        words = read(qzeros.name)
        zeros = _plus_one(words, bits, outputs) if is_first else unpack(words, bits, outputs)
        return scaled(
            unpack(read(qweight.name).T, bits, inputs),
            read(scales.name).astype(np.float32).T,
            zeros.T,
            _column_groups(read, g_idx, groups, inputs, group_size),
        )

    info = derived_info(
        f"{module}.weight", "F32", (outputs, inputs), qweight, scales, qzeros, g_idx
    )
    stated = group_size if g_idx is None else -1
    form = block_format(bits, inputs, groups, scales, has_minima=True, group_size=stated)
    if form is None:
        return DerivedTensor(info, compute)

    def read_blocks(read: ReadTensor) -> BlockMatrix:
        words = read(qzeros.name)
        zeros = _plus_one(words, bits, outputs) if is_first else unpack(words, bits, outputs)
        values = read(scales.name).T
        integers = unpack(read(qweight.name).T, bits, inputs)
        # Integers of eight bits are stored with 128 more than is meant, and so are their zeros.
        minima = (zeros.T.astype(np.int16) - form.zero).astype(np.int8)
        return BlockMatrix(form, integers, values, None, minima, values)

    def is_in_order() -> bool:
        if g_idx is None:
            return True
        order = read_bytes(g_idx).reshape(-1).view(STORED_DTYPES[g_idx.dtype])
        return column_groups(g_idx, order, groups) is None

    return DerivedTensor(info, compute, StoredBlocks(form, read_blocks, is_in_order))


def _plus_one(words: npt.NDArray[Any], bits: int, count: int) -> npt.NDArray[np.uint8]:
    """Zeros that were stored less one: [G, count].

    Where one was zero, the subtraction borrowed from its neighbour; added to whole words, as
    GPTQModel does, it comes back.
    """
    if bits not in _ONES:
        return (unpack(words, bits, count) + np.uint8(1)) & np.uint8(2**bits - 1)
    return unpack(words.view(np.uint32) + np.uint32(_ONES[bits]), bits, count)


def _column_groups(
    read: ReadTensor, g_idx: TensorInfo | None, groups: int, inputs: int, group_size: int
) -> npt.NDArray[np.int64] | None:
    if g_idx is None:
        return None if group_size == -1 else np.arange(inputs) // group_size
    return column_groups(g_idx, read(g_idx.name), groups)


def column_groups(
    g_idx: TensorInfo, values: npt.NDArray[Any], groups: int
) -> npt.NDArray[np.int64] | None:
    """The group of each input, checked; None where they are in order, as `scaled` takes it.

    Raises:
        CheckpointError: One names a group that there is not.
    """
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest >= groups:
        raise broken(
            g_idx,
            f"names group {lowest if lowest < 0 else highest}, but there are {groups} groups",
        )
    even = np.arange(len(values)) // -(-len(values) // groups)
    return None if np.array_equal(values, even) else values.astype(np.int64)

"""MLX's affine groups: integers of a few bits in words, a scale and a bias for each group.

Source: mlx, `mx.quantize`; mlx-lm, `utils.quantize_model`: `config.json` has it as `quantization`,
modules of other bits or groups by their names in it. Embeddings are quantised, too, and the experts
of a layer are one stack for each of their projections (`switch_layers.QuantizedSwitchLinear`).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.integer_blocks import BlockMatrix
from engine_worker.compute.weights.quantized.awq import SCALE_TYPES
from engine_worker.compute.weights.quantized.derived import (
    DerivedTensor,
    StoredBlocks,
    StoredTensors,
    block_format,
    broken,
    derived_info,
    entry_of,
    matrix,
    of_shape,
    of_type,
)
from engine_worker.compute.weights.quantized.integers import num_words, scaled, unpack
from engine_worker.compute.weights.tensor_info import ReadTensor, TensorInfo
from engine_worker.errors import UnsupportedFormatError

_AFFINE: Final = "affine"
_BITS: Final = (2, 3, 4, 5, 6, 8)
_MOST_KEPT_BITS: Final = 4
"""Wider integers are kept from the middle of their range, where a bias would be rounded."""
_STACK_AXES: Final = 3
_MAX_EXPERTS: Final = 4096


def read_mlx(stored: StoredTensors, fields: ConfigFields) -> Iterator[DerivedTensor]:
    """`weight` [out, in*bits/32] of words, `scales` and `biases` [out, G].

    All have one axis more in a stack of experts, whose matrices get names of their own: that of the
    stack's module with the number of the expert behind it.

    Raises:
        UnsupportedFormatError: Another mode.
        CheckpointError: A part is missing, or the shapes disagree.
    """
    _refuse_other_modes(fields)
    for module, scales in stored.ending_in(".scales"):
        weight = stored.get(f"{module}.weight")
        if weight is None or weight.dtype != "U32":
            continue
        # What is said of a module may also be true or false.
        chosen = fields.inner(module) or fields
        scales = of_type(scales, *SCALE_TYPES)
        biases = stored.need(f"{module}.biases", weight, scales.dtype)
        if len(weight.shape) == _STACK_AXES:
            yield from _experts(module, weight, scales, biases, chosen)
        else:
            yield _module(module, weight, scales, biases, chosen)


def _experts(
    module: str, weight: TensorInfo, scales: TensorInfo, biases: TensorInfo, fields: ConfigFields
) -> Iterator[DerivedTensor]:
    num_experts = weight.shape[0]
    if not 0 < num_experts <= _MAX_EXPERTS:
        raise broken(weight, f"holds {num_experts} experts, of which 1 to {_MAX_EXPERTS} are read")
    for part in (scales, biases):
        if len(part.shape) != _STACK_AXES or part.shape[0] != num_experts:
            raise broken(
                part, f"has shape {list(part.shape)}, and {num_experts} experts ask for it"
            )
    for expert in range(num_experts):
        of_weight, of_scales, of_biases = (
            entry_of(part, expert) for part in (weight, scales, biases)
        )
        tensor = _module(f"{module}.{expert}", of_weight, of_scales, of_biases, fields)
        yield replace(tensor, entry=expert)


def _refuse_other_modes(fields: ConfigFields) -> None:
    mode = fields.text("mode", _AFFINE)
    if mode != _AFFINE:
        raise UnsupportedFormatError(
            f"MLX in the mode {mode!r:.40} is not read, only {_AFFINE!r}; use such a checkpoint or"
            " the original model"
        )


def _module(
    module: str,
    weight: TensorInfo,
    scales: TensorInfo,
    biases: TensorInfo,
    fields: ConfigFields,
) -> DerivedTensor:
    _refuse_other_modes(fields)
    bits, group_size = fields.size("bits", 4), fields.size("group_size", 64)
    outputs, words = matrix(weight)
    groups = matrix(scales)[1]
    inputs = groups * group_size
    if bits not in _BITS or words != num_words(inputs, bits):
        raise broken(
            weight,
            f"has shape {list(weight.shape)}, which is not {inputs} integers of {bits} bits a row",
        )
    of_shape(scales, (outputs, groups))
    of_shape(biases, scales.shape)

    def compute(read: ReadTensor) -> npt.NDArray[np.float32]:
        integers = unpack(read(weight.name), bits, inputs)
        values = scaled(integers, read(scales.name).astype(np.float32), None)
        by_group = values.reshape(outputs, groups, group_size)
        by_group += read(biases.name).astype(np.float32)[:, :, None]
        return values

    info = derived_info(f"{module}.weight", "F32", (outputs, inputs), weight, scales, biases)
    form = None
    if bits <= _MOST_KEPT_BITS:
        form = block_format(bits, inputs, groups, scales, has_minima=True, group_size=group_size)
    if form is None:
        return DerivedTensor(info, compute)

    def read_blocks(read: ReadTensor) -> BlockMatrix:
        integers = unpack(read(weight.name), bits, inputs)
        # A bias is a minimum of one step of its own, the other way round.
        steps = np.ones((outputs, groups), np.int8)
        return BlockMatrix(form, integers, read(scales.name), None, steps, -read(biases.name))

    return DerivedTensor(info, compute, StoredBlocks(form, read_blocks))

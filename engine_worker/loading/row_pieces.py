"""Which weights are read and packed some rows at a time: a large table is never there twice.

A table of embeddings may be the largest weight by far: read whole, in float32, it would take more
memory while a model is loaded than all packed weights together.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from engine_worker.compute.backends.packing_plan import PackedWeight
from engine_worker.compute.models.decoder import Parameter
from engine_worker.compute.models.tensors import Source
from engine_worker.compute.weights.tensor_info import TensorInfo

NUMBERS_AT_A_TIME: Final = 2**22
"""Weights of no more than that are read whole."""


def rows_at_a_time(
    weight: PackedWeight,
    parameters: Sequence[Parameter],
    sources: Sequence[tuple[Source, ...]],
    tensors: Mapping[str, TensorInfo],
) -> int:
    """How many rows of a weight are read and packed together; 0 where it is read whole.

    Args:
        weight: As a backend takes it.
        parameters: Of the decoder.
        sources: For each of them the tensors that fill it.
        tensors: Of the checkpoint.
    """
    if not weight.row_step:
        return 0
    (index,) = weight.sources
    shape, parts = parameters[index].shape, sources[index]
    if parameters[index].num_elements <= NUMBERS_AT_A_TIME or len(parts) != 1:
        return 0
    (part,) = parts
    tensor = tensors.get(part.name)
    is_as_stored = not (part.is_transposed or part.has_halves_in_turn or part.pairs or part.rows)
    if tensor is None or not tensor.in_rows or tensor.shape != shape or not is_as_stored:
        return 0
    numbers_of_row = parameters[index].num_elements // shape[0]  # of stacked experts a matrix
    return max(1, NUMBERS_AT_A_TIME // numbers_of_row // weight.row_step) * weight.row_step

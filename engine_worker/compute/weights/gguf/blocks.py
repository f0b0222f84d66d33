"""Turns the blocks of a GGUF tensor into numbers, a few megabytes at a time.

What a block means is `gguf.quants`' to say, llama.cpp's own description of its formats in NumPy.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from engine_worker.compute.weights.stored_file import ReadOctets, StoredFile
from engine_worker.errors import CheckpointError
from protocol.runtime.container_limits import num_usable_cores
from protocol.runtime.gguf_header import BLOCK_TYPES, GgufTensor

PLAIN: Final[dict[str, tuple[str, npt.DTypeLike]]] = {
    "F32": ("F32", np.float32),
    "F16": ("F16", np.float16),
    "BF16": ("BF16", ml_dtypes.bfloat16),
}
"""Types of numbers that need no dequantisation: safetensors' name and NumPy's."""
QUANTISED: Final = (
    *("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "MXFP4"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0"),
)
"""Types that are read as float32."""
MAX_VECTOR: Final = 4096
_SIZES: Final = {name: (numbers, size) for name, numbers, size in BLOCK_TYPES.values()}
NUMBERS_AT_A_TIME: Final = 2**20


def numbers_dtype(type_name: str) -> str:
    """How safetensors spells the type that `read_numbers` returns; the type itself if unread."""
    if type_name in PLAIN:
        return PLAIN[type_name][0]
    return "F32" if type_name in QUANTISED else type_name


def read_numbers(
    read: ReadOctets, tensor: GgufTensor, expert: int | None = None
) -> npt.NDArray[Any]:
    """The numbers of a tensor, in its own type or float32.

    Args:
        read: Of the tensor's file.
        tensor: Of a type that is read.
        expert: Only this entry of the outermost axis.

    Raises:
        CheckpointError: They can't be read, or there is one among them that is not finite.
    """
    if expert is not None:
        tensor = of_expert(tensor, expert)
    if tensor.type_name in PLAIN:
        octets = read(tensor.name, tensor.start, tensor.end)
        return octets.view(PLAIN[tensor.type_name][1]).reshape(tensor.shape)
    # Late: most models are in no such file, and the package takes long to import.
    from gguf.constants import GGMLQuantizationType

    values = np.empty(tensor.num_values, np.float32)
    kind, (numbers, _) = GGMLQuantizationType[tensor.type_name], _SIZES[tensor.type_name]
    for_each_part(read, tensor, partial(_fill, values, kind, numbers))
    if not _all_finite(values):
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name!r} is broken: it holds numbers that are not"
            " finite; download the file again"
        )
    return values.reshape(tensor.shape)


def of_expert(tensor: GgufTensor, expert: int) -> GgufTensor:
    """One entry of a tensor's outermost axis, under the tensor's own name."""
    size = (tensor.end - tensor.start) // tensor.shape[0]
    start = tensor.start + expert * size
    return replace(tensor, shape=tensor.shape[1:], start=start, end=start + size)


def has_whole_rows(tensor: GgufTensor) -> bool:
    """Whether no block of a tensor lies across two rows."""
    in_blocks = _SIZES.get(tensor.type_name)
    return bool(tensor.shape[0]) and (
        tensor.type_name in PLAIN or (in_blocks is not None and not tensor.shape[-1] % in_blocks[0])
    )


def of_rows(tensor: GgufTensor, first: int, end: int) -> GgufTensor:
    """Some entries of a tensor's outermost axis, whose rows are whole blocks, under its name."""
    size = (tensor.end - tensor.start) // tensor.shape[0]
    start = tensor.start + first * size
    shape = (end - first, *tensor.shape[1:])
    return replace(tensor, shape=shape, start=start, end=start + (end - first) * size)


def read_vector(tensor: GgufTensor | None) -> list[float] | None:
    """A short vector of float32 in shortest decimals; None where there is no tensor.

    Raises:
        CheckpointError: It is of another type, or longer than any head.
    """
    if tensor is None:
        return None
    if tensor.type_name != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > MAX_VECTOR:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name!r} is no vector of at most {MAX_VECTOR} F32"
        )
    with StoredFile(tensor.file) as file:
        return [float(str(value)) for value in read_numbers(file.read, tensor)]


def _all_finite(values: npt.NDArray[np.float32]) -> bool:
    # NaN and infinity spoil the sum of squares, which needs no array of its own.
    with np.errstate(all="ignore"):
        is_plain = bool(np.isfinite(np.dot(values, values)))
    return is_plain or bool(np.isfinite(values).all())


def _fill(
    values: npt.NDArray[np.float32],
    kind: Any,
    numbers: int,
    first: int,
    blocks: npt.NDArray[np.uint8],
) -> None:
    from gguf import quants

    # Blocks of broken files hold scales of NaN, which are found afterwards.
    with np.errstate(all="ignore"):
        found = quants.dequantize(blocks, kind).reshape(-1)
    values[first * numbers : first * numbers + len(found)] = found


def for_each_part(
    read: ReadOctets,
    tensor: GgufTensor,
    work: Callable[[int, npt.NDArray[np.uint8]], None],
) -> None:
    """Reads a tensor's blocks a few megabytes at a time, on as many threads as there are cores.

    Args:
        read: Of the tensor's file.
        tensor: Of blocks.
        work: Called in those threads with the number of the first block of a part, and its blocks
            [N, bytes of one].

    Raises:
        CheckpointError: A part can't be read.
    """
    numbers, size = _SIZES[tensor.type_name]
    num_blocks, step = (tensor.end - tensor.start) // size, max(1, NUMBERS_AT_A_TIME // numbers)

    def do(first: int) -> None:
        start = tensor.start + first * size
        octets = read(tensor.name, start, min(start + step * size, tensor.end))
        work(first, octets.reshape(-1, size))

    firsts = range(0, num_blocks, step)
    if len(firsts) == 1:
        do(0)
        return
    # Other threads run while one reads, and while NumPy computes.
    with ThreadPoolExecutor(min(len(firsts), num_usable_cores()), "dequantise") as threads:
        for _ in threads.map(do, firsts):
            pass

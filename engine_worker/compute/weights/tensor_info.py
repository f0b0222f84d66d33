"""One tensor of a checkpoint: where it lies, and how it is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from engine_worker.compute.models.integer_blocks import BlockMatrix

DTYPE_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
"""Types of numbers that fill a weight as they are, and their bytes."""

STORED_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Types that a file may hold, as safetensors spells them."""


class ReadTensor(Protocol):
    """A tensor of a checkpoint."""

    def __call__(self, name: str, rows: tuple[int, int] | None = None) -> npt.NDArray[Any]:
        """Reads it, in its own type.

        Args:
            name: Of the tensor.
            rows: Only these, the first and the one behind the last, of one that has `in_rows`.

        Raises:
            CheckpointError: It can't be read; names file and tensor.
        """


class ReadBlocks(Protocol):
    """A matrix of `Checkpoint.block_formats`."""

    def __call__(
        self, name: str, expert: int | None = None, rows: tuple[int, int] | None = None
    ) -> BlockMatrix:
        """Reads it.

        Args:
            name: Of the tensor.
            expert: Which matrix of a stack [E, out, in]; None for a tensor that is one matrix.
            rows: As in `ReadTensor`, of such a tensor.

        Raises:
            CheckpointError: It can't be read, or holds scales that are not finite; names file and
                tensor.
        """


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint.

    Attributes:
        dtype: As safetensors spells it: of what `ReadTensor` returns.
        start, end: Bytes in the file, from its beginning.
        made_of: The stored tensors that it is computed from; empty for one that is stored itself.
            `file`, `start` and `end` are then those of the first.
        in_rows: Some of its rows can be read without the others.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    made_of: tuple["TensorInfo", ...] = ()
    in_rows: bool = False

    @property
    def stored(self) -> tuple["TensorInfo", ...]:
        """The tensors of files that hold its numbers: itself, or those that it is made of."""
        return self.made_of or (self,)

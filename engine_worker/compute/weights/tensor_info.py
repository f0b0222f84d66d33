"""One tensor of a checkpoint: where it lies, and how it is read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

DTYPE_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
"""Types of numbers that are read, and their bytes."""

ReadTensor = Callable[[str], npt.NDArray[Any]]
"""A tensor by its name, in its own type; raises `CheckpointError` naming file and tensor."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint.

    Attributes:
        dtype: As safetensors spells it: of what `ReadTensor` returns.
        start, end: Bytes in the file, from its beginning.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

"""What a conversion takes of memory, told before anything is written."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from engine_worker.compute.weights.tensor_info import STORED_DTYPES
from engine_worker.conversion.restricted_pickle import TensorRef
from engine_worker.conversion.torch_archive import PIECE_BYTES
from engine_worker.errors import ModelMemoryError

_FLOAT_BYTES = 4
_SPARSE = 2
"""A storage so many times as large as what a tensor takes of it is saved with more than that."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One tensor that is read and written.

    Attributes:
        name: In the source.
        tensor: Likewise.
        is_reordered: It is transposed on the way.
    """

    name: str
    tensor: TensorRef
    is_reordered: bool

    @property
    def storage_bytes(self) -> int:
        """Of the storage that it lies in, which is read whole."""
        storage = self.tensor.storage
        return storage.num_elements * STORED_DTYPES[storage.dtype].itemsize

    @property
    def tensor_bytes(self) -> int:
        """Of its numbers as they are in the source."""
        return math.prod(self.tensor.shape) * STORED_DTYPES[self.tensor.dtype].itemsize

    @property
    def most_bytes(self) -> int:
        """Of its storage and all copies that are there at once."""
        tensor = self.tensor
        num_values = math.prod(tensor.shape)
        copied = 0 if _is_contiguous(tensor) else self.tensor_bytes
        written_bytes = self.tensor_bytes
        if tensor.dtype == "F64":
            # As floats: beside the doubles while they are made, and until they are written.
            copied += num_values * _FLOAT_BYTES
            written_bytes = num_values * _FLOAT_BYTES
        if self.is_reordered:
            copied += written_bytes
        # A piece of the storage is there until the next one is.
        return self.storage_bytes + copied + 2 * PIECE_BYTES


def require_conversion_memory(place: str, readings: Iterable[Reading], free_bytes: int) -> None:
    """Refuses a conversion that can't fit; one tensor is read and written after the other.

    Args:
        place: What is converted, for the message.
        readings: All that is read.
        free_bytes: What this process may still take.

    Raises:
        ModelMemoryError: With what it needs, what there is, and a way out.
    """
    most = max(readings, key=lambda one: one.most_bytes)
    if most.most_bytes <= free_bytes:
        return
    way_out = "give it more memory (of a container: raise its limit), or convert where there is"
    if most.storage_bytes > _SPARSE * most.tensor_bytes:
        way_out = (
            "it is a small part of what was saved with it: load the file with PyTorch where you "
            "trust it, and save `{name: tensor.clone() for name, tensor in state_dict.items()}`; "
            f"or {way_out}"
        )
    raise ModelMemoryError(
        f"{place}: its tensor {most.name!r:.200} takes about {_gibibytes(most.most_bytes)} of"
        f" memory while it is converted, and {_gibibytes(free_bytes)} are free here: {way_out}"
    )


def _is_contiguous(tensor: TensorRef) -> bool:
    wanted = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size not in (0, 1) and stride != wanted:
            return False
        wanted *= size
    return True


def _gibibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"

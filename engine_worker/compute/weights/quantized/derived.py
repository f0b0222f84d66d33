"""A checkpoint some of whose tensors are computed from stored ones when they are read."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from engine_worker.compute.models.quantization import WAY_OUT
from engine_worker.compute.weights.safetensors_files import SafetensorsCheckpoint, read_bytes
from engine_worker.compute.weights.tensor_info import STORED_DTYPES, ReadTensor, TensorInfo
from engine_worker.errors import CheckpointError

_MAX_READ_EARLY_BYTES = 2**16
_log = logging.getLogger("penstock.engine.weights")


@dataclass(frozen=True, slots=True)
class DerivedTensor:
    """A tensor that stored ones stand for.

    Attributes:
        info: Its name, shape and type; `made_of` names what it takes the place of.
        compute: Reads these and makes it; raises `CheckpointError` naming the tensor.
    """

    info: TensorInfo
    compute: Callable[[ReadTensor], npt.NDArray[Any]]


class DerivedCheckpoint:
    """Implements `Checkpoint`: the stored tensors, but for those that derived ones are made of."""

    def __init__(
        self, base: SafetensorsCheckpoint, derived: Iterable[DerivedTensor], summary: str
    ) -> None:
        """Headers only.

        Args:
            base: What the files hold.
            derived: In place of what they are made of.
            summary: How they are quantised, for the log.
        """
        self._base = base
        self._derived = {tensor.info.name: tensor for tensor in derived}
        self._summary = summary
        hidden = {
            stored.name for tensor in self._derived.values() for stored in tensor.info.made_of
        }
        kept = {name: info for name, info in base.tensors.items() if name not in hidden}
        self.tensors: Mapping[str, TensorInfo] = kept | {
            name: tensor.info for name, tensor in self._derived.items()
        }

    @property
    def listing(self) -> Path:
        return self._base.listing

    @property
    def files(self) -> tuple[Path, ...]:
        return self._base.files

    @property
    def stored_as(self) -> str:
        return self._summary

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        _log.info(
            "%s: %d tensors are stored in %s and dequantised as they are read; --dtype int8 or "
            "int4 quantises them anew",
            self.listing,
            len(self._derived),
            self._summary,
        )
        with self._base.reading() as read_stored:

            def read(name: str) -> npt.NDArray[Any]:
                tensor = self._derived.get(name)
                return read_stored(name) if tensor is None else tensor.compute(read_stored)

            yield read


class StoredTensors:
    """The stored tensors of a checkpoint, looked up with errors that name file and tensor."""

    def __init__(self, tensors: Mapping[str, TensorInfo], listing: Path) -> None:
        self._tensors = tensors
        self._listing = listing

    def ending_in(self, suffix: str) -> Iterator[tuple[str, TensorInfo]]:
        """Tensors whose name ends so, by the name before it."""
        for name, tensor in self._tensors.items():
            if name.endswith(suffix):
                yield name.removesuffix(suffix), tensor

    def get(self, name: str) -> TensorInfo | None:
        """A tensor, or None where there is none of that name."""
        return self._tensors.get(name)

    def values(self, tensor: TensorInfo) -> npt.NDArray[Any]:
        """The numbers of a small tensor, which says what others are.

        Raises:
            CheckpointError: It is large, or can't be read.
        """
        if tensor.end - tensor.start > _MAX_READ_EARLY_BYTES:
            raise broken(tensor, f"is larger than {_MAX_READ_EARLY_BYTES} bytes")
        octets = read_bytes(of_type(tensor)).reshape(-1)
        return octets.view(STORED_DTYPES[tensor.dtype]).reshape(tensor.shape)

    def need(self, name: str, owner: TensorInfo, *dtypes: str) -> TensorInfo:
        """A tensor that another one can't be read without.

        Args:
            name: Of the tensor.
            owner: The other one.
            dtypes: What it may be; none is anything whose bytes are known.

        Raises:
            CheckpointError: There is none, or of another type.
        """
        found = self._tensors.get(name)
        if found is None:
            raise CheckpointError(
                f"{self._listing}: tensor {name!r} is missing, without which {owner.name!r} has no "
                f"numbers; {WAY_OUT}"
            )
        return of_type(found, *dtypes)


def of_type(tensor: TensorInfo, *dtypes: str) -> TensorInfo:
    """The tensor itself, of one of some types (none: of any whose bytes are known).

    Raises:
        CheckpointError: It isn't.
    """
    wanted = dtypes or tuple(STORED_DTYPES)
    if tensor.dtype not in wanted:
        raise broken(tensor, f"is {tensor.dtype}, not {' or '.join(wanted)}")
    return tensor


def of_shape(tensor: TensorInfo, *shapes: tuple[int, ...]) -> TensorInfo:
    """The tensor itself, of one of some shapes.

    Raises:
        CheckpointError: It isn't.
    """
    if tensor.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
        raise broken(tensor, f"has shape {list(tensor.shape)}, its module asks for {wanted}")
    return tensor


def matrix(tensor: TensorInfo) -> tuple[int, int]:
    """Rows and columns of a matrix that holds numbers.

    Raises:
        CheckpointError: It is no matrix, or an empty one.
    """
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise broken(tensor, f"has shape {list(tensor.shape)}, which is no matrix")
    return tensor.shape[0], tensor.shape[1]


def broken(tensor: TensorInfo, what: str) -> CheckpointError:
    """The error of a stored tensor: its file, its name, what is wrong and the way out."""
    return CheckpointError(f"{tensor.file}: tensor {tensor.name!r} {what}; {WAY_OUT}")


def derived_info(
    name: str, dtype: str, shape: tuple[int, ...], *made_of: TensorInfo | None
) -> TensorInfo:
    """What is said of a derived tensor.

    Args:
        name: Its own.
        dtype: As safetensors spells it, of what is read.
        shape: Of what is read.
        made_of: Stored tensors, the largest first; None is left out.
    """
    parts = tuple(part for part in made_of if part is not None)
    first = parts[0]
    return TensorInfo(name, first.file, dtype, shape, first.start, first.end, parts)

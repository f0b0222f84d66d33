"""A checkpoint some of whose tensors are computed from stored ones when they are read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt

from engine_worker.compute.models.integer_blocks import BlockFormat, BlockMatrix
from engine_worker.compute.models.quantization import WAY_OUT
from engine_worker.compute.weights.safetensors_files import SafetensorsCheckpoint, read_bytes
from engine_worker.compute.weights.tensor_info import (
    STORED_DTYPES,
    ReadBlocks,
    ReadTensor,
    TensorInfo,
)
from engine_worker.errors import CheckpointError

_MAX_READ_EARLY_BYTES = 2**16
_SCALE_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_GROUP_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """A matrix that is kept as integers in blocks, or a stack of them.

    Attributes:
        format: As it is kept.
        read: Reads it, as `DerivedTensor.compute` does. One matrix of a stack is read from one
            entry of each stored tensor's outermost axis.
        is_in_order: Whether its groups are those of `format`; looked at before it is read so.
        is_transposed: `DerivedTensor.compute` gives [.., in, out].
    """

    format: BlockFormat
    read: Callable[[ReadTensor], BlockMatrix]
    is_in_order: Callable[[], bool] = lambda: True
    is_transposed: bool = False


@dataclass(frozen=True, slots=True)
class DerivedTensor:
    """A tensor that stored ones stand for.

    Attributes:
        info: Its name, shape and type; `made_of` names what it takes the place of.
        compute: Reads these and makes it; raises `CheckpointError` naming the tensor.
        blocks: The same without loss as integers; None where there are none.
        entry: It is made of this one entry of each stored tensor's outermost axis; None is all.
    """

    info: TensorInfo
    compute: Callable[[ReadTensor], npt.NDArray[Any]]
    blocks: StoredBlocks | None = None
    entry: int | None = None


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

    @property
    def quantized(self) -> frozenset[str]:
        return frozenset(self._derived)

    @cached_property
    def block_formats(self) -> dict[str, BlockFormat]:
        return {
            name: tensor.blocks.format
            for name, tensor in self._derived.items()
            if tensor.blocks is not None and tensor.blocks.is_in_order()
        }

    @property
    def transposed_blocks(self) -> frozenset[str]:
        return frozenset(
            name
            for name, tensor in self._derived.items()
            if tensor.blocks is not None and tensor.blocks.is_transposed
        )

    @contextmanager
    def reading_blocks(self) -> Iterator[ReadBlocks]:
        with self._base.reading() as read_stored:

            def read(
                name: str, expert: int | None = None, rows: tuple[int, int] | None = None
            ) -> BlockMatrix:
                tensor = self._derived[name]
                assert tensor.blocks is not None, name
                assert rows is None, name
                entry = tensor.entry if expert is None else expert
                read_part = read_stored if entry is None else self._entry_reader(entry)
                matrix = tensor.blocks.read(read_part)
                if not matrix.is_finite():
                    raise broken(tensor.info, "holds a scale that is not a finite number")
                return matrix

            yield read

    def _entry_reader(self, index: int) -> ReadTensor:
        """Reads one entry of the outermost axis of a stored tensor, and no other."""

        def read(name: str, rows: tuple[int, int] | None = None) -> npt.NDArray[Any]:
            assert rows is None, name
            one = entry_of(self._base.tensors[name], index)
            return read_bytes(one).reshape(-1).view(STORED_DTYPES[one.dtype]).reshape(one.shape)

        return read

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        with self._base.reading() as read_stored:

            def read(name: str, rows: tuple[int, int] | None = None) -> npt.NDArray[Any]:
                tensor = self._derived.get(name)
                if tensor is None:
                    return read_stored(name, rows)
                entry = tensor.entry
                return tensor.compute(read_stored if entry is None else self._entry_reader(entry))

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


def entry_of(tensor: TensorInfo, index: int) -> TensorInfo:
    """One entry of the outermost axis of a stored tensor."""
    size = (tensor.end - tensor.start) // tensor.shape[0]
    start = tensor.start + index * size
    return replace(tensor, shape=tensor.shape[1:], start=start, end=start + size)


def block_format(
    bits: int,
    inputs: int,
    groups: int,
    scales: TensorInfo,
    *,
    has_minima: bool,
    group_size: int = -1,
) -> BlockFormat | None:
    """The format of a matrix whose groups are blocks; None where they are uneven.

    Args:
        bits: Of an integer as it is kept, up to 8.
        inputs: Of a row.
        groups: Of a row.
        scales: One a group; say which type they have.
        has_minima: Groups have zeros of their own.
        group_size: Inputs of a group, where the checkpoint says so: the last may be narrower.
    """
    size = inputs // groups if group_size == -1 else group_size
    if scales.dtype not in _SCALE_NAMES or size * groups != inputs or size % _GROUP_MULTIPLE:
        return None
    width = 4 if bits <= 4 else 8
    return BlockFormat(width, size, size, _SCALE_NAMES[scales.dtype], has_minima=has_minima)


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

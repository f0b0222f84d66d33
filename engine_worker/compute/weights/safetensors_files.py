"""Finds the safetensors files of a model folder and reads what they say they hold.

Only headers are read here (https://huggingface.co/docs/safetensors: 8 bytes little-endian length,
JSON header, data). Everything that can be wrong with a file is found before a weight is touched.
"""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine_worker.compute.models.integer_blocks import BlockFormat, BlockMatrix
from engine_worker.compute.weights.stored_file import WAY_OUT, StoredFile, opened
from engine_worker.compute.weights.tensor_info import (
    STORED_DTYPES,
    ReadBlocks,
    ReadTensor,
    TensorInfo,
)
from engine_worker.errors import CheckpointError
from engine_worker.text.bounded_file import read_bounded

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 16 * 2**20
"""Enough for 130,000 tensors in one file; read, it takes many times as much memory."""
MAX_INDEX_BYTES = 32 * 2**20
MAX_NAME = 1024
"""Characters of a tensor's name, as in GGUF files."""
_LENGTH_BYTES = 8
_MAX_AXES = 64
_SIZE_LIMIT = 2**48


@dataclass(frozen=True, slots=True)
class SafetensorsCheckpoint:
    """Implements `Checkpoint` with safetensors files."""

    listing: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]

    @property
    def stored_as(self) -> str:
        return ""

    @property
    def quantized(self) -> tuple[str, ...]:
        return ()

    @property
    def block_formats(self) -> dict[str, BlockFormat]:
        return {}

    @property
    def transposed_blocks(self) -> tuple[str, ...]:
        return ()

    @contextmanager
    def reading_blocks(self) -> Iterator[ReadBlocks]:
        def read(
            name: str, expert: int | None = None, rows: tuple[int, int] | None = None
        ) -> BlockMatrix:
            raise AssertionError(f"{name} ({expert}, {rows}) is not kept in blocks")

        yield read

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        with opened(self.files) as files:

            def read(name: str, rows: tuple[int, int] | None = None) -> npt.NDArray[Any]:
                tensor = self.tensors[name]
                if tensor.dtype not in STORED_DTYPES:
                    raise CheckpointError(
                        f"{tensor.file}: tensor {name!r} is {tensor.dtype}; "
                        f"{', '.join(STORED_DTYPES)} are read"
                    )
                shape, start, end = tensor.shape, tensor.start, tensor.end
                if rows is not None:
                    size = (end - start) // shape[0]
                    start, end = start + rows[0] * size, start + rows[1] * size
                    shape = (rows[1] - rows[0], *shape[1:])
                octets = files[tensor.file].read(name, start, end)
                return octets.view(STORED_DTYPES[tensor.dtype]).reshape(shape)

            yield read


def read_bytes(tensor: TensorInfo) -> npt.NDArray[np.uint8]:
    """The bytes of a stored tensor, for types of numbers that numpy itself doesn't have.

    Args:
        tensor: Of a file; its type has one byte a number, else the last axis is of bytes.

    Raises:
        CheckpointError: The file can't be read, or was cut short since its header was.
    """
    with StoredFile(tensor.file) as file:
        values = file.read(tensor.name, tensor.start, tensor.end)
    return values.reshape(*tensor.shape[:-1], -1) if tensor.shape else values.reshape(())


def find_safetensors(folder: Path) -> SafetensorsCheckpoint | None:
    """Reads the headers of a folder's safetensors files; None where it has none.

    An index whose shards aren't there says nothing of a whole file beside it.

    Args:
        folder: Holds `model.safetensors`, or shards and `model.safetensors.index.json`.

    Returns:
        Every tensor by name; sizes and offsets are checked against the files.

    Raises:
        CheckpointError: A broken file; names the file, and the tensor if any.
    """
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if index.is_file():
        placed = _read_index(index)
        if not single.is_file() or any((folder / name).is_file() for name in placed.values()):
            return _open_shards(index, placed)
    if single.is_file():
        return SafetensorsCheckpoint(single, (single,), read_header(single))
    return None


def _read_index(index: Path) -> dict[str, str]:
    """In which file each tensor is."""
    try:
        content = json.loads(read_bounded(index, MAX_INDEX_BYTES))
        weight_map = content["weight_map"]
        placed = {str(name): file for name, file in weight_map.items()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: no readable index of shards: {error!r}; {WAY_OUT}"
        ) from error
    for tensor, name in placed.items():
        if not _is_file_name(name):
            raise CheckpointError(
                f"{index}: tensor {tensor!r:.{MAX_NAME}} is placed in {name!r:.80}, which is not"
                f" the name of a file beside it; {WAY_OUT}"
            )
    return placed


def _open_shards(index: Path, placed: dict[str, str]) -> SafetensorsCheckpoint:
    files: dict[str, Path] = {}
    headers: dict[str, dict[str, TensorInfo]] = {}
    tensors: dict[str, TensorInfo] = {}
    for name in sorted(set(placed.values())):
        files[name] = index.parent / name
        headers[name] = read_header(files[name])
        tensors |= headers[name]
    for tensor, name in placed.items():
        if tensor not in headers[name]:
            raise CheckpointError(
                f"{files[name]}: tensor {tensor!r:.{MAX_NAME}} is missing, but indexed there: these"
                " are files of different models, or of different versions of one; download all of"
                " them again"
            )
        # Another file may hold one of the same name.
        tensors[tensor] = headers[name][tensor]
    return SafetensorsCheckpoint(index, tuple(files.values()), tensors)


def _is_file_name(name: object) -> bool:
    if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME:
        return False
    return name not in ("", "..") and Path(name).name == name


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Reads and checks the header of one safetensors file.

    Args:
        file: A safetensors file.

    Returns:
        Every tensor in it by name.

    Raises:
        CheckpointError: Missing, truncated or no safetensors file.
    """
    try:
        file_bytes = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(_LENGTH_BYTES)
            header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == _LENGTH_BYTES else 0
            if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, file_bytes - _LENGTH_BYTES):
                raise CheckpointError(
                    f"{file}: not a safetensors file, truncated in its header, or with a header of"
                    f" more than {MAX_HEADER_BYTES} bytes; {WAY_OUT}"
                )
            header = json.loads(stream.read(header_bytes))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: the file is missing; download it too") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file}: not a readable safetensors file: {error}; {WAY_OUT}"
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: not a safetensors file: its header is no object; {WAY_OUT}")
    header.pop("__metadata__", None)
    longest = max(header, key=len, default="")
    if len(longest) > MAX_NAME:
        raise CheckpointError(
            f"{file}: tensor {longest!r:.80}… has a name of {len(longest)} characters; at most"
            f" {MAX_NAME} are read: {WAY_OUT}"
        )
    data_start = _LENGTH_BYTES + header_bytes
    tensors = {
        name: _tensor_info(file, name, entry, data_start, file_bytes)
        for name, entry in header.items()
    }
    _refuse_overlaps(file, tensors)
    return tensors


def _refuse_overlaps(file: Path, tensors: dict[str, TensorInfo]) -> None:
    """Two weights of the same bytes would load, and one of them compute something else."""
    before = None
    for tensor in sorted(tensors.values(), key=lambda one: (one.start, one.end)):
        if before is not None and tensor.start < before.end:
            raise CheckpointError(
                f"{file}: tensor {tensor.name!r} overlaps tensor {before.name!r}; {WAY_OUT}"
            )
        before = tensor


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _SIZE_LIMIT


def _tensor_info(
    file: Path, name: str, entry: dict[str, Any], data_start: int, file_bytes: int
) -> TensorInfo:
    try:
        dtype = str(entry["dtype"])
        shape = tuple(entry["shape"])
        first, last = entry["data_offsets"]
        # JSON's numbers may be fractions, infinite, or longer than any file.
        if len(shape) > _MAX_AXES or not all(map(_is_size, (*shape, first, last))):
            raise ValueError("no sizes")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file}: tensor {name!r} has a broken header entry; {WAY_OUT}"
        ) from error
    if first > last:
        raise CheckpointError(f"{file}: tensor {name!r} has a broken header entry; {WAY_OUT}")
    start, end = data_start + first, data_start + last
    if end > file_bytes:
        raise CheckpointError(
            f"{file}: truncated: tensor {name!r} needs {end} bytes of file, there are {file_bytes};"
            f" {WAY_OUT}"
        )
    if dtype in STORED_DTYPES:
        needed = int(np.prod(shape, dtype=object)) * STORED_DTYPES[dtype].itemsize
        if needed != end - start:
            raise CheckpointError(
                f"{file}: tensor {name!r} of {dtype} {list(shape)} needs {needed} bytes, its "
                f"entry holds {end - start}; {WAY_OUT}"
            )
    return TensorInfo(name, file, dtype, shape, start, end, in_rows=bool(shape and shape[0]))

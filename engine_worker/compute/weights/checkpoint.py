"""Finds the safetensors files of a model folder and reads what they say they hold.

Only headers are read here (https://huggingface.co/docs/safetensors: 8 bytes little-endian length,
JSON header, data). Everything that can be wrong with a file is found before a weight is touched.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine_worker.errors import CheckpointError, UnsupportedFormatError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100 * 2**20
"""The bound that safetensors itself sets."""
DTYPE_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
"""Types of numbers that are read, and their bytes."""
_LENGTH_BYTES = 8
_COMPARED_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint.

    Attributes:
        dtype: As safetensors spells it.
        start, end: Bytes in the file, from its beginning.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All safetensors files of a model and every tensor in them.

    Attributes:
        listing: The file that says which tensors there are, for messages.
    """

    listing: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads the headers of a model's weights.

    Args:
        folder: Holds `model.safetensors`, or shards and `model.safetensors.index.json`.

    Returns:
        Every tensor by name; sizes and offsets are checked against the files.

    Raises:
        UnsupportedFormatError: There are weights, but in a format that is not read.
        CheckpointError: No weights, or a broken file; names the file, and the tensor if any.
    """
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if index.is_file():
        return _open_shards(index)
    if single.is_file():
        return Checkpoint(single, (single,), read_header(single))
    raise _nothing_readable(folder)


def _open_shards(index: Path) -> Checkpoint:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        weight_map = content["weight_map"]
        placed = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: no readable index of shards: {error!r}") from error
    files: dict[str, Path] = {}
    tensors: dict[str, TensorInfo] = {}
    for name in sorted(set(placed.values())):
        if Path(name).name != name:
            raise CheckpointError(f"{index}: {name!r} is not the name of a file beside it")
        files[name] = index.parent / name
        tensors |= read_header(files[name])
    for tensor, name in placed.items():
        if tensor not in tensors or tensors[tensor].file != files[name]:
            raise CheckpointError(f"{files[name]}: tensor {tensor!r} is missing, but indexed there")
    return Checkpoint(index, tuple(files.values()), tensors)


def _nothing_readable(folder: Path) -> CheckpointError | UnsupportedFormatError:
    if not folder.is_dir():
        return CheckpointError(f"{folder}: no such folder")
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        if name.endswith(".gguf"):
            return UnsupportedFormatError(
                f"{folder}: {name} is GGUF, a format that is not supported; use the model's "
                "safetensors files"
            )
    for name in names:
        if name.startswith("pytorch_model") and name.endswith((".bin", ".bin.index.json")):
            return UnsupportedFormatError(
                f"{folder}: {name} is a pickle, which can run code and is never loaded; convert "
                "the model to safetensors"
            )
    return CheckpointError(f"{folder}: neither {SINGLE_NAME} nor {INDEX_NAME} is there")


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
                raise CheckpointError(f"{file}: not a safetensors file, or truncated in its header")
            header = json.loads(stream.read(header_bytes))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: the file is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: not a safetensors file: its header is no object")
    header.pop("__metadata__", None)
    data_start = _LENGTH_BYTES + header_bytes
    return {
        name: _tensor_info(file, name, entry, data_start, file_bytes)
        for name, entry in header.items()
    }


def have_same_bytes(first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two tensors hold the same numbers in the same type.

    Raises:
        CheckpointError: A file can't be read.
    """
    num_bytes = first.end - first.start
    if first.dtype != second.dtype or num_bytes != second.end - second.start:
        return False
    try:
        with first.file.open("rb") as one, second.file.open("rb") as other:
            one.seek(first.start)
            other.seek(second.start)
            while num_bytes:
                step = min(num_bytes, _COMPARED_BYTES)
                if one.read(step) != other.read(step):
                    return False
                num_bytes -= step
    except OSError as error:
        raise CheckpointError(f"{first.file} or {second.file}: cannot be read: {error}") from error
    return True


def _tensor_info(
    file: Path, name: str, entry: dict[str, Any], data_start: int, file_bytes: int
) -> TensorInfo:
    try:
        dtype = str(entry["dtype"])
        shape = tuple(int(size) for size in entry["shape"])
        first, last = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: tensor {name!r} has a broken header entry") from error
    if min(shape, default=0) < 0 or not 0 <= first <= last:
        raise CheckpointError(f"{file}: tensor {name!r} has a broken header entry")
    start, end = data_start + first, data_start + last
    if end > file_bytes:
        raise CheckpointError(
            f"{file}: truncated: tensor {name!r} needs {end} bytes of file, there are {file_bytes}"
        )
    if dtype in DTYPE_SIZES:
        needed = int(np.prod(shape, dtype=object)) * DTYPE_SIZES[dtype]
        if needed != end - start:
            raise CheckpointError(
                f"{file}: tensor {name!r} of {dtype} {list(shape)} needs {needed} bytes, its "
                f"entry holds {end - start}"
            )
    return TensorInfo(name, file, dtype, shape, start, end)

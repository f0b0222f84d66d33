"""The tensors of a PyTorch file: a zip archive of a pickle and one file for each storage.

Read as data and within bounds: nothing in it is compressed, so that no archive is larger inside
than outside, and a tensor holds no more numbers than its storage.
"""

import math
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine_worker.compute.weights.tensor_info import STORED_DTYPES
from engine_worker.conversion.restricted_pickle import (
    MAX_PICKLE_BYTES,
    StorageRef,
    TensorRef,
    read_pickle,
)
from engine_worker.errors import CheckpointError, UnsafePickleError, UnsupportedFormatError

_ROOTS: Final = ("state_dict", "model_state_dict", "model", "module", "weights")
_MAX_ENTRIES: Final = 2**20
_UNREADABLE: Final = (OSError, zipfile.BadZipFile, EOFError, RuntimeError)
"""What `zipfile` raises, NotImplementedError among them."""
PIECE_BYTES: Final = 2**20
"""Of a storage, what is read at a time."""
_SHARED: Final = 2
"""How much larger than the file all tensors may be together: tied ones are written twice."""


@dataclass(frozen=True, slots=True)
class TorchArchive:
    """The tensors of one file, by name, and how they are read.

    Attributes:
        path: The file.
        tensors: By the name in its dictionary.
    """

    path: Path
    tensors: dict[str, TensorRef]
    _entries: dict[str, str]

    @contextmanager
    def reading(self) -> Iterator["TensorReader"]:
        """Opens the file, to read tensors from."""
        with zipfile.ZipFile(self.path) as archive:
            yield TensorReader(self, archive)

    def entry(self, storage: StorageRef) -> str:
        """The name of the file in the archive that holds a storage."""
        return self._entries[storage.key]


@dataclass(frozen=True, slots=True)
class TensorReader:
    """Reads tensors of an open archive."""

    archive: TorchArchive
    file: zipfile.ZipFile
    last: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """The storage that was read last: the tensors of one mostly follow each other."""

    def read(self, name: str) -> npt.NDArray[Any]:
        """A tensor in its own type, contiguous.

        Raises:
            CheckpointError: It can't be read, or its checksum is another one.
        """
        tensor = self.archive.tensors[name]
        dtype = STORED_DTYPES[tensor.dtype]
        entry = self.archive.entry(tensor.storage)
        try:
            if entry not in self.last:
                self.last.clear()
                self.last[entry] = self._storage(entry)
        except (*_UNREADABLE, ValueError) as error:
            raise CheckpointError(
                f"{self.archive.path}: tensor {name!r} can't be read: {error}"
            ) from error
        storage = self.last[entry].view(dtype)
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(
            storage[tensor.offset :], tensor.shape, strides, writeable=False
        )
        return np.ascontiguousarray(view).reshape(tensor.shape)

    def _storage(self, entry: str) -> npt.NDArray[np.uint8]:
        """All of a file in the archive, without a second copy of it; its checksum is checked."""
        content = np.empty(self.file.getinfo(entry).file_size, np.uint8)
        with self.file.open(entry) as stream:
            for start in range(0, len(content), PIECE_BYTES):
                piece = stream.read(PIECE_BYTES)
                if len(piece) != min(PIECE_BYTES, len(content) - start):
                    raise EOFError("it is cut short")
                content[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
        return content


def open_torch_file(path: Path, root: str | None = None) -> TorchArchive:
    """Reads what a file says it holds, and checks it against its size.

    Args:
        path: What `torch.save` wrote since PyTorch 1.6.
        root: Key of the dictionary of tensors, dots between nested ones; None finds it.

    Raises:
        UnsupportedFormatError: Another kind of file.
        UnsafePickleError: Its pickle holds more than tensors; names what.
        CheckpointError: It is broken, names the tensor if any.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: the file is missing")
    if not zipfile.is_zipfile(path):
        raise UnsupportedFormatError(
            f"{path}: not an archive of PyTorch 1.6 or later, or cut short; load it with PyTorch "
            "where you trust it, and save its state_dict again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(path, archive)
            content = read_pickle(_pickle_of(path, archive, entries))
            storages = {
                name.rpartition("/")[2]: info
                for name, info in entries.items()
                if name.rpartition("/")[0].endswith("/data")
            }
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error.message}") from error
    except (*_UNREADABLE, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: no readable archive: {error}") from error
    tensors = _tensors(path, content, root)
    for name, tensor in tensors.items():
        _check(path, name, tensor, storages)
    total = sum(math.prod(t.shape) * STORED_DTYPES[t.dtype].itemsize for t in tensors.values())
    if total > _SHARED * path.stat().st_size:
        raise CheckpointError(
            f"{path}: its tensors take {total} bytes, far more than the file has; not converted"
        )
    return TorchArchive(path, tensors, {key: info.filename for key, info in storages.items()})


def _entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    entries = archive.infolist()
    if len(entries) > _MAX_ENTRIES:
        raise CheckpointError(f"{path}: {len(entries)} files in it, more than {_MAX_ENTRIES}")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise CheckpointError(
                f"{path}: {entry.filename!r:.200} in it is compressed, which PyTorch never does; "
                "it isn't unpacked"
            )
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(f"{path}: the files in it overlap; it isn't unpacked")
    named = {entry.filename: entry for entry in entries}
    if len(named) != len(entries):
        raise CheckpointError(f"{path}: two files in it have one name; it isn't unpacked")
    order = next((name for name in named if name.endswith("/byteorder")), None)
    if order is not None and archive.read(order)[:16].strip() != b"little":
        raise UnsupportedFormatError(
            f"{path}: of another byte order; save it on this machine's kind"
        )
    return named


def _pickle_of(path: Path, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> bytes:
    name = next((name for name in entries if name.endswith("/data.pkl")), None)
    if name is None:
        raise UnsupportedFormatError(f"{path}: an archive without data.pkl, so not PyTorch's")
    if entries[name].file_size > MAX_PICKLE_BYTES:
        raise UnsafePickleError(f"its pickle has more than {MAX_PICKLE_BYTES} bytes")
    return archive.read(name)


def _tensors(path: Path, content: Any, root: str | None) -> dict[str, TensorRef]:
    """The dictionary of tensors in a file; what else stands in it is left out."""
    if root is not None:
        for key in root.split("."):
            content = content.get(key) if isinstance(content, dict) else None
    elif isinstance(content, dict) and not _held(content):
        content = next((content[key] for key in _ROOTS if _held(content.get(key))), content)
    found = _held(content)
    if not found:
        keys = [str(key)[:60] for key in list(content)[:8]] if isinstance(content, dict) else []
        raise CheckpointError(
            f"{path}: no dictionary of tensors{f' at {root!r}' if root else ''}; it holds "
            f"{keys or type(content).__name__}. Name the key of the weights as `root` in --map"
        )
    return found


def _held(content: Any) -> dict[str, TensorRef]:
    if not isinstance(content, dict):
        return {}
    return {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, TensorRef)
    }


def _check(path: Path, name: str, tensor: TensorRef, storages: dict[str, zipfile.ZipInfo]) -> None:
    """Refuses a tensor that reaches beyond its storage, or holds more than it."""
    storage = tensor.storage
    entry = storages.get(storage.key)
    if entry is None:
        raise CheckpointError(f"{path}: tensor {name!r}: its storage {storage.key!r} is missing")
    stored = storage.num_elements * STORED_DTYPES[storage.dtype].itemsize
    if entry.file_size != stored:
        raise CheckpointError(
            f"{path}: tensor {name!r}: its storage has {entry.file_size} bytes, not {stored}"
        )
    # An untyped storage counts bytes, its tensors elements of their own type.
    size = STORED_DTYPES[tensor.dtype].itemsize
    if stored % size:
        raise CheckpointError(f"{path}: tensor {name!r}: its storage holds no whole numbers")
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    count = math.prod(tensor.shape)
    if count and (tensor.offset + reach >= stored // size or count > stored // size):
        raise CheckpointError(
            f"{path}: tensor {name!r} {list(tensor.shape)} reaches beyond its storage of "
            f"{stored // size} numbers"
        )

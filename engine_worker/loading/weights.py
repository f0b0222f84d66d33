"""Loads a decoder's weights for its backend: from the checkpoint, or packed by an earlier start."""

import glob
import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np
import numpy.typing as npt

from engine_worker.compute.backends.base import Backend, PackedDecoder
from engine_worker.compute.backends.packed_file import (
    UNFINISHED,
    new_packed_file,
    read_packed,
    remove_abandoned,
)
from engine_worker.compute.backends.packing_plan import PackedWeight, PartSpec
from engine_worker.compute.memory.host_memory import DeviceArrays
from engine_worker.compute.models.decoder import Leaves
from engine_worker.compute.models.reading import reading_of
from engine_worker.compute.weights.checkpoint import Checkpoint, open_checkpoint
from engine_worker.compute.weights.file_digests import FileHashes
from engine_worker.compute.weights.fingerprint import Fingerprint, fingerprint
from engine_worker.compute.weights.loader import WeightReader, open_weights
from engine_worker.compute.weights.sources import is_ignorable, weight_sources
from engine_worker.core.choice.batch import ProgressCallback
from engine_worker.errors import CheckpointError, PackedFileBusyError, PackedFileError
from engine_worker.loading.row_pieces import rows_at_a_time
from engine_worker.loading.write_behind import WriteBehind

SUFFIX: Final = ".packed"
_READING_VERSION: Final = 3
"""Of how files become numbers: another one makes all packed files again."""
_MIB: Final = 2**20
_log = logging.getLogger("penstock.engine.weights")


def load_for_backend(
    folder: Path,
    backend: Backend,
    cache_dir: Path | None,
    progress: ProgressCallback,
    lora: Path | None = None,
    behind: WriteBehind | None = None,
) -> PackedDecoder:
    """The weights of a decoder as its backend takes them.

    Every byte of the checkpoint is read once: it is hashed while its numbers are packed. Weights
    that are packed are also written to a file of the cache, which later starts read instead.
    Without a cache, or when it can't be written, they stay in memory only.

    Args:
        folder: A Hugging Face model folder with safetensors files.
        backend: Made for the folder's decoder.
        cache_dir: Where packed weights are kept; None keeps none.
        progress: Called after each weight with the share of all bytes that is done.
        lora: Folder of an adapter that is merged into the weights.
        behind: Writes the file after this has returned, from the weights as they are in memory;
            None has it written first, and reads it.

    Raises:
        ModelLoadError: As in `load_weights`, or a file was changed while it was loaded.
    """
    load = _Load(folder, backend, cache_dir, progress, lora)
    if not backend.packing.layout or cache_dir is None:
        return PackedDecoder(backend, load.in_memory()[0])
    place = _Place(cache_dir, folder, backend, lora)
    read = _read_from_before(place, load)
    if read is not None:
        return PackedDecoder(backend, read)
    # On another device a copy of all weights would have to wait in the host's memory.
    if behind is not None and jax.default_backend() == "cpu":
        leaves, key = load.in_memory()
        what = f"the packed weights of {folder.name} ({_size_of(backend)})"
        behind.start(what, partial(_write_behind, place, what, leaves, key))
        return PackedDecoder(backend, leaves)
    try:
        path, key = _write(place, load)
    except PackedFileBusyError as error:
        _log.info("%s; the weights stay in memory", error)
        return PackedDecoder(backend, load.in_memory()[0])
    except OSError as error:
        _cannot_be_kept(place, error)
        return PackedDecoder(backend, load.in_memory()[0])
    return PackedDecoder(backend, read_packed(path, key, place.parts))


def packed_path(
    cache_dir: Path, folder: Path, backend: Backend, key: str, lora: Path | None = None
) -> Path:
    """Where the packed weights of a folder are kept: a file for each folder, adapter and layout."""
    return _Place(cache_dir, folder, backend, lora).path(key)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where packed weights of one folder and layout are kept, whatever the folder holds."""

    cache_dir: Path
    folder: Path
    backend: Backend
    lora: Path | None

    @property
    def parts(self) -> list[PartSpec]:
        return self.backend.packing.parts

    @property
    def stem(self) -> str:
        """What the names of all files begin with."""
        places = [os.fsencode(p.absolute()) for p in (self.folder, self.lora) if p is not None]
        place = hashlib.sha256(b"\0".join(places)).hexdigest()[:8]
        layout = self.backend.packing.layout.replace(" ", "-")
        return f"{self.folder.name}-{place}-{layout}-"

    @property
    def unfinished(self) -> Path:
        """The file while it is written: one, whichever weights they are and whoever writes."""
        return self.cache_dir / f"{self.stem}unfinished{UNFINISHED}"

    def path(self, key: str) -> Path:
        return self.cache_dir / f"{self.stem}{key[:16]}{SUFFIX}"

    def files(self) -> list[Path]:
        """Those that are there; other stems may begin alike."""
        length = len(self.path("0" * 16).name)
        found = self.cache_dir.glob(f"{glob.escape(self.stem)}*{SUFFIX}")
        return [file for file in found if len(file.name) == length]

    def remove_others(self, path: Path) -> None:
        """Removes files of weights that the folder held before."""
        for other in self.files():
            if other.name != path.name:
                with suppress(OSError):
                    other.unlink()


@dataclass(frozen=True, slots=True)
class _Load:
    """One folder that is loaded for one backend."""

    folder: Path
    backend: Backend
    cache_dir: Path | None
    progress: ProgressCallback
    lora: Path | None

    @property
    def deciding(self) -> dict[str, str]:
        """What decides packed weights beside the checkpoint."""
        return {
            "packed": self.backend.packing.layout,
            "reading": str(_READING_VERSION),
            "decoder": reading_of(self.backend.spec),
        }

    def key_of_files(self) -> str:
        """What packed weights are of; reads all files whose hashes aren't known."""
        return fingerprint(
            self.folder,
            self.deciding,
            self.lora,
            cache_dir=self.cache_dir,
            progress=self.progress,
        )

    def in_memory(self) -> tuple[Leaves, str]:
        """All arrays on the device, and their key."""
        leaves: list[jax.Array] = []
        arrays = DeviceArrays(self.backend.packing.parts)
        key = self.each(lambda array: leaves.append(arrays.put(array)))
        return tuple(leaves), key

    def each(self, take: Callable[[npt.NDArray[Any]], object]) -> str:
        """Reads and packs all arrays in the order of the leaves, one weight at a time.

        Args:
            take: Called with each array.

        Returns:
            What they are of: the key of just the bytes that were read.
        """
        backend, progress = self.backend, self.progress
        graph, checkpoint = backend.graph, open_checkpoint(self.folder, self.lora)
        spec, size_bytes = graph.spec, backend.packing.size_bytes
        verb = "packed" if backend.packing.layout else "loaded"
        begun, done_bytes = Fingerprint(self.folder, self.deciding, self.lora), 0
        with FileHashes(checkpoint.files, self.cache_dir) as hashes:
            sources = weight_sources(graph, checkpoint.tensors)
            with open_weights(
                checkpoint,
                graph.parameters,
                sources,
                architecture=spec.architecture,
                is_ignorable=lambda name: is_ignorable(name, spec),
                kept=backend.stored_formats,
                hashes=hashes,
            ) as reader:
                for weight in backend.packing.weights:
                    step = rows_at_a_time(weight, graph.parameters, sources, checkpoint.tensors)
                    for array in _pack(weight, reader, checkpoint, step):
                        take(array)
                    done_bytes += weight.size_bytes
                    progress(done_bytes / size_bytes, f"{verb} {weight.name}")
            hashes.finish(lambda done, name: progress(1.0, f"hashed {done:.0%} of {name}, once"))
            return begun.of(checkpoint.files, hashes.digest)


def _read_from_before(place: _Place, load: _Load) -> Leaves | None:
    """The leaves of a file that an earlier start made; None where there is none of use."""
    # A folder's hash is told by reading it, which is left to loading where nothing was packed.
    if not place.files():
        return None
    key = load.key_of_files()
    path = place.path(key)
    try:
        return read_packed(path, key, place.parts)
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("%s can't be read (%s); the weights are packed again", path, error.strerror)
    except PackedFileError as error:
        _log.warning("%s; the weights are packed again", error)
        with suppress(OSError):
            path.unlink()
    return None


def _write(place: _Place, load: _Load) -> tuple[Path, str]:
    """Packs into a file, without holding more than a weight."""
    remove_abandoned(place.cache_dir, place.stem)
    with new_packed_file(place.unfinished, place.parts) as file:
        key = load.each(file.write)
        path = place.path(key)
        file.finish(path, key)
    place.remove_others(path)
    return path, key


def _write_behind(
    place: _Place, what: str, leaves: Leaves, key: str, on_piece: Callable[[], None]
) -> None:
    """Writes leaves that the engine computes with meanwhile."""
    path = place.path(key)
    try:
        remove_abandoned(place.cache_dir, place.stem)
        with new_packed_file(place.unfinished, place.parts, on_piece) as file:
            if path.exists():
                # By an engine that started together with this one.
                return
            _log.info("%s are written to %s for later starts, while the engine works", what, path)
            for leaf in leaves:
                # The memory of the leaf itself.
                file.write(np.asarray(leaf))
            file.finish(path, key)
    except PackedFileBusyError as error:
        _log.info("%s are not written: %s", what, error)
    except OSError as error:
        _cannot_be_kept(place, error)
    else:
        place.remove_others(path)
        _log.info("%s are written: later starts read %s", what, path)


def _cannot_be_kept(place: _Place, error: OSError) -> None:
    _log.warning("packed weights can't be kept in %s (%s)", place.cache_dir, error.strerror)


def _size_of(backend: Backend) -> str:
    return f"{backend.packing.size_bytes / _MIB:.0f} MiB"


def _pack(
    weight: PackedWeight, reader: WeightReader, checkpoint: Checkpoint, step: int
) -> tuple[npt.NDArray[Any], ...]:
    values: list[Any]
    try:
        if step:
            return _pack_in_pieces(weight, reader, step)
        if weight.stored is not None:
            values = [reader.read_blocks(index, weight.stored) for index in weight.sources]
        else:
            values = [reader.read(index) for index in weight.sources]
        return weight.pack(values)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.listing}: {weight.name} {error}") from error


def _pack_in_pieces(
    weight: PackedWeight, reader: WeightReader, step: int
) -> tuple[npt.NDArray[Any], ...]:
    """As `_pack`, with no more than `step` rows of the source in memory at a time."""
    (index,) = weight.sources
    num_rows = reader.shape(index)[0]
    packed = tuple(np.empty(part.shape, part.dtype) for part in weight.parts)
    places = [0] * len(packed)
    for first in range(0, num_rows, step):
        end = min(first + step, num_rows)
        values: Any
        if weight.stored is None:
            values = reader.read_rows(index, first, end)
        else:
            values = iter([reader.read_rows_in_blocks(index, weight.stored, first, end)])
        for part, piece in enumerate(weight.pack([values])):
            packed[part][places[part] : places[part] + len(piece)] = piece
            places[part] += len(piece)
    assert places == [len(part) for part in packed], weight.name
    return packed

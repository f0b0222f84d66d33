"""Loads a decoder's weights for its backend: from the checkpoint, or packed by an earlier start."""

import glob
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy.typing as npt

from engine_worker.compute.backends.base import Backend, PackedDecoder
from engine_worker.compute.backends.packed_file import (
    map_packed,
    new_packed_file,
    remove_abandoned,
)
from engine_worker.compute.backends.packing_plan import PackedWeight
from engine_worker.compute.weights.checkpoint import Checkpoint, open_checkpoint
from engine_worker.compute.weights.fingerprint import fingerprint
from engine_worker.compute.weights.loader import WeightReader, open_weights
from engine_worker.compute.weights.sources import is_ignorable, weight_sources
from engine_worker.core.choice.batch import ProgressCallback
from engine_worker.errors import CheckpointError, PackedFileError

SUFFIX = ".packed"
_READING_VERSION = 2
"""Of how files become numbers: another one makes all packed files again."""
_log = logging.getLogger("penstock.engine.weights")


def load_for_backend(
    folder: Path,
    backend: Backend,
    cache_dir: Path | None,
    progress: ProgressCallback,
    lora: Path | None = None,
) -> PackedDecoder:
    """The weights of a decoder as its backend takes them.

    Weights that are packed are packed one after the other, written to a file of the cache, and
    mapped from it now and at later starts, so that they are in memory once and not at all in this
    process's own. Without a cache, or when it can't be written, they stay in memory.

    Args:
        folder: A Hugging Face model folder with safetensors files.
        backend: Made for the folder's decoder.
        cache_dir: Where packed weights are kept; None keeps none.
        progress: Called after each weight with the share of all bytes that is done.
        lora: Folder of an adapter that is merged into the weights.

    Raises:
        ModelLoadError: As in `load_weights`, or a file was changed while it was packed.
    """
    packing = backend.packing
    if not packing.layout or cache_dir is None:
        return PackedDecoder(backend, _in_memory(folder, backend, progress, lora))
    key = _key_of(folder, backend, cache_dir, progress, lora)
    path = packed_path(cache_dir, folder, backend, key, lora)
    try:
        return PackedDecoder(backend, _mapped(path, backend, key))
    except FileNotFoundError:
        pass
    except PackedFileError as error:
        _log.warning("%s; the weights are packed again", error)
    try:
        _write(path, key, folder, backend, progress, lora)
    except OSError as error:
        _log.warning("packed weights can't be kept in %s (%s)", path.parent, error.strerror)
        return PackedDecoder(backend, _in_memory(folder, backend, progress, lora))
    _remove_others(path)
    return PackedDecoder(backend, _mapped(path, backend, key))


def _key_of(
    folder: Path,
    backend: Backend,
    cache_dir: Path,
    progress: ProgressCallback,
    lora: Path | None,
) -> str:
    """What packed weights are of; a file that is as it was is not hashed again."""
    parts = {"packed": backend.packing.layout, "reading": str(_READING_VERSION)}
    return fingerprint(folder, parts, lora, cache_dir=cache_dir, progress=progress)


def packed_path(
    cache_dir: Path, folder: Path, backend: Backend, key: str, lora: Path | None = None
) -> Path:
    """Where the packed weights of a folder are kept: a file for each folder, adapter and layout."""
    places = [os.fsencode(place.absolute()) for place in (folder, lora) if place is not None]
    place = hashlib.sha256(b"\0".join(places)).hexdigest()[:8]
    layout = backend.packing.layout.replace(" ", "-")
    return cache_dir / f"{folder.name}-{place}-{layout}-{key[:16]}{SUFFIX}"


def _write(
    path: Path,
    key: str,
    folder: Path,
    backend: Backend,
    progress: ProgressCallback,
    lora: Path | None,
) -> None:
    parts = [part for weight in backend.packing.weights for part in weight.parts]
    remove_abandoned(path.parent, _stem(path))
    with new_packed_file(path, key, parts) as file:
        for array in _packed_arrays(folder, backend, progress, lora):
            file.write(array)
        # Else numbers of files that have come since would be taken for those of the key for good.
        if _key_of(folder, backend, path.parent, progress, lora) != key:
            raise CheckpointError(
                f"{folder}: the model's files were changed while they were loaded; start again when"
                " they are complete"
            )


def _mapped(path: Path, backend: Backend, key: str) -> tuple[jax.Array, ...]:
    parts = [part for weight in backend.packing.weights for part in weight.parts]
    # Aligned memory is taken as it is: no byte of it is copied.
    return tuple(jax.device_put(array) for array in map_packed(path, key, parts))


def _in_memory(
    folder: Path, backend: Backend, progress: ProgressCallback, lora: Path | None
) -> tuple[jax.Array, ...]:
    arrays = _packed_arrays(folder, backend, progress, lora)
    return tuple(jax.device_put(array).block_until_ready() for array in arrays)


def _packed_arrays(
    folder: Path, backend: Backend, progress: ProgressCallback, lora: Path | None
) -> Iterator[npt.NDArray[Any]]:
    """All arrays in the order of the leaves; the host holds one weight at a time."""
    graph, checkpoint = backend.graph, open_checkpoint(folder, lora)
    spec = graph.spec
    verb = "packed" if backend.packing.layout else "loaded"
    done_bytes, size_bytes = 0, backend.packing.size_bytes
    with open_weights(
        checkpoint,
        graph.parameters,
        weight_sources(graph, checkpoint.tensors.keys()),
        architecture=spec.architecture,
        is_ignorable=lambda name: is_ignorable(name, spec),
        kept=backend.stored_formats,
    ) as reader:
        for weight in backend.packing.weights:
            yield from _pack(weight, reader, checkpoint)
            done_bytes += weight.size_bytes
            progress(done_bytes / size_bytes, f"{verb} {weight.name}")


def _pack(
    weight: PackedWeight, reader: WeightReader, checkpoint: Checkpoint
) -> tuple[npt.NDArray[Any], ...]:
    values: list[Any]
    if weight.stored is not None:
        values = [reader.read_blocks(index, weight.stored) for index in weight.sources]
    else:
        values = [reader.read(index) for index in weight.sources]
    try:
        return weight.pack(values)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.listing}: {weight.name} {error}") from error


def _stem(path: Path) -> str:
    """What the names of all packed files of one folder and layout begin with."""
    return path.name[: -len(f"{'0' * 16}{SUFFIX}")]


def _remove_others(path: Path) -> None:
    """Files of the same folder and layout, of weights that it held before."""
    for other in path.parent.glob(f"{glob.escape(_stem(path))}*"):
        if other.name != path.name and len(other.name) == len(path.name):
            with suppress(OSError):
                other.unlink()

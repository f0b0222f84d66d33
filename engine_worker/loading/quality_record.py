"""What `penstock quality` measured of a model's weights: a file beside the packed ones."""

import json
import logging
from pathlib import Path
from typing import Final

from engine_worker.compute.backends.base import Backend
from engine_worker.compute.backends.cache_type import cache_dtype_of
from engine_worker.compute.models.reading import reading_of
from engine_worker.compute.weights.fingerprint import fingerprint
from engine_worker.loading.weights import packed_path

SUFFIX: Final = ".quality.json"
_MAX_BYTES: Final = 16_384
_log = logging.getLogger("penstock.engine.weights")


def quality_path(cache_dir: Path, folder: Path, backend: Backend, lora: Path | None = None) -> Path:
    """Where the record of a folder's weights, as a backend packs them, is kept."""
    parts = {
        "packed": backend.packing.layout,
        "type": backend.weight_type,
        "decoder": reading_of(backend.spec),
    }
    if backend.cache_dtype != cache_dtype_of(backend.weight_type):
        parts["kv"] = str(backend.cache_dtype)
    key = fingerprint(folder, parts, lora, cache_dir=cache_dir)
    return packed_path(cache_dir, folder, backend, key, lora).with_suffix(SUFFIX)


def read_quality(
    cache_dir: Path | None, folder: Path, backend: Backend, lora: Path | None = None
) -> str:
    """The record as JSON; empty when there is none, or none that can be read."""
    if cache_dir is None:
        return ""
    path = quality_path(cache_dir, folder, backend, lora)
    try:
        with path.open("rb") as stream:
            text = stream.read(_MAX_BYTES + 1)
        record = json.loads(text)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        _log.warning("%s can't be read and is left out: %s", path, error)
        return ""
    if len(text) > _MAX_BYTES or not isinstance(record, dict):
        _log.warning("%s is no record of a quality and is left out", path)
        return ""
    return json.dumps(record)


def write_quality(
    record: dict[str, object],
    cache_dir: Path,
    folder: Path,
    backend: Backend,
    lora: Path | None = None,
) -> Path:
    """Keeps a record in place of an earlier one.

    Returns:
        Where it is.

    Raises:
        OSError: It can't be written.
    """
    path = quality_path(cache_dir, folder, backend, lora)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path

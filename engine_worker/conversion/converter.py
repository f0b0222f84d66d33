"""A PyTorch checkpoint as a model folder with safetensors: files, names, config."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import psutil

from engine_worker.compute.models.config_fields import CONFIG_NAME
from engine_worker.compute.weights.lora import WEIGHTS_NAME as ADAPTER_NAME
from engine_worker.compute.weights.safetensors_files import SINGLE_NAME
from engine_worker.conversion.memory_need import Reading, require_conversion_memory
from engine_worker.conversion.name_map import NameMap, Target
from engine_worker.conversion.restricted_pickle import TensorRef
from engine_worker.conversion.safetensors_writer import Shapes, write_safetensors
from engine_worker.conversion.torch_archive import TorchArchive, open_torch_file
from engine_worker.errors import CheckpointError, ModelConfigError
from protocol.runtime.container_limits import free_memory_bytes

_INDEX: Final = "pytorch_model.bin.index.json"
_SINGLE: Final = ("pytorch_model.bin", "adapter_model.bin", "consolidated.00.pth")
_SUFFIXES: Final = (".bin", ".pt", ".pth")
_COPIED: Final = (".jinja", ".model", ".tiktoken")
_COPIED_NAMES: Final = frozenset(
    {
        *("config.json", "generation_config.json", "adapter_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tekken.json"),
        *("chat_template.json", "modules.json", "sentence_bert_config.json"),
        *("config_sentence_transformers.json", "quantize_config.json", "quant_config.json"),
        "hf_quant_config.json",
    }
)
"""No other `.json` or `.txt`: a file may lie among somebody's own."""
_MAX_INDEX_BYTES: Final = 64 * 2**20
_log = logging.getLogger("penstock.engine.convert")


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written.

    Attributes:
        file: With the weights.
        num_tensors: In it.
        size_bytes: Of it.
        left_out: Names of tensors that the mapping leaves out.
    """

    file: Path
    num_tensors: int
    size_bytes: int
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Planned:
    """One tensor of the result."""

    archive: TorchArchive
    source: str
    target: Target

    @property
    def tensor(self) -> TensorRef:
        return self.archive.tensors[self.source]

    @property
    def dtype(self) -> str:
        """Doubles become floats: no backend computes in them."""
        return "F32" if self.tensor.dtype == "F64" else self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape, target = self.tensor.shape, self.target
        if target.transpose:
            shape = (*shape[:-2], *shape[:-3:-1])
        if target.rows is not None:
            shape = (target.rows[1] - target.rows[0], *shape[1:])
        return shape


def convert(
    source: Path,
    folder: Path,
    names: NameMap,
    *,
    free_bytes: Callable[[], int] | None = None,
) -> Converted:
    """Writes a model folder from a PyTorch checkpoint.

    Args:
        source: A file, or a folder with `pytorch_model.bin`, shards and their index, or one `.pt`.
        folder: Made when it isn't there; must hold no weights.
        names: How tensors are called in it.
        free_bytes: What this process may still take, of a container what the container may; asks
            the system when None.

    Raises:
        ModelLoadError: The source can't be read, the mapping doesn't fit it, or there is too little
            memory; names what.
        OSError: The folder can't be written.
    """
    files = _files(source)
    archives = [open_torch_file(file, names.root) for file in files]
    planned, left_out = _plan(archives, names)
    target = ADAPTER_NAME if files[0].name == "adapter_model.bin" else SINGLE_NAME
    if (folder / target).exists():
        raise CheckpointError(f"{folder / target} is there already; name another folder")
    readings = (
        Reading(plan.source, plan.tensor, plan.target.transpose) for plan in planned.values()
    )
    require_conversion_memory(str(source), readings, (free_bytes or _free_bytes)())
    config = _config(files[0].parent, names) if target == SINGLE_NAME else None
    folder.mkdir(parents=True, exist_ok=True)
    _copy_others(files[0].parent, folder)
    if config is not None:
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shapes: Shapes = {name: (plan.dtype, plan.shape) for name, plan in planned.items()}
    write_safetensors(folder / target, shapes, _values(archives, planned))
    written = folder / target
    return Converted(written, len(planned), written.stat().st_size, tuple(left_out))


def _free_bytes() -> int:
    return free_memory_bytes(psutil.virtual_memory().available)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such file or folder")
    index = source / _INDEX
    if index.is_file():
        try:
            if index.stat().st_size > _MAX_INDEX_BYTES:
                raise ValueError(f"larger than {_MAX_INDEX_BYTES} bytes")
            placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            names = sorted({str(name) for name in placed})
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: no readable index of shards: {error!r}") from error
        for name in names:
            if Path(name).name != name:
                raise CheckpointError(f"{index}: {name!r:.120} is not the name of a file beside it")
        return [source / name for name in names]
    for name in _SINGLE:
        if (source / name).is_file():
            return [source / name]
    found = sorted(path for path in source.iterdir() if path.suffix in _SUFFIXES)
    if len(found) != 1:
        told = ", ".join(path.name for path in found[:5]) or "none"
        raise CheckpointError(
            f"{source}: which file holds the weights? Of {', '.join(_SUFFIXES)} there are: {told}; "
            "name one of them"
        )
    return found


def _plan(archives: list[TorchArchive], names: NameMap) -> tuple[dict[str, _Planned], list[str]]:
    """What is written by its new name, in the order of the files, and what isn't."""
    planned: dict[str, _Planned] = {}
    left_out: list[str] = []
    for archive in archives:
        for source, tensor in archive.tensors.items():
            targets = list(names.targets(source))
            if not targets:
                left_out.append(source)
            for target in targets:
                plan = _Planned(archive, source, target)
                if target.name in planned:
                    raise CheckpointError(
                        f"{archive.path}: {source!r} and {planned[target.name].source!r} both "
                        f"become {target.name!r}; the mapping must tell them apart"
                    )
                _check_cut(plan, tensor.shape)
                planned[target.name] = plan
    if not planned:
        raise CheckpointError(f"{archives[0].path}: the mapping leaves nothing of it")
    return planned, left_out


def _check_cut(plan: _Planned, shape: tuple[int, ...]) -> None:
    target = plan.target
    if target.transpose and len(shape) < 2:
        raise CheckpointError(
            f"{plan.archive.path}: tensor {plan.source!r} {list(shape)} can't be transposed"
        )
    rows = shape[-1] if target.transpose and len(shape) == 2 else (shape or (0,))[0]
    if target.rows is not None and target.rows[1] > rows:
        raise CheckpointError(
            f"{plan.archive.path}: tensor {plan.source!r} has {rows} rows, the mapping asks for "
            f"{target.rows[1]}"
        )


def _values(
    archives: list[TorchArchive], planned: dict[str, _Planned]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for archive in archives:
        with archive.reading() as reader:
            for name, plan in planned.items():
                if plan.archive is archive:
                    yield name, _cut(reader.read(plan.source), plan)


def _cut(values: npt.NDArray[Any], plan: _Planned) -> npt.NDArray[Any]:
    if values.dtype == "float64":
        values = values.astype("float32")
    if plan.target.transpose:
        values = values.swapaxes(-1, -2)
    return values if plan.target.rows is None else values[slice(*plan.target.rows)]


def _config(source: Path, names: NameMap) -> dict[str, Any] | None:
    """The model's config with what the mapping says; None where neither says anything."""
    path = source / CONFIG_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelConfigError(f"{path}: must hold a JSON object")
    return {**found, **names.config} or None


def _copy_others(source: Path, folder: Path) -> None:
    """Tokenizer, templates and what else stands beside the weights."""
    if source.resolve() == folder.resolve():
        return
    # In the cache of the hub a model's files are links to `blobs` beside its `snapshots`.
    places = (source.resolve(), source.resolve().parent.parent / "blobs")
    for path in sorted(source.iterdir()):
        is_wanted = path.suffix in _COPIED or path.name in _COPIED_NAMES
        if not is_wanted or not path.is_file() or (folder / path.name).exists():
            continue
        if not any(path.resolve().is_relative_to(place) for place in places):
            raise CheckpointError(
                f"{path} is a link to {path.resolve()}, which is no file of the model; remove it,"
                " or put a copy there if it is"
            )
        shutil.copyfile(path, folder / path.name)

"""A checkpoint with a LoRA adapter merged into it: W + scale * B A, made as each weight is read.

Reads what PEFT writes: `adapter_config.json` and `adapter_model.safetensors`. Source: PEFT 0.21,
`tuners/lora/layer.py`, `tuners/lora/dora.py` and `utils/save_and_load.py`.
"""

import json
import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from engine_worker.compute.models.config_fields import MAX_CONFIG_BYTES, ConfigFields
from engine_worker.compute.models.integer_blocks import BlockFormat
from engine_worker.compute.weights.safetensors_files import SafetensorsCheckpoint, read_header
from engine_worker.compute.weights.tensor_info import (
    DTYPE_SIZES,
    ReadBlocks,
    ReadTensor,
    TensorInfo,
)
from engine_worker.errors import CheckpointError, ModelConfigError, UnsupportedFormatError

CONFIG_NAME: Final = "adapter_config.json"
WEIGHTS_NAME: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_PARTS: Final = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
_WHOLE: Final = (".modules_to_save.default", ".modules_to_save", ".base_layer")
"""In names of tensors that the adapter holds as a whole."""
_OTHER_BASE: Final = ("pissa", "olora", "loftq", "corda")
"""Ways of initialising that change the weights of the model that is adapted, too."""
_VARIANTS: Final = (
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
"""Fields of PEFT's that make another product of A and B, or add what is none."""
_RENAMED: Final = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
    ("model.", "model.language_model."),
    ("model.", ""),
    ("transformer.", ""),
)
"""Beginnings of one tensor's name: as transformers calls the modules of a model since release 4.52,
whose names an adapter has, and as files have it that were saved before; by itself, and as part of a
model that also sees; with what stands before a base model, and as files have it that were saved
from that alone."""
_CHANGED_VALUES: Final = 2**20
"""Numbers of a weight that are changed at a time: the change of all would take as much memory."""
_PLAIN_PATTERN: Final = re.compile(r"\^?[\w.]+")
_log = logging.getLogger("penstock.engine.weights")


class _Base(Protocol):
    """What is needed of a `Checkpoint`, which this file may not import."""

    @property
    def listing(self) -> Path: ...
    @property
    def files(self) -> tuple[Path, ...]: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    @property
    def stored_as(self) -> str: ...
    def reading(self) -> Any: ...
    @property
    def quantized(self) -> Collection[str]: ...
    @property
    def block_formats(self) -> Mapping[str, BlockFormat]: ...
    @property
    def transposed_blocks(self) -> Collection[str]: ...
    def reading_blocks(self) -> AbstractContextManager[ReadBlocks]: ...


@dataclass(frozen=True, slots=True)
class _Scaling:
    """What the products of an adapter are multiplied with.

    Attributes:
        alpha: Of modules without one of their own.
        alphas: By the end of a module's name, or the whole of it behind a `^`; the first that fits
            counts.
        by_root: Divided by the root of the rank instead of the rank (rsLoRA).
        is_transposed: Weights lie as [in, out].
    """

    alpha: float
    alphas: Mapping[str, float]
    by_root: bool
    is_transposed: bool

    def of(self, module: str, rank: int) -> float:
        fitting = (value for pattern, value in self.alphas.items() if _fits(pattern, module))
        alpha = next(fitting, self.alpha)
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def _other_names(name: str) -> Iterator[str]:
    """How else a file may call a tensor that an adapter calls so; see `_RENAMED`."""
    for new, old in _RENAMED:
        for one, other in ((new, old), (old, new)):
            if name.startswith(one):
                yield other + name.removeprefix(one)


def _fits(pattern: str, module: str) -> bool:
    name = pattern.removeprefix("^")
    return module == name or (name == pattern and module.endswith(f".{name}"))


@dataclass(slots=True)
class _Module:
    """The tensors of one adapted module, by `_PARTS`."""

    parts: dict[str, TensorInfo] = field(default_factory=dict)


class AdaptedCheckpoint:
    """Implements `Checkpoint`: the tensors of another one, some of them changed by an adapter."""

    def __init__(self, base: _Base, folder: Path) -> None:
        """Reads the adapter's config and header.

        Args:
            base: The model's checkpoint.
            folder: The adapter's.

        Raises:
            CheckpointError: A file is missing or broken, a module or a shape is not the model's.
            ModelConfigError: The config is missing or contradicts itself.
            UnsupportedFormatError: An adapter of another kind.
        """
        self._base = base
        self.stored_as = base.stored_as
        self._file = folder / WEIGHTS_NAME
        fields = _read_config(folder)
        self._scaling = _read_scaling(fields)
        if not self._file.is_file() and (folder / "adapter_model.bin").is_file():
            raise UnsupportedFormatError(
                f"{folder}: adapter_model.bin is a pickle, which is never loaded; `penstock "
                f"convert` makes {WEIGHTS_NAME} of it"
            )
        self._adapter = SafetensorsCheckpoint(self._file, (self._file,), read_header(self._file))
        modules, self._replaced = self._sorted_out()
        self._merged: dict[str, tuple[TensorInfo, _Module, float]] = {}
        changed: dict[str, TensorInfo] = {}
        for name, stored in self._replaced.items():
            changed[name] = _made_of(stored, name, stored.dtype, stored)
        for module, found in modules.items():
            info, scale = self._check_module(module, found)
            if info.name in self._merged:
                first = next(iter(found.parts.values()))
                raise self._error(first, f"changes {info.name!r}, which another one changes, too")
            self._merged[info.name] = (info, found, scale)
            whole = changed.get(info.name, info)
            parts = (*whole.stored, *found.parts.values())
            changed[info.name] = _made_of(whole, info.name, "F32", *parts)
        if not changed:
            raise CheckpointError(f"{self._file}: holds no tensor of an adapter")
        self.tensors: Mapping[str, TensorInfo] = {**base.tensors, **changed}

    @property
    def listing(self) -> Path:
        return self._base.listing

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self._base.files, self._file)

    @property
    def quantized(self) -> Collection[str]:
        return self._base.quantized

    @property
    def block_formats(self) -> dict[str, BlockFormat]:
        changed = {*self._merged, *self._replaced}
        kept = self._base.block_formats.items()
        return {name: form for name, form in kept if name not in changed}

    @property
    def transposed_blocks(self) -> Collection[str]:
        return self._base.transposed_blocks

    def reading_blocks(self) -> AbstractContextManager[ReadBlocks]:
        return self._base.reading_blocks()

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        _log.info(
            "%s: merged into %d weights, which it changes; %d tensors are its own",
            self._file,
            len(self._merged),
            len(self._replaced),
        )
        with self._base.reading() as read_base, self._adapter.reading() as read_adapter:

            def read(name: str, rows: tuple[int, int] | None = None) -> npt.NDArray[Any]:
                replaced = self._replaced.get(name)
                values: npt.NDArray[Any]
                # No changed tensor is read in rows.
                values = read_base(name, rows) if replaced is None else read_adapter(replaced.name)
                if name not in self._merged:
                    return values
                _, module, scale = self._merged[name]
                return self._merge(values, module, scale, read_adapter)

            yield read

    def _sorted_out(self) -> tuple[dict[str, _Module], dict[str, TensorInfo]]:
        """Adapted modules by name, and whole tensors by the name of what they replace."""
        modules: dict[str, _Module] = {}
        replaced: dict[str, TensorInfo] = {}
        for stored_name, info in self._adapter.tensors.items():
            if info.dtype not in DTYPE_SIZES:
                raise self._error(info, f"is {info.dtype}; {', '.join(DTYPE_SIZES)} are read")
            name = stored_name.removeprefix(_PREFIX)
            suffix = next((end for end in _PARTS if name.endswith(end)), None)
            if suffix is not None:
                module = name.removesuffix(suffix)
                modules.setdefault(module, _Module()).parts[_PARTS[suffix]] = info
            elif ".lora_" in name or not name.endswith((".weight", ".bias")):
                raise self._error(info, "is no part of an adapter that is read")
            else:
                for part in _WHOLE:
                    name = name.replace(part, "")
                replaced[self._name_in_base(name)] = info
        for name, info in replaced.items():
            base = self._base.tensors.get(name)
            if base is None and name != "lm_head.weight":
                raise self._error(info, f"replaces {name!r}, {self._not_there(name)}")
            if base is not None and base.shape != info.shape:
                raise self._error(
                    info, f"has shape {list(info.shape)}, but {name!r} has {list(base.shape)}"
                )
        return modules, replaced

    def _check_module(self, module: str, found: _Module) -> tuple[TensorInfo, float]:
        """The tensor that a module changes, and what its product is multiplied with."""
        parts = found.parts
        first = next(iter(parts.values()))
        is_embedding = "embedding_a" in parts
        a, b = (parts.get(f"embedding_{part}" if is_embedding else part) for part in "ab")
        if a is None or b is None:
            raise self._error(first, "is one of A and B, and the other is missing")
        base = self._base.tensors.get(self._name_in_base(f"{module}.weight"))
        if base is None:
            name = f"{module}.weight"
            raise self._error(a, f"changes {name!r}, {self._not_there(name)}")
        if base.dtype not in DTYPE_SIZES:
            raise self._error(a, f"changes {base.name!r}, which is {base.dtype}")
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in a.shape:
            raise self._error(a, f"has shape {list(a.shape)}, and B has {list(b.shape)}")
        made = (b.shape[0], a.shape[1])
        if is_embedding or self._scaling.is_transposed:
            made = made[::-1]
        if base.shape != made:
            raise self._error(
                a, f"and B make a change {list(made)}, but {base.name!r} has {list(base.shape)}"
            )
        magnitude = parts.get("magnitude")
        if magnitude is not None and (is_embedding or self._scaling.is_transposed):
            raise self._error(magnitude, "is of a DoRA of an embedding, which is not read")
        if magnitude is not None and magnitude.shape != (made[0],):
            raise self._error(magnitude, f"has shape {list(magnitude.shape)}, not [{made[0]}]")
        return base, self._scaling.of(module, a.shape[0])

    def _merge(
        self, values: npt.NDArray[Any], module: _Module, scale: float, read: ReadTensor
    ) -> npt.NDArray[np.float32]:
        parts = {name: read(info.name).astype(np.float32) for name, info in module.parts.items()}
        is_embedding = "embedding_a" in parts
        a = parts["embedding_a" if is_embedding else "a"]
        b = parts["embedding_b" if is_embedding else "b"]
        left, right = (a.T, b.T) if is_embedding or self._scaling.is_transposed else (b, a)
        magnitude = parts.get("magnitude")
        # Nobody else has what was just read.
        merged: npt.NDArray[np.float32] = values.astype(np.float32, copy=False)
        step = max(1, _CHANGED_VALUES // merged.shape[1])
        for first in range(0, len(merged), step):
            some = slice(first, first + step)
            rows = merged[some]
            rows += np.float32(scale) * (left[some] @ right)
            if magnitude is not None:
                rows *= (magnitude[some] / np.linalg.norm(rows, axis=1))[:, None]
        return merged

    def _name_in_base(self, name: str) -> str:
        """What the model's files call a tensor; the name itself where they don't hold it."""
        tensors = self._base.tensors
        if name in tensors:
            return name
        return next((other for other in _other_names(name) if other in tensors), name)

    def _not_there(self, name: str) -> str:
        near = get_close_matches(name, list(self._base.tensors), n=1)
        hint = f" (the nearest is {near[0]!r})" if near else ""
        return f"which {self._base.listing} doesn't hold{hint}: is it an adapter of this model?"

    def _error(self, info: TensorInfo, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._file}: tensor {info.name!r} {what}; use an adapter made for this model, or "
            "merge it with PEFT and serve the result"
        )


def _made_of(whole: TensorInfo, name: str, dtype: str, *parts: TensorInfo) -> TensorInfo:
    """What is said of a changed tensor: the shape and place of another one."""
    return TensorInfo(name, whole.file, dtype, whole.shape, whole.start, whole.end, parts)


def _read_config(folder: Path) -> ConfigFields:
    path = folder / CONFIG_NAME
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelConfigError(f"{folder}: no {CONFIG_NAME}, so this is no adapter") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ModelConfigError(f"{path}: must hold a JSON object")
    fields = ConfigFields(values, str(path))
    kind = fields.text("peft_type", "LORA")
    initial = values.get("init_lora_weights")
    refused = {
        f"peft_type {kind!r:.40}": kind.upper() != "LORA",
        f"init_lora_weights {initial!r:.40}": isinstance(initial, str)
        and initial.lower().startswith(_OTHER_BASE),
        **{name: bool(values.get(name)) for name in _VARIANTS},
    }
    for what, is_refused in refused.items():
        if is_refused:
            raise UnsupportedFormatError(
                f"{path}: {what} is not merged here; merge the adapter with PEFT and serve the "
                "result"
            )
    return fields


def _read_scaling(fields: ConfigFields) -> _Scaling:
    patterns = fields.mapping("alpha_pattern") or {}
    inner = ConfigFields(patterns, "alpha_pattern")
    for pattern in patterns:
        if not _PLAIN_PATTERN.fullmatch(pattern):
            raise fields.error("alpha_pattern", "is read with names of modules only", pattern)
    return _Scaling(
        alpha=fields.number("lora_alpha", 8.0),
        alphas={pattern: inner.number(pattern) for pattern in patterns},
        by_root=fields.flag("use_rslora", False),
        is_transposed=fields.flag("fan_in_fan_out", False),
    )

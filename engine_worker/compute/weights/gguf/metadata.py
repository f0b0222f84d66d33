"""Typed reading of single values out of the metadata of a GGUF file."""

import array
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from engine_worker.errors import ModelConfigError
from protocol.runtime.gguf_header import GgufFile, GgufTensor

ARCHITECTURE: Final = "general.architecture"
_LONGEST_SHOWN: Final = 40


class GgufMetadata:
    """The metadata of a model, and which tensors it has.

    Keys of the model's hyperparameters begin with its architecture (`llama.block_count`), which
    callers leave out. Each reader checks the type and names the key. Floats are single precision in
    the file; they are returned as the shortest decimals that they stand for: 1e-05, not
    9.99999974737875e-06.
    """

    def __init__(self, files: tuple[GgufFile, ...]) -> None:
        self.files = files
        self.path: Path = files[0].path
        self.values: Mapping[str, Any] = files[0].metadata
        self.tensors: dict[str, GgufTensor] = {
            name: tensor for file in files for name, tensor in file.tensors.items()
        }
        self.architecture = self.values.get(ARCHITECTURE)
        if not isinstance(self.architecture, str):
            raise ModelConfigError(f"{self.path}: key {ARCHITECTURE!r} is missing, or no text")

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number >= 0; without a default it must be there."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(name, "must be a whole number >= 0", value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number; without a default it must be there."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, "must be a number", value)
        with np.errstate(all="ignore"):
            return float(str(np.float32(value)))

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false", value)
        return value

    def text(self, name: str, default: str) -> str:
        """A text."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.error(name, "must be a text", value)
        return value

    def texts(self, name: str) -> tuple[str, ...] | None:
        """A list of texts; None where there is none."""
        value = self.values.get(self._key(name))
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.error(name, "must be a list of texts", value)
        return tuple(value)

    def has(self, name: str) -> bool:
        """Whether there is a value."""
        return self._key(name) in self.values

    def per_layer(self, name: str, num_layers: int) -> tuple[int, ...]:
        """A whole number for each layer, which may be written once for all."""
        value = self._get(name, None)
        if isinstance(value, array.array):
            if len(value) != num_layers:
                raise self.error(name, f"must have {num_layers} numbers", value)
            if value.typecode in "fd" or min(value, default=0) < 0:
                raise self.error(name, "must hold whole numbers >= 0", value)
            return tuple(int(number) for number in value)
        return (self.whole(name),) * num_layers

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that must be there."""
        if name not in self.tensors:
            raise ModelConfigError(f"{self.path}: tensor {name!r} is missing")
        return self.tensors[name].shape

    def error(self, name: str, what: str, value: object) -> ModelConfigError:
        """The error of one key: what it must be and (shortened) what it is."""
        # Lists of a file may have a hundred million entries.
        shown = f"{reprlib.repr(value):.{_LONGEST_SHOWN}}"
        return ModelConfigError(f"{self.path}: key {self._key(name)!r} {what}, not {shown}")

    def _get(self, name: str, default: object) -> object:
        value = self.values.get(self._key(name), default)
        if value is None:
            raise ModelConfigError(f"{self.path}: key {self._key(name)!r} is missing")
        return value

    def _key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

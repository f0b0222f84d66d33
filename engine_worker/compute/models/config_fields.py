"""Typed, bounded reading of single values out of a model's `config.json`."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from engine_worker.errors import ModelConfigError

CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = 8 * 2**20
MAX_LIST = 2**14
"""Entries of a list, which is read again for each layer; no model comes near."""
MAX_SIZE = 2**24
"""No width, head count or vocabulary of any model comes near; a typing slip does."""


def read_config(folder: Path) -> dict[str, Any]:
    """Reads `config.json` of a model folder.

    Raises:
        ModelConfigError: The folder or file is missing, too large, or no JSON object.
    """
    path = folder / CONFIG_NAME
    if not folder.is_dir():
        raise ModelConfigError(f"{folder}: no such folder")
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelConfigError(
            f"{folder}: no {CONFIG_NAME}, so this is no Hugging Face model folder"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelConfigError(f"{path}: must hold a JSON object")
    return config


class ConfigFields:
    """One JSON object of a config; each reader checks type and range, and names the field.

    A field that is absent or null takes the default; without a default it is required.
    """

    def __init__(self, values: Mapping[str, Any], where: str = CONFIG_NAME) -> None:
        self._values = values
        self._where = where

    def present(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(name) is not None

    def stated(self, name: str) -> bool:
        """Whether the field is there, null included: where null differs from absent."""
        return name in self._values

    def size(
        self,
        name: str,
        default: int | None = None,
        *,
        minimum: int = 1,
        maximum: int = MAX_SIZE,
    ) -> int:
        """A whole number from `minimum` to `maximum`."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self.error(name, f"must be a whole number from {minimum} to {maximum}", value)
        return value

    def integer(self, name: str, default: int) -> int:
        """A whole number of at most `MAX_SIZE` in magnitude, for fields where -1 has a meaning."""
        return self.size(name, default, minimum=-MAX_SIZE)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        return self._number(name, self._get(name, default))

    def number_or_zero(self, name: str) -> float:
        """As `number`, or 0, which is what an absent field means."""
        return 0.0 if self._get(name, 0) == 0 else self.number(name)

    def optional_number(self, name: str, default: float | None = None) -> float | None:
        """As `number`; None where null is said, or where nothing is and the default is None."""
        if self.stated(name) and not self.present(name):
            return None
        return default if not self.present(name) else self.number(name)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers above 0."""
        values = self._list(name)
        if values is None:
            raise ModelConfigError(f"{self._where}: {name} is missing")
        return tuple(self._number(name, value) for value in values)

    def _number(self, name: str, value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(name, "must be a number", value)
        # JSON knows whole numbers beyond every float.
        if not 0 < value <= sys.float_info.max:
            raise self.error(name, "must be finite and above 0", value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false", value)
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.error(name, "must be a string", value)
        return value

    def strings(self, name: str) -> tuple[str, ...] | None:
        """A list of strings; None where it is absent."""
        values = self._list(name)
        if values is None:
            return None
        if not all(isinstance(value, str) for value in values):
            raise self.error(name, "must hold strings", values)
        return cast("tuple[str, ...]", values)

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of whole numbers >= 0, or a single one; None where it is absent."""
        single = self._values.get(name)
        values = (single,) if isinstance(single, int) else self._list(name)
        if values is None:
            return None
        if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
            raise self.error(name, "must hold whole numbers >= 0", values)
        return cast("tuple[int, ...]", values)

    def mapping(self, name: str) -> dict[str, Any] | None:
        """A JSON object; None where it is absent."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.error(name, "must be an object", value)
        return value

    def inner(self, name: str) -> "ConfigFields | None":
        """The fields of a JSON object in it; None where there is another value or none."""
        value = self._values.get(name)
        return ConfigFields(value, f"{self._where}: {name}") if isinstance(value, dict) else None

    def error(self, name: str, what: str, value: object) -> ModelConfigError:
        """The error of one field: where, name, what it must be, and (shortened) what it is."""
        return ModelConfigError(f"{self._where}: {name} {what}, not {value!r:.80}")

    def _get(self, name: str, default: object) -> object:
        value = self._values.get(name)
        if value is not None:
            return value
        if default is None:
            raise ModelConfigError(f"{self._where}: {name} is missing")
        return default

    def _list(self, name: str) -> tuple[Any, ...] | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.error(name, "must be a list", value)
        if len(value) > MAX_LIST:
            raise self.error(name, f"must hold at most {MAX_LIST} values", len(value))
        return tuple(value)

"""Reads what a checkpoint's `generation_config.json` recommends for sampling."""

import json
from pathlib import Path
from typing import Any

from engine_worker.errors import ModelConfigError
from protocol.wire.messages import SamplingDefaults
from protocol.wire.sampling_ranges import NUMBER_RANGES


def load_sampling_defaults(folder: Path) -> SamplingDefaults:
    """The recommendations of a checkpoint; empty when it has no `generation_config.json`.

    `do_sample: false` asks for greedy choice and overrules the rest, as in transformers.

    Raises:
        ModelConfigError: The file can't be read, or holds a value that is no sensible number.
    """
    path = folder / "generation_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return SamplingDefaults()
    except (OSError, ValueError) as error:
        raise ModelConfigError(f"{path} can't be read: {error}.") from error
    if not isinstance(config, dict):
        raise ModelConfigError(f"{path} is no JSON object.")
    if config.get("do_sample") is False:
        return SamplingDefaults(temperature=0.0)

    def number(name: str) -> float | None:
        return _number(config, name, path)

    top_k = number("top_k")
    return SamplingDefaults(
        temperature=number("temperature"),
        top_k=None if top_k is None else int(top_k),
        top_p=number("top_p"),
        min_p=number("min_p"),
        repetition_penalty=number("repetition_penalty"),
    )


def _number(config: dict[str, Any], name: str, path: Path) -> float | None:
    """A number that a request could send as well."""
    value = config.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not NUMBER_RANGES[name].holds(value):
        raise ModelConfigError(f"{path}: {name} is {value!r}, not {NUMBER_RANGES[name]}.")
    return float(value)

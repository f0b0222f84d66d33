"""Reads what a checkpoint's `generation_config.json` recommends for sampling."""

import json
import math
from pathlib import Path
from typing import Any

from engine_worker.errors import ModelConfigError
from protocol.wire.messages import SamplingDefaults


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

    def number(name: str, minimum: float, maximum: float) -> float | None:
        return _number(config, name, minimum, maximum, path)

    top_k = number("top_k", 0, 2**31 - 1)
    return SamplingDefaults(
        temperature=number("temperature", 0, 2),
        top_k=None if top_k is None else int(top_k),
        top_p=number("top_p", 1e-9, 1),
        min_p=number("min_p", 0, 1),
        repetition_penalty=number("repetition_penalty", 1e-9, 100),
    )


def _number(
    config: dict[str, Any], name: str, minimum: float, maximum: float, path: Path
) -> float | None:
    value = config.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not minimum <= value <= maximum:
        raise ModelConfigError(f"{path}: {name} is {value!r}, not between {minimum} and {maximum}.")
    return float(value)

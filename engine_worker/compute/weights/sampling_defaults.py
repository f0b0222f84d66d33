"""Reads what a checkpoint's `generation_config.json` recommends for sampling.

What it says is advice: a file that can't be read, or a value that no request could send, stops
nothing. It is told in the log, and the nearest value that works is taken, or the server's own.
"""

import logging
import math
from pathlib import Path
from typing import Any

from engine_worker.text.generation_config import GENERATION_CONFIG, read_generation_config
from protocol.wire.messages import SamplingDefaults
from protocol.wire.sampling_ranges import NUMBER_RANGES

_log = logging.getLogger("penstock.engine")


def load_sampling_defaults(folder: Path) -> SamplingDefaults:
    """The recommendations of a checkpoint; empty when it has no `generation_config.json`.

    `do_sample: false` asks for greedy choice and overrules the rest, as in transformers. A
    number outside its range becomes the nearest one inside. What has no nearest one, and what is
    no number, is left out.
    """
    config = read_generation_config(folder)
    path = folder / GENERATION_CONFIG
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
    """A number that a request could send as well; None leaves the server's own."""
    value = config.get(name)
    if value is None:
        return None
    # A whole number may be larger than any float.
    is_nan = isinstance(value, float) and math.isnan(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or is_nan:
        _log.warning("%s: %s is %.80r, no number; it is left out", path, name, value)
        return None
    allowed = NUMBER_RANGES[name]
    if allowed.holds(value):
        return float(value)
    nearest = allowed.minimum if value < allowed.maximum else allowed.maximum
    if not allowed.holds(nearest):
        _log.warning("%s: %s is %.80r, not %s; it is left out", path, name, value, allowed)
        return None
    _log.warning("%s: %s is %.80r, not %s; %s is taken", path, name, value, allowed, nearest)
    return float(nearest)

"""Reads `generation_config.json`, which is advice: a broken one is told in the log, never fatal."""

import json
import logging
from pathlib import Path
from typing import Any, Final

from engine_worker.text.bounded_file import read_bounded

GENERATION_CONFIG: Final = "generation_config.json"

_log = logging.getLogger("penstock.engine")


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's `generation_config.json`; empty when it has none that is read.

    A broken file is told in the log.
    """
    path = folder / GENERATION_CONFIG
    try:
        config = json.loads(read_bounded(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("%s can't be read and is left out: %s", path, error)
        return {}
    if not isinstance(config, dict):
        _log.warning("%s is no JSON object and is left out", path)
        return {}
    return config

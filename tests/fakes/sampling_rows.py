"""Sampling parameters for the rows of a test."""

from typing import Any

import numpy as np

from engine_worker.compute.sampling.params import SamplingRows


def sampling_rows(num_rows: int, **columns: Any) -> SamplingRows:
    """Random rows of temperature 1 without filters; a column is one value or one per row."""
    defaults: dict[str, tuple[Any, Any]] = {
        "slots": (np.arange(num_rows), np.int32),
        "sampled": (True, np.bool_),
        "positions": (5, np.uint32),
        "choices": (0, np.uint32),
        "seeds_low": (1, np.uint32),
        "seeds_high": (0, np.uint32),
        "temperatures": (1.0, np.float32),
        "top_ks": (0, np.int32),
        "top_ps": (1.0, np.float32),
        "log_min_ps": (-np.inf, np.float32),
        "presence_penalties": (0.0, np.float32),
        "frequency_penalties": (0.0, np.float32),
        "repetition_penalties": (1.0, np.float32),
    }
    values = {
        name: np.array(np.broadcast_to(np.asarray(columns.pop(name, default), dtype), num_rows))
        for name, (default, dtype) in defaults.items()
    }
    assert not columns, f"no such column: {columns}"
    return SamplingRows(**values)  # type: ignore[arg-type]

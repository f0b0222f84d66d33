"""Which rotary embedding a table of frequency factors stands for."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine_worker.errors import ModelConfigError, UnsupportedFeatureError

_LOW_FREQ = 1.0
_HIGH_FREQS: Final = (4.0, 1.0)
"""Of Llama 3 and of Llama 4, which blends nothing."""
_ORIGINAL: Final = 8192
_TOLERANCE: Final = 1e-4


def llama3_scaling(
    factors: npt.NDArray[np.float64], config: Mapping[str, Any], path: Path
) -> dict[str, Any] | None:
    """The `rope_scaling` of a model whose file holds the factors that Llama 3's formula gives.

    llama.cpp divides each frequency by its factor and doesn't keep what the factors were made
    from. All models of this kind have the same two of the four parameters, and one of two values in
    the third; the fourth is the largest factor. The formula must give every factor again.

    Args:
        factors: One for each pair of a head's numbers.
        config: Holds `rope_theta`.
        path: For messages.

    Returns:
        None where no frequency changes.

    Raises:
        ModelConfigError: The frequencies have no base.
        UnsupportedFeatureError: They are of another formula.
    """
    if not np.isfinite(factors).all() or factors.min() <= 0:
        raise UnsupportedFeatureError(f"{path}: the frequency factors of its rope are no factors")
    factor = float(factors.max())
    if factor == 1.0 == float(factors.min()):
        return None
    theta = float(config["rope_theta"])
    if not 0 < theta < math.inf:
        raise ModelConfigError(
            f"{path}: the frequency base of its rope must be finite and above 0, not {theta}"
        )
    found = (
        high
        for high in _HIGH_FREQS
        if np.allclose(
            factors, _llama3_factors(len(factors), theta, factor, high), rtol=_TOLERANCE, atol=0
        )
    )
    high = next(found, None)
    if high is None:
        raise UnsupportedFeatureError(
            f"{path}: the frequency factors of its rope are not those of Llama 3's formula for"
            f" {_ORIGINAL} tokens, which is the only one that is read; use the model's safetensors"
            " files"
        )
    return {
        "rope_type": "llama3",
        "factor": round(factor, 4),
        "low_freq_factor": _LOW_FREQ,
        "high_freq_factor": high,
        "original_max_position_embeddings": _ORIGINAL,
    }


def _llama3_factors(
    num_pairs: int, theta: float, factor: float, high: float
) -> npt.NDArray[np.float64]:
    frequencies = theta ** (-np.arange(num_pairs, dtype=np.float64) / num_pairs)
    rotations = _ORIGINAL * frequencies / (2 * math.pi)
    width = high - _LOW_FREQ
    smooth = np.clip((rotations - _LOW_FREQ) / width, 0, 1) if width else rotations > _LOW_FREQ
    scaled: npt.NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return scaled

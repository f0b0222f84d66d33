"""What `python -m tests.quality_table` writes is the bundled model but for what a format loses."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.demo import demo_model_path
from tests.quality_table import FORMATS

WEIGHT = "model.layers.1.mlp.down_proj.weight"
LOSSES = {
    "W8A8 by row": 0.01,
    "AWQ": 0.1,
    "GPTQ": 0.1,
    "W4A16": 0.12,
    "bitsandbytes int8": 0.01,
    "bitsandbytes nf4": 0.1,
    "bitsandbytes fp4": 0.13,
    "GPTQ, act-order": 0.1,
    "W4A16 by channel": 0.16,
    "NVFP4": 0.11,
    "MXFP4 of a folder": 0.14,
    "fp8, one scale a matrix": 0.04,
    "fp8, blocks of 128 x 128": 0.04,
    "MLX, 4 bits": 0.1,
    "MLX, 8 bits": 0.01,
}
"""The most that a matrix differs, of its length."""


@pytest.mark.parametrize("name", LOSSES)
def test_a_folder_is_read_as_the_models_own_weights_but_for_rounding(
    name: str, tmp_path: Path
) -> None:
    expected = load_file(demo_model_path() / "model.safetensors")[WEIGHT].astype(np.float32)
    checkpoint = open_checkpoint(FORMATS[name](tmp_path))
    with checkpoint.reading() as read:
        found = read(WEIGHT)
    distance = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < distance < LOSSES[name]

"""MXFP4 experts as GPT-OSS keeps them: held to transformers' own dequantisation."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.errors import CheckpointError
from tests.fakes.late import mxfp4, torch

NAME = "model.layers.0.mlp.experts.down_proj"
GENERATOR = np.random.default_rng(5)


def write(folder: Path, **tensors: np.ndarray) -> None:
    config = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": []}}
    (folder / "config.json").write_text(json.dumps(config))
    stored = {f"{NAME}_{part}": values for part, values in tensors.items()}
    save_file(stored | {"norm": np.ones(3, np.float32)}, folder / "model.safetensors")


def blocks_and_scales(scales: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    blocks = GENERATOR.integers(0, 256, (3, 10, 4, 16), np.uint8)
    return blocks, GENERATOR.integers(*scales, (3, 10, 4), np.uint8)


@pytest.mark.parametrize("scales", [(110, 140), (0, 250)])
def test_experts_are_those_of_transformers_in_every_bit(
    tmp_path: Path, scales: tuple[int, int]
) -> None:
    blocks, exponents = blocks_and_scales(scales)
    write(tmp_path, blocks=blocks, scales=exponents)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == {NAME, "norm"}
    assert checkpoint.tensors[NAME].shape == (3, 128, 10)
    assert checkpoint.tensors[NAME].dtype == "BF16"
    with checkpoint.reading() as read:
        values = read(NAME)
        np.testing.assert_array_equal(read("norm"), np.ones(3))
    # Its own function rounds fp4 numbers to what it computes in; float32 holds all of them.
    expected = mxfp4.convert_moe_packed_tensors(
        torch.from_numpy(blocks), torch.from_numpy(exponents), dtype=torch.float32
    )
    assert values.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(
        values.astype(np.float32), expected.to(torch.bfloat16).to(torch.float32).numpy()
    )


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught, open_checkpoint(folder).reading() as read:
        read(NAME)
    for part in (*parts, "model.safetensors", "original model"):
        assert part in str(caught.value)


def test_missing_scales_other_shapes_and_types_name_the_tensor(tmp_path: Path) -> None:
    blocks, scales = blocks_and_scales((110, 140))
    write(tmp_path, blocks=blocks)
    refused(tmp_path, f"{NAME}_scales", "missing")
    write(tmp_path, blocks=blocks, scales=scales[:, :9])
    refused(tmp_path, f"{NAME}_scales", "[3, 9, 4]", "[3, 10, 4]")
    write(tmp_path, blocks=blocks[..., :8], scales=scales)
    refused(tmp_path, f"{NAME}_blocks", "[3, 10, 4, 8]")
    write(tmp_path, blocks=blocks.astype(np.int32), scales=scales)
    refused(tmp_path, f"{NAME}_blocks", "I32")


def test_a_scale_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    blocks, scales = blocks_and_scales((110, 140))
    scales[1, 2, 3] = 255
    write(tmp_path, blocks=blocks, scales=scales)
    refused(tmp_path, f"{NAME}_scales", "255")


def test_a_file_that_was_cut_names_the_tensor(tmp_path: Path) -> None:
    blocks, scales = blocks_and_scales((110, 140))
    write(tmp_path, blocks=blocks, scales=scales)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"model.safetensors: truncated: tensor '"):
        open_checkpoint(tmp_path)

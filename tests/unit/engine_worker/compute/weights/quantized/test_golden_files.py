"""Files that the quantisers' own libraries wrote: the numbers are those that they read back.

`write_golden.py` has made them with compressed-tensors 0.20, bitsandbytes 0.50, GPTQModel 7.7.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from engine_worker.compute.weights.checkpoint import Checkpoint, open_checkpoint
from engine_worker.compute.weights.tensor_info import TensorInfo
from engine_worker.errors import CheckpointError

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = sorted(path.name for path in GOLDEN.iterdir())
WEIGHT = "model.layers.0.mlp.down_proj.weight"


def read(checkpoint: Checkpoint) -> np.ndarray:
    with checkpoint.reading() as read_tensor:
        return read_tensor(WEIGHT)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_module_shows_up_as_the_weight_that_its_library_reads_back(name: str) -> None:
    checkpoint = open_checkpoint(GOLDEN / name)
    expected = load_file(GOLDEN / name / "read_back.safetensors")["weight"]
    assert set(checkpoint.tensors) == {WEIGHT}
    info = checkpoint.tensors[WEIGHT]
    assert (info.shape, info.dtype) == (expected.shape, "F32")
    values = read(checkpoint)
    assert values.dtype == np.float32
    # Some are given back in float16 or bfloat16.
    in_half = {"bitsandbytes_int8": 2**-10, "nvfp4": 2**-8}
    rounding = 2**-11 if name.startswith(("awq", "gptq")) else in_half.get(name, 2e-6)
    np.testing.assert_allclose(values, expected, rtol=rounding, atol=1e-7)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_stored_tensor_counts_as_part_of_the_one_that_is_shown(name: str) -> None:
    with safe_open(GOLDEN / name / "model.safetensors", "np") as file:
        stored = set(file.keys())
    info = open_checkpoint(GOLDEN / name).tensors[WEIGHT]
    assert {part.name for part in info.stored} == stored


def entries(name: str) -> list[TensorInfo]:
    return list(open_checkpoint(GOLDEN / name).tensors[WEIGHT].stored)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_cut_anywhere_is_refused_naming_a_tensor(name: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / name, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for part in entries(name):
        if part.end > part.start:
            file.write_bytes(whole[: part.end - 1])
            with pytest.raises(
                CheckpointError, match=r"model.safetensors: truncated: tensor 'model"
            ):
                open_checkpoint(tmp_path)


def without(folder: Path, name: str) -> None:
    """Takes a tensor out of the header: nothing refers to its bytes any more."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + size])
    del header[name]
    text = json.dumps(header).encode().ljust(size)
    file.write_bytes(content[:8] + text[:size] + content[8 + size :])


@pytest.mark.parametrize("name", FOLDERS)
def test_a_part_that_is_missing_is_named_or_the_weight_is(name: str, tmp_path: Path) -> None:
    for index, part in enumerate(entries(name)):
        # What these are without it is another module of the same method.
        optional = ("zero_point", "weight_format", "weight_global_scale")
        if part.name.endswith(optional) or (part.name.endswith("g_idx") and "order" not in name):
            continue
        folder = tmp_path / str(index)
        shutil.copytree(GOLDEN / name, folder)
        without(folder, part.name)
        try:
            tensors = open_checkpoint(folder).tensors
        except CheckpointError as error:
            assert part.name in str(error)  # noqa: PT017
            assert "original model" in str(error)  # noqa: PT017
        else:
            # The parts that are left are no module: no weight, or one of a type that fills none.
            shown = tensors.get(WEIGHT)
            assert shown is None or shown.dtype not in ("F32", "F16", "BF16")

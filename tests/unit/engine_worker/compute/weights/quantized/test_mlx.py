"""MLX's affine groups, packed here by their definition, one bit after the other."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.errors import CheckpointError, ModelConfigError, UnsupportedFormatError
from tests.unit.engine_worker.compute.weights.quantized.test_packed_modules import (
    GENERATOR,
    MODULE,
    WEIGHT,
    Parts,
    read,
    refused,
    stream_of_bits,
)

OUTPUTS, INPUTS, GROUP = 16, 128, 64
GROUPS = INPUTS // GROUP
MLX: dict[str, Any] = {"group_size": GROUP, "bits": 4}


def parts_of(bits: int, group_size: int = GROUP) -> tuple[Parts, np.ndarray]:
    integers = GENERATOR.integers(0, 2**bits, (OUTPUTS, INPUTS))
    shape = (OUTPUTS, INPUTS // group_size)
    scales = GENERATOR.uniform(0.01, 0.5, shape).astype(ml_dtypes.bfloat16)
    biases = GENERATOR.uniform(-3, 3, shape).astype(ml_dtypes.bfloat16)
    parts = {"weight": stream_of_bits(integers.T, bits).T, "scales": scales, "biases": biases}
    by_input = (np.repeat(one.astype(np.float32), group_size, axis=1) for one in (scales, biases))
    steps, offsets = by_input
    return parts, integers.astype(np.float32) * steps + offsets


def write(folder: Path, parts: Parts, config: Any, *, module: str = MODULE, **more: Any) -> None:
    folder.mkdir(exist_ok=True)
    tensors = {f"{module}.{name}": np.ascontiguousarray(one) for name, one in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps({"quantization": config, **more}))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_weights_are_those_that_were_packed(tmp_path: Path, bits: int) -> None:
    parts, expected = parts_of(bits)
    # Newer releases write it twice, and a name of the method into neither.
    config = MLX | {"bits": bits, "mode": "affine"}
    write(tmp_path, parts, config, quantization_config=config)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == {WEIGHT}
    # Wider integers would lose something of the bias.
    assert (set(checkpoint.block_formats) == {WEIGHT}) is (bits <= 4)
    assert checkpoint.stored_as == "mlx"
    np.testing.assert_allclose(read(tmp_path), expected, rtol=1e-6, atol=1e-6)


def test_modules_may_have_other_bits_and_groups(tmp_path: Path) -> None:
    parts, expected = parts_of(6, 32)
    others = {"model.layers.1.mlp.down_proj": False, "model.embed_tokens": True}
    write(tmp_path, parts, MLX | others | {MODULE: {"bits": 6, "group_size": 32}})
    np.testing.assert_allclose(read(tmp_path), expected, rtol=1e-6, atol=1e-6)


def test_modules_that_are_not_quantised_stay_as_they_are(tmp_path: Path) -> None:
    values = GENERATOR.standard_normal((OUTPUTS, INPUTS)).astype(np.float16)
    write(tmp_path, {"weight": values}, MLX)
    np.testing.assert_array_equal(read(tmp_path), values)


def test_what_another_quantiser_names_is_not_mlxs(tmp_path: Path) -> None:
    write(tmp_path, parts_of(4)[0], MLX, quantization_config={"quant_method": "hqq"})
    refused(tmp_path, UnsupportedFormatError, "'hqq'", "mlx", "original model")


@pytest.mark.parametrize("part", ["weight", "scales", "biases"])
def test_parts_that_disagree_or_are_missing_are_named(tmp_path: Path, part: str) -> None:
    parts, _ = parts_of(4)
    write(tmp_path / "a", parts | {part: parts[part][: OUTPUTS // 2]}, MLX)
    refused(tmp_path / "a", CheckpointError, "model.safetensors", MODULE, "original model")
    write(tmp_path / "b", parts | {part: parts[part][:, :-1]}, MLX)
    refused(tmp_path / "b", CheckpointError, "model.safetensors", MODULE, "original model")
    if part == "biases":
        del parts[part]
        write(tmp_path / "c", parts, MLX)
        refused(tmp_path / "c", CheckpointError, f"{MODULE}.biases", "missing")


@pytest.mark.parametrize(
    ("config", "error", "named"),
    [
        (MLX | {"mode": "mxfp4"}, UnsupportedFormatError, "'mxfp4'"),
        (MLX | {MODULE: {"mode": "nvfp4", "bits": 4}}, UnsupportedFormatError, "'nvfp4'"),
        (MLX | {"bits": 7}, CheckpointError, "integers of 7 bits"),
        (MLX | {"group_size": 0}, ModelConfigError, "group_size"),
        (MLX | {"group_size": 2**24}, CheckpointError, MODULE),
        (MLX | {"bits": "4"}, ModelConfigError, "bits"),
    ],
)
def test_other_forms_are_refused_by_name(
    tmp_path: Path, config: dict[str, Any], error: type[Exception], named: str
) -> None:
    write(tmp_path, parts_of(4)[0], config)
    refused(tmp_path, error, named)


STACK = "model.layers.0.mlp.switch_mlp.up_proj"


def test_the_experts_of_a_stack_are_matrices_of_their_own(tmp_path: Path) -> None:
    """They were refused, though MLX's files of such models have nothing else."""
    experts = [parts_of(4, 32) for _ in range(3)]
    stacks = {name: np.stack([parts[name] for parts, _ in experts]) for name in experts[0][0]}
    write(tmp_path, stacks, MLX | {STACK: {"bits": 4, "group_size": 32}}, module=STACK)
    checkpoint = open_checkpoint(tmp_path)
    names = [f"{STACK}.{index}.weight" for index in range(3)]
    assert list(checkpoint.tensors) == names
    assert set(checkpoint.block_formats) == set(names)
    with checkpoint.reading() as reading, checkpoint.reading_blocks() as reading_blocks:
        for name, (_, expected) in zip(names, experts, strict=True):
            np.testing.assert_allclose(reading(name), expected, rtol=1e-6, atol=1e-6)
            kept = reading_blocks(name).numbers()
            np.testing.assert_allclose(kept, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("part", ["weight", "scales", "biases"])
def test_a_stack_whose_parts_disagree_is_refused_by_name(tmp_path: Path, part: str) -> None:
    stacks = {name: np.stack([one, one]) for name, one in parts_of(4)[0].items()}
    for index, wrong in enumerate((stacks[part][:1], stacks[part][0], stacks[part][:0])):
        write(tmp_path / str(index), stacks | {part: wrong}, MLX, module=STACK)
        refused(tmp_path / str(index), CheckpointError, "switch_mlp.up_proj", "original model")

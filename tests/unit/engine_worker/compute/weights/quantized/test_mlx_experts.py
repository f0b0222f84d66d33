"""Models with experts as MLX's converter writes them: a stack for each projection of a layer."""

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.weights.loader import load_weights
from tests.fakes.packed_decoder import needs_native
from tests.fakes.quantised_experts import packed_words
from tests.fakes.stored_experts import case_of, expert_paths, load_stored
from tests.fakes.tiny_checkpoint import Tensors, random_tensors, write_checkpoint

GROUP = 32
ONE = re.compile(r"(.*)\.experts\.(\d+)\.(\w+)\.weight")
MLX_NAMES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
CASES = {
    "qwen3_moe": case_of("qwen3moe", "Qwen3MoeForCausalLM"),
    "qwen2_moe": case_of("qwen2moe", "Qwen2MoeForCausalLM"),
    "mixtral": case_of("llama", "MixtralForCausalLM"),
    "granite": case_of("granitemoe", "GraniteMoeForCausalLM"),
}


def packed(weight: Any) -> tuple[Tensors, Any]:
    """The parts of a matrix [out, in], and what they stand for."""
    groups = weight.reshape(len(weight), -1, GROUP)
    biases = groups.min(-1).astype(np.float16)
    scales = ((groups.max(-1) - biases) / 15).astype(np.float16)
    steps, lowest = (one.astype(np.float32)[..., None] for one in (scales, biases))
    integers = np.rint((groups - lowest) / steps).clip(0, 15)
    words = packed_words(integers.reshape(weight.shape)).view(np.uint32)
    parts = {"weight": words, "scales": scales, "biases": biases}
    return parts, (integers * steps + lowest).reshape(weight.shape).astype(np.float32)


def experts_of(tensors: Tensors) -> dict[tuple[str, str], dict[int, tuple[str, Any]]]:
    """Where each expert of a stack is, by its block and MLX's name of the projection."""
    found: dict[tuple[str, str], dict[int, Any]] = {}
    for name, values in tensors.items():
        if (one := ONE.fullmatch(name)) is not None:
            key = (one[1], MLX_NAMES.get(one[3], one[3]))
            found.setdefault(key, {})[int(one[2])] = (name, ())
        elif name.endswith("put_linear.weight"):
            block, inner = name.rsplit(".", 2)[0], values.shape[1] // 2
            halves = {"gate_proj": slice(inner), "up_proj": slice(inner, None)}
            rows = {"down_proj": slice(None)} if "output" in name else halves
            for projection, part in rows.items():
                each = {expert: (name, (expert, part)) for expert in range(len(values))}
                found[block, projection] = each
    return found


def write_as_mlx(folder: Path, config: dict[str, Any]) -> Tensors:
    """Writes a folder; what its tensors stand for, by the names of the usual ones."""
    expected = random_tensors(config)
    written = dict(expected)
    for (block, projection), experts in experts_of(expected).items():
        stack: dict[str, list[Any]] = {}
        for _, (name, place) in sorted(experts.items()):
            parts, values = packed(np.ascontiguousarray(expected[name][place]))
            expected[name][place] = values
            written.pop(name, None)
            for part, array in parts.items():
                stack.setdefault(part, []).append(array)
        module = f"{block}.switch_mlp.{projection}"
        written |= {f"{module}.{part}": np.stack(arrays) for part, arrays in stack.items()}
    said = {"group_size": GROUP, "bits": 4, "mode": "affine"}
    write_checkpoint(folder, {**config, "quantization": said}, written)
    return expected


@pytest.mark.parametrize("name", CASES)
def test_the_weights_are_those_of_the_usual_names(tmp_path: Path, name: str) -> None:
    config = dict(CASES[name].config)
    usual, mlx = tmp_path / "usual", tmp_path / "mlx"
    usual.mkdir()
    mlx.mkdir()
    write_checkpoint(usual, config, write_as_mlx(mlx, config))
    theirs, ours = (
        load_weights(folder, declare(load_spec(folder), jnp.float32)) for folder in (usual, mlx)
    )
    for parameter, one, other in zip(
        ours.graph.parameters, ours.leaves, theirs.leaves, strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6, err_msg=parameter.path)


@needs_native
def test_on_the_kernels_they_stay_as_they_are(tmp_path: Path) -> None:
    write_as_mlx(tmp_path, dict(CASES["qwen3_moe"].config))
    stored = load_stored(tmp_path).backend.stored_formats
    assert set(expert_paths(tmp_path)) == set(stored)
    assert {(form.bits, form.group_size) for form in stored.values()} == {(4, GROUP)}

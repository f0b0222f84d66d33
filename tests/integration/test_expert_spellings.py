"""Experts are read alike from a tensor for each and from one for all, as transformers saves
them."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from tests.fakes.late import mxfp4, safetensors_torch, torch, transformers
from tests.fakes.model_families import CASES
from tests.fakes.parity import load, random_model

FAMILIES_IN_BOTH = {
    "olmoe": ".experts.0.gate_proj.weight",
    "glm4_moe_with_groups": ".experts.0.gate_proj.weight",
    "ernie4_5_moe_with_dense_layers": ".experts.0.gate_proj.weight",
    "deepseek_v3_with_yarn_rope": ".experts.0.gate_proj.weight",
    "qwen3_moe_with_dense_layers": ".experts.0.gate_proj.weight",
    "qwen2_moe_with_a_shared_expert": ".experts.0.gate_proj.weight",
    "mixtral_with_window": ".experts.0.w1.weight",
}
"""The case, and how the name of an expert's own tensor ends."""


def names_in(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", "np") as file:
        return list(file.keys())


@pytest.mark.parametrize("name", FAMILIES_IN_BOTH)
def test_both_spellings_of_a_checkpoint_give_the_same_weights(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    config: Any = getattr(transformers, case.config)(**case.values)
    model = random_model(config, case, torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "apart", save_original_format=True)
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    apart, stacked = names_in(tmp_path / "apart"), names_in(tmp_path / "stacked")
    assert any(tensor.endswith(FAMILIES_IN_BOTH[name]) for tensor in apart)
    assert any(tensor.endswith(".experts.gate_up_proj") for tensor in stacked)
    ours, theirs = (load(tmp_path / folder, jnp.float32).leaves for folder in ("apart", "stacked"))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_experts_of_qwen_3_vl_may_lie_transposed(tmp_path: Path) -> None:
    """As published; transformers 5 saves them the other way round."""
    case = CASES["qwen3_vl_moe_beside_its_tower"]
    config: Any = getattr(transformers, case.config)(**case.values)
    model = random_model(config, case, torch.Generator().manual_seed(1))
    for name in ("saved", "published"):
        model.save_pretrained(tmp_path / name)
    path = tmp_path / "published" / "model.safetensors"
    tensors = {
        name: values.swapaxes(1, 2).contiguous() if ".experts." in name else values
        for name, values in safetensors_torch.load_file(path).items()
    }
    safetensors_torch.save_file(tensors, path)
    ours, theirs = (load(tmp_path / name, jnp.float32).leaves for name in ("saved", "published"))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_gpt_oss_experts_are_turned_and_their_halves_parted(tmp_path: Path) -> None:
    case = CASES["gpt_oss_with_sinks_and_windows"]
    config: Any = getattr(transformers, case.config)(**case.values)
    model = random_model(config, case, torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path)
    weights = load(tmp_path, jnp.float32)
    paths = [parameter.path for parameter in weights.graph.parameters]
    ours = dict(zip(paths, weights.leaves, strict=True))
    theirs = {name: value.detach().numpy() for name, value in model.named_parameters()}
    experts = "model.layers.1.mlp.experts."
    gate_up = np.swapaxes(theirs[f"{experts}gate_up_proj"], 1, 2)
    bias = theirs[f"{experts}gate_up_proj_bias"]
    parted = np.concatenate([gate_up[:, ::2], gate_up[:, 1::2]], axis=1)
    np.testing.assert_array_equal(ours["layers.1.mlp.gate_up.weight"], parted)
    parted = np.concatenate([bias[:, ::2], bias[:, 1::2]], axis=1)
    np.testing.assert_array_equal(ours["layers.1.mlp.gate_up.bias"], parted)
    down = np.swapaxes(theirs[f"{experts}down_proj"], 1, 2)
    np.testing.assert_array_equal(ours["layers.1.mlp.down.weight"], down)


def test_gpt_oss_in_mxfp4_has_the_numbers_that_transformers_makes_of_it(tmp_path: Path) -> None:
    case = CASES["gpt_oss_with_sinks_and_windows"]
    values = {**case.values, "hidden_size": 64, "intermediate_size": 32}
    config: Any = transformers.GptOssConfig(**values)
    model = random_model(config, case, torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path)
    tensors = safetensors_torch.load_file(tmp_path / "model.safetensors")
    generator, theirs = torch.Generator().manual_seed(2), {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        num_experts, inputs, outputs = tensors.pop(name).shape
        shape = (num_experts, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(118, 130, shape, dtype=torch.uint8, generator=generator)
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
        theirs[name] = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).numpy()
    safetensors_torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    saved["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(saved), encoding="utf-8")

    weights = load(tmp_path, jnp.bfloat16)
    paths = [parameter.path for parameter in weights.graph.parameters]
    ours = dict(zip(paths, weights.leaves, strict=True))
    for layer in range(config.num_hidden_layers):
        experts = f"model.layers.{layer}.mlp.experts."
        gate_up = np.swapaxes(theirs[f"{experts}gate_up_proj"], 1, 2)
        parted = np.concatenate([gate_up[:, ::2], gate_up[:, 1::2]], axis=1)
        np.testing.assert_array_equal(ours[f"layers.{layer}.mlp.gate_up.weight"], parted)
        down = np.swapaxes(theirs[f"{experts}down_proj"], 1, 2)
        np.testing.assert_array_equal(ours[f"layers.{layer}.mlp.down.weight"], down)

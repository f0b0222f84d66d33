"""Experts are read alike from a tensor for each and from one for all, as transformers saves them."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from tests.fakes.model_families import CASES
from tests.fakes.parity import load, random_model

FAMILIES_IN_BOTH = {
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

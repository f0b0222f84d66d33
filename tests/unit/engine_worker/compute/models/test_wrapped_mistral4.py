"""Mistral Small 4: the text model of `Mistral3ForConditionalGeneration` is a Mistral 4."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.weights.loader import load_weights
from tests.fakes.tiny_checkpoint import TINY_LLAMA, write_checkpoint

TEXT: dict[str, Any] = {
    **TINY_LLAMA,
    "architectures": ["Mistral4ForCausalLM"],
    "model_type": "mistral4",
    "num_key_value_heads": 4,
    "q_lora_rank": 14,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "moe_intermediate_size": 12,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("model", "head"),
    [
        ("model.language_model.", "lm_head.weight"),
        ("language_model.model.", "language_model.lm_head.weight"),
    ],
)
def test_a_mistral_4_beside_a_tower_is_the_same_model(
    tmp_path: Path, model: str, head: str
) -> None:
    plain, wrapped = tmp_path / "plain", tmp_path / "wrapped"
    plain.mkdir()
    wrapped.mkdir()
    write_checkpoint(plain, TEXT)
    text = {name: value for name, value in TEXT.items() if name != "architectures"}
    config = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": "mistral3",
        "text_config": text,
        "tie_word_embeddings": False,
    }
    (wrapped / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {
        head if name == "lm_head.weight" else name.replace("model.", model, 1): values
        for name, values in load_file(plain / "model.safetensors").items()
    }
    tensors["vision_tower.patch_conv.weight"] = np.zeros(4, np.float32)
    save_file(tensors, wrapped / "model.safetensors")
    graphs = [declare(load_spec(folder), np.float32) for folder in (plain, wrapped)]
    assert graphs[1].spec.layers == graphs[0].spec.layers
    theirs, ours = (
        load_weights(folder, graph).leaves
        for folder, graph in zip((plain, wrapped), graphs, strict=True)
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))

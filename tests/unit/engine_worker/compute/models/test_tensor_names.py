"""Families whose checkpoints spell their tensors in several ways."""

from typing import Any

import pytest

from engine_worker.compute.models.families.registry import FAMILIES
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.tensors import Source
from tests.fakes.tiny_checkpoint import TINY_LLAMA

GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 8,
    "n_head": 2,
    "n_layer": 1,
    "n_positions": 32,
    "vocab_size": 16,
}


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_is_found_with_and_without_the_prefix_of_its_language_model(prefix: str) -> None:
    spec = decoder_spec(GPT2)
    tensors = FAMILIES["GPT2LMHeadModel"].tensors(spec, [f"{prefix}wte.weight"])
    assert tensors["position_embedding.weight"] == (Source(f"{prefix}wpe.weight", (32, 8)),)
    qkv = Source(f"{prefix}h.0.attn.c_attn.weight", (8, 24), is_transposed=True)
    assert tensors["layers.0.attention.qkv.weight"] == (qkv,)
    assert tensors["norm.bias"] == (Source(f"{prefix}ln_f.bias", (8,)),)


@pytest.mark.parametrize(
    ("model", "head"),
    [
        ("language_model.model.", "language_model.lm_head.weight"),
        ("language_model.model.", "lm_head.weight"),
        ("model.language_model.", "lm_head.weight"),
        ("model.", "lm_head.weight"),
    ],
)
@pytest.mark.parametrize(
    "architecture", ["Gemma3ForConditionalGeneration", "Mistral3ForConditionalGeneration"]
)
def test_a_text_model_is_found_beside_a_vision_tower_before_and_since_transformers_5(
    architecture: str, model: str, head: str
) -> None:
    text = {name: value for name, value in TINY_LLAMA.items() if name != "model_type"}
    spec = decoder_spec({"architectures": [architecture], "text_config": text})
    family = FAMILIES[architecture]
    tensors = family.tensors(spec, [f"{model}embed_tokens.weight", head])
    assert tensors["embedding.weight"][0].name == f"{model}embed_tokens.weight"
    assert tensors["layers.1.attention.o.weight"][0].name == (
        f"{model}layers.1.self_attn.o_proj.weight"
    )
    assert tensors["norm.weight"][0].name == f"{model}norm.weight"
    assert tensors["head.weight"][0].name == head
    assert "model.vision_tower.x".startswith(family.ignored_prefixes)
    assert "vision_tower.x".startswith(family.ignored_prefixes)


def test_norms_around_sublayers_have_names_by_family() -> None:
    names = {}
    for architecture in ("Gemma2ForCausalLM", "Glm4ForCausalLM", "Olmo2ForCausalLM"):
        spec = decoder_spec(TINY_LLAMA | {"architectures": [architecture], "head_dim": 8})
        tensors = FAMILIES[architecture].tensors(spec, ())
        names[architecture] = [
            tensors[f"layers.0.{path}.weight"][0].name.split(".")[3]
            for path in ("attention.post_norm", "mlp.norm", "mlp.post_norm")
        ]
    after_mlp, before_mlp = "post_feedforward_layernorm", "pre_feedforward_layernorm"
    assert names["Gemma2ForCausalLM"] == ["post_attention_layernorm", before_mlp, after_mlp]
    assert names["Glm4ForCausalLM"] == [
        "post_self_attn_layernorm",
        "post_attention_layernorm",
        "post_mlp_layernorm",
    ]
    assert names["Olmo2ForCausalLM"][::2] == ["post_attention_layernorm", after_mlp]

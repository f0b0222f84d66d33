"""Configs of Gemma 3n and Gemma 4, as their checkpoints on the hub have them."""

from dataclasses import replace
from typing import Any

import pytest

from engine_worker.compute.backends.cpu_native import coverage
from engine_worker.compute.backends.xla.pages import xla_kv_layout
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.spec import (
    Activation,
    AltUpSpec,
    MlpSpec,
    MoeSpec,
    RopeKind,
    TokenInputSpec,
)
from engine_worker.compute.weights.sources import is_ignorable, weight_sources
from engine_worker.errors import ModelConfigError, UnsupportedFeatureError

SLIDING, FULL = "sliding_attention", "full_attention"

# Of google/gemma-3n-E2B-it, but for fewer layers; what it leaves out is as it leaves it out.
GEMMA3N: dict[str, Any] = {
    "architectures": ["Gemma3nForConditionalGeneration"],
    "model_type": "gemma3n",
    "eos_token_id": [1, 106],
    "text_config": {
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0, 0.0, 0.0],
        "altup_active_idx": 0,
        "altup_correct_scale": True,
        "altup_num_inputs": 4,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2048,
        "hidden_size_per_layer_input": 256,
        "intermediate_size": [8192] * 6,
        "laurel_rank": 64,
        "layer_types": [SLIDING, SLIDING, SLIDING, FULL, SLIDING, FULL],
        "max_position_embeddings": 32768,
        "num_attention_heads": 8,
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 2,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "vocab_size": 262400,
        "vocab_size_per_layer_input": 262144,
    },
}
# The sizes of Gemma 4's mixture, but for fewer layers.
GEMMA4: dict[str, Any] = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "model_type": "gemma4",
    "text_config": {
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_size": 2816,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 2112,
        "layer_types": [SLIDING, SLIDING, FULL],
        "max_position_embeddings": 262144,
        "moe_intermediate_size": 704,
        "num_attention_heads": 16,
        "num_experts": 128,
        "num_global_key_value_heads": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 8,
        "num_kv_shared_layers": 0,
        "rms_norm_eps": 1e-6,
        "sliding_window": 1024,
        "top_k_experts": 8,
        "use_bidirectional_attention": "vision",
        "vocab_size": 262144,
    },
}


def changed(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**config, "text_config": {**config["text_config"], **changes}}


def test_gemma3n_has_several_residuals_and_vectors_for_each_layer() -> None:
    spec = decoder_spec(GEMMA3N)
    assert spec.alt_up == AltUpSpec(4, 0, has_output_scale=True, laurel_rank=64)
    assert spec.token_inputs == TokenInputSpec(256, 262144, Activation.GELU_TANH)
    assert (spec.final_softcap, spec.eos_token_ids, spec.tied_head) == (30.0, (1, 106), True)
    sparse, plain = spec.layers[0].mlp, spec.layers[1].mlp
    assert isinstance(sparse, MlpSpec)
    assert sparse.gate_cutoff == pytest.approx(1.6448536)
    assert plain == replace(sparse, gate_cutoff=None)
    attentions = [layer.attention for layer in spec.layers]
    assert [attention.shared_from for attention in attentions] == [None] * 4 + [2, 3]
    assert [attention.window for attention in attentions[2:4]] == [512, None]
    assert {attention.scale for attention in attentions} == {1.0}
    assert [attention.rope.theta for attention in attentions[2:4] if attention.rope] == [1e4, 1e6]


def test_layers_that_share_keys_take_no_cache_and_their_tensors_are_ignorable() -> None:
    spec = decoder_spec(GEMMA3N)
    layout = xla_kv_layout(spec, "float32", num_blocks=2, block_size=16)
    assert [layer is None for layer in layout.layers] == [False] * 4 + [True] * 2
    # Three of the four layers that keep any are behind a window.
    layer_bytes = 2 * (2 * 256 * 16) * 4
    assert layout.block_bytes == (layer_bytes, 3 * layer_bytes)
    assert len(layout.abstract()) == spec.num_layers
    paths = {parameter.path: parameter.shape for parameter in declare(spec, "float32").parameters}
    assert paths["layers.4.attention.qkv.weight"] == (8 * 256, 2048)
    assert "layers.4.attention.k_norm.weight" not in paths
    shared = "model.language_model.layers.4.self_attn.k_proj.weight"
    assert is_ignorable(shared, spec)
    assert not is_ignorable(shared.replace(".4.", ".3."), spec)
    assert is_ignorable("model.audio_tower.conformer.0.weight", spec)


def test_gemma4_has_wider_heads_in_full_layers_and_experts_beside_a_dense_mlp() -> None:
    spec = decoder_spec(GEMMA4)
    sliding, full = spec.layers[0].attention, spec.layers[2].attention
    assert (sliding.head_dim, sliding.num_kv_heads, sliding.window) == (256, 8, 1024)
    assert (full.head_dim, full.num_kv_heads, full.window) == (512, 2, None)
    assert (sliding.is_value_of_key, full.is_value_of_key) == (False, True)
    assert full.rope is not None
    assert (full.rope.kind, full.rope.partial_factor) == (RopeKind.PROPORTIONAL, 0.25)
    moe = spec.layers[0].mlp
    assert isinstance(moe, MoeSpec)
    assert (moe.num_experts, moe.num_experts_per_token, moe.is_beside_dense) == (128, 8, True)
    assert moe.shared is not None
    assert (moe.shared.intermediate_size, moe.expert.intermediate_size) == (2112, 704)
    assert spec.layer_scales
    assert spec.token_inputs is None


def test_gemma4_widths_are_the_same_in_both_spellings() -> None:
    text = dict(GEMMA4["text_config"])
    del text["global_head_dim"], text["num_global_key_value_heads"]
    newer = {**text, "per_layer_config": {"2": {"head_dim": 512, "num_key_value_heads": 2}}}
    assert decoder_spec({**GEMMA4, "text_config": newer}) == decoder_spec(GEMMA4)


def test_every_weight_has_its_tensors() -> None:
    names = {"model.language_model.embed_tokens.weight"}
    for config in (GEMMA3N, GEMMA4, changed(GEMMA4, hidden_size_per_layer_input=256)):
        graph = declare(decoder_spec(config), "float32")
        for parameter, parts in zip(graph.parameters, weight_sources(graph, names), strict=True):
            assert parts, parameter.path
            assert all(part.name.startswith("model.language_model.") for part in parts)


def test_kernels_say_what_they_do_not_compute() -> None:
    spec = decoder_spec(GEMMA3N)
    found = [
        coverage.uncovered(spec, layer, "mlp", "float32", "float32", 32) for layer in spec.layers
    ]
    assert found[0] is not None
    assert "cuts the gate by its deviation" in found[0]
    assert found[1:] == [None] * 5


@pytest.mark.parametrize(
    "config", [GEMMA3N, changed(GEMMA4, num_kv_shared_layers=1, layer_types=[FULL] * 3)]
)
def test_keys_and_values_that_layers_share_have_kernels(config: dict[str, Any]) -> None:
    spec = decoder_spec(config)
    assert any(layer.attention.shared_from is not None for layer in spec.layers)
    for layer in spec.layers:
        assert coverage.uncovered(spec, layer, "attention", "float32", "float32", 32) is None


@pytest.mark.parametrize("config", [GEMMA4, changed(GEMMA4, attention_k_eq_v=False)])
def test_values_that_are_made_of_keys_or_normed_have_kernels(config: dict[str, Any]) -> None:
    spec = decoder_spec(config)
    assert any(layer.attention.is_value_of_key for layer in spec.layers) == (config is GEMMA4)
    for layer in spec.layers:
        assert coverage.uncovered(spec, layer, "attention", "float32", "float32", 32) is None


def test_experts_beside_a_dense_mlp_have_kernels() -> None:
    spec = decoder_spec(GEMMA4)
    assert isinstance(spec.layers[0].mlp, MoeSpec)
    assert coverage.uncovered(spec, spec.layers[0], "mlp", "int4", "bfloat16", 32) is None


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (changed(GEMMA3N, num_kv_shared_layers=5), ModelConfigError, "no layer with full_att"),
        (changed(GEMMA3N, num_kv_shared_layers=7), ModelConfigError, "from 0 to 6"),
        (changed(GEMMA3N, altup_active_idx=4), ModelConfigError, "from 0 to 3"),
        (changed(GEMMA3N, intermediate_size=[1, 2]), ModelConfigError, "each of 6 layers"),
        (
            changed(GEMMA3N, activation_sparsity_pattern=[1.0] * 6),
            ModelConfigError,
            "from 0 to below 1",
        ),
        (
            changed(GEMMA3N, hidden_size_per_layer_input=0),
            UnsupportedFeatureError,
            "vectors for each layer",
        ),
        (
            changed(GEMMA4, use_bidirectional_attention="all"),
            UnsupportedFeatureError,
            "cannot generate",
        ),
        (changed(GEMMA4, per_layer_config={"2": 7}), ModelConfigError, "must be an object"),
        (
            changed(
                GEMMA4,
                num_kv_shared_layers=1,
                layer_types=[FULL] * 3,
                per_layer_config={"1": {"head_dim": 512}},
            ),
            ModelConfigError,
            "share keys and values of different heads",
        ),
    ],
)
def test_what_a_config_may_not_say_is_refused_by_name(
    config: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        decoder_spec(config)

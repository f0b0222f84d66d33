"""Configs and tensor names of Bamba, Falcon-H1, Nemotron-H and OLMo hybrid."""

import math
from typing import Any

import pytest

from engine_worker.compute.backends.cpu_native import calls, coverage
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.recurrent.specs import DeltaNetSpec, MambaSpec
from engine_worker.compute.models.spec import (
    Activation,
    DecoderSpec,
    MlpSpec,
    MoeSpec,
    NormPlacement,
    QkNorm,
)
from engine_worker.compute.weights.sources import weight_sources
from engine_worker.errors import ModelConfigError, UnsupportedFeatureError

COMMON: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 8192,
    "num_attention_heads": 16,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}
BAMBA = COMMON | {
    "architectures": ["BambaForCausalLM"],
    "attn_layer_indices": [1],
    "attn_rotary_emb": 64,
    "mamba_d_conv": 4,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "mamba_expand": 2,
    "mamba_n_groups": 2,
    "mamba_n_heads": 64,
}
FALCON = COMMON | {
    "architectures": ["FalconH1ForCausalLM"],
    "attention_in_multiplier": 1.5,
    "attention_out_multiplier": 0.5,
    "embedding_multiplier": 5.0,
    "head_dim": 64,
    "key_multiplier": 0.25,
    "lm_head_multiplier": 0.04,
    "mamba_d_head": 64,
    "mamba_d_ssm": 1536,
    "mamba_d_state": 128,
    "mamba_n_groups": 1,
    "mamba_n_heads": 24,
    "mamba_norm_before_gate": False,
    "mamba_rms_norm": False,
    "mlp_multipliers": [0.8, 0.4],
    "ssm_in_multiplier": 2.0,
    "ssm_multipliers": [0.5, 0.25, 0.2, 0.4, 0.3],
    "ssm_out_multiplier": 0.3,
    "tie_word_embeddings": True,
}
NEMOTRON = COMMON | {
    "architectures": ["NemotronHForCausalLM"],
    "conv_kernel": 4,
    "head_dim": 128,
    "hybrid_override_pattern": "MEM*EM",
    "layer_norm_epsilon": 1e-5,
    "mamba_head_dim": 64,
    "mamba_num_heads": 64,
    "mlp_hidden_act": "relu2",
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "n_group": 1,
    "n_groups": 8,
    "n_routed_experts": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 6,
    "routed_scaling_factor": 2.5,
    "ssm_state_size": 128,
    "topk_group": 1,
}
OLMO = COMMON | {
    "architectures": ["OlmoHybridForCausalLM"],
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "rope_parameters": {"rope_theta": None, "rope_type": "default"},
}


def sources_of(spec: DecoderSpec, *names: str) -> dict[str, tuple[str, ...]]:
    graph = declare(spec, "float32")
    found = weight_sources(graph, names)
    return {
        parameter.path: tuple(part.name for part in parts)
        for parameter, parts in zip(graph.parameters, found, strict=True)
    }


def test_bamba_attends_where_it_says_and_rotates_half_of_each_head() -> None:
    spec = decoder_spec(BAMBA)
    assert [layer.is_attention for layer in spec.layers] == [False, True, False]
    assert spec.layers[0].mixer == MambaSpec(64, 64, 2, 128, 4, norm_groups=2)
    rope = spec.layers[1].attention.rope
    assert rope is not None
    assert rope.partial_factor == 0.5
    sources = sources_of(spec)
    assert sources["norm.weight"] == ("model.final_layernorm.weight",)
    assert sources["layers.2.recurrent.decay"] == ("model.layers.2.mamba.A_log",)
    assert sources["layers.1.mlp.norm.weight"] == ("model.layers.1.pre_ff_layernorm.weight",)
    assert sources["layers.1.mlp.down.weight"] == ("model.layers.1.feed_forward.down_proj.weight",)


def test_a_layer_of_falcon_h1_is_mamba_and_attention_side_by_side_and_one_mlp() -> None:
    spec = decoder_spec(FALCON)
    assert spec.num_layers == 6
    mamba, attention = spec.layers[:2]
    assert mamba.mlp is None
    assert (mamba.is_beside, attention.is_beside) == (False, True)
    assert mamba.mixer == MambaSpec(
        24, 64, 1, 128, 4, norm_groups=0, multipliers=(1.0, 0.5, 0.4, 0.8, 0.6)
    )
    assert mamba.mixer_multiplier == 0.3
    assert attention.attention.scale == pytest.approx(64**-0.5 * 0.25 * 1.5**2)
    assert (attention.mixer_multiplier, attention.mlp_multiplier) == (0.75, 0.4)
    assert attention.mlp == MlpSpec(8192, gate_multiplier=0.8)
    assert (spec.embedding_multiplier, spec.logits_multiplier) == (5.0, 0.04)
    sources = sources_of(spec)
    assert sources["layers.2.recurrent.norm.weight"] == ("model.layers.1.input_layernorm.weight",)
    assert sources["layers.3.attention.norm.weight"] == ("model.layers.1.input_layernorm.weight",)
    assert sources["layers.5.mlp.down.weight"] == ("model.layers.2.feed_forward.down_proj.weight",)
    assert "layers.0.recurrent.out_norm.weight" not in sources


def test_blocks_of_nemotron_h_are_layers_with_or_without_experts() -> None:
    spec = decoder_spec(NEMOTRON)
    assert [layer.is_attention for layer in spec.layers] == [False, False, True, False]
    assert [layer.mlp is not None for layer in spec.layers] == [True, False, True, False]
    mamba, moe = spec.layers[0].mixer, spec.layers[0].mlp
    limits = (0.001, math.inf)
    assert mamba == MambaSpec(64, 64, 8, 128, 4, norm_groups=8, time_limits=limits)
    assert isinstance(moe, MoeSpec)
    assert moe.expert == MlpSpec(1856, Activation.RELU_SQUARED, gated=False)
    assert moe.shared == MlpSpec(3712, Activation.RELU_SQUARED, gated=False)
    assert (moe.weights_multiplier, moe.num_experts_per_token) == (2.5, 6)
    assert spec.layers[2].attention.rope is None
    kinds = ["mamba", "moe", "mamba", "attention", "moe", "mamba"]
    newer = {"layers_block_type": kinds, "hybrid_override_pattern": None}
    assert decoder_spec(NEMOTRON | newer) == spec


def test_tensors_of_nemotron_h_count_every_block_in_both_spellings() -> None:
    spec = decoder_spec(NEMOTRON | {"moe_latent_size": 1024})
    older = sources_of(spec)
    assert older["embedding.weight"] == ("backbone.embeddings.weight",)
    assert older["layers.1.recurrent.decay"] == ("backbone.layers.2.mixer.A_log",)
    assert older["layers.2.attention.o.weight"] == ("backbone.layers.3.mixer.o_proj.weight",)
    assert older["layers.2.mlp.router.weight"] == ("backbone.layers.4.mixer.gate.weight",)
    assert older["layers.2.mlp.gate_up.weight"][15] == (
        "backbone.layers.4.mixer.experts.15.up_proj.weight"
    )
    stacked = "model.layers.1.mixer.experts.up_proj"
    newer = sources_of(spec, "model.embeddings.weight", stacked)
    assert newer["layers.0.mlp.gate_up.weight"] == (stacked,)
    assert newer["layers.0.mlp.to_latent.weight"] == (
        "model.layers.1.mixer.fc1_latent_proj.weight",
    )


NO_ROPE = {key: value for key, value in OLMO.items() if key != "rope_parameters"}


@pytest.mark.parametrize(
    ("rope", "theta"),
    [
        ({}, 10_000.0),
        ({"rope_parameters": None}, 10_000.0),
        ({"rope_parameters": {"rope_type": "default"}}, 10_000.0),
        ({"rope_theta": 500_000.0}, 500_000.0),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 500_000.0}, 500_000.0),
        ({"rope_theta": None}, None),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": None}, None),
        ({"rope_parameters": {"rope_theta": None}, "rope_theta": 500_000.0}, None),
        ({"rope_scaling": {"rope_type": "default", "rope_theta": None}}, None),
    ],
)
def test_only_a_theta_of_null_keeps_an_olmo_hybrid_from_rotating(
    rope: dict[str, Any], theta: float | None
) -> None:
    """As transformers 5 has them in `OlmoHybridConfig.from_dict(...).rope_parameters`."""
    found = decoder_spec(NO_ROPE | rope).layers[2].attention.rope
    assert (None if found is None else found.theta) == theta


def test_norms_of_an_olmo_hybrid_stand_behind_attention_and_before_a_delta_net() -> None:
    spec = decoder_spec(OLMO)
    delta, attending = spec.layers[0], spec.layers[2]
    assert delta.mixer == DeltaNetSpec(16, 16, 96, 192, 4, max_strength=2.0, norm_eps=1e-5)
    assert spec.placement_in(delta) is NormPlacement.PRE
    assert spec.placement_in(attending) is NormPlacement.POST
    assert attending.attention.rope is None
    assert attending.attention.qk_norm is QkNorm.FULL_WIDTH
    names = (
        "model.layers.0.attention_layer_norm.weight",
        "model.layers.0.linear_attn.q_conv1d.weight",
        "model.layers.0.feedforward_layer_norm.weight",
    )
    sources = sources_of(spec, *names)
    assert sources["layers.0.recurrent.norm.weight"] == (names[0],)
    assert sources["layers.0.recurrent.conv.weight"] == tuple(
        f"model.layers.0.linear_attn.{name}_conv1d.weight" for name in "qkv"
    )
    assert sources["layers.0.mlp.norm.weight"] == ("model.layers.0.feedforward_layer_norm.weight",)
    assert sources["layers.2.mlp.post_norm.weight"] == (
        "model.layers.2.post_feedforward_layernorm.weight",
    )


def test_kernels_take_a_layers_own_placement_and_multipliers() -> None:
    olmo, falcon = decoder_spec(OLMO), decoder_spec(FALCON)
    config = calls.AttentionConfig.of(
        olmo, olmo.layers[2], weight_type="float32", cache_type="float32"
    )
    assert (config.norm, config.has_post_norm) == ("none", True)
    before = calls.MlpConfig.of(olmo, olmo.layers[0], weight_type="float32")
    assert (before.norm, before.has_post_norm) == ("rms", False)
    assert calls.MlpConfig.of(falcon, falcon.layers[1], weight_type="float32").multiplier == 0.4
    for block in ("attention", "mlp"):
        assert not coverage.uncovered(falcon, falcon.layers[1], block, "float32", "float32", 32)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (FALCON | {"attention_bias": True}, UnsupportedFeatureError, "beside attention_bias"),
        (FALCON | {"mamba_proj_bias": True}, UnsupportedFeatureError, "beside mamba_proj_bias"),
        (FALCON | {"ssm_multipliers": [1.0]}, ModelConfigError, "must hold 5 numbers"),
        (FALCON | {"mamba_n_heads": 23}, ModelConfigError, "must divide the inner width 1536"),
        (NEMOTRON | {"hybrid_override_pattern": "M--"}, UnsupportedFeatureError, "not behind"),
        (NEMOTRON | {"hybrid_override_pattern": "M?"}, UnsupportedFeatureError, "'\\?'"),
        (NEMOTRON | {"hybrid_override_pattern": ""}, ModelConfigError, "1 to 1024 layers"),
        (NEMOTRON | {"n_groups": 5}, ModelConfigError, "must divide 64 heads"),
        (NEMOTRON | {"n_group": 3}, ModelConfigError, "must divide 16 experts"),
        (NEMOTRON | {"mamba_hidden_act": "gelu"}, UnsupportedFeatureError, "another activation"),
        (OLMO | {"layer_types": ["conv"] * 3}, UnsupportedFeatureError, "'conv'"),
        (OLMO | {"linear_num_value_heads": 5}, ModelConfigError, "multiple of 16 key heads"),
    ],
)
def test_what_a_config_may_not_say_is_refused_by_name(
    config: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        decoder_spec(config)

"""The configs of decoders with recurrent layers, in their older and newer spellings."""

from typing import Any

import pytest

from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.recurrent.specs import DeltaNetSpec, MambaSpec, ShortConvSpec
from engine_worker.compute.models.spec import MlpSpec, MoeSpec, NormKind
from engine_worker.compute.models.tensors import Source
from engine_worker.compute.weights.sources import is_ignorable, weight_sources
from engine_worker.errors import ModelConfigError, UnsupportedFeatureError

# Of LiquidAI/LFM2-350M, as it was published first.
LFM2: dict[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "block_auto_adjust_ff_dim": True,
    "block_dim": 1024,
    "block_ff_dim": 6656,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "conv_L_cache": 3,
    "conv_bias": False,
    "eos_token_id": 7,
    "full_attn_idxs": [2, 5],
    "hidden_size": 1024,
    "max_position_embeddings": 128000,
    "model_type": "lfm2",
    "norm_eps": 1e-05,
    "num_attention_heads": 16,
    "num_hidden_layers": 6,
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
    "tie_embedding": True,
    "vocab_size": 65536,
}


def test_lfm2_says_which_layers_attend_and_how_wide_its_mlp_is_after_adjustment() -> None:
    spec = decoder_spec(LFM2)
    assert [layer.is_attention for layer in spec.layers] == [False, False, True] * 2
    assert spec.layers[0].mixer == ShortConvSpec(channels=1024, kernel_size=3)
    assert spec.layers[0].mlp == MlpSpec(4608)
    assert spec.tied_head
    assert spec.state_bytes == 4 * 2 * 1024 * 4
    rope = spec.layers[2].attention.rope
    assert rope is not None
    assert rope.theta == 1_000_000.0


def test_lfm2_in_the_newer_spelling_is_the_same_decoder() -> None:
    kinds = ["conv", "conv", "full_attention"] * 2
    newer = {
        key: value
        for key, value in LFM2.items()
        if key not in {"full_attn_idxs", "block_ff_dim", "tie_embedding", "rope_theta"}
    } | {
        "layer_types": kinds,
        "intermediate_size": 6656,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    }
    assert decoder_spec(newer) == decoder_spec(LFM2)
    exact = decoder_spec(newer | {"block_auto_adjust_ff_dim": False})
    assert exact.layers[0].mlp == MlpSpec(6656)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layer_types": ["conv"]}, ModelConfigError, "must name all 6 layers"),
        ({"layer_types": ["mamba"] * 6}, UnsupportedFeatureError, "'mamba'"),
        ({"conv_L_cache": 1}, ModelConfigError, "conv_L_cache"),
        ({"conv_L_cache": 10**6}, ModelConfigError, "conv_L_cache"),
        ({"full_attn_idxs": ["2"]}, ModelConfigError, "full_attn_idxs"),
        ({"block_ffn_dim_multiplier": 1e308}, ModelConfigError, "too large to compute with"),
    ],
)
def test_what_an_lfm2_config_may_not_say_is_refused_by_name(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        decoder_spec(LFM2 | changes)


def test_lfm2_with_experts_begins_with_dense_layers() -> None:
    config = {
        "architectures": ["Lfm2MoeForCausalLM"],
        "layer_types": ["conv", "conv", "full_attention"] * 2,
        "intermediate_size": 7168,
        "num_dense_layers": 2,
        "num_experts": 32,
        "use_expert_bias": True,
    }
    spec = decoder_spec(LFM2 | config)
    assert spec.layers[1].mlp == MlpSpec(7168)
    moe = spec.layers[2].mlp
    assert isinstance(moe, MoeSpec)
    assert (moe.num_experts, moe.num_experts_per_token) == (32, 4)
    assert moe.expert == MlpSpec(1792)
    found = {part.name for parts in weight_sources(declare(spec, "float32")) for part in parts}
    assert "model.layers.2.feed_forward.expert_bias" in found
    assert "model.layers.2.feed_forward.experts.31.w2.weight" in found
    assert not [name for name in found if "layernorm.weight" in name and "self_attn" not in name]


# Of Qwen/Qwen3-Next-80B-A3B-Instruct, as it was published.
QWEN3_NEXT: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "model_type": "qwen3_next",
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "shared_expert_intermediate_size": 512,
    "tie_word_embeddings": False,
    "vocab_size": 151936,
}
DELTA = DeltaNetSpec(16, 32, 128, 128, 4)


def test_qwen3_next_has_the_size_that_it_is_named_after() -> None:
    spec = decoder_spec(QWEN3_NEXT)
    assert [layer.is_attention for layer in spec.layers] == [False, False, False, True] * 12
    assert spec.layers[0].mixer == DELTA
    attention = spec.layers[3].attention
    assert attention.output_gate
    assert attention.rope is not None
    assert (attention.rope.theta, attention.rope.partial_factor) == (1e7, 0.25)
    assert spec.norm_kind is NormKind.RMS_PLUS_ONE
    assert isinstance(spec.layers[0].mlp, MoeSpec)
    assert declare(spec, "bfloat16").num_parameters == pytest.approx(79.67e9, rel=1e-3)
    assert is_ignorable("mtp.fc.weight", spec)


def test_the_parts_of_a_delta_net_are_taken_out_of_each_key_heads_rows() -> None:
    spec = decoder_spec(QWEN3_NEXT)
    graph = declare(spec, "bfloat16")
    paths = [parameter.path for parameter in graph.parameters]
    by_path = dict(zip(paths, weight_sources(graph), strict=True))
    parts = by_path["layers.0.recurrent.in_proj.weight"]
    assert [part.rows for part in parts[:4]] == [(0, 128), (128, 256), (256, 512), (512, 768)]
    assert {part.period for part in parts} == {768, 4}
    gate = by_path["layers.3.attention.qkv.weight"][3]
    name = "model.layers.3.self_attn.q_proj.weight"
    assert gate == Source(name, (8192, 2048), rows=(256, 512), period=512)


QWEN3_5_TEXT: dict[str, Any] = {
    key: value
    for key, value in QWEN3_NEXT.items()
    if not key.startswith(("architectures", "model_type", "rope", "partial", "num_exp", "moe"))
} | {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000000,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    },
    "model_type": "qwen3_5_text",
}


def test_qwen3_5_is_the_same_beside_a_vision_tower_and_alone() -> None:
    alone = decoder_spec(QWEN3_5_TEXT | {"architectures": ["Qwen3_5ForCausalLM"]})
    nested = {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": QWEN3_5_TEXT,
        "tie_word_embeddings": False,
        "vision_config": {"depth": 27},
    }
    beside = decoder_spec(nested)
    assert beside.layers == alone.layers
    assert alone.layers[0].mixer == DELTA
    assert alone.layers[0].mlp == MlpSpec(5120)
    assert is_ignorable("model.visual.blocks.0.attn.qkv.weight", beside)
    names = {"model.language_model.embed_tokens.weight", "lm_head.weight"}
    graph = declare(beside, "bfloat16")
    sources = {part.name for parts in weight_sources(graph, names) for part in parts}
    assert "lm_head.weight" in sources
    assert {name.startswith("model.language_model.") for name in sources - {"lm_head.weight"}} == {
        True
    }


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"linear_num_value_heads": 24}, ModelConfigError, "multiple of 16"),
        ({"layer_types": ["full_attention"]}, ModelConfigError, "must name all 48 layers"),
        ({"layer_types": ["sliding_attention"] * 48}, UnsupportedFeatureError, "sliding"),
        ({"hidden_act": "gelu"}, UnsupportedFeatureError, "another activation"),
        ({"hidden_act": "sine"}, UnsupportedFeatureError, "'sine'"),
        ({"linear_key_head_dim": 0}, ModelConfigError, "linear_key_head_dim"),
    ],
)
def test_what_a_qwen3_next_config_may_not_say_is_refused_by_name(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        decoder_spec(QWEN3_NEXT | changes)


# Of ibm-granite/granite-4.0-h-micro, but for fewer layers.
GRANITE: dict[str, Any] = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "layer_types": ["mamba", "mamba", "attention"],
    "logits_scaling": 8,
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 64,
    "mamba_proj_bias": False,
    "max_position_embeddings": 131072,
    "model_type": "granitemoehybrid",
    "num_attention_heads": 32,
    "num_experts_per_tok": 0,
    "num_hidden_layers": 3,
    "num_key_value_heads": 8,
    "num_local_experts": 0,
    "position_embedding_type": "nope",
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "shared_intermediate_size": 8192,
    "tie_word_embeddings": True,
    "vocab_size": 100352,
}


def test_granite_hybrids_have_mamba_multipliers_and_no_positions() -> None:
    spec = decoder_spec(GRANITE)
    assert [layer.is_attention for layer in spec.layers] == [False, False, True]
    assert spec.layers[0].mixer == MambaSpec(64, 64, 1, 128, 4)
    attention = spec.layers[2].attention
    assert attention.rope is None
    assert attention.scale == 0.015625
    assert (spec.embedding_multiplier, spec.logits_multiplier) == (12, 0.125)
    assert spec.residual_multiplier == 0.22
    assert spec.layers[0].mlp == MlpSpec(8192)
    newer = {"layer_types": ["linear_attention", "linear_attention", "full_attention"]}
    infinite = {"time_step_limit": [0.0, {"__float__": "Infinity"}]}
    assert decoder_spec(GRANITE | newer | infinite | {"mamba_d_head": "auto"}) == spec
    limited = decoder_spec(GRANITE | {"time_step_limit": [0.001, 0.1]}).layers[0].mixer
    assert isinstance(limited, MambaSpec)
    assert limited.time_limits == (0.001, 0.1)


GRANITE_EXPERTS = ("input_linear.weight", "output_linear.weight", "router.layer.weight")


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (("experts.gate_up_proj", "router.weight"), ("experts.down_proj",)),
        (GRANITE_EXPERTS[:1], GRANITE_EXPERTS),
        # Where there are none, those of published checkpoints are missed.
        ((), GRANITE_EXPERTS),
    ],
)
def test_granite_experts_are_found_in_both_spellings(
    held: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    config = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 512}
    spec = decoder_spec(GRANITE | config)
    moe = spec.layers[0].mlp
    assert isinstance(moe, MoeSpec)
    assert moe.shared == MlpSpec(8192)
    graph = declare(spec, "float32")
    block = "model.layers.{}.block_sparse_moe.{}"
    names = {block.format(layer, name) for layer in range(3) for name in held}
    names |= {"model.embed_tokens.weight"}
    found = {part.name for parts in weight_sources(graph, names) for part in parts}
    wanted = {block.format(layer, name) for layer in range(3) for name in (*held, *expected)}
    assert {name for name in found if "block_sparse_moe" in name} >= wanted
    assert not any("experts.0." in name for name in found)
    assert "model.embed_tokens.weight" in found
    assert "model.layers.0.shared_mlp.input_linear.weight" in found
    assert "model.layers.0.mamba.A_log" in found


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mamba_n_heads": 60}, ModelConfigError, "must divide the inner width 4096"),
        ({"mamba_n_groups": 5}, ModelConfigError, "must divide 64 heads"),
        ({"mamba_d_head": 32}, ModelConfigError, "must be 64"),
        ({"time_step_limit": [1, 0]}, ModelConfigError, "two rising numbers"),
        ({"time_step_limit": "none"}, ModelConfigError, "two rising numbers"),
        ({"hidden_act": "gelu"}, UnsupportedFeatureError, "another activation"),
        ({"layer_types": ["conv"] * 3}, UnsupportedFeatureError, "'conv'"),
    ],
)
def test_what_a_granite_config_may_not_say_is_refused_by_name(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        decoder_spec(GRANITE | changes)

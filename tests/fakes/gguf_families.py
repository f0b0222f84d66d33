"""A small config of each family that GGUF files hold, and what llama.cpp's converter does to it."""

from collections.abc import Callable

import numpy as np
from gguf import ExpertGatingFuncType, GGUFWriter, RopeScalingType

from tests.fakes.gguf_case import GgufCase, config_of
from tests.fakes.gguf_files import (
    deepseek_tensors,
    gemma_tensors,
    gpt2_tensors,
    gpt_oss_tensors,
    granite_moe_tensors,
    grouped_moe_tensors,
    lfm2_moe_tensors,
    lfm2_tensors,
    mixtral_tensors,
    moe_tensors,
    plain_tensors,
)
from tests.fakes.gguf_newer_families import NEWER
from tests.fakes.tiny_checkpoint import TINY_LLAMA


def _lfm2_more(writer: GGUFWriter) -> None:
    writer.add_shortconv_l_cache(3)
    writer.add_head_count_kv([0, 2, 0])


def _gpt_oss_more(writer: GGUFWriter) -> None:
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(16)
    writer.add_expert_feed_forward_length(24)


_GPT_OSS = config_of(
    "GptOssForCausalLM",
    "gpt_oss",
    head_dim=8,
    num_local_experts=5,
    num_experts_per_tok=2,
    sliding_window=6,
    attention_bias=True,
    tie_word_embeddings=False,
    rope_scaling={
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "truncate": False,
    },
)
_QWEN3_MOE = config_of(
    "Qwen3MoeForCausalLM",
    "qwen3_moe",
    num_experts=6,
    num_experts_per_tok=3,
    moe_intermediate_size=12,
    norm_topk_prob=True,
    head_dim=8,
)
_QWEN3 = config_of("Qwen3ForCausalLM", "qwen3", head_dim=8, tie_word_embeddings=False)
_LFM2 = config_of(
    "Lfm2ForCausalLM",
    "lfm2",
    num_hidden_layers=3,
    layer_types=["conv", "full_attention", "conv"],
    conv_L_cache=3,
    norm_eps=1e-5,
    intermediate_size=24,
    block_auto_adjust_ff_dim=False,
)
_GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 64,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 40,
    "n_positions": 64,
    "layer_norm_epsilon": 1e-5,
}
_PHI_FACTORS = {"long": [1.0, 1.5, 3.25, 64.0], "short": [1.0, 1.05, 1.1, 1.25]}


def _phi3_more(writer: GGUFWriter) -> None:
    writer.add_rope_dimension_count(8)
    writer.add_rope_scaling_orig_ctx_len(32)
    writer.add_rope_scaling_attn_factors(1.19)
    for name, factors in _PHI_FACTORS.items():
        writer.add_tensor(f"rope_factors_{name}.weight", np.array(factors, np.float32))


def _gemma3_more(writer: GGUFWriter) -> None:
    writer.add_rope_scaling_type(RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)


def _olmo3_more(writer: GGUFWriter) -> None:
    writer.add_array("olmo2.attention.sliding_window_pattern", [True, False, True, True])


def _sections_more(writer: GGUFWriter) -> None:
    writer.add_rope_dimension_sections([2, 1, 1, 0])


def _glm4_more(writer: GGUFWriter) -> None:
    writer.add_rope_dimension_count(4)


def _mistral3_more(writer: GGUFWriter) -> None:
    writer.add_rope_freq_base(1e6)
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(16.0)
    writer.add_rope_scaling_orig_ctx_len(32)
    writer.add_rope_scaling_yarn_beta_fast(32.0)
    writer.add_rope_scaling_yarn_beta_slow(1.0)
    writer.add_rope_scaling_yarn_log_mul(1.0)
    writer.add_attn_temperature_scale(0.1)


_GEMMA2 = {
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 5,
    "hidden_activation": "gelu_pytorch_tanh",
}
_DENSE = (
    GgufCase(
        "gemma",
        config_of("GemmaForCausalLM", "gemma", head_dim=8, hidden_act="gelu_pytorch_tanh"),
        gemma_tensors,
    ),
    GgufCase(
        "gemma2",
        config_of(
            "Gemma2ForCausalLM",
            "gemma2",
            **_GEMMA2,
            num_hidden_layers=3,
            attn_logit_softcapping=30.0,
            final_logit_softcapping=20.0,
        ),
        gemma_tensors,
    ),
    GgufCase(
        "gemma3",
        config_of(
            "Gemma3ForCausalLM",
            "gemma3_text",
            **_GEMMA2,
            num_hidden_layers=7,
            rope_theta=1e6,
            rope_local_base_freq=1e4,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
        ),
        gemma_tensors,
        _gemma3_more,
    ),
    GgufCase(
        "phi3",
        config_of(
            "Phi3ForCausalLM",
            "phi3",
            hidden_size=48,
            sliding_window=9,
            partial_rotary_factor=8 / 12,
            original_max_position_embeddings=32,
            rope_scaling={
                "type": "longrope",
                "long_factor": _PHI_FACTORS["long"],
                "short_factor": _PHI_FACTORS["short"],
            },
        ),
        plain_tensors,
        _phi3_more,
    ),
    GgufCase(
        "granite",
        config_of(
            "GraniteForCausalLM",
            "granite",
            attention_multiplier=0.3,
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            logits_scaling=8.0,
        ),
    ),
    GgufCase("olmo2", config_of("Olmo2ForCausalLM", "olmo2"), plain_tensors),
    GgufCase(
        "olmo2",
        config_of(
            "Olmo3ForCausalLM",
            "olmo3",
            num_hidden_layers=4,
            sliding_window=6,
            layer_types=[
                *("sliding_attention", "full_attention"),
                *("sliding_attention", "sliding_attention"),
            ],
        ),
        plain_tensors,
        _olmo3_more,
    ),
    GgufCase(
        "glm4",
        config_of("Glm4ForCausalLM", "glm4", head_dim=8, partial_rotary_factor=0.5),
        plain_tensors,
        _glm4_more,
    ),
    GgufCase("seed_oss", config_of("SeedOssForCausalLM", "seed_oss", head_dim=8), plain_tensors),
    GgufCase("ernie4_5", config_of("Ernie4_5ForCausalLM", "ernie4_5", head_dim=8), plain_tensors),
    GgufCase(
        "command-r",
        {**config_of("CohereForCausalLM", "cohere", logit_scale=0.25), "layer_norm_eps": 1e-5},
        plain_tensors,
    ),
    GgufCase(
        "command-r",
        config_of(
            "CohereForCausalLM",
            "cohere",
            logit_scale=0.25,
            layer_norm_eps=1e-5,
            use_qk_norm=True,
        ),
        plain_tensors,
    ),
    GgufCase(
        "cohere2",
        config_of(
            "Cohere2ForCausalLM",
            "cohere2",
            num_hidden_layers=5,
            layer_norm_eps=1e-5,
            logit_scale=0.25,
            sliding_window=7,
        ),
        plain_tensors,
    ),
    GgufCase(
        "starcoder2",
        config_of("Starcoder2ForCausalLM", "starcoder2", norm_epsilon=1e-5),
        plain_tensors,
    ),
    GgufCase("gpt2", _GPT2, gpt2_tensors),
    GgufCase(
        "mistral3",
        config_of(
            "Ministral3ForCausalLM",
            "ministral3",
            head_dim=8,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        ),
        more=_mistral3_more,
    ),
)


def _routed_more(*, dense: int, shared: int, is_sigmoid: bool = True) -> Callable[..., None]:
    def more(writer: GGUFWriter) -> None:
        writer.add_expert_shared_count(shared)
        writer.add_leading_dense_block_count(dense)
        writer.add_expert_weights_norm(is_sigmoid)
        writer.add_expert_weights_scale(1.5)
        kinds = ExpertGatingFuncType
        writer.add_expert_gating_func(kinds.SIGMOID if is_sigmoid else kinds.SOFTMAX)
        writer.add_expert_count(6)
        writer.add_expert_used_count(3)

    return more


def _glm4_moe_more(writer: GGUFWriter) -> None:
    _routed_more(dense=1, shared=2)(writer)
    writer.add_rope_dimension_count(4)


def _ernie_moe_more(writer: GGUFWriter) -> None:
    writer.add_expert_shared_count(2)
    writer.add_leading_dense_block_count(1)
    writer.add_interleave_moe_layer_step(1)
    writer.add_expert_count(6)
    writer.add_expert_used_count(3)


def _lfm2_moe_more(writer: GGUFWriter) -> None:
    _lfm2_more(writer)
    writer.add_leading_dense_block_count(1)


def _deepseek_more(*, is_sigmoid: bool) -> Callable[[GGUFWriter], None]:
    def more(writer: GGUFWriter) -> None:
        _routed_more(dense=1, shared=2, is_sigmoid=is_sigmoid)(writer)
        writer.add_head_count_kv(1)
        writer.add_key_length(12 + 4)
        writer.add_value_length(12)
        writer.add_key_length_mla(10)
        writer.add_value_length_mla(8)
        writer.add_kv_lora_rank(12)
        writer.add_rope_dimension_count(4)
        if is_sigmoid:
            writer.add_q_lora_rank(14)
            writer.add_expert_group_count(2)
            writer.add_expert_group_used_count(1)
            writer.add_rope_scaling_type(RopeScalingType.YARN)
            writer.add_rope_scaling_factor(4.0)
            writer.add_rope_scaling_orig_ctx_len(16)
            writer.add_rope_scaling_yarn_log_mul(0.1)

    return more


_ROUTED = {
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "num_hidden_layers": 3,
}
_MLA = {
    "q_lora_rank": None,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
_WITH_EXPERTS = (
    GgufCase(
        "glm4moe",
        config_of(
            "Glm4MoeForCausalLM",
            "glm4_moe",
            **_ROUTED,
            norm_topk_prob=True,
            head_dim=8,
            partial_rotary_factor=0.5,
            use_qk_norm=True,
            attention_bias=True,
        ),
        grouped_moe_tensors,
        _glm4_moe_more,
    ),
    GgufCase(
        "ernie4_5-moe",
        config_of(
            "Ernie4_5_MoeForCausalLM",
            "ernie4_5_moe",
            num_hidden_layers=3,
            moe_num_experts=6,
            moe_k=3,
            moe_intermediate_size=12,
            moe_num_shared_experts=2,
            moe_layer_start_index=1,
        ),
        grouped_moe_tensors,
        _ernie_moe_more,
    ),
    GgufCase(
        "granitemoe",
        config_of(
            "GraniteMoeForCausalLM",
            "granitemoe",
            num_local_experts=5,
            num_experts_per_tok=2,
            attention_multiplier=0.3,
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            logits_scaling=8.0,
        ),
        granite_moe_tensors,
    ),
    GgufCase(
        "lfm2moe",
        {
            **_LFM2,
            "architectures": ["Lfm2MoeForCausalLM"],
            "model_type": "lfm2_moe",
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "num_dense_layers": 1,
        },
        lfm2_moe_tensors,
        _lfm2_moe_more,
    ),
    GgufCase(
        "deepseek2",
        config_of(
            "DeepseekV3ForCausalLM",
            "deepseek_v3",
            **_ROUTED,
            **{**_MLA, "q_lora_rank": 14},
            norm_topk_prob=True,
            n_group=2,
            topk_group=1,
            num_key_value_heads=None,
            rope_scaling={
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        ),
        deepseek_tensors,
        _deepseek_more(is_sigmoid=True),
    ),
    GgufCase(
        "deepseek2",
        config_of(
            "DeepseekV2ForCausalLM",
            "deepseek_v2",
            **_ROUTED,
            **_MLA,
            norm_topk_prob=False,
            topk_method="greedy",
            num_key_value_heads=None,
        ),
        deepseek_tensors,
        _deepseek_more(is_sigmoid=False),
    ),
)

__all__ = ["GGUF_FAMILIES", "GgufCase"]

GGUF_FAMILIES = (
    *NEWER,
    *_DENSE,
    *_WITH_EXPERTS,
    GgufCase(
        "olmoe",
        config_of(
            "OlmoeForCausalLM",
            "olmoe",
            num_experts=6,
            num_experts_per_tok=3,
            norm_topk_prob=False,
        ),
        moe_tensors,
    ),
    GgufCase("gpt-oss", _GPT_OSS, gpt_oss_tensors, _gpt_oss_more),
    GgufCase("lfm2", _LFM2, lfm2_tensors, _lfm2_more),
    GgufCase("llama", TINY_LLAMA),
    GgufCase(
        "llama",
        {**TINY_LLAMA, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}
        | {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8, "hidden_size": 24},
    ),
    GgufCase(
        "llama",
        config_of("MixtralForCausalLM", "mixtral", num_local_experts=5, num_experts_per_tok=2),
        mixtral_tensors,
    ),
    GgufCase(
        "qwen2moe",
        config_of(
            "Qwen2MoeForCausalLM",
            "qwen2_moe",
            num_experts=5,
            num_experts_per_tok=2,
            moe_intermediate_size=12,
            shared_expert_intermediate_size=20,
            norm_topk_prob=False,
        ),
        moe_tensors,
    ),
    GgufCase("qwen3moe", _QWEN3_MOE, moe_tensors),
    GgufCase("qwen3vlmoe", _QWEN3_MOE, moe_tensors, _sections_more),
    GgufCase("qwen2", config_of("Qwen2ForCausalLM", "qwen2"), plain_tensors),
    GgufCase("qwen2vl", config_of("Qwen2ForCausalLM", "qwen2"), plain_tensors, _sections_more),
    GgufCase("qwen3", _QWEN3, plain_tensors),
    GgufCase("qwen3vl", _QWEN3, plain_tensors, _sections_more),
    GgufCase(
        "smollm3",
        config_of("SmolLM3ForCausalLM", "smollm3", num_hidden_layers=5, no_rope_layer_interval=4),
    ),
)

"""Small models of every family that is served, as transformers configures them, for parity tests.

A case has few layers and small widths, and switches on what makes its family special: windows
shorter than the prompt, odd head counts, a rope beyond its original length. A case more is a row
in `CASES`, and its name a cell in docs/models.md.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.fakes.dense_families import DENSE
from tests.fakes.expert_families import EXPERTS
from tests.fakes.family_case import (
    NUM_GREEDY_TOKENS,
    NUM_PROMPT_TOKENS,
    SIZES,
    FamilyCase,
)

__all__ = [
    "CASES",
    "NUM_GREEDY_TOKENS",
    "NUM_PROMPT_TOKENS",
    "SIZES",
    "FamilyCase",
    "family_params",
]


def _llama() -> dict[str, FamilyCase]:
    llama3_rope = {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    yarn_rope = {
        "rope_type": "yarn",
        "rope_theta": 1000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    return {
        "llama_with_llama3_rope_and_biases": FamilyCase(
            "LlamaConfig",
            {
                "head_dim": 16,
                "attention_bias": True,
                "mlp_bias": True,
                "rope_parameters": llama3_rope,
            },
            in_make_test=True,
        ),
        "llama_with_linear_rope": FamilyCase(
            "LlamaConfig",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}},
        ),
        "mistral_with_window": FamilyCase("MistralConfig", {"sliding_window": 7}),
        "ministral_with_mixed_windows": FamilyCase(
            "MinistralConfig",
            {
                "sliding_window": 9,
                "layer_types": ["sliding_attention", "full_attention"],
                "head_dim": 8,
            },
        ),
        "qwen2_with_windows": FamilyCase(
            "Qwen2Config",
            {
                "tie_word_embeddings": True,
                "use_sliding_window": True,
                "sliding_window": 11,
                "max_window_layers": 1,
            },
        ),
        "qwen2_with_yarn_rope": FamilyCase("Qwen2Config", {"rope_parameters": yarn_rope}),
        "qwen3": FamilyCase("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
        "smollm2": FamilyCase(
            "LlamaConfig",
            {
                "hidden_size": 72,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "tie_word_embeddings": True,
                "rms_norm_eps": 1e-5,
            },
        ),
        "smollm3_without_positions_in_every_second_layer": FamilyCase(
            "SmolLM3Config", {"no_rope_layer_interval": 2}
        ),
    }


def _hybrids() -> dict[str, FamilyCase]:
    delta_net = {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 6,
        "linear_key_head_dim": 12,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 500.0,
            "partial_rotary_factor": 0.5,
        },
    }
    experts = {
        "num_experts": 9,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
    }
    mamba = {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "shared_intermediate_size": 56,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.2,
        "mamba_n_heads": 6,
        "mamba_n_groups": 2,
        "mamba_d_state": 12,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_chunk_size": 16,
    }
    plain_mamba = {
        name: value
        for name, value in mamba.items()
        if name.startswith("mamba_") or name == "num_hidden_layers"
    }
    vision = {
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 48,
            "num_position_embeddings": 16,
        }
    }
    return {
        "lfm2": FamilyCase(
            "Lfm2Config",
            {
                "num_hidden_layers": 4,
                "layer_types": ["conv", "full_attention", "conv", "conv"],
                "conv_L_cache": 4,
                "conv_bias": True,
                "block_multiple_of": 32,
                "norm_eps": 1e-4,
                "tie_word_embeddings": True,
            },
        ),
        "lfm2_moe": FamilyCase(
            "Lfm2MoeConfig",
            {
                "num_hidden_layers": 4,
                "layer_types": ["conv", "conv", "full_attention", "conv"],
                "num_dense_layers": 1,
                "num_experts": 7,
                "num_experts_per_tok": 3,
                "moe_intermediate_size": 24,
                "routed_scaling_factor": 1.7,
            },
        ),
        "granite_hybrid": FamilyCase(
            "GraniteMoeHybridConfig", {**mamba, "num_local_experts": 0, "tie_word_embeddings": True}
        ),
        "granite_hybrid_with_experts": FamilyCase(
            "GraniteMoeHybridConfig",
            {
                **mamba,
                "num_local_experts": 7,
                "num_experts_per_tok": 3,
                "position_embedding_type": "rope",
                "mamba_proj_bias": True,
                "attention_bias": True,
            },
        ),
        "qwen3_next_with_a_dense_layer": FamilyCase(
            "Qwen3NextConfig", {**delta_net, **experts, "mlp_only_layers": [1]}, norm_mean=0.0
        ),
        "qwen3_5": FamilyCase(
            "Qwen3_5TextConfig",
            {**delta_net, "tie_word_embeddings": True},
            norm_mean=0.0,
            in_make_test=True,
        ),
        "qwen3_5_beside_a_vision_tower": FamilyCase(
            "Qwen3_5Config",
            delta_net,
            vision,
            "Qwen3_5ForConditionalGeneration",
            norm_mean=0.0,
        ),
        "qwen3_5_moe": FamilyCase("Qwen3_5MoeTextConfig", {**delta_net, **experts}, norm_mean=0.0),
        "qwen3_5_moe_beside_a_vision_tower": FamilyCase(
            "Qwen3_5MoeConfig",
            {**delta_net, **experts},
            vision,
            "Qwen3_5MoeForConditionalGeneration",
            norm_mean=0.0,
        ),
        "bamba": FamilyCase(
            "BambaConfig",
            {
                **plain_mamba,
                "attn_layer_indices": [1],
                "mamba_proj_bias": True,
                "mlp_bias": True,
            },
        ),
        "bamba_with_limits_of_time": FamilyCase(
            "BambaConfig",
            {**plain_mamba, "attn_layer_indices": [2], "time_step_limit": [0.4, 0.9]},
            why_logits_only="transformers limits the steps in time of prompts, not of decodes",
        ),
        "falcon_h1_with_multipliers": FamilyCase(
            "FalconH1Config",
            {
                **plain_mamba,
                "num_hidden_layers": 2,
                "mamba_d_ssm": 72,
                "mamba_rms_norm": True,
                "head_dim": 16,
                "projectors_bias": True,
                "embedding_multiplier": 2.0,
                "lm_head_multiplier": 0.4,
                "mlp_multipliers": [0.6, 1.3],
                "key_multiplier": 0.7,
                "attention_in_multiplier": 1.2,
                "attention_out_multiplier": 0.9,
                "ssm_multipliers": [0.6, 1.2, 0.8, 1.1, 0.9],
                "ssm_in_multiplier": 1.3,
                "ssm_out_multiplier": 0.8,
            },
        ),
        "falcon_h1_without_norms_of_states": FamilyCase(
            "FalconH1Config",
            {
                **plain_mamba,
                "num_hidden_layers": 2,
                "mamba_d_ssm": 96,
                "mamba_rms_norm": False,
                "tie_word_embeddings": True,
            },
        ),
        "nemotron_h": FamilyCase(
            "NemotronHConfig",
            {**_NEMOTRON, "num_hidden_layers": None, "hybrid_override_pattern": "M-M*-MM-"},
        ),
        "nemotron_h_with_experts": FamilyCase(
            "NemotronHConfig",
            {
                **_NEMOTRON,
                "num_hidden_layers": None,
                "hybrid_override_pattern": "MEM*EM",
                "n_routed_experts": 8,
                "num_experts_per_tok": 3,
                "n_group": 4,
                "topk_group": 2,
                "moe_intermediate_size": 24,
                "moe_shared_expert_intermediate_size": 40,
                "moe_latent_size": 20,
                "routed_scaling_factor": 1.7,
            },
        ),
        "olmo_hybrid": FamilyCase(
            "OlmoHybridConfig",
            {
                "num_hidden_layers": 3,
                "layer_types": ["linear_attention", "full_attention", "linear_attention"],
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 2,
                "linear_key_head_dim": 12,
                "linear_value_head_dim": 12,
                "linear_conv_kernel_dim": 4,
            },
        ),
        "olmo_hybrid_with_rope": FamilyCase(
            "OlmoHybridConfig",
            {
                "num_hidden_layers": 2,
                "layer_types": ["linear_attention", "full_attention"],
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
                "linear_key_head_dim": 12,
                "linear_value_head_dim": 6,
                "linear_allow_neg_eigval": False,
                "attention_bias": True,
                "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            },
        ),
    }


_NEMOTRON: dict[str, Any] = {
    "head_dim": 16,
    "mamba_num_heads": 6,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "ssm_state_size": 12,
    "conv_kernel": 4,
    "chunk_size": 16,
    "use_bias": True,
}


def _llama4() -> dict[str, FamilyCase]:
    text = {
        "num_hidden_layers": 4,
        "head_dim": 8,
        "intermediate_size": 24,
        "intermediate_size_mlp": 80,
        "no_rope_layer_interval": 2,
        "attention_chunk_size": 13,
        "interleave_moe_layer_step": 2,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "floor_scale": 8,
        "attn_scale": 0.4,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    }
    return {
        "llama4_with_chunks": FamilyCase("Llama4TextConfig", text, model="Llama4ForCausalLM"),
        "llama4_beside_a_vision_tower": FamilyCase(
            "Llama4TextConfig",
            {**text, "use_qk_norm": False, "attn_temperature_tuning": False},
            model="Llama4ForCausalLM",
            wrapped_as="Llama4ForConditionalGeneration",
            text_model="language_model.model.",
        ),
    }


CASES: Mapping[str, FamilyCase] = {
    **_llama(),
    **DENSE,
    **EXPERTS,
    **_hybrids(),
    **_llama4(),
}
"""By name, in the order of docs/models.md."""


def family_params() -> list[Any]:
    """The names of all cases, for `pytest.mark.parametrize`, with the mark of `make parity`."""
    return [
        pytest.param(name, marks=() if case.in_make_test else (pytest.mark.parity,))
        for name, case in CASES.items()
    ]

"""The small models of dense families other than Llama's, see `model_families`."""

from typing import Any

from tests.fakes.family_case import FamilyCase


def _gemma() -> dict[str, FamilyCase]:
    windows = ["sliding_attention", "full_attention", "sliding_attention"]
    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 0.3}
    gemma3 = {
        # Which has no effect in transformers.
        "attn_logit_softcapping": 2.0,
        "head_dim": 16,
        "num_hidden_layers": 3,
        "sliding_window": 9,
        "layer_types": windows,
        "query_pre_attn_scalar": 24,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    }
    return {
        "gemma": FamilyCase(
            "GemmaConfig",
            {"head_dim": 16, "num_key_value_heads": 1},
            norm_mean=0.0,
            embedding_scale=0.02,
        ),
        "gemma2_with_caps_and_windows": FamilyCase(
            "Gemma2Config",
            {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 20, **caps},
            norm_mean=0.0,
            embedding_scale=0.02,
        ),
        "gemma3_with_two_ropes": FamilyCase(
            "Gemma3TextConfig", gemma3, norm_mean=0.0, embedding_scale=0.02, in_make_test=True
        ),
        "gemma3_beside_a_vision_tower": FamilyCase(
            "Gemma3Config",
            {**gemma3, "tie_word_embeddings": True},
            outer={"vision_config": _TINY_SIGLIP, "mm_tokens_per_image": 4},
            model="Gemma3ForConditionalGeneration",
            norm_mean=0.0,
            embedding_scale=0.02,
        ),
    }


def _gemma_nano() -> dict[str, FamilyCase]:
    types = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    shared = {
        "head_dim": 8,
        "num_hidden_layers": 6,
        "layer_types": types,
        "sliding_window": 9,
        "num_kv_shared_layers": 3,
        "hidden_size_per_layer_input": 12,
        "tie_word_embeddings": True,
    }
    gemma4 = {
        **shared,
        "global_head_dim": 16,
        "vocab_size_per_layer_input": 211,
        "use_double_wide_mlp": True,
        "final_logit_softcapping": 5.0,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 500.0,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    }
    gemma3n = {
        **shared,
        "vocab_size_per_layer_input": 190,
        "activation_sparsity_pattern": [0.6, 0.3, 0.0, 0.0, 0.5, 0.0],
        "altup_num_inputs": 3,
        "altup_active_idx": 1,
        "laurel_rank": 5,
        "final_logit_softcapping": 5.0,
    }
    no_towers = {"vision_config": None, "audio_config": None, "tie_word_embeddings": True}
    return {
        "gemma3n_with_shared_keys_and_sparsity": FamilyCase(
            "Gemma3nTextConfig", gemma3n, embedding_scale=0.02
        ),
        "gemma3n_beside_its_towers": FamilyCase(
            "Gemma3nTextConfig",
            {**gemma3n, "num_kv_shared_layers": 0, "altup_correct_scale": False},
            embedding_scale=0.02,
            wrapped_as="Gemma3nForConditionalGeneration",
        ),
        "gemma4_with_shared_keys": FamilyCase("Gemma4TextConfig", gemma4, embedding_scale=0.02),
        "gemma4_with_experts_and_values_of_keys": FamilyCase(
            "Gemma4TextConfig",
            {
                **gemma4,
                "num_hidden_layers": 3,
                "layer_types": types[:3],
                "num_kv_shared_layers": 0,
                "hidden_size_per_layer_input": 0,
                "attention_k_eq_v": True,
                "num_global_key_value_heads": 3,
                "enable_moe_block": True,
                "num_experts": 9,
                "top_k_experts": 4,
                "moe_intermediate_size": 24,
            },
            embedding_scale=0.02,
        ),
        "gemma4_beside_its_towers": FamilyCase(
            "Gemma4Config",
            gemma4,
            no_towers,
            "Gemma4ForConditionalGeneration",
            embedding_scale=0.02,
        ),
    }


_TINY_SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
_TINY_PIXTRAL = {**_TINY_SIGLIP, "model_type": "pixtral", "head_dim": 8}


def _longrope(num_pairs: int, **values: Any) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0 + 0.1 * pair for pair in range(num_pairs)],
        "long_factor": [1.5 + 0.3 * pair for pair in range(num_pairs)],
        **values,
    }


def _phi() -> dict[str, FamilyCase]:
    return {
        "phi3_with_window": FamilyCase("Phi3Config", {"sliding_window": 13}),
        "phi3_with_longrope": FamilyCase(
            "Phi3Config",
            {"original_max_position_embeddings": 32, "rope_parameters": _longrope(4)},
        ),
        "phi4_mini_with_partial_longrope": FamilyCase(
            "Phi3Config",
            {
                "hidden_size": 64,
                "num_attention_heads": 4,
                "original_max_position_embeddings": 32,
                "tie_word_embeddings": True,
                "rope_parameters": _longrope(6, partial_rotary_factor=0.75),
            },
        ),
    }


def _mistral() -> dict[str, FamilyCase]:
    yarn_with_scale = {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.3,
    }
    ministral3 = {"head_dim": 16, "rope_parameters": yarn_with_scale}
    outer = {"vision_config": _TINY_PIXTRAL}
    model = "Mistral3ForConditionalGeneration"
    return {
        "ministral3_with_scaled_queries": FamilyCase("Ministral3Config", ministral3),
        "ministral3_beside_a_vision_tower": FamilyCase(
            "Mistral3Config", {**ministral3, "model_type": "ministral3"}, outer, model
        ),
        "mistral_small_beside_a_vision_tower": FamilyCase(
            "Mistral3Config",
            {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
            outer,
            model,
        ),
    }


def _qwen_vision() -> dict[str, FamilyCase]:
    tower = {
        "depth": 1,
        "hidden_size": 16,
        "embed_dim": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "patch_size": 8,
    }
    rope = {"rope_type": "default", "rope_theta": 500.0}
    qwen2 = {"rope_parameters": {**rope, "mrope_section": [2, 1, 1]}}
    qwen3 = {
        "head_dim": 16,
        "rope_parameters": {**rope, "mrope_section": [4, 2, 2], "mrope_interleaved": True},
    }
    deepstack = {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    wide = {**tower, "out_hidden_size": 48}
    return {
        "qwen2_vl_beside_its_tower": FamilyCase(
            "Qwen2VLConfig",
            qwen2,
            {"vision_config": {**tower, "hidden_size": 48}},
            "Qwen2VLForConditionalGeneration",
        ),
        "qwen2_5_vl_beside_its_tower": FamilyCase(
            "Qwen2_5_VLConfig",
            qwen2,
            {"vision_config": {**wide, "fullatt_block_indexes": [0], "window_size": 32}},
            "Qwen2_5_VLForConditionalGeneration",
        ),
        "qwen3_vl_beside_its_tower": FamilyCase(
            "Qwen3VLConfig",
            qwen3,
            {"vision_config": wide | deepstack},
            "Qwen3VLForConditionalGeneration",
        ),
        "qwen3_vl_moe_beside_its_tower": FamilyCase(
            "Qwen3VLMoeConfig",
            {
                **qwen3,
                "num_hidden_layers": 3,
                "num_experts": 7,
                "num_experts_per_tok": 3,
                "moe_intermediate_size": 24,
                "mlp_only_layers": [1],
            },
            {"vision_config": wide | deepstack},
            "Qwen3VLMoeForConditionalGeneration",
            turns_experts=True,
        ),
    }


def _olmo() -> dict[str, FamilyCase]:
    return {
        "olmo2": FamilyCase("Olmo2Config", {"attention_bias": True}),
        "olmo3_with_yarn_on_full_layers": FamilyCase(
            "Olmo3Config",
            {
                "num_hidden_layers": 4,
                "sliding_window": 10,
                "rope_parameters": {
                    "full_attention": {
                        "rope_type": "yarn",
                        "rope_theta": 1000.0,
                        "factor": 4.0,
                        "original_max_position_embeddings": 32,
                        "attention_factor": 1.2,
                    },
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
                },
            },
        ),
    }


def _granite() -> dict[str, FamilyCase]:
    return {
        "granite_with_multipliers": FamilyCase(
            "GraniteConfig",
            {
                "embedding_multiplier": 6.0,
                "attention_multiplier": 0.2,
                "residual_multiplier": 0.4,
                "logits_scaling": 5.0,
                "tie_word_embeddings": True,
                "attention_bias": True,
                "mlp_bias": True,
            },
            embedding_scale=0.03,
        ),
    }


def _glm() -> dict[str, FamilyCase]:
    return {
        "glm_with_partial_rotation": FamilyCase("GlmConfig", {"head_dim": 16}),
        "glm4_with_norms_around": FamilyCase("Glm4Config", {"head_dim": 12}),
        "seed_oss": FamilyCase("SeedOssConfig", {"head_dim": 16, "attention_out_bias": True}),
        "ernie": FamilyCase("Ernie4_5Config", {"head_dim": 16, "use_bias": True}),
    }


def _cohere() -> dict[str, FamilyCase]:
    scale = {"logit_scale": 0.25}
    return {
        "cohere": FamilyCase("CohereConfig", {"attention_bias": True, **scale}),
        "cohere_with_norms_of_each_head": FamilyCase(
            "CohereConfig", {"use_qk_norm": True, **scale}
        ),
        "cohere2_with_windows": FamilyCase(
            "Cohere2Config", {"num_hidden_layers": 4, "sliding_window": 9, **scale}
        ),
    }


def _plain_mlps() -> dict[str, FamilyCase]:
    unnamed: dict[str, Any] = dict.fromkeys(("num_key_value_heads", "intermediate_size"))
    return {
        "gpt2": FamilyCase(
            "GPT2Config",
            {**unnamed, "scale_attn_by_inverse_layer_idx": True},
            embedding_scale=0.03,
        ),
        "starcoder2_with_window": FamilyCase("Starcoder2Config", {"sliding_window": 11}),
    }


DENSE: dict[str, FamilyCase] = (
    _qwen_vision()
    | _mistral()
    | _gemma()
    | _gemma_nano()
    | _phi()
    | _granite()
    | _olmo()
    | _glm()
    | _cohere()
    | _plain_mlps()
)
"""By name, in the order of docs/models.md."""

"""Small models of families with mixtures of experts, and of those with latent attention."""

from tests.fakes.family_case import FamilyCase


def _experts() -> dict[str, FamilyCase]:
    return {
        "qwen3_moe_with_dense_layers": FamilyCase(
            "Qwen3MoeConfig",
            {
                "head_dim": 16,
                "num_hidden_layers": 4,
                "num_experts": 11,
                "num_experts_per_tok": 3,
                "moe_intermediate_size": 24,
                "norm_topk_prob": True,
                "decoder_sparse_step": 2,
                "mlp_only_layers": [1],
                "tie_word_embeddings": True,
            },
            in_make_test=True,
        ),
        "qwen3_moe_with_windows": FamilyCase(
            "Qwen3MoeConfig",
            {
                "head_dim": 8,
                "num_experts": 6,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 40,
                "norm_topk_prob": False,
                "use_sliding_window": True,
                "sliding_window": 13,
            },
        ),
        "qwen3_vl_moe_beside_its_tower": FamilyCase(
            "Qwen3VLMoeConfig",
            {
                "head_dim": 16,
                "num_experts": 7,
                "num_experts_per_tok": 3,
                "moe_intermediate_size": 20,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 500.0,
                    "mrope_section": [4, 2, 2],
                    "mrope_interleaved": True,
                },
            },
            {
                "vision_config": {
                    "depth": 1,
                    "hidden_size": 16,
                    "intermediate_size": 16,
                    "num_heads": 2,
                    "patch_size": 8,
                    "out_hidden_size": 48,
                    "deepstack_visual_indexes": [0],
                    "num_position_embeddings": 16,
                }
            },
            "Qwen3VLMoeForConditionalGeneration",
        ),
        "qwen2_moe_with_a_shared_expert": FamilyCase(
            "Qwen2MoeConfig",
            {
                "num_experts": 9,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 24,
                "shared_expert_intermediate_size": 56,
                "use_sliding_window": True,
                "sliding_window": 11,
                "max_window_layers": 2,
            },
        ),
        "mixtral_with_window": FamilyCase(
            "MixtralConfig",
            {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 9},
        ),
        "olmoe": FamilyCase(
            "OlmoeConfig",
            {
                "num_key_value_heads": 3,
                "num_experts": 7,
                "num_experts_per_tok": 3,
                "intermediate_size": 32,
                "norm_topk_prob": False,
            },
        ),
        "granite_moe_with_multipliers": FamilyCase(
            "GraniteMoeConfig",
            {
                "num_local_experts": 6,
                "num_experts_per_tok": 3,
                "intermediate_size": 32,
                "embedding_multiplier": 3.0,
                "residual_multiplier": 0.7,
                "attention_multiplier": 0.2,
                "logits_scaling": 1.5,
            },
        ),
        "glm4_moe_with_groups": FamilyCase(
            "Glm4MoeConfig",
            {
                "num_hidden_layers": 3,
                "head_dim": 16,
                "attention_bias": True,
                "use_qk_norm": True,
                "moe_intermediate_size": 24,
                "n_routed_experts": 12,
                "n_shared_experts": 2,
                "num_experts_per_tok": 3,
                "n_group": 4,
                "topk_group": 2,
                "routed_scaling_factor": 1.8,
                "first_k_dense_replace": 1,
            },
        ),
        "ernie4_5_moe_with_dense_layers": FamilyCase(
            "Ernie4_5_MoeConfig",
            {
                "num_hidden_layers": 4,
                "moe_intermediate_size": 24,
                "moe_k": 3,
                "moe_num_experts": 7,
                "moe_num_shared_experts": 2,
                "moe_layer_start_index": 1,
                "moe_layer_end_index": 2,
            },
        ),
        "gpt_oss_with_sinks_and_windows": FamilyCase(
            "GptOssConfig",
            {
                "head_dim": 16,
                "intermediate_size": 32,
                "num_local_experts": 7,
                "num_experts_per_tok": 3,
                "sliding_window": 10,
                "swiglu_limit": 0.8,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1000.0,
                    "factor": 4.0,
                    "truncate": False,
                    "original_max_position_embeddings": 32,
                },
            },
        ),
    }


def _latent() -> dict[str, FamilyCase]:
    latent = {
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 12,
        "v_head_dim": 10,
        "kv_lora_rank": 16,
        "moe_intermediate_size": 24,
        "n_routed_experts": 12,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
    }
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1000.0,
        "factor": 4.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "original_max_position_embeddings": 32,
    }
    return {
        "deepseek_v2_with_groups": FamilyCase(
            "DeepseekV2Config",
            {
                **latent,
                "q_lora_rank": None,
                "first_k_dense_replace": 1,
                "n_shared_experts": 2,
                "topk_method": "group_limited_greedy",
                "routed_scaling_factor": 1.7,
            },
        ),
        "deepseek_v3_with_yarn_rope": FamilyCase(
            "DeepseekV3Config",
            {
                **latent,
                "q_lora_rank": 20,
                "first_k_dense_replace": 1,
                "attention_bias": True,
                "rope_parameters": rope,
            },
        ),
        "glm4_moe_lite": FamilyCase(
            "Glm4MoeLiteConfig",
            {**latent, "q_lora_rank": 20, "mlp_layer_types": ["dense", "sparse", "dense"]},
            in_make_test=True,
        ),
        "mistral4_with_growing_queries": FamilyCase(
            "Mistral4Config",
            {
                **latent,
                "q_lora_rank": 20,
                "rope_parameters": rope | {"llama_4_scaling_beta": 0.3},
            },
            model="Mistral4ForCausalLM",
        ),
        "mistral4_beside_a_vision_tower": FamilyCase(
            "Mistral4Config",
            {
                **latent,
                "q_lora_rank": 20,
                "rope_parameters": rope | {"llama_4_scaling_beta": 0.3},
            },
            model="Mistral4ForCausalLM",
            wrapped_as="Mistral3ForConditionalGeneration",
        ),
    }


EXPERTS: dict[str, FamilyCase] = _experts() | _latent()
"""By name, in the order of docs/models.md."""

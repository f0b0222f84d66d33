"""GGUF's families with groups of experts, shared ones, or experts behind dense layers."""

from collections.abc import Sequence

import numpy as np

from engine_worker.compute.weights.gguf.changes import (
    EACH_TRANSPOSED,
    ONE_INPUT,
    ONE_ROW,
    Join,
    Shape,
    Values,
    below_each_other,
)
from engine_worker.compute.weights.gguf.dense_families import granite_config, rotated_share
from engine_worker.compute.weights.gguf.family import (
    PREDICTION,
    Config,
    GgufFamily,
    rope_scaling,
)
from engine_worker.compute.weights.gguf.hybrid_families import LFM2_LAYER, lfm2_config
from engine_worker.compute.weights.gguf.metadata import GgufMetadata

_SIGMOID = 2
"""`expert_gating_func` of sigmoid, in `gguf.constants.ExpertGatingFuncType`."""
_EXPERTS = {f"ffn_{name}_exps": ("mlp.", f"{name}_proj") for name in ("gate", "up", "down")}
_CORRECTION = "exp_probs_b.bias"
_SHARED = {
    "ffn_gate_inp": "mlp.gate",
    _CORRECTION: "mlp.gate.e_score_correction_bias",
    **{f"ffn_{name}_shexp": f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")},
}


def _routed(metadata: GgufMetadata) -> Config:
    """What DeepSeek's configs, and those like them, say of experts."""
    return {
        "n_routed_experts": metadata.whole("expert_count"),
        "num_experts_per_tok": metadata.whole("expert_used_count"),
        "n_shared_experts": metadata.whole("expert_shared_count", 0),
        "moe_intermediate_size": metadata.whole("expert_feed_forward_length"),
        "first_k_dense_replace": metadata.whole("leading_dense_block_count", 0),
        "routed_scaling_factor": metadata.number("expert_weights_scale", 1.0),
        "norm_topk_prob": metadata.flag("expert_weights_norm", False),
        "n_group": metadata.whole("expert_group_count", 1),
        "topk_group": metadata.whole("expert_group_used_count", 1),
    }


def _num_layers(metadata: GgufMetadata) -> int:
    """Without those that predict several tokens at once."""
    return metadata.whole("block_count") - metadata.whole("nextn_predict_layers", 0)


def _glm4_moe(metadata: GgufMetadata) -> Config:
    return {
        **_routed(metadata),
        "num_hidden_layers": _num_layers(metadata),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in metadata.tensors,
        "attention_bias": "blk.0.attn_q.bias" in metadata.tensors,
        "partial_rotary_factor": rotated_share(metadata) or 1.0,
    }


def _ernie_moe(metadata: GgufMetadata) -> Config:
    return {
        "moe_num_experts": metadata.whole("expert_count"),
        "moe_k": metadata.whole("expert_used_count"),
        "moe_intermediate_size": metadata.whole("expert_feed_forward_length"),
        "moe_num_shared_experts": metadata.whole("expert_shared_count", 0),
        "moe_layer_start_index": metadata.whole("leading_dense_block_count", 0),
        "moe_layer_interval": metadata.whole("interleave_moe_layer_step", 1),
    }


def _granite_moe(metadata: GgufMetadata) -> Config:
    return {
        **granite_config(metadata),
        "num_local_experts": metadata.whole("expert_count"),
        "num_experts_per_tok": metadata.whole("expert_used_count"),
    }


def _has_no_shared_expert(metadata: GgufMetadata) -> bool:
    return metadata.whole("expert_shared_feed_forward_length", 0) == 0


def _lfm2_moe(metadata: GgufMetadata) -> Config:
    return {
        **lfm2_config(metadata),
        "num_experts": metadata.whole("expert_count"),
        "num_experts_per_tok": metadata.whole("expert_used_count"),
        "moe_intermediate_size": metadata.whole("expert_feed_forward_length"),
        "num_dense_layers": metadata.whole("leading_dense_block_count", 0),
        # llama.cpp has it in its program.
        "norm_topk_prob": True,
    }


def _deepseek(metadata: GgufMetadata) -> Config:
    rotated = metadata.whole("rope.dimension_count")
    # Files from before the latent was multiplied as such have the widths under the other keys.
    key = "attention.key_length_mla"
    width = metadata.whole(key if metadata.has(key) else "attention.key_length")
    value = "attention.value_length_mla"
    config: Config = {
        **_routed(metadata),
        "num_hidden_layers": _num_layers(metadata),
        "num_key_value_heads": metadata.whole("attention.head_count"),
        "head_dim": rotated,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": width - rotated,
        "v_head_dim": metadata.whole(value if metadata.has(value) else "attention.value_length"),
        "kv_lora_rank": metadata.whole("attention.kv_lora_rank"),
        "q_lora_rank": metadata.whole("attention.q_lora_rank", 0) or None,
    }
    scaling = rope_scaling(metadata)
    if scaling is not None and metadata.has("rope.scaling.yarn_log_multiplier"):
        # Stored times 0.1; the other one of the config is the same in all of DeepSeek's models.
        scale = round(metadata.number("rope.scaling.yarn_log_multiplier") * 10, 6)
        scaling = {**scaling, "mscale": scale, "mscale_all_dim": scale}
    config["rope_scaling"] = scaling
    if not _is_sigmoid(metadata):
        config["topk_method"] = "group_limited_greedy" if config["n_group"] > 1 else "greedy"
    return config


def _mistral4(metadata: GgufMetadata) -> Config:
    config = _deepseek(metadata)
    scaling = config.pop("rope_scaling")
    if scaling is None:
        raise metadata.error("rope.scaling.type", "must be yarn", "none")
    rope = {**scaling, "rope_theta": metadata.number("rope.freq_base")}
    if metadata.has("attention.temperature_scale"):
        rope["llama_4_scaling_beta"] = metadata.number("attention.temperature_scale")
    return {**config, "rope_scaling": None, "rope_theta": None, "rope_parameters": rope}


def _is_sigmoid(metadata: GgufMetadata) -> bool:
    key = "expert_gating_func"
    if metadata.has(key):
        return metadata.whole(key) == _SIGMOID
    # The first files of GLM 4.7 Flash don't say; the corrections go with sigmoid alone.
    return any(name.endswith(_CORRECTION) for name in metadata.tensors)


def _is_softmax(metadata: GgufMetadata) -> bool:
    return not _is_sigmoid(metadata)


def _latent_projection(parts: Sequence[Values]) -> Values:
    """Keys [H, rank, nope] and values [H, value, rank] to [H * (nope + value), rank]."""
    keys, values = parts
    joined = np.concatenate([np.swapaxes(keys, -1, -2), values], axis=1)
    return joined.reshape(-1, joined.shape[-1])


def _latent_shape(*shapes: Shape) -> Shape:
    (heads, rank, nope), (others, value, width) = shapes
    if heads != others or rank != width:
        raise ValueError("keys and values have other latents")
    return heads * (nope + value), rank


_CHUNK, _TURNS = 8192, 4
"""llama.cpp has them in its program: tokens of a chunk, and every how manieth layer sees all."""
_WITHOUT_NORMS = 128
"""Experts of Llama 4 Maverick, whose queries and keys aren't normalised, as llama.cpp tells it."""


def _llama4(metadata: GgufMetadata) -> Config:
    num_experts = metadata.whole("expert_count")
    return {
        "intermediate_size": metadata.whole("expert_feed_forward_length"),
        "intermediate_size_mlp": metadata.whole("feed_forward_length"),
        "interleave_moe_layer_step": metadata.whole("interleave_moe_layer_step", 1),
        "num_local_experts": num_experts,
        "num_experts_per_tok": metadata.whole("expert_used_count"),
        "use_qk_norm": num_experts != _WITHOUT_NORMS,
        "attention_chunk_size": _CHUNK,
        "no_rope_layer_interval": _TURNS,
        "attention_bias": "blk.0.attn_q.bias" in metadata.tensors,
    }


def _gate_and_up(parts: Sequence[Values]) -> Values:
    return np.swapaxes(np.concatenate(list(parts), axis=-2), -1, -2)


def _gate_and_up_shape(first: Shape, second: Shape) -> Shape:
    if first != second or len(first) < 2:
        raise ValueError("their shapes differ")
    return *first[:-2], first[-1], 2 * first[-2]


_LLAMA4_JOIN = Join(
    ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    _gate_and_up,
    _gate_and_up_shape,
    order=lambda rows: rows,
    is_transposed=True,
)
_GATE_BEFORE_UP = below_each_other(("ffn_gate_exps.weight", "ffn_up_exps.weight"))
_LATENT = {
    **_SHARED,
    **PREDICTION,
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
}
_LATENT_JOIN = {
    "self_attn.kv_b_proj.weight": Join(
        ("attn_k_b.weight", "attn_v_b.weight"), _latent_projection, _latent_shape
    )
}
EXPERTS: Sequence[tuple[str, GgufFamily]] = (
    (
        "llama4",
        GgufFamily(
            "Llama4ForCausalLM",
            "llama4_text",
            _llama4,
            {
                "ffn_gate_inp": "feed_forward.router",
                "ffn_down_exps.weight": "feed_forward.experts.down_proj",
                **{f"ffn_{name}": f"feed_forward.{name}_proj" for name in ("gate", "up", "down")},
                **{
                    f"ffn_{name}_shexp": f"feed_forward.shared_expert.{name}_proj"
                    for name in ("gate", "up", "down")
                },
            },
            joins={"feed_forward.experts.gate_up_proj": _LLAMA4_JOIN},
            changes={"ffn_down_exps.weight": EACH_TRANSPOSED},
        ),
    ),
    (
        "glm4moe",
        GgufFamily(
            "Glm4MoeForCausalLM",
            "glm4_moe",
            _glm4_moe,
            {**_SHARED, **PREDICTION, "post_attention_norm": "post_attention_layernorm"},
            _EXPERTS,
        ),
    ),
    (
        "ernie4_5-moe",
        GgufFamily(
            "Ernie4_5_MoeForCausalLM",
            "ernie4_5_moe",
            _ernie_moe,
            {**_SHARED, _CORRECTION: "mlp.moe_statics.e_score_correction_bias"},
            _EXPERTS,
            changes={_CORRECTION: ONE_ROW},
        ),
    ),
    (
        "granitemoe",
        GgufFamily(
            "GraniteMoeForCausalLM",
            "granitemoe",
            _granite_moe,
            {
                "ffn_gate_inp": "block_sparse_moe.router.layer",
                "ffn_down_exps": "block_sparse_moe.output_linear",
            },
            joins={"block_sparse_moe.input_linear.weight": _GATE_BEFORE_UP},
            rotates_pairs=True,
            fits=_has_no_shared_expert,
        ),
    ),
    (
        "lfm2moe",
        GgufFamily(
            "Lfm2MoeForCausalLM",
            "lfm2_moe",
            _lfm2_moe,
            {
                **LFM2_LAYER,
                "ffn_gate_inp": "feed_forward.gate",
                _CORRECTION: "feed_forward.expert_bias",
            },
            {
                f"ffn_{name}_exps": ("feed_forward.", part)
                for name, part in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
            },
            changes={"shortconv.conv.weight": ONE_INPUT},
        ),
    ),
    (
        "deepseek2",
        GgufFamily(
            "DeepseekV3ForCausalLM",
            "deepseek_v3",
            _deepseek,
            _LATENT,
            _EXPERTS,
            joins=_LATENT_JOIN,
            fits=_is_sigmoid,
        ),
    ),
    (
        "deepseek2",
        GgufFamily(
            "DeepseekV2ForCausalLM",
            "deepseek_v2",
            _deepseek,
            _LATENT,
            _EXPERTS,
            joins=_LATENT_JOIN,
            fits=_is_softmax,
        ),
    ),
    (
        "mistral4",
        GgufFamily(
            "Mistral4ForCausalLM",
            "mistral4",
            _mistral4,
            {
                **_LATENT,
                "ffn_gate_up_exps.weight": "mlp.experts.gate_up_proj",
                "ffn_down_exps.weight": "mlp.experts.down_proj",
            },
            joins={**_LATENT_JOIN, "mlp.experts.gate_up_proj": _GATE_BEFORE_UP},
        ),
    ),
)
"""In the order in which they are listed for people; of several of one name the first that fits."""

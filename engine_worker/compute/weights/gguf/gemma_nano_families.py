"""GGUF's Gemma 3n and Gemma 4: vectors of the tokens for each layer, layers that share keys."""

import array
from collections.abc import Sequence
from statistics import NormalDist

from engine_worker.compute.weights.gguf.blocks import read_vector
from engine_worker.compute.weights.gguf.dense_families import (
    FULL,
    SANDWICH,
    SLIDING,
    layer_types_of,
    softcaps_of,
    window_of,
)
from engine_worker.compute.weights.gguf.family import ROPE_FACTORS, Config, GgufFamily
from engine_worker.compute.weights.gguf.metadata import GgufMetadata

_DIGITS = 6
"""Of a share that the file has as a single-precision quantile."""
_PER_LAYER_EMBEDDING = "per_layer_token_embd.weight"
_TOKEN_INPUTS = {
    _PER_LAYER_EMBEDDING: "model.embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "model.per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "model.per_layer_projection_norm.weight",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}
_GEMMA3N_LAYER = {
    **SANDWICH,
    **_TOKEN_INPUTS,
    "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm",
    "altup_predict_coef": "altup.prediction_coefs",
    "altup_correct_coef": "altup.correction_coefs",
    "altup_correct_scale.weight": "altup.correct_output_scale",
    "laurel_l": "laurel.linear_left",
    "laurel_r": "laurel.linear_right",
    "laurel_post_norm": "laurel.post_laurel_norm",
}
_GEMMA4_LAYER = {
    **SANDWICH,
    **_TOKEN_INPUTS,
    "layer_output_scale.weight": "layer_scalar",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
    "ffn_gate_inp.weight": "router.proj.weight",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_down_exps.weight": "experts.down_proj",
    "ffn_down_exps.scale": "router.per_expert_scale",
}


def _shared(metadata: GgufMetadata) -> Config:
    """What both have."""
    config: Config = {
        **softcaps_of(metadata),
        "sliding_window": window_of(metadata),
        "layer_types": layer_types_of(metadata),
        "num_kv_shared_layers": metadata.whole("attention.shared_kv_layers", 0),
        "hidden_size_per_layer_input": metadata.whole("embedding_length_per_layer_input", 0),
    }
    if _PER_LAYER_EMBEDDING in metadata.tensors:
        config["vocab_size_per_layer_input"] = metadata.shape(_PER_LAYER_EMBEDDING)[0]
    return config


def _gemma3n(metadata: GgufMetadata) -> Config:
    num_layers = metadata.whole("block_count")
    key = "activation_sparsity_scale"
    quantiles = metadata.values.get(f"{metadata.architecture}.{key}")
    if not isinstance(quantiles, array.array) or len(quantiles) != num_layers:
        raise metadata.error(key, f"must have {num_layers} numbers", quantiles)
    return {
        **_shared(metadata),
        "intermediate_size": list(metadata.per_layer("feed_forward_length", num_layers)),
        "activation_sparsity_pattern": [
            round(NormalDist().cdf(quantile), _DIGITS) for quantile in quantiles
        ],
        # llama.cpp has it in its program.
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", 10_000.0),
        "altup_active_idx": metadata.whole("altup.active_idx"),
        "altup_num_inputs": metadata.whole("altup.num_inputs"),
        "laurel_rank": metadata.shape("blk.0.laurel_l.weight")[0],
    }


def _gemma4(metadata: GgufMetadata) -> Config:
    num_layers = metadata.whole("block_count")
    shared = _shared(metadata)
    kinds = shared["layer_types"]
    if kinds is None:
        raise metadata.error("attention.sliding_window_pattern", "must be there", None)
    keys = dict(zip(kinds, metadata.per_layer("attention.head_count_kv", num_layers), strict=True))
    widths = metadata.per_layer("feed_forward_length", num_layers)
    num_own = num_layers - shared["num_kv_shared_layers"]
    full = [index for index in range(max(0, num_own)) if kinds[index] == FULL]
    head_dim = metadata.whole("attention.key_length")
    config: Config = {
        **shared,
        "head_dim": metadata.whole("attention.key_length_swa", head_dim),
        "global_head_dim": head_dim,
        "num_key_value_heads": keys.get(SLIDING, keys.get(FULL, 0)),
        "num_global_key_value_heads": keys.get(FULL),
        "attention_k_eq_v": any(f"blk.{i}.attn_v.weight" not in metadata.tensors for i in full),
        "intermediate_size": min(widths, default=0),
        "use_double_wide_mlp": len(set(widths)) > 1,
        "rope_theta": None,
        "rope_scaling": None,
        "rope_parameters": {
            FULL: {
                "rope_type": "proportional",
                "rope_theta": metadata.number("rope.freq_base"),
                "partial_rotary_factor": _rotated_share(metadata),
            },
            SLIDING: {
                "rope_type": "default",
                "rope_theta": metadata.number("rope.freq_base_swa", 10_000.0),
            },
        },
    }
    num_experts = metadata.whole("expert_count", 0)
    if num_experts:
        config |= {
            "enable_moe_block": True,
            "num_experts": num_experts,
            "top_k_experts": metadata.whole("expert_used_count"),
            "moe_intermediate_size": metadata.whole("expert_feed_forward_length"),
        }
    return config


def _rotated_share(metadata: GgufMetadata) -> float:
    """Of heads without a window: the others' frequencies are divided by so much that they stand."""
    factors = read_vector(metadata.tensors.get(ROPE_FACTORS))
    if not factors:
        return 1.0
    return sum(factor == 1.0 for factor in factors) / len(factors)


GEMMA_NANO: Sequence[tuple[str, GgufFamily]] = (
    (
        "gemma3n",
        GgufFamily(
            "Gemma3nForCausalLM",
            "gemma3n_text",
            _gemma3n,
            _GEMMA3N_LAYER,
            stacks={
                "altup_proj.weight": "model.altup_projections.{}.weight",
                "altup_unembd_proj.weight": "model.altup_unembed_projections.{}.weight",
            },
        ),
    ),
    (
        "gemma4",
        GgufFamily("Gemma4ForCausalLM", "gemma4_text", _gemma4, _GEMMA4_LAYER, computes_rope=True),
    ),
)
"""In the order in which they are listed for people."""

"""GGUF's families of gated delta nets: Qwen3-Next and Qwen 3.5."""

from collections.abc import Mapping, Sequence

import numpy as np

from engine_worker.compute.weights.gguf.changes import (
    DECAY,
    MINUS_ONE,
    ONE_INPUT,
    ONE_ROW,
    Change,
    Join,
    Shape,
    Values,
    first_then,
    neighbouring_columns,
    neighbours,
)
from engine_worker.compute.weights.gguf.dense_families import FULL, rotated_share
from engine_worker.compute.weights.gguf.family import PREDICTION, Config, GgufFamily
from engine_worker.compute.weights.gguf.metadata import GgufMetadata

_NORMS = ("attn_norm", "post_attention_norm", "attn_q_norm", "attn_k_norm", "output_norm")
_CHANGES = {
    **{f"{name}.weight": MINUS_ONE for name in _NORMS},
    "ffn_gate_inp_shexp.weight": ONE_ROW,
}
_LAYER = {
    **PREDICTION,
    "post_attention_norm": "post_attention_layernorm",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
_NEXT_LAYER = {
    **_LAYER,
    "ssm_in": "linear_attn.in_proj_qkvz",
    "ssm_ba": "linear_attn.in_proj_ba",
}
_QWEN35_LAYER = {
    **_LAYER,
    "attn_qkv": "linear_attn.in_proj_qkv",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
}
_MOE_LAYER = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    **{f"ffn_{name}_shexp": f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")},
}
_EXPERTS = {f"ffn_{name}_exps": ("mlp.", f"{name}_proj") for name in ("gate", "up", "down")}


def _heads(metadata: GgufMetadata) -> tuple[int, int]:
    """Of keys, and of values."""
    num_keys, num_values = (
        metadata.whole(f"ssm.{name}") for name in ("group_count", "time_step_rank")
    )
    if not num_keys or not num_values or num_values % num_keys:
        raise metadata.error("ssm.time_step_rank", f"must be a multiple of {num_keys}", num_values)
    return num_keys, num_values


def _config(metadata: GgufMetadata) -> Config:
    num_layers = metadata.whole("block_count") - metadata.whole("nextn_predict_layers", 0)
    num_keys, num_values = _heads(metadata)
    # Which layer is what: the tensors say it, whatever a file's keys leave out.
    kinds = [
        "linear_attention" if f"blk.{index}.ssm_out.weight" in metadata.tensors else FULL
        for index in range(num_layers)
    ]
    return {
        "num_hidden_layers": num_layers,
        "layer_types": kinds,
        "linear_num_key_heads": num_keys,
        "linear_num_value_heads": num_values,
        "linear_key_head_dim": metadata.whole("ssm.state_size"),
        "linear_value_head_dim": metadata.whole("ssm.inner_size") // num_values,
        "linear_conv_kernel_dim": metadata.whole("ssm.conv_kernel"),
        "attention_bias": any(name.endswith(".attn_q.bias") for name in metadata.tensors),
        "partial_rotary_factor": rotated_share(metadata) or 1.0,
    }


def _moe_config(metadata: GgufMetadata) -> Config:
    return {
        **_config(metadata),
        "num_experts": metadata.whole("expert_count"),
        "num_experts_per_tok": metadata.whole("expert_used_count"),
        "moe_intermediate_size": metadata.whole("expert_feed_forward_length"),
        "shared_expert_intermediate_size": metadata.whole("expert_shared_feed_forward_length"),
        # llama.cpp has it in its program.
        "norm_topk_prob": True,
    }


def _qwen35_changes(metadata: GgufMetadata) -> Mapping[str, Change]:
    """Heads of values that share a key stand beside each other here, and turn by turn there."""
    num_keys, num_values = _heads(metadata)
    conv = ONE_INPUT
    if num_keys == num_values:
        return {"ssm_conv1d.weight": conv, "ssm_a": DECAY}
    values = neighbours(num_keys, num_values)
    queries_and_keys = 2 * num_keys * metadata.whole("ssm.state_size")
    all_three = neighbours(num_keys, num_values, before=queries_and_keys)
    return {
        "attn_qkv.weight": all_three,
        "attn_gate.weight": values,
        "ssm_alpha.weight": values,
        "ssm_beta.weight": values,
        "ssm_dt.bias": values,
        "ssm_a": first_then(DECAY, values),
        "ssm_conv1d.weight": first_then(all_three, conv),
        "ssm_out.weight": neighbouring_columns(num_keys, num_values),
    }


def _next_changes(_: GgufMetadata) -> Mapping[str, Change]:
    return {"ssm_conv1d.weight": ONE_INPUT, "ssm_a": DECAY}


def _next_joins(metadata: GgufMetadata) -> Mapping[str, Join]:
    """Queries, keys and values, and the gate: one matrix, head by head of the keys."""
    num_keys, _ = _heads(metadata)
    keys = num_keys * metadata.whole("ssm.state_size")
    inner = metadata.whole("ssm.inner_size")

    def order(rows: Values) -> Values:
        parts = np.split(rows, [keys, 2 * keys, 2 * keys + inner])
        by_head = [part.reshape(num_keys, -1, *rows.shape[1:]) for part in parts]
        return np.concatenate(by_head, axis=1).reshape(rows.shape)

    def shape(first: Shape, second: Shape) -> Shape:
        is_whole = first[0] == 2 * keys + inner and second[0] == inner and not inner % num_keys
        if not is_whole or first[1:] != second[1:]:
            raise ValueError("not the widths of the heads")
        return first[0] + second[0], *first[1:]

    join = Join(
        ("attn_qkv.weight", "attn_gate.weight"),
        lambda parts: order(np.concatenate(list(parts))),
        shape,
        order=order,
    )
    return {"linear_attn.in_proj_qkvz.weight": join}


def _next_joins_if_split(metadata: GgufMetadata) -> Mapping[str, Join]:
    """None in older files, which have the matrix as Hugging Face has it."""
    is_split = any(name.endswith(".attn_gate.weight") for name in metadata.tensors)
    return _next_joins(metadata) if is_split else {}


DELTA_NETS: Sequence[tuple[str, GgufFamily]] = (
    (
        "qwen3next",
        GgufFamily(
            "Qwen3NextForCausalLM",
            "qwen3_next",
            _moe_config,
            {**_NEXT_LAYER, **_MOE_LAYER},
            _EXPERTS,
            changes=_CHANGES,
            changes_of=_next_changes,
            joins_of=_next_joins_if_split,
        ),
    ),
    (
        "qwen35",
        GgufFamily(
            "Qwen3_5ForCausalLM",
            "qwen3_5_text",
            _config,
            _QWEN35_LAYER,
            changes=_CHANGES,
            changes_of=_qwen35_changes,
        ),
    ),
    (
        "qwen35moe",
        GgufFamily(
            "Qwen3_5MoeForCausalLM",
            "qwen3_5_moe_text",
            _moe_config,
            {**_QWEN35_LAYER, **_MOE_LAYER},
            _EXPERTS,
            changes=_CHANGES,
            changes_of=_qwen35_changes,
        ),
    ),
)
"""In the order in which they are listed for people."""

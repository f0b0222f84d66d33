"""Families with states, shared keys or chunks in GGUF: small configs, and what llama.cpp does.

The changes are those of its converter (`conversion/*.py`), written anew.
"""

from collections.abc import Callable, Iterable, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
from gguf import GGUFWriter, RopeScalingType

from tests.fakes.gguf_case import GgufCase, config_of
from tests.fakes.gguf_files import (
    Keys,
    Tensor,
    deepseek_tensors,
    reordered,
    with_stacked_experts,
)

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
_QWEN_NORMS = ("layernorm.weight", "model.norm.weight", "_norm.weight")
_DELTA = {
    "num_hidden_layers": 3,
    "layer_types": [LINEAR, FULL, LINEAR],
    "head_dim": 8,
    "partial_rotary_factor": 0.5,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
_QWEN_MOE = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
}


def _delta_more(writer: GGUFWriter) -> None:
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_state_size(12)
    writer.add_ssm_group_count(2)
    writer.add_ssm_time_step_rank(6)
    writer.add_ssm_inner_size(48)
    writer.add_full_attention_interval(2)
    writer.add_rope_dimension_count(4)


def _with_states(tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    """What all with a state have in common: its decay, and the convolution before it."""
    for name, values in tensors.items():
        if name.endswith(".A_log"):
            yield name, -np.exp(values)
        elif name.endswith(".dt_bias"):
            yield name.replace(".dt_bias", ".dt_proj.bias"), values
        elif name.endswith("conv1d.weight"):
            yield name, values[:, 0]
        else:
            yield name, values


def _plus_one(tensors: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    for name, values in tensors:
        is_norm = name.endswith(_QWEN_NORMS) and "linear_attn" not in name
        yield name, values + 1 if is_norm else values


def _qwen_experts(tensors: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    for name, values in with_stacked_experts(tensors):
        yield name, values.reshape(-1) if "shared_expert_gate" in name else values


def qwen3_next_tensors(tensors: Mapping[str, Tensor], config: Keys) -> Iterable[tuple[str, Tensor]]:
    """Queries, keys, values and gate of each key head become queries, keys and values, and gate."""
    num_keys, key_dim = config["linear_num_key_heads"], config["linear_key_head_dim"]
    inner = config["linear_num_value_heads"] * config["linear_value_head_dim"] // num_keys
    for name, values in _qwen_experts(_plus_one(_with_states(tensors))):
        if not name.endswith("in_proj_qkvz.weight"):
            yield name, values
            continue
        heads = values.reshape(num_keys, -1, values.shape[-1])
        parts = np.split(heads, [key_dim, 2 * key_dim, 2 * key_dim + inner], axis=1)
        q, k, v, z = (part.reshape(-1, values.shape[-1]) for part in parts)
        # By what Qwen 3.5 calls them, whose names in the file are the same.
        yield name.replace("qkvz", "qkv"), np.concatenate([q, k, v])
        yield name.replace("qkvz", "z"), z


def older_qwen3_next_tensors(
    tensors: Mapping[str, Tensor], _: Keys
) -> Iterable[tuple[str, Tensor]]:
    """Before the matrix was taken apart."""
    yield from _qwen_experts(_plus_one(_with_states(tensors)))


def _turn_by_turn(values: Tensor, config: Keys, axis: int) -> Tensor:
    """Heads of values from those that share a key to the first of each, the second of each."""
    num_keys = config["linear_num_key_heads"]
    shared_by = config["linear_num_value_heads"] // num_keys
    shape = values.shape
    heads = values.reshape(*shape[:axis], num_keys, shared_by, -1, *shape[axis + 1 :])
    return heads.swapaxes(axis, axis + 1).reshape(shape)


def qwen35_tensors(tensors: Mapping[str, Tensor], config: Keys) -> Iterable[tuple[str, Tensor]]:
    before = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"]

    def moved() -> Iterable[tuple[str, Tensor]]:
        for name, values in _with_states(tensors):
            part = name.partition(".linear_attn.")[2]
            if part in ("in_proj_qkv.weight", "conv1d.weight"):
                moved = _turn_by_turn(values[before:], config, 0)
                yield name, np.concatenate([values[:before], moved])
            elif part == "out_proj.weight":
                yield name, np.ascontiguousarray(_turn_by_turn(values, config, 1))
            elif part and part != "norm.weight":
                yield name, np.ascontiguousarray(_turn_by_turn(values, config, 0))
            else:
                yield name, values

    yield from _qwen_experts(_plus_one(moved()))


_NANO: dict[str, Any] = {
    "head_dim": 8,
    "num_hidden_layers": 5,
    "num_kv_shared_layers": 2,
    "sliding_window": 6,
    "layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL],
    "hidden_size_per_layer_input": 6,
    "vocab_size_per_layer_input": 64,
    "final_logit_softcapping": 30.0,
    "rope_theta": 1e6,
    "hidden_activation": "gelu_pytorch_tanh",
}
_SPARSITY = [0.95, 0.95, 0.0, 0.5, 0.0]


def _nano_more(writer: GGUFWriter) -> None:
    writer.add_shared_kv_layers(2)
    writer.add_embedding_length_per_layer_input(6)
    writer.add_sliding_window_pattern([kind == SLIDING for kind in _NANO["layer_types"]])


def _gemma3n_more(writer: GGUFWriter) -> None:
    _nano_more(writer)
    writer.add_altup_active_idx(1)
    writer.add_altup_num_inputs(4)
    writer.add_feed_forward_length([24, 24, 32, 24, 24])
    quantiles = [NormalDist().inv_cdf(one) if one else -np.inf for one in _SPARSITY]
    writer.add_activation_sparsity_scale(quantiles)


def gemma3n_tensors(tensors: Mapping[str, Tensor], _: Keys) -> Iterable[tuple[str, Tensor]]:
    stacks: dict[str, list[Tensor]] = {}
    for name, values in tensors.items():
        stem, rest = name.partition("projections.")[::2]
        if rest and name.startswith("model.altup"):
            stacks.setdefault(f"{stem}projections.weight", []).append(values)
        else:
            yield f"{name}.weight" if name.endswith("_scale") else name, values
    for name, parts in stacks.items():
        yield name, np.stack(parts)


def gemma4_tensors(tensors: Mapping[str, Tensor], _: Keys) -> Iterable[tuple[str, Tensor]]:
    for name, values in tensors.items():
        if name.endswith("layer_scalar") or (".experts." in name and "weight" not in name):
            yield f"{name}.weight", values
        elif name.endswith("router.scale"):
            yield _block(name, "ffn_gate_inp.scale"), values
        elif name.endswith("per_expert_scale"):
            yield _block(name, "ffn_down_exps.scale"), values
        else:
            yield name, values


def _block(name: str, place: str) -> str:
    return f"blk.{name.split('.')[2]}.{place}"


def _gemma4_more(
    *, keys: list[int] | None = None, widths: list[int] | None = None, experts: bool = False
) -> Callable[[GGUFWriter], None]:
    def more(writer: GGUFWriter) -> None:
        writer.add_sliding_window_pattern([kind == SLIDING for kind in _GEMMA4["layer_types"]])
        writer.add_shared_kv_layers(0 if experts else 2)
        writer.add_embedding_length_per_layer_input(0 if experts else 6)
        writer.add_key_length(12)
        writer.add_value_length(12)
        writer.add_key_length_swa(8)
        writer.add_value_length_swa(8)
        writer.add_rope_dimension_count(12)
        writer.add_rope_dimension_count_swa(8)
        writer.add_rope_freq_base(1e6)
        writer.add_rope_freq_base_swa(1e4)
        # Two of the six pairs turn.
        writer.add_tensor("rope_freqs.weight", np.array([1.0] * 2 + [1e30] * 4, np.float32))
        if keys:
            writer.add_head_count_kv(keys)
        if widths:
            writer.add_feed_forward_length(widths)
        if experts:
            writer.add_expert_used_count(2)

    return more


_GEMMA4: dict[str, Any] = {
    **_NANO,
    "global_head_dim": 12,
    "rope_theta": None,
    "use_double_wide_mlp": True,
    "rope_parameters": {
        SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 2 / 6},
    },
}
_GEMMA4_EXPERTS = {
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "use_double_wide_mlp": False,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "enable_moe_block": True,
    "num_experts": 5,
    "top_k_experts": 2,
    "moe_intermediate_size": 12,
}

_MAMBA = {
    "num_hidden_layers": 3,
    "mamba_n_heads": 4,
    "mamba_n_groups": 2,
    "mamba_d_state": 12,
    "mamba_d_conv": 4,
}


def _mamba_more(inner: int, *, state: int = 12) -> Callable[[GGUFWriter], None]:
    def more(writer: GGUFWriter) -> None:
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_state_size(state)
        writer.add_ssm_group_count(2)
        writer.add_ssm_time_step_rank(4)
        writer.add_ssm_inner_size(inner)

    return more


def _mamba_tensors(tensors: Mapping[str, Tensor], block: str) -> Iterable[tuple[str, Tensor]]:
    for name, values in _with_states(tensors):
        if name.endswith((".A_log", ".D")):
            yield name, values.reshape(-1, 1)
        elif name.endswith(f".{block}.norm.weight"):
            yield name, values.reshape(2, -1)
        else:
            yield name, values


def granite_hybrid_tensors(
    tensors: Mapping[str, Tensor], config: Keys
) -> Iterable[tuple[str, Tensor]]:
    shared = "shexp.weight" if config["num_local_experts"] else "weight"
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    for name, values in _mamba_tensors(tensors, "mamba"):
        kind = name.split(".")[-2].removesuffix("_proj")
        if name.endswith("input_linear.weight"):
            middle = "exps.weight" if "block_sparse" in name else shared
            for part, half in zip(("gate", "up"), np.split(values, 2, axis=-2), strict=True):
                place = f"ffn_{part}_{middle}" if middle != "weight" else f"ffn_{part}.weight"
                yield _block(name, place), np.ascontiguousarray(half)
        elif name.endswith("shared_mlp.output_linear.weight") and shared == "weight":
            yield _block(name, "ffn_down.weight"), values
        else:
            yield name, reordered(values, heads[kind]) if kind in heads else values


def _granite_more(*, experts: bool, positions: bool) -> Callable[[GGUFWriter], None]:
    def more(writer: GGUFWriter) -> None:
        _mamba_more(32)(writer)
        writer.add_head_count_kv([0, 2, 0])
        writer.add_rope_scaling_finetuned(positions)
        # Of what has no positions it says nothing.
        writer.add_rope_dimension_count(4 if positions else 3)
        if experts:
            writer.add_expert_shared_feed_forward_length(20)

    return more


_GRANITE = {
    **_MAMBA,
    "layer_types": ["mamba", "attention", "mamba"],
    "mamba_expand": 2,
    "shared_intermediate_size": 20,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
_FALCON = {
    **_MAMBA,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "mamba_d_ssm": 24,
    "mamba_rms_norm": True,
    "mamba_norm_before_gate": False,
    "tie_word_embeddings": False,
}
FALCON_MULTIPLIERS = {
    "embedding_multiplier": 2.0,
    "lm_head_multiplier": 0.4,
    "mlp_multipliers": [0.6, 1.3],
    "key_multiplier": 0.7,
    "attention_in_multiplier": 1.2,
    "attention_out_multiplier": 0.9,
    "ssm_multipliers": [0.6, 1.2, 0.8, 1.1, 0.9],
    "ssm_in_multiplier": 1.3,
    "ssm_out_multiplier": 0.8,
}


def falcon_tensors(tensors: Mapping[str, Tensor], config: Keys) -> Iterable[tuple[str, Tensor]]:
    """Every multiplier of the config becomes part of the weights that it follows."""
    one = {**dict.fromkeys(FALCON_MULTIPLIERS, 1.0), **config}
    gate, down = config.get("mlp_multipliers", (1.0, 1.0))
    into = one["attention_in_multiplier"]
    inner, group = config["mamba_d_ssm"], config["mamba_n_groups"] * config["mamba_d_state"]
    sizes = (inner, inner, group, group, config["mamba_n_heads"])
    parts = np.repeat(config.get("ssm_multipliers", (1.0,) * 5), sizes).astype(np.float32)
    factors = {
        "down_proj": down,
        "gate_proj": gate,
        "k_proj": one["key_multiplier"] * into,
        "q_proj": into,
        "v_proj": into,
        "o_proj": one["attention_out_multiplier"],
        "out_proj": one["ssm_out_multiplier"],
        "in_proj": one["ssm_in_multiplier"] * parts[:, None],
        "lm_head": one["lm_head_multiplier"],
        "embed_tokens": one["embedding_multiplier"],
    }
    for name, values in _mamba_tensors(tensors, "mamba"):
        factor = factors.get(name.split(".")[-2], 1.0)
        yield name, (values * factor).astype(np.float32)


_NEMOTRON = {
    "num_hidden_layers": None,
    "head_dim": 8,
    "layer_norm_epsilon": 1e-5,
    "mamba_num_heads": 4,
    "mamba_head_dim": 6,
    "n_groups": 2,
    "ssm_state_size": 12,
    "conv_kernel": 4,
    "use_conv_bias": True,
    "tie_word_embeddings": False,
}


def _nemotron_more(
    keys: list[int], widths: list[int], *, experts: bool = False
) -> Callable[[GGUFWriter], None]:
    def more(writer: GGUFWriter) -> None:
        _mamba_more(24)(writer)
        writer.add_block_count(len(keys))
        writer.add_head_count_kv(keys)
        writer.add_feed_forward_length(widths)
        # Nothing is rotated.
        writer.add_rope_dimension_count(3)
        if experts:
            writer.add_expert_count(6)
            writer.add_expert_used_count(2)
            writer.add_expert_group_count(1)
            writer.add_expert_weights_norm(True)
            writer.add_expert_weights_scale(1.5)
            writer.add_expert_shared_feed_forward_length(20)
            writer.add_moe_latent_size(10)

    return more


def nemotron_tensors(tensors: Mapping[str, Tensor], config: Keys) -> Iterable[tuple[str, Tensor]]:
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    for name, values in with_stacked_experts(_mamba_tensors(tensors, "mixer")):
        kind = name.split(".")[-2].removesuffix("_proj")
        if ".experts." in name:
            layer = name.split(".")[2]
            yield f"model.layers.{layer}.mlp.experts.{name.partition('.experts.')[2]}", values
        elif "correction_bias" in name:
            yield name.replace("correction_bias", "correction.bias"), values
        else:
            yield name, reordered(values, heads[kind]) if kind in heads else values


def llama4_tensors(tensors: Mapping[str, Tensor], _: Keys) -> Iterable[tuple[str, Tensor]]:
    for name, values in tensors.items():
        if "experts." not in name:
            yield name, values
            continue
        turned = np.ascontiguousarray(values.swapaxes(-1, -2))
        if name.endswith("down_proj"):
            yield f"{name}.weight", turned
            continue
        stem = name.removesuffix("gate_up_proj")
        for part, half in zip(("gate", "up"), np.split(turned, 2, axis=1), strict=True):
            yield f"{stem}{part}_proj.weight", np.ascontiguousarray(half)


def _llama4_more(writer: GGUFWriter) -> None:
    writer.add_feed_forward_length(32)
    writer.add_expert_feed_forward_length(24)
    writer.add_interleave_moe_layer_step(2)
    # Both bends of Llama 3's formula are one.
    wavelengths = 2 * np.pi * 500_000.0 ** (np.arange(0, 16, 2) / 16)
    factors = np.where(wavelengths > 8192, 16.0, 1.0).astype(np.float32)
    writer.add_tensor("rope_freqs.weight", factors)


_MISTRAL4 = {
    "num_hidden_layers": 3,
    "q_lora_rank": 14,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "num_key_value_heads": None,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.3,
    },
}


def experts_in_one(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One tensor for what all experts of a layer make of a token, and one for the way back."""
    found = {name: values for name, values in tensors.items() if ".experts." not in name}
    blocks = {name.partition("experts.")[0] for name in tensors if ".experts." in name}
    for block in sorted(blocks):
        parts = [f"{block}experts.{expert}" for expert in range(6)]
        gate_up = [
            np.concatenate([tensors[f"{one}.{name}_proj.weight"] for name in ("gate", "up")])
            for one in parts
        ]
        found[f"{block}experts.gate_up_proj"] = np.stack(gate_up)
        downs = [tensors[f"{one}.down_proj.weight"] for one in parts]
        found[f"{block}experts.down_proj"] = np.stack(downs)
    return found


def mistral4_tensors(tensors: Mapping[str, Tensor], config: Keys) -> Iterable[tuple[str, Tensor]]:
    others = {name: values for name, values in tensors.items() if ".experts." not in name}
    yield from deepseek_tensors(others, config)
    for name in tensors.keys() - others.keys():
        yield f"{name}.weight", tensors[name]


def mistral4_tensors_in_halves(
    tensors: Mapping[str, Tensor], config: Keys
) -> Iterable[tuple[str, Tensor]]:
    """As other files of latent attention have their experts."""
    for name, values in mistral4_tensors(tensors, config):
        if "gate_up_proj" not in name:
            yield name, values
            continue
        for part, half in zip(("gate_proj", "up_proj"), np.split(values, 2, axis=1), strict=True):
            yield name.replace("gate_up_proj", part), np.ascontiguousarray(half)


def _mistral4_more(writer: GGUFWriter) -> None:
    writer.add_head_count_kv(1)
    writer.add_key_length(12 + 4)
    writer.add_value_length(12)
    writer.add_key_length_mla(10)
    writer.add_value_length_mla(8)
    writer.add_kv_lora_rank(12)
    writer.add_q_lora_rank(14)
    writer.add_leading_dense_block_count(1)
    writer.add_expert_count(6)
    writer.add_expert_used_count(3)
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_norm(True)
    writer.add_expert_weights_scale(1.5)
    writer.add_rope_dimension_count(4)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(16)
    writer.add_rope_scaling_yarn_beta_fast(32.0)
    writer.add_rope_scaling_yarn_beta_slow(1.0)
    writer.add_rope_scaling_yarn_log_mul(0.1)
    writer.add_attn_temperature_scale(0.3)


NEWER = (
    GgufCase(
        "llama4",
        config_of(
            "Llama4ForCausalLM",
            "llama4_text",
            num_hidden_layers=4,
            head_dim=16,
            intermediate_size_mlp=32,
            interleave_moe_layer_step=2,
            num_local_experts=5,
            num_experts_per_tok=1,
            use_qk_norm=True,
            attention_chunk_size=8192,
            rope_theta=500_000.0,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 16.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
            },
        ),
        llama4_tensors,
        _llama4_more,
    ),
    GgufCase(
        "qwen3next",
        config_of("Qwen3NextForCausalLM", "qwen3_next", **_DELTA, **_QWEN_MOE, norm_topk_prob=True),
        qwen3_next_tensors,
        _delta_more,
    ),
    GgufCase(
        "qwen3next",
        config_of("Qwen3NextForCausalLM", "qwen3_next", **_DELTA, **_QWEN_MOE, norm_topk_prob=True),
        older_qwen3_next_tensors,
        _delta_more,
    ),
    GgufCase(
        "qwen35",
        config_of("Qwen3_5ForCausalLM", "qwen3_5_text", **_DELTA),
        qwen35_tensors,
        _delta_more,
    ),
    GgufCase(
        "qwen35moe",
        config_of(
            "Qwen3_5MoeForCausalLM",
            "qwen3_5_moe_text",
            **_DELTA,
            **_QWEN_MOE,
            tie_word_embeddings=False,
        ),
        qwen35_tensors,
        _delta_more,
    ),
    GgufCase(
        "gemma3n",
        config_of(
            "Gemma3nForCausalLM",
            "gemma3n_text",
            **_NANO,
            intermediate_size=[24, 24, 32, 24, 24],
            activation_sparsity_pattern=_SPARSITY,
            rope_local_base_freq=1e4,
            altup_active_idx=1,
            altup_num_inputs=4,
            laurel_rank=5,
        ),
        gemma3n_tensors,
        _gemma3n_more,
    ),
    GgufCase(
        "gemma4",
        config_of("Gemma4ForCausalLM", "gemma4_text", **_GEMMA4),
        gemma4_tensors,
        _gemma4_more(widths=[24, 24, 24, 48, 48]),
    ),
    GgufCase(
        "gemma4",
        config_of("Gemma4ForCausalLM", "gemma4_text", **{**_GEMMA4, **_GEMMA4_EXPERTS}),
        gemma4_tensors,
        _gemma4_more(keys=[2, 1, 2, 2, 1], experts=True),
    ),
    GgufCase(
        "granitehybrid",
        config_of(
            "GraniteMoeHybridForCausalLM", "granitemoehybrid", **_GRANITE, num_local_experts=0
        ),
        granite_hybrid_tensors,
        _granite_more(experts=False, positions=False),
    ),
    GgufCase(
        "granitehybrid",
        config_of(
            "GraniteMoeHybridForCausalLM",
            "granitemoehybrid",
            **_GRANITE,
            num_local_experts=5,
            num_experts_per_tok=2,
            position_embedding_type="rope",
            mamba_proj_bias=True,
            attention_bias=True,
        ),
        granite_hybrid_tensors,
        _granite_more(experts=True, positions=True),
    ),
    GgufCase(
        "falcon-h1",
        config_of("FalconH1ForCausalLM", "falcon_h1", **_FALCON),
        falcon_tensors,
        _mamba_more(24),
    ),
    GgufCase(
        "nemotron_h",
        config_of(
            "NemotronHForCausalLM", "nemotron_h", **_NEMOTRON, hybrid_override_pattern="M-M*-M"
        ),
        nemotron_tensors,
        _nemotron_more([0, 0, 0, 2, 0, 0], [0, 24, 0, 0, 24, 0]),
    ),
    GgufCase(
        "nemotron_h_moe",
        config_of(
            "NemotronHForCausalLM",
            "nemotron_h",
            **_NEMOTRON,
            hybrid_override_pattern="MEM*E",
            n_routed_experts=6,
            num_experts_per_tok=2,
            moe_intermediate_size=12,
            moe_shared_expert_intermediate_size=20,
            moe_latent_size=10,
            routed_scaling_factor=1.5,
            n_group=1,
        ),
        nemotron_tensors,
        _nemotron_more([0, 0, 0, 2, 0], [0, 12, 0, 0, 12], experts=True),
    ),
    GgufCase(
        "mistral4",
        config_of("Mistral4ForCausalLM", "mistral4", **_MISTRAL4),
        mistral4_tensors,
        _mistral4_more,
        experts_in_one,
    ),
    GgufCase(
        "mistral4",
        config_of("Mistral4ForCausalLM", "mistral4", **_MISTRAL4),
        mistral4_tensors_in_halves,
        _mistral4_more,
        experts_in_one,
    ),
)

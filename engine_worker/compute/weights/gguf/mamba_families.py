"""GGUF's families with Mamba-2: Granite 4, Falcon-H1 and Nemotron-H."""

from collections.abc import Sequence

from engine_worker.compute.weights.gguf.changes import (
    DECAY,
    FLAT,
    ONE_INPUT,
    Join,
    below_each_other,
)
from engine_worker.compute.weights.gguf.dense_families import granite_config
from engine_worker.compute.weights.gguf.family import PREDICTION, Config, GgufFamily
from engine_worker.compute.weights.gguf.metadata import GgufMetadata

_CHANGES = {
    "ssm_conv1d.weight": ONE_INPUT,
    "ssm_a": DECAY,
    "ssm_d": FLAT,
    "ssm_norm.weight": FLAT,
}
_CORRECTION = "exp_probs_b.bias"


def _mamba(block: str) -> dict[str, str]:
    """Names of a layer's tensors.

    Args:
        block: Where they are in the layer, with a dot at the end.
    """
    return {
        "ssm_in": f"{block}in_proj",
        "ssm_conv1d": f"{block}conv1d",
        "ssm_dt.bias": f"{block}dt_bias",
        "ssm_a": f"{block}A_log",
        "ssm_d": f"{block}D",
        "ssm_norm": f"{block}norm",
        "ssm_out": f"{block}out_proj",
    }


def _has(metadata: GgufMetadata, place: str) -> bool:
    """Whether any layer has a tensor."""
    return any(name.endswith(f".{place}") for name in metadata.tensors)


def _mamba_config(metadata: GgufMetadata) -> Config:
    """As Granite's and Falcon's configs spell it."""
    num_heads, inner = metadata.whole("ssm.time_step_rank"), metadata.whole("ssm.inner_size")
    if not num_heads or inner % num_heads:
        raise metadata.error("ssm.time_step_rank", f"must divide {inner}", num_heads)
    return {
        "mamba_n_heads": num_heads,
        "mamba_d_head": inner // num_heads,
        "mamba_n_groups": metadata.whole("ssm.group_count"),
        "mamba_d_state": metadata.whole("ssm.state_size"),
        "mamba_d_conv": metadata.whole("ssm.conv_kernel"),
        "mamba_conv_bias": _has(metadata, "ssm_conv1d.bias"),
        "mamba_proj_bias": _has(metadata, "ssm_in.bias"),
    }


def _attending(metadata: GgufMetadata) -> tuple[int, ...]:
    """The heads of keys of each layer, which those without attention have none of."""
    return metadata.per_layer("attention.head_count_kv", metadata.whole("block_count"))


def _granite(metadata: GgufMetadata) -> Config:
    inner, hidden = metadata.whole("ssm.inner_size"), metadata.whole("embedding_length")
    if not hidden or inner % hidden:
        raise metadata.error("ssm.inner_size", f"must be a multiple of {hidden}", inner)
    num_experts = metadata.whole("expert_count", 0)
    shared = "ffn_up_shexp" if num_experts else "ffn_up"
    return {
        **granite_config(metadata),
        **_mamba_config(metadata),
        "mamba_expand": inner // hidden,
        "attention_bias": _has(metadata, "attn_q.bias"),
        "layer_types": ["attention" if heads else "mamba" for heads in _attending(metadata)],
        "position_embedding_type": "rope" if _granite_has_positions(metadata) else "nope",
        "num_local_experts": num_experts,
        "num_experts_per_tok": metadata.whole("expert_used_count", 0) or None,
        "shared_intermediate_size": metadata.shape(f"blk.0.{shared}.weight")[0],
    }


def _granite_has_positions(metadata: GgufMetadata) -> bool:
    # Under this key llama.cpp says whether anything is rotated at all.
    return metadata.flag("rope.scaling.finetuned", False)


def _falcon(metadata: GgufMetadata) -> Config:
    # All multipliers are in the weights.
    return {
        **_mamba_config(metadata),
        "mamba_d_ssm": metadata.whole("ssm.inner_size"),
        "mamba_rms_norm": _has(metadata, "ssm_norm.weight"),
        # llama.cpp has it in its program.
        "mamba_norm_before_gate": False,
        "projectors_bias": _has(metadata, "ssm_out.bias"),
        "attention_bias": _has(metadata, "attn_q.bias"),
        "mlp_bias": _has(metadata, "ffn_gate.bias"),
    }


def _nemotron(metadata: GgufMetadata) -> Config:
    num_layers = metadata.whole("block_count") - metadata.whole("nextn_predict_layers", 0)
    widths = metadata.per_layer("feed_forward_length", metadata.whole("block_count"))
    blocks = list(zip(_attending(metadata), widths, strict=True))[:num_layers]
    mlp = "E" if metadata.whole("expert_count", 0) else "-"
    signs = ("*" if heads else mlp if width else "M" for heads, width in blocks)
    mamba = _mamba_config(metadata)
    return {
        "num_hidden_layers": None,
        "hybrid_override_pattern": "".join(signs),
        "layer_norm_epsilon": metadata.number("attention.layer_norm_rms_epsilon"),
        "mamba_num_heads": mamba["mamba_n_heads"],
        "mamba_head_dim": mamba["mamba_d_head"],
        "n_groups": mamba["mamba_n_groups"],
        "ssm_state_size": mamba["mamba_d_state"],
        "conv_kernel": mamba["mamba_d_conv"],
        "use_conv_bias": mamba["mamba_conv_bias"],
        "use_bias": mamba["mamba_proj_bias"],
        "mlp_bias": _has(metadata, "ffn_up.bias"),
    }


def _nemotron_moe(metadata: GgufMetadata) -> Config:
    return {
        **_nemotron(metadata),
        "n_routed_experts": metadata.whole("expert_count"),
        "num_experts_per_tok": metadata.whole("expert_used_count"),
        "n_group": metadata.whole("expert_group_count", 1),
        "topk_group": metadata.whole("expert_group_used_count", 1),
        "moe_intermediate_size": metadata.whole("expert_feed_forward_length"),
        "moe_shared_expert_intermediate_size": metadata.whole("expert_shared_feed_forward_length"),
        "norm_topk_prob": metadata.flag("expert_weights_norm", True),
        "routed_scaling_factor": metadata.number("expert_weights_scale", 1.0),
        "moe_latent_size": metadata.whole("moe_latent_size", 0) or None,
    }


def _has_experts(metadata: GgufMetadata) -> bool:
    return metadata.whole("expert_count", 0) > 0


def _granite_joins(metadata: GgufMetadata) -> dict[str, Join]:
    shared = ("ffn_gate_shexp.weight", "ffn_up_shexp.weight")
    dense = ("ffn_gate.weight", "ffn_up.weight")
    return {
        "block_sparse_moe.input_linear.weight": below_each_other(
            ("ffn_gate_exps.weight", "ffn_up_exps.weight")
        ),
        "shared_mlp.input_linear.weight": below_each_other(
            shared if _has_experts(metadata) else dense
        ),
    }


_NEMOTRON_LAYER = {
    **_mamba("mixer."),
    "token_embd.weight": "backbone.embeddings.weight",
    "output_norm.weight": "backbone.norm_f.weight",
    "attn_norm": "norm",
    "attn_q": "mixer.q_proj",
    "attn_k": "mixer.k_proj",
    "attn_v": "mixer.v_proj",
    "attn_output": "mixer.o_proj",
    "ffn_up": "mixer.up_proj",
    "ffn_down": "mixer.down_proj",
}

MAMBA: Sequence[tuple[str, GgufFamily]] = (
    (
        "granitehybrid",
        GgufFamily(
            "GraniteMoeHybridForCausalLM",
            "granitemoehybrid",
            _granite,
            {
                **_mamba("mamba."),
                "ffn_gate_inp": "block_sparse_moe.router.layer",
                "ffn_down_exps": "block_sparse_moe.output_linear",
                "ffn_down_shexp": "shared_mlp.output_linear",
                "ffn_down": "shared_mlp.output_linear",
            },
            joins_of=_granite_joins,
            rotates_pairs=True,
            changes=_CHANGES,
            has_positions=_granite_has_positions,
        ),
    ),
    (
        "falcon-h1",
        GgufFamily(
            "FalconH1ForCausalLM",
            "falcon_h1",
            _falcon,
            {
                **_mamba("mamba."),
                "output_norm.weight": "model.final_layernorm.weight",
                # The converter's table has this one without an ending.
                **dict.fromkeys(("ffn_norm", "ffn_norm.weight"), "pre_ff_layernorm.weight"),
                **{f"ffn_{name}": f"feed_forward.{name}_proj" for name in ("gate", "up", "down")},
            },
            changes=_CHANGES,
        ),
    ),
    (
        "nemotron_h",
        GgufFamily(
            "NemotronHForCausalLM",
            "nemotron_h",
            _nemotron,
            _NEMOTRON_LAYER,
            rotates_pairs=True,
            changes=_CHANGES,
            has_positions=lambda _: False,
            prefix="backbone.layers",
        ),
    ),
    (
        "nemotron_h_moe",
        GgufFamily(
            "NemotronHForCausalLM",
            "nemotron_h",
            _nemotron_moe,
            {
                **_NEMOTRON_LAYER,
                **PREDICTION,
                "ffn_gate_inp": "mixer.gate",
                _CORRECTION: "mixer.gate.e_score_correction_bias",
                "ffn_up_shexp": "mixer.shared_experts.up_proj",
                "ffn_down_shexp": "mixer.shared_experts.down_proj",
                "ffn_latent_down": "mixer.fc1_latent_proj",
                "ffn_latent_up": "mixer.fc2_latent_proj",
            },
            {"ffn_up_exps": ("mixer.", "up_proj"), "ffn_down_exps": ("mixer.", "down_proj")},
            rotates_pairs=True,
            changes=_CHANGES,
            has_positions=lambda _: False,
            prefix="backbone.layers",
        ),
    ),
)
"""In the order in which they are listed for people."""

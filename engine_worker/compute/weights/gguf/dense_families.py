"""GGUF's families without experts whose norms, rotations or names differ from Llama's."""

from collections.abc import Sequence
from typing import Any

from engine_worker.compute.weights.gguf.blocks import read_vector
from engine_worker.compute.weights.gguf.changes import MINUS_ONE, TRANSPOSED, Change
from engine_worker.compute.weights.gguf.family import Config, GgufFamily
from engine_worker.compute.weights.gguf.metadata import GgufMetadata

FULL, SLIDING = "full_attention", "sliding_attention"
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
SANDWICH = {**_POST_NORMS, "ffn_norm": "pre_feedforward_layernorm"}
_NORMS = ("attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm")
_ONE_LESS = {f"{name}.weight": MINUS_ONE for name in (*_NORMS, "post_ffw_norm", "output_norm")}
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
"""Of the models whose queries are scaled by the width of the residual, as llama.cpp tells them."""


def window_of(metadata: GgufMetadata) -> int | None:
    """Of the layers that have one; None where none has."""
    return metadata.whole("attention.sliding_window", 0) or None


def layer_types_of(metadata: GgufMetadata) -> list[str] | None:
    """Which layers have the window, where the file lists them or says every how manieth has not."""
    key = "attention.sliding_window_pattern"
    if not metadata.has(key):
        return None
    num_layers = metadata.whole("block_count")
    pattern = metadata.values[f"{metadata.architecture}.{key}"]
    if isinstance(pattern, int) and not isinstance(pattern, bool):
        period = metadata.whole(key)
        return [SLIDING if period and (i + 1) % period else FULL for i in range(num_layers)]
    return [SLIDING if one else FULL for one in metadata.per_layer(key, num_layers)]


def _gemma2(metadata: GgufMetadata) -> Config:
    return {**gemma_windows(metadata), **softcaps_of(metadata)}


def _gemma3(metadata: GgufMetadata) -> Config:
    return {
        **gemma_windows(metadata),
        **softcaps_of(metadata),
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", 10_000.0),
    }


def gemma_windows(metadata: GgufMetadata) -> Config:
    """Windows of Gemma 2 and 3, and how queries are scaled."""
    head_dim = metadata.whole("attention.key_length")
    scaled_by = head_dim
    if metadata.whole("block_count") == _LAYERS_OF_27B.get(str(metadata.architecture)):
        scaled_by = metadata.whole("embedding_length") // metadata.whole("attention.head_count")
    return {
        "sliding_window": window_of(metadata),
        "layer_types": layer_types_of(metadata),
        "query_pre_attn_scalar": scaled_by,
    }


def gemma_changes() -> dict[str, Change]:
    """Norms, of which the file has 1 + w."""
    return _ONE_LESS


def softcaps_of(metadata: GgufMetadata) -> Config:
    """Caps on scores and logits, where the file names them."""
    caps: Config = {}
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if metadata.has(name):
            caps[name] = metadata.number(name)
    return caps


def _phi3(metadata: GgufMetadata) -> Config:
    config: Config = {
        "sliding_window": window_of(metadata),
        "partial_rotary_factor": rotated_share(metadata),
    }
    long, short = (
        read_vector(metadata.tensors.get(f"rope_factors_{name}.weight"))
        for name in ("long", "short")
    )
    if long is not None and short is not None:
        config["rope_scaling"] = {"type": "longrope", "long_factor": long, "short_factor": short}
        key = "rope.scaling.original_context_length"
        config["original_max_position_embeddings"] = metadata.whole(key)
    return config


def rotated_share(metadata: GgufMetadata) -> float | None:
    """Of each head; None where all of it is rotated."""
    heads = metadata.whole("attention.head_count")
    if not heads:
        raise metadata.error("attention.head_count", "must be above 0", heads)
    head_dim = metadata.whole("attention.key_length", 0)
    head_dim = head_dim or metadata.whole("embedding_length") // heads
    rotated = metadata.whole("rope.dimension_count", head_dim)
    return None if rotated == head_dim or not head_dim else rotated / head_dim


def granite_config(metadata: GgufMetadata) -> Config:
    """Biases and multipliers of Granite."""
    config: Config = {
        "attention_bias": "blk.0.attn_q.bias" in metadata.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in metadata.tensors,
    }
    for key, name in (
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ):
        if metadata.has(key):
            config[name] = metadata.number(key)
    return config


def _olmo3(metadata: GgufMetadata) -> Config:
    return {"sliding_window": window_of(metadata), "layer_types": layer_types_of(metadata)}


def _has_window(metadata: GgufMetadata) -> bool:
    return window_of(metadata) is not None


def _cohere(metadata: GgufMetadata) -> Config:
    return {
        "logit_scale": metadata.number("logit_scale"),
        "sliding_window": window_of(metadata),
        # Command R+ has them.
        "use_qk_norm": "blk.0.attn_q_norm.weight" in metadata.tensors,
    }


def _glm4(metadata: GgufMetadata) -> Config:
    return {
        "attention_bias": "blk.0.attn_q.bias" in metadata.tensors,
        "partial_rotary_factor": rotated_share(metadata) or 1.0,
    }


def _seed_oss(metadata: GgufMetadata) -> Config:
    return {
        "attention_bias": "blk.0.attn_q.bias" in metadata.tensors,
        "attention_out_bias": "blk.0.attn_output.bias" in metadata.tensors,
    }


def _ernie(metadata: GgufMetadata) -> Config:
    return {"use_bias": "blk.0.attn_q.bias" in metadata.tensors}


def _starcoder2(metadata: GgufMetadata) -> Config:
    return {
        "norm_epsilon": metadata.number("attention.layer_norm_epsilon"),
        "use_bias": "blk.0.attn_q.bias" in metadata.tensors,
    }


def _gpt2(metadata: GgufMetadata) -> Config:
    return {
        "layer_norm_epsilon": metadata.number("attention.layer_norm_epsilon"),
        "n_inner": metadata.whole("feed_forward_length"),
    }


def _ministral3(metadata: GgufMetadata) -> Config:
    """Ministral 3, and Mistral Small 3.1 and 3.2, whose rope isn't scaled."""
    if metadata.text("rope.scaling.type", "none") != "yarn":
        return {}
    rope: dict[str, Any] = {
        "rope_type": "yarn",
        "rope_theta": metadata.number("rope.freq_base"),
        "factor": metadata.number("rope.scaling.factor"),
        "original_max_position_embeddings": metadata.whole("rope.scaling.original_context_length"),
        "beta_fast": metadata.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": metadata.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    if metadata.has("rope.scaling.yarn_log_multiplier"):
        mscale = metadata.number("rope.scaling.yarn_log_multiplier")
        rope |= {"mscale": mscale, "mscale_all_dim": mscale}
    if metadata.has("attention.temperature_scale"):
        rope["llama_4_scaling_beta"] = metadata.number("attention.temperature_scale")
    return {"rope_scaling": None, "rope_theta": None, "rope_parameters": rope}


_FUSED_PHI = {"ffn_up": "mlp.gate_up_proj"}
_GPT2_LAYER = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPT2_WHOLE = {
    "token_embd.weight": "transformer.wte.weight",
    "position_embd.weight": "transformer.wpe.weight",
    "output_norm.weight": "transformer.ln_f.weight",
    "output_norm.bias": "transformer.ln_f.bias",
}
_GPT2_MATRICES = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")

DENSE: Sequence[tuple[str, GgufFamily]] = (
    (
        "mistral3",
        GgufFamily("Ministral3ForCausalLM", "ministral3", _ministral3, rotates_pairs=True),
    ),
    ("gemma", GgufFamily("GemmaForCausalLM", "gemma", changes=_ONE_LESS)),
    ("gemma2", GgufFamily("Gemma2ForCausalLM", "gemma2", _gemma2, SANDWICH, changes=_ONE_LESS)),
    (
        "gemma3",
        GgufFamily("Gemma3ForCausalLM", "gemma3_text", _gemma3, SANDWICH, changes=_ONE_LESS),
    ),
    ("phi3", GgufFamily("Phi3ForCausalLM", "phi3", _phi3, _FUSED_PHI)),
    ("granite", GgufFamily("GraniteForCausalLM", "granite", granite_config, rotates_pairs=True)),
    (
        "olmo2",
        GgufFamily("Olmo3ForCausalLM", "olmo3", _olmo3, _POST_NORMS, fits=_has_window),
    ),
    ("olmo2", GgufFamily("Olmo2ForCausalLM", "olmo2", layer=_POST_NORMS)),
    (
        "glm4",
        GgufFamily(
            "Glm4ForCausalLM",
            "glm4",
            _glm4,
            {
                "post_attention_norm": "post_self_attn_layernorm",
                "post_ffw_norm": "post_mlp_layernorm",
                "ffn_up": "mlp.gate_up_proj",
            },
        ),
    ),
    (
        "seed_oss",
        GgufFamily(
            "SeedOssForCausalLM",
            "seed_oss",
            _seed_oss,
            {"post_attention_norm": "post_attention_layernorm"},
        ),
    ),
    ("ernie4_5", GgufFamily("Ernie4_5ForCausalLM", "ernie4_5", _ernie)),
    ("command-r", GgufFamily("CohereForCausalLM", "cohere", _cohere)),
    ("cohere2", GgufFamily("Cohere2ForCausalLM", "cohere2", _cohere)),
    (
        "starcoder2",
        GgufFamily(
            "Starcoder2ForCausalLM",
            "starcoder2",
            _starcoder2,
            {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        ),
    ),
    (
        "gpt2",
        GgufFamily(
            "GPT2LMHeadModel",
            "gpt2",
            _gpt2,
            {**_GPT2_LAYER, **_GPT2_WHOLE},
            changes={f"{name}.weight": TRANSPOSED for name in _GPT2_MATRICES},
            prefix="transformer.h",
        ),
    ),
)
"""In the order in which they are listed for people."""

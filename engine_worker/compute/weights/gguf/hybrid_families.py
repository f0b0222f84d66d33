"""GGUF's LFM2: convolutions over the last few tokens, with attention in some layers."""

from collections.abc import Sequence

from engine_worker.compute.weights.gguf.changes import ONE_INPUT
from engine_worker.compute.weights.gguf.family import Config, GgufFamily
from engine_worker.compute.weights.gguf.metadata import GgufMetadata


def lfm2_config(metadata: GgufMetadata) -> Config:
    """Convolutions, and which layers are such."""
    kv = metadata.per_layer("attention.head_count_kv", metadata.whole("block_count"))
    return {
        "conv_L_cache": metadata.whole("shortconv.l_cache"),
        "conv_bias": "blk.0.shortconv.conv.bias" in metadata.tensors,
        # Layers without heads of keys are convolutions.
        "layer_types": ["full_attention" if heads else "conv" for heads in kv],
        "norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        # The file has the width that was computed from the config's.
        "block_auto_adjust_ff_dim": False,
    }


LFM2_LAYER = {
    "token_embd_norm.weight": "model.embedding_norm.weight",
    "output_norm.weight": "model.embedding_norm.weight",
    "attn_norm": "operator_norm",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
}
"""Names of a layer's tensors."""

HYBRID: Sequence[tuple[str, GgufFamily]] = (
    (
        "lfm2",
        GgufFamily(
            "Lfm2ForCausalLM",
            "lfm2",
            lfm2_config,
            LFM2_LAYER,
            changes={"shortconv.conv.weight": ONE_INPUT},
        ),
    ),
)
"""In the order in which they are listed for people."""

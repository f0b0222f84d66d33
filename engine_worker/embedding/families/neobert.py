"""NeoBERT (arXiv 2502.19587): pre-norm layers with RMSNorm, rotary positions and SwiGLU, no biases.

Its checkpoints come with code of their own.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import num_layers_of
from engine_worker.compute.models.spec import RopeSpec
from engine_worker.compute.models.tensors import Source, Tensors
from engine_worker.embedding.encoder_spec import EncoderLayerSpec, EncoderSpec, HeadSpec
from engine_worker.embedding.families.common import max_tokens_of, num_heads_of
from engine_worker.embedding.families.family import EncoderFamily, norm, pair
from engine_worker.errors import UnsupportedFeatureError

_MULTIPLE: Final = 8
"""Of the MLP's width, which is two thirds of the one that the config says, rounded up."""


def _read(config: Mapping[str, Any]) -> EncoderSpec:
    fields = ConfigFields(config)
    hidden_size = fields.size("hidden_size")
    num_heads = num_heads_of(fields, hidden_size)
    if hidden_size // num_heads % 2:
        raise fields.error("num_attention_heads", "must leave heads of even width", num_heads)
    activation = fields.text("hidden_act", "SwiGLU")
    if activation.lower() != "swiglu":
        raise UnsupportedFeatureError(
            f"config.json: not supported yet: activation {activation!r} in NeoBERT, only SwiGLU"
        )
    width = 2 * fields.size("intermediate_size") // 3
    rope = RopeSpec(theta=fields.number("rope_theta", 10_000.0), interleaved=True)
    return EncoderSpec(
        architecture="",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        intermediate_size=-(-width // _MULTIPLE) * _MULTIPLE,
        layers=(EncoderLayerSpec(rope),) * num_layers_of(fields),
        max_tokens=max_tokens_of(fields, "max_length", 1024),
        activation="silu",
        norm_eps=fields.number("norm_eps", 1e-6),
        is_pre_norm=True,
        is_gated=True,
        has_rms_norm=True,
        has_embedding_norm=False,
        qkv_bias=False,
        o_bias=False,
        up_bias=False,
        down_bias=False,
    )


def _tensors(spec: EncoderSpec, prefix: str, names: Collection[str]) -> Tensors:
    hidden, inner, head_dim = spec.hidden_size, spec.intermediate_size, spec.head_dim
    words = Source(f"{prefix}encoder.weight", (spec.vocab_size, hidden))
    found: Tensors = {"words.weight": (words,)}
    found |= norm("final_norm", f"{prefix}layer_norm", hidden, names, bias=False)
    for index in range(spec.num_layers):
        ours, theirs = f"layers.{index}.", f"{prefix}transformer_encoder.{index}."
        # A head's query, key and value stand behind one another, then those of the next head.
        found[f"{ours}qkv.weight"] = tuple(
            Source(
                f"{theirs}qkv.weight",
                (3 * hidden, hidden),
                rows=(part * head_dim, (part + 1) * head_dim),
                period=3 * head_dim,
            )
            for part in range(3)
        )
        found |= pair(f"{ours}o", f"{theirs}wo", (hidden, hidden), bias=False)
        found |= norm(f"{ours}attention_norm", f"{theirs}attention_norm", hidden, names, bias=False)
        found |= pair(f"{ours}mlp.up", f"{theirs}ffn.w12", (2 * inner, hidden), bias=False)
        found |= pair(f"{ours}mlp.down", f"{theirs}ffn.w3", (hidden, inner), bias=False)
        found |= norm(f"{ours}mlp_norm", f"{theirs}ffn_norm", hidden, names, bias=False)
    return found


def _head(_: Mapping[str, Any], __: int) -> HeadSpec:
    raise UnsupportedFeatureError("config.json: not supported yet: the classifier of NeoBERT")


FAMILIES = (
    EncoderFamily("NeoBERT", ("neobert",), ("model.",), "encoder.weight", _read, _tensors, _head),
)

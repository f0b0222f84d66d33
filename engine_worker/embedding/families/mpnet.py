"""MPNet (arXiv 2004.09297): BERT's layers with a bias by relative distance that all share."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import num_layers_of
from engine_worker.compute.models.tensors import Source, Tensors
from engine_worker.embedding.encoder_spec import EncoderLayerSpec, EncoderSpec
from engine_worker.embedding.families.common import (
    activation_of,
    num_heads_of,
    refuse_unless,
    tanh_head,
)
from engine_worker.embedding.families.family import EncoderFamily, joined, norm, pair

_FIRST_POSITION: Final = 2
"""After the padding row, which is 1 in all of them."""
_NUM_BUCKETS: Final = 32
"""transformers computes with no other number."""


def _read(config: Mapping[str, Any]) -> EncoderSpec:
    refuse_unless(config, relative_attention_num_buckets=_NUM_BUCKETS)
    fields = ConfigFields(config)
    hidden_size = fields.size("hidden_size")
    num_positions = fields.size("max_position_embeddings", minimum=_FIRST_POSITION + 1)
    return EncoderSpec(
        architecture="",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads_of(fields, hidden_size),
        intermediate_size=fields.size("intermediate_size"),
        layers=(EncoderLayerSpec(),) * num_layers_of(fields),
        max_tokens=num_positions - _FIRST_POSITION,
        activation=activation_of(fields, "hidden_act", "gelu"),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        num_positions=num_positions,
        first_position=_FIRST_POSITION,
        num_relative_buckets=_NUM_BUCKETS,
    )


def _tensors(spec: EncoderSpec, prefix: str, names: Collection[str]) -> Tensors:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    head = f"{prefix}embeddings."
    words = (spec.vocab_size, hidden)
    positions = (spec.num_positions, hidden)
    bias = (spec.num_relative_buckets, spec.num_heads)
    found: Tensors = {
        "words.weight": (Source(f"{head}word_embeddings.weight", words),),
        "positions.weight": (Source(f"{head}position_embeddings.weight", positions),),
        "relative.weight": (Source(f"{prefix}encoder.relative_attention_bias.weight", bias),),
    }
    found |= norm("norm", f"{head}LayerNorm", hidden, names)
    for index in range(spec.num_layers):
        ours, theirs = f"layers.{index}.", f"{prefix}encoder.layer.{index}."
        parts = tuple(f"{theirs}attention.attn.{name}" for name in ("q", "k", "v"))
        found |= joined(f"{ours}qkv", parts, (hidden, hidden))
        found |= pair(f"{ours}o", f"{theirs}attention.attn.o", (hidden, hidden))
        found |= norm(f"{ours}attention_norm", f"{theirs}attention.LayerNorm", hidden, names)
        found |= pair(f"{ours}mlp.up", f"{theirs}intermediate.dense", (inner, hidden))
        found |= pair(f"{ours}mlp.down", f"{theirs}output.dense", (hidden, inner))
        found |= norm(f"{ours}mlp_norm", f"{theirs}output.LayerNorm", hidden, names)
    if spec.head is not None:
        found |= pair("head.dense", "classifier.dense", (hidden, hidden))
        found |= pair("head.out", "classifier.out_proj", (spec.head.num_labels, hidden))
    return found


FAMILIES = (
    EncoderFamily(
        "MPNet",
        ("mpnet",),
        ("mpnet.",),
        "embeddings.word_embeddings.weight",
        _read,
        _tensors,
        tanh_head,
    ),
)

"""BERT (arXiv 1810.04805) and RoBERTa (arXiv 1907.11692), XLM-RoBERTa and CamemBERT included.

Learned absolute positions, post-norm layers, LayerNorm, plain MLP.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import num_layers_of
from engine_worker.compute.models.tensors import Source, Tensors
from engine_worker.embedding.encoder_spec import EncoderLayerSpec, EncoderSpec
from engine_worker.embedding.families.common import (
    activation_of,
    num_heads_of,
    refuse_decoding,
    tanh_head,
)
from engine_worker.embedding.families.family import EncoderFamily, joined, norm, pair
from engine_worker.embedding.families.jina import (
    mlp_tensors,
    with_distance_bias,
    with_more_norms,
)
from engine_worker.errors import UnsupportedFeatureError


def _read(has_padding_row: bool, config: Mapping[str, Any]) -> EncoderSpec:
    refuse_decoding(config)
    fields = ConfigFields(config)
    positions = fields.text("position_embedding_type", "absolute")
    has_distance_bias = positions == "alibi" and not has_padding_row
    if not (positions == "absolute" or has_distance_bias) or fields.present("lora_adaptations"):
        # Jina's embeddings v3 call themselves xlm-roberta, with rotary positions and adapters.
        raise UnsupportedFeatureError(
            f"config.json: not supported yet: {positions!r} positions or lora_adaptations, as in"
            " jina-embeddings-v3, whose adapters of each task are not computed; use another model"
            " of embeddings, such as jina-embeddings-v2 or BGE-M3"
        )
    hidden_size = fields.size("hidden_size")
    num_positions = fields.size("max_position_embeddings")
    first = 1 + fields.size("pad_token_id", 1, minimum=0) if has_padding_row else 0
    if first >= num_positions:
        raise fields.error("max_position_embeddings", f"must be above {first}", num_positions)
    spec = EncoderSpec(
        architecture="",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads_of(fields, hidden_size),
        intermediate_size=fields.size("intermediate_size"),
        layers=(EncoderLayerSpec(),) * num_layers_of(fields),
        max_tokens=num_positions - first,
        activation=activation_of(fields, "hidden_act", "gelu"),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        num_positions=num_positions,
        first_position=first,
        num_types=fields.size("type_vocab_size", 2),
    )
    return with_distance_bias(spec, fields) if has_distance_bias else spec


def _tensors(has_pooler: bool, spec: EncoderSpec, prefix: str, names: Collection[str]) -> Tensors:
    hidden = spec.hidden_size
    head = f"{prefix}embeddings."
    tables = {
        "words": ("word_embeddings", spec.vocab_size),
        "positions": ("position_embeddings", spec.num_positions),
        "types": ("token_type_embeddings", spec.num_types),
    }
    found: Tensors = {
        f"{ours}.weight": (Source(f"{head}{theirs}.weight", (rows, hidden)),)
        for ours, (theirs, rows) in tables.items()
    }
    if f"{prefix}{_FLASH_NORM}" in names:
        return found | _flash_layers(spec, prefix, names) | _head(spec, prefix, has_pooler)
    found |= norm("norm", f"{head}LayerNorm", hidden, names)
    return found | layer_tensors(spec, prefix, names) | _head(spec, prefix, has_pooler)


def layer_tensors(spec: EncoderSpec, prefix: str, names: Collection[str]) -> Tensors:
    """The layers as BERT names them."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    found: Tensors = {}
    for index in range(spec.num_layers):
        ours, theirs = f"layers.{index}.", f"{prefix}encoder.layer.{index}."
        attention = f"{theirs}attention."
        parts = tuple(f"{attention}self.{name}" for name in ("query", "key", "value"))
        found |= joined(f"{ours}qkv", parts, (hidden, hidden))
        found |= pair(f"{ours}o", f"{attention}output.dense", (hidden, hidden))
        found |= norm(f"{ours}attention_norm", f"{attention}output.LayerNorm", hidden, names)
        if spec.has_distance_bias:
            found |= mlp_tensors(ours, theirs, spec, names)
            continue
        found |= pair(f"{ours}mlp.up", f"{theirs}intermediate.dense", (inner, hidden))
        found |= pair(f"{ours}mlp.down", f"{theirs}output.dense", (hidden, inner))
        found |= norm(f"{ours}mlp_norm", f"{theirs}output.LayerNorm", hidden, names)
    return found


def _flash_layers(spec: EncoderSpec, prefix: str, names: Collection[str]) -> Tensors:
    """As Jina's own code for XLM-RoBERTa names them (jina-reranker-v2)."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    found = norm("norm", f"{prefix}emb_ln", hidden, names)
    for index in range(spec.num_layers):
        ours, theirs = f"layers.{index}.", f"{prefix}encoder.layers.{index}."
        found |= pair(f"{ours}qkv", f"{theirs}mixer.Wqkv", (3 * hidden, hidden))
        found |= pair(f"{ours}o", f"{theirs}mixer.out_proj", (hidden, hidden))
        found |= norm(f"{ours}attention_norm", f"{theirs}norm1", hidden, names)
        found |= pair(f"{ours}mlp.up", f"{theirs}mlp.fc1", (inner, hidden))
        found |= pair(f"{ours}mlp.down", f"{theirs}mlp.fc2", (hidden, inner))
        found |= norm(f"{ours}mlp_norm", f"{theirs}norm2", hidden, names)
    return found


def _head(spec: EncoderSpec, prefix: str, has_pooler: bool) -> Tensors:
    if spec.head is None:
        return {}
    hidden = spec.hidden_size
    dense = f"{prefix}pooler.dense" if has_pooler else "classifier.dense"
    out = "classifier" if has_pooler else "classifier.out_proj"
    return {
        **pair("head.dense", dense, (hidden, hidden)),
        **pair("head.out", out, (spec.head.num_labels, hidden)),
    }


_EMBEDDING = "embeddings.word_embeddings.weight"
_FLASH_NORM = "emb_ln.weight"

FAMILIES = (
    EncoderFamily(
        "BERT",
        ("bert",),
        ("bert.",),
        _EMBEDDING,
        partial(_read, False),
        partial(_tensors, True),
        tanh_head,
        with_more_norms,
    ),
    EncoderFamily(
        "RoBERTa, XLM-RoBERTa, CamemBERT",
        ("roberta", "xlm-roberta", "camembert"),
        ("roberta.",),
        _EMBEDDING,
        partial(_read, True),
        partial(_tensors, False),
        tanh_head,
    ),
)

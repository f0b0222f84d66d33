"""ELECTRA (arXiv 2003.10555) and ALBERT (arXiv 1909.11942): BERT with narrower tables.

A product brings them to the hidden size. ALBERT's layers are one, or few, many times over.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import num_layers_of
from engine_worker.compute.models.tensors import Source, Tensors
from engine_worker.embedding.encoder_spec import EncoderLayerSpec, EncoderSpec, HeadSpec
from engine_worker.embedding.families.bert import layer_tensors
from engine_worker.embedding.families.common import (
    activation_of,
    num_heads_of,
    refuse_decoding,
    refuse_unless,
    tanh_head,
)
from engine_worker.embedding.families.family import EncoderFamily, joined, norm, pair

_EMBEDDING = "embeddings.word_embeddings.weight"


def _read(activation: str, config: Mapping[str, Any], *, always_widens: bool) -> EncoderSpec:
    refuse_decoding(config)
    refuse_unless(config, position_embedding_type="absolute")
    fields = ConfigFields(config)
    hidden_size = fields.size("hidden_size")
    width = fields.size("embedding_size", 128)
    num_positions = fields.size("max_position_embeddings", 512)
    return EncoderSpec(
        architecture="",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads_of(fields, hidden_size),
        intermediate_size=fields.size("intermediate_size"),
        layers=(EncoderLayerSpec(),) * num_layers_of(fields),
        max_tokens=num_positions,
        activation=activation_of(fields, "hidden_act", activation),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        num_positions=num_positions,
        num_types=fields.size("type_vocab_size", 2),
        embedding_size=width if always_widens or width != hidden_size else None,
    )


def _read_albert(config: Mapping[str, Any]) -> EncoderSpec:
    # Layers that aren't all the same have names by group, which no published model has.
    refuse_unless(config, num_hidden_groups=1, inner_group_num=1)
    return _read("gelu_new", config, always_widens=True)


def _tables(spec: EncoderSpec, prefix: str, widen: str, names: Collection[str]) -> Tensors:
    head, width = f"{prefix}embeddings.", spec.embedding_size or spec.hidden_size
    tables = {
        "words": ("word_embeddings", spec.vocab_size),
        "positions": ("position_embeddings", spec.num_positions),
        "types": ("token_type_embeddings", spec.num_types),
    }
    found: Tensors = {
        f"{ours}.weight": (Source(f"{head}{theirs}.weight", (rows, width)),)
        for ours, (theirs, rows) in tables.items()
    }
    found |= norm("norm", f"{head}LayerNorm", width, names)
    if spec.embedding_size is not None:
        found |= pair("widen", f"{prefix}{widen}", (spec.hidden_size, width))
    return found


def _electra_tensors(spec: EncoderSpec, prefix: str, names: Collection[str]) -> Tensors:
    hidden = spec.hidden_size
    found = _tables(spec, prefix, "embeddings_project", names)
    found |= layer_tensors(spec, prefix, names)
    if spec.head is not None:
        found |= pair("head.dense", "classifier.dense", (hidden, hidden))
        found |= pair("head.out", "classifier.out_proj", (spec.head.num_labels, hidden))
    return found


def _albert_tensors(spec: EncoderSpec, prefix: str, names: Collection[str]) -> Tensors:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    found = _tables(spec, prefix, "encoder.embedding_hidden_mapping_in", names)
    theirs = f"{prefix}encoder.albert_layer_groups.0.albert_layers.0."
    for index in range(spec.num_layers):
        ours, attention = f"layers.{index}.", f"{theirs}attention."
        parts = tuple(f"{attention}{name}" for name in ("query", "key", "value"))
        found |= joined(f"{ours}qkv", parts, (hidden, hidden))
        found |= pair(f"{ours}o", f"{attention}dense", (hidden, hidden))
        found |= norm(f"{ours}attention_norm", f"{attention}LayerNorm", hidden, names)
        found |= pair(f"{ours}mlp.up", f"{theirs}ffn", (inner, hidden))
        found |= pair(f"{ours}mlp.down", f"{theirs}ffn_output", (hidden, inner))
        found |= norm(f"{ours}mlp_norm", f"{theirs}full_layer_layer_norm", hidden, names)
    if spec.head is not None:
        found |= pair("head.dense", f"{prefix}pooler", (hidden, hidden))
        found |= pair("head.out", "classifier", (spec.head.num_labels, hidden))
    return found


FAMILIES = (
    EncoderFamily(
        "ELECTRA",
        ("electra",),
        ("electra.",),
        _EMBEDDING,
        partial(_read, "gelu", always_widens=False),
        _electra_tensors,
        lambda _, num_labels: HeadSpec(num_labels, "gelu"),
    ),
    EncoderFamily(
        "ALBERT",
        ("albert",),
        ("albert.",),
        _EMBEDDING,
        _read_albert,
        _albert_tensors,
        tanh_head,
    ),
)

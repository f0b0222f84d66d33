"""DeBERTa V2 and V3 (arXiv 2006.03654, 2111.09543): scores by tokens and by distances.

BERT's post-norm layers without positions in the embedding.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import num_layers_of
from engine_worker.compute.models.tensors import Source, Tensors
from engine_worker.embedding.encoder_spec import (
    DisentangledSpec,
    EncoderLayerSpec,
    EncoderSpec,
    HeadSpec,
)
from engine_worker.embedding.families.common import activation_of, num_heads_of, refuse_unless
from engine_worker.embedding.families.family import EncoderFamily, joined, norm, pair
from engine_worker.errors import UnsupportedFeatureError

_KEYS, _QUERIES = "c2p", "p2c"


def _read(config: Mapping[str, Any]) -> EncoderSpec:
    fields = ConfigFields(config)
    hidden_size = fields.size("hidden_size")
    num_heads = num_heads_of(fields, hidden_size)
    refuse_unless(
        config,
        relative_attention=True,
        conv_kernel_size=0,
        embedding_size=hidden_size,
        attention_head_size=hidden_size // num_heads,
        pooler_hidden_size=hidden_size,
    )
    num_positions = fields.size("max_position_embeddings", 512)
    has_positions = fields.flag("position_biased_input", True)
    return EncoderSpec(
        architecture="",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        intermediate_size=fields.size("intermediate_size"),
        layers=(EncoderLayerSpec(),) * num_layers_of(fields),
        max_tokens=num_positions,
        activation=activation_of(fields, "hidden_act", "gelu"),
        norm_eps=fields.number("layer_norm_eps", 1e-7),
        num_positions=num_positions if has_positions else 0,
        num_types=fields.size("type_vocab_size", 0, minimum=0),
        disentangled=_distances(config, num_positions),
    )


def _position_kinds(config: Mapping[str, Any]) -> Sequence[str]:
    """Which products there are: a list, or a text with bars between."""
    stated = config.get("pos_att_type")
    if isinstance(stated, str):
        return stated.split("|")
    return ConfigFields(config).strings("pos_att_type") or ()


def _distances(config: Mapping[str, Any], num_positions: int) -> DisentangledSpec:
    fields = ConfigFields(config)
    if not fields.flag("relative_attention", False):
        raise UnsupportedFeatureError(
            "config.json: not supported yet: DeBERTa without relative_attention"
        )
    stated = fields.integer("max_relative_positions", -1)
    longest = num_positions if stated < 1 else stated
    span = fields.integer("position_buckets", -1)
    has_buckets = span > 0
    if has_buckets and (span < 4 or longest <= span // 2 + 1):
        raise fields.error("position_buckets", f"must be 4 to {2 * (longest - 2)}", span)
    names = {name.strip().lower() for name in _position_kinds(config)}
    if not names or not names <= {_KEYS, _QUERIES}:
        raise UnsupportedFeatureError(
            f"config.json: not supported yet: pos_att_type {sorted(names)!r:.80}, only {_KEYS} and"
            f" {_QUERIES}"
        )
    norms = {name.strip() for name in fields.text("norm_rel_ebd", "none").lower().split("|")}
    return DisentangledSpec(
        span=span if has_buckets else longest,
        longest=longest if has_buckets else None,
        has_keys=_KEYS in names,
        has_queries=_QUERIES in names,
        is_shared=fields.flag("share_att_key", False),
        has_norm="layer_norm" in norms,
    )


def _tensors(spec: EncoderSpec, prefix: str, names: Collection[str]) -> Tensors:
    hidden, inner, wanted = spec.hidden_size, spec.intermediate_size, spec.disentangled
    assert wanted is not None, "read with it"
    head, encoder = f"{prefix}embeddings.", f"{prefix}encoder."
    tables = {
        "words": (f"{head}word_embeddings", spec.vocab_size),
        "positions": (f"{head}position_embeddings", spec.num_positions),
        "types": (f"{head}token_type_embeddings", spec.num_types),
        "distances": (f"{encoder}rel_embeddings", 2 * wanted.span),
    }
    found: Tensors = {
        f"{ours}.weight": (Source(f"{theirs}.weight", (rows, hidden)),)
        for ours, (theirs, rows) in tables.items()
    }
    found |= norm("norm", f"{head}LayerNorm", hidden, names)
    found |= norm("distances_norm", f"{encoder}LayerNorm", hidden, names)
    square = (hidden, hidden)
    for index in range(spec.num_layers):
        ours, theirs = f"layers.{index}.", f"{encoder}layer.{index}."
        block = f"{theirs}attention.self."
        parts = tuple(f"{block}{name}_proj" for name in ("query", "key", "value"))
        found |= joined(f"{ours}qkv", parts, square)
        found |= pair(f"{ours}distance_keys", f"{block}pos_key_proj", square)
        found |= pair(f"{ours}distance_queries", f"{block}pos_query_proj", square)
        found |= pair(f"{ours}o", f"{theirs}attention.output.dense", square)
        found |= norm(f"{ours}attention_norm", f"{theirs}attention.output.LayerNorm", hidden, names)
        found |= pair(f"{ours}mlp.up", f"{theirs}intermediate.dense", (inner, hidden))
        found |= pair(f"{ours}mlp.down", f"{theirs}output.dense", (hidden, inner))
        found |= norm(f"{ours}mlp_norm", f"{theirs}output.LayerNorm", hidden, names)
    if spec.head is not None:
        found |= pair("head.dense", "pooler.dense", square)
        found |= pair("head.out", "classifier", (spec.head.num_labels, hidden))
    return found


def _head(config: Mapping[str, Any], num_labels: int) -> HeadSpec:
    return HeadSpec(num_labels, activation_of(ConfigFields(config), "pooler_hidden_act", "gelu"))


FAMILIES = (
    EncoderFamily(
        "DeBERTa V2 and V3",
        ("deberta-v2",),
        ("deberta.",),
        "embeddings.word_embeddings.weight",
        _read,
        _tensors,
        _head,
    ),
)

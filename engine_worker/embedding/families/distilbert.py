"""DistilBERT (arXiv 1910.01108): BERT without token types and without a pooler."""

from collections.abc import Collection, Mapping
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import num_layers_of
from engine_worker.compute.models.tensors import Source, Tensors
from engine_worker.embedding.encoder_spec import EncoderLayerSpec, EncoderSpec, HeadSpec
from engine_worker.embedding.families.common import activation_of, num_heads_of
from engine_worker.embedding.families.family import EncoderFamily, joined, norm, pair


def _read(config: Mapping[str, Any]) -> EncoderSpec:
    fields = ConfigFields(config)
    hidden_size, num_positions = fields.size("dim"), fields.size("max_position_embeddings", 512)
    return EncoderSpec(
        architecture="",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads_of(fields, hidden_size, "n_heads"),
        intermediate_size=fields.size("hidden_dim"),
        layers=(EncoderLayerSpec(),) * num_layers_of(fields, "n_layers"),
        max_tokens=num_positions,
        activation=activation_of(fields, "activation", "gelu"),
        norm_eps=1e-12,
        # Sinusoidal ones (`sinusoidal_pos_embds`) stand in the checkpoint anyway.
        num_positions=num_positions,
    )


def _tensors(spec: EncoderSpec, prefix: str, names: Collection[str]) -> Tensors:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    head = f"{prefix}embeddings."
    words = (spec.vocab_size, hidden)
    positions = (spec.num_positions, hidden)
    found: Tensors = {
        "words.weight": (Source(f"{head}word_embeddings.weight", words),),
        "positions.weight": (Source(f"{head}position_embeddings.weight", positions),),
    }
    found |= norm("norm", f"{head}LayerNorm", hidden, names)
    for index in range(spec.num_layers):
        ours, theirs = f"layers.{index}.", f"{prefix}transformer.layer.{index}."
        parts = tuple(f"{theirs}attention.{name}" for name in ("q_lin", "k_lin", "v_lin"))
        found |= joined(f"{ours}qkv", parts, (hidden, hidden))
        found |= pair(f"{ours}o", f"{theirs}attention.out_lin", (hidden, hidden))
        found |= norm(f"{ours}attention_norm", f"{theirs}sa_layer_norm", hidden, names)
        found |= pair(f"{ours}mlp.up", f"{theirs}ffn.lin1", (inner, hidden))
        found |= pair(f"{ours}mlp.down", f"{theirs}ffn.lin2", (hidden, inner))
        found |= norm(f"{ours}mlp_norm", f"{theirs}output_layer_norm", hidden, names)
    if spec.head is not None:
        found |= pair("head.dense", "pre_classifier", (hidden, hidden))
        found |= pair("head.out", "classifier", (spec.head.num_labels, hidden))
    return found


FAMILIES = (
    EncoderFamily(
        "DistilBERT",
        ("distilbert",),
        ("distilbert.",),
        "embeddings.word_embeddings.weight",
        _read,
        _tensors,
        lambda _, num_labels: HeadSpec(num_labels, "relu"),
    ),
)

"""Jina's BERT (arXiv 2310.19923), whose `model_type` is BERT's.

BERT with a gated MLP and without positions: its scores fall with distance (ALiBi). The models of
other languages and of code normalise queries and keys, too, and have one norm more in a layer.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.tensors import Source, Tensors
from engine_worker.embedding.encoder_spec import EncoderSpec
from engine_worker.embedding.families.common import max_tokens_of
from engine_worker.embedding.families.family import norm, pair
from engine_worker.errors import UnsupportedFeatureError

_ACTIVATIONS: Final = {"geglu": "gelu", "reglu": "relu"}
_QUERY_NORM: Final = "encoder.layer.0.attention.self.layer_norm_q.weight"


def with_distance_bias(spec: EncoderSpec, fields: ConfigFields) -> EncoderSpec:
    """The encoder of a config with `alibi` positions.

    Args:
        spec: As BERT's.
        fields: The config.

    Raises:
        UnsupportedFeatureError: Its MLP has no gate.
    """
    kind = fields.text("feed_forward_type", "original")
    if kind not in _ACTIVATIONS:
        raise UnsupportedFeatureError(
            f"config.json: not supported yet: feed_forward_type {kind!r}, only"
            f" {' and '.join(_ACTIVATIONS)}"
        )
    return replace(
        spec,
        max_tokens=max_tokens_of(fields, "max_position_embeddings"),
        num_positions=0,
        activation=_ACTIVATIONS[kind],
        has_distance_bias=True,
        is_gated=True,
        up_bias=False,
    )


def with_more_norms(spec: EncoderSpec, names: Collection[str]) -> EncoderSpec:
    """The encoder of a checkpoint with tensors of these names, which alone tell of the norms."""
    has_norms = spec.has_distance_bias and any(name.endswith(_QUERY_NORM) for name in names)
    return replace(spec, has_qk_norm=has_norms, has_sum_norm=has_norms)


def mlp_tensors(ours: str, theirs: str, spec: EncoderSpec, names: Collection[str]) -> Tensors:
    """The MLP of a layer, and the norms that only these models have.

    Args:
        ours: Prefix of the layer's weights.
        theirs: Prefix of its tensors.
        spec: The encoder.
        names: Of all tensors.
    """
    hidden, inner, block = spec.hidden_size, spec.intermediate_size, f"{theirs}mlp."
    if not spec.has_qk_norm:
        gate_up = Source(f"{block}gated_layers.weight", (2 * inner, hidden))
        return {
            f"{ours}mlp.up.weight": (gate_up,),
            **pair(f"{ours}mlp.down", f"{block}wo", (hidden, inner)),
            **norm(f"{ours}mlp_norm", f"{block}layernorm", hidden, names),
        }
    up_gate, shape = f"{block}up_gated_layer.weight", (2 * inner, hidden)
    attention = f"{theirs}attention."
    return {
        f"{ours}mlp.up.weight": (
            Source(up_gate, shape, rows=(inner, 2 * inner)),
            Source(up_gate, shape, rows=(0, inner)),
        ),
        **pair(f"{ours}mlp.down", f"{block}down_layer", (hidden, inner)),
        **norm(f"{ours}mlp_norm", f"{theirs}layer_norm_2", hidden, names),
        **norm(f"{ours}attention_norm", f"{theirs}layer_norm_1", hidden, names),
        **norm(f"{ours}sum_norm", f"{attention}output.LayerNorm", hidden, names),
        **norm(f"{ours}q_norm", f"{attention}self.layer_norm_q", hidden, names),
        **norm(f"{ours}k_norm", f"{attention}self.layer_norm_k", hidden, names),
    }

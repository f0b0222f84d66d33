"""Cohere's Command R, R+ and R7B: attention and MLP read one LayerNorm side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    FULL,
    SLIDING,
    all_full,
    attention_of,
    decoder_of,
    max_positions_of,
    mlp_of,
    num_layers_of,
    plain_window,
    windows_between_full_layers,
)
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.spec import (
    DecoderSpec,
    LayerSpec,
    NormKind,
    NormPlacement,
    QkNorm,
)

_DEFAULTS = {
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def read_cohere(config: Mapping[str, Any]) -> DecoderSpec:
    """Command R: all layers see everything and rotate."""
    fields = ConfigFields({**_DEFAULTS, **config})
    types = all_full(fields, num_layers_of(fields))
    return _decoder(config, fields, "CohereForCausalLM", types, has_full_rope=True)


def read_cohere2(config: Mapping[str, Any]) -> DecoderSpec:
    """Command R7B and A: layers with a window rotate, the others have no positions."""
    fields = ConfigFields({**_DEFAULTS, **config})
    types = windows_between_full_layers(fields, num_layers_of(fields), 4)
    return _decoder(config, fields, "Cohere2ForCausalLM", types, has_full_rope=False)


def _decoder(
    config: Mapping[str, Any],
    fields: ConfigFields,
    architecture: str,
    types: Sequence[str],
    *,
    has_full_rope: bool,
) -> DecoderSpec:
    rope = read_ropes(config, 10_000.0, max_positions_of(fields))[FULL]
    rope = replace(rope, interleaved=True)
    bias = fields.flag("attention_bias", False)
    window, mlp = plain_window(fields), mlp_of(fields)
    # Command R+: a LayerNorm with weights of its own for each head.
    is_normed = has_full_rope and fields.flag("use_qk_norm", False)
    layers = []
    for layer_type in types:
        is_sliding = layer_type == SLIDING and window is not None
        attention = attention_of(
            fields,
            rope if has_full_rope or is_sliding else None,
            window if is_sliding else None,
            bias=(bias, bias),
            qk_norm=QkNorm.EACH_HEAD if is_normed else QkNorm.NONE,
        )
        layers.append(LayerSpec(attention, mlp))
    return replace(
        decoder_of(fields, architecture, layers, "layer_norm_eps"),
        norm_kind=NormKind.LAYER,
        norm_placement=NormPlacement.PARALLEL,
        logits_multiplier=fields.number("logit_scale"),
    )


FAMILIES = (
    Family("CohereForCausalLM", "cohere", read_cohere),
    Family("Cohere2ForCausalLM", "cohere2", read_cohere2),
)

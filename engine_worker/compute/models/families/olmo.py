"""OLMo 2 and 3: norms behind the sublayers only, and query/key norms over all heads together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    SLIDING,
    all_full,
    attention_of,
    decoder_of,
    max_positions_of,
    mlp_of,
    num_layers_of,
    plain_window,
    ropes_by_layer_type,
    windows_between_full_layers,
)
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.spec import (
    DecoderSpec,
    LayerSpec,
    NormPlacement,
    QkNorm,
    RopeSpec,
)

_DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048}
_OLMO3_THETA = 500_000.0


def read_olmo2(config: Mapping[str, Any]) -> DecoderSpec:
    """OLMo 2."""
    fields = ConfigFields({**_DEFAULTS, **config})
    ropes = read_ropes(config, 10_000.0, max_positions_of(fields))
    types = all_full(fields, num_layers_of(fields))
    return _decoder(fields, "Olmo2ForCausalLM", types, ropes)


def read_olmo3(config: Mapping[str, Any]) -> DecoderSpec:
    """OLMo 3: windows in three of four layers; only the fourth has its rope scaled."""
    fields = ConfigFields({**_DEFAULTS, **config})
    theta = fields.number("rope_theta", _OLMO3_THETA)
    ropes = ropes_by_layer_type(config, theta, theta, max_positions_of(fields))
    types = windows_between_full_layers(fields, num_layers_of(fields), 4)
    return _decoder(fields, "Olmo3ForCausalLM", types, ropes)


def _decoder(
    fields: ConfigFields, architecture: str, types: Sequence[str], ropes: Mapping[str, RopeSpec]
) -> DecoderSpec:
    bias = fields.flag("attention_bias", False)
    window, mlp = plain_window(fields), mlp_of(fields)
    layers = [
        LayerSpec(
            attention_of(
                fields,
                ropes[layer_type],
                window if layer_type == SLIDING else None,
                bias=(bias, bias),
                qk_norm=QkNorm.FULL_WIDTH,
            ),
            mlp,
        )
        for layer_type in types
    ]
    spec = decoder_of(fields, architecture, layers, "rms_norm_eps")
    return replace(spec, norm_placement=NormPlacement.POST)


FAMILIES = (
    Family("Olmo2ForCausalLM", "olmo2", read_olmo2),
    Family("Olmo3ForCausalLM", "olmo3", read_olmo3),
)

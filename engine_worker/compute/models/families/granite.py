"""Granite 3: Llama with multipliers of embedding, scores, residual and logits."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    attention_of,
    decoder_of,
    max_positions_of,
    mlp_of,
    num_layers_of,
)
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.spec import DecoderSpec, LayerSpec

_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}


def read_granite(config: Mapping[str, Any]) -> DecoderSpec:
    """Granite 3, dense."""
    fields = ConfigFields({**_DEFAULTS, **config})
    ropes = read_ropes(config, 10_000.0, max_positions_of(fields))
    bias = fields.flag("attention_bias", False)
    attention = replace(
        attention_of(fields, ropes["full_attention"], None, bias=(bias, bias)),
        scale=fields.number("attention_multiplier", 1.0),
    )
    layer = LayerSpec(attention, mlp_of(fields, bias=fields.flag("mlp_bias", False)))
    spec = decoder_of(fields, "GraniteForCausalLM", [layer] * num_layers_of(fields), "rms_norm_eps")
    return with_multipliers(spec, fields)


def with_multipliers(spec: DecoderSpec, fields: ConfigFields) -> DecoderSpec:
    """A decoder with the multipliers of all models of the family but that of the scores."""
    return replace(
        spec,
        embedding_multiplier=fields.number("embedding_multiplier", 1.0),
        residual_multiplier=fields.number("residual_multiplier", 1.0),
        logits_multiplier=1.0 / fields.number("logits_scaling", 1.0),
    )


FAMILIES = (Family("GraniteForCausalLM", "granite", read_granite),)

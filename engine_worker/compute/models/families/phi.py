"""Phi-3, Phi-3.5 and Phi-4-mini: joined projections, and a rope for long contexts."""

from collections.abc import Mapping
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    attention_of,
    decoder_of,
    max_positions_of,
    mlp_of,
    num_layers_of,
    stated_window,
)
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.spec import DecoderSpec, LayerSpec
from engine_worker.compute.models.tensors import Spelling, spelled

_DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
_OLD_NAMES_OF_LONGROPE = ("su", "yarn")


def read_phi3(config: Mapping[str, Any]) -> DecoderSpec:
    """Phi-3 and what follows it."""
    fields = ConfigFields({**_DEFAULTS, **config})
    ropes = read_ropes(_with_longrope(config), 10_000.0, max_positions_of(fields))
    attention = attention_of(fields, ropes["full_attention"], stated_window(fields))
    layer = LayerSpec(attention, mlp_of(fields))
    return decoder_of(fields, "Phi3ForCausalLM", [layer] * num_layers_of(fields), "rms_norm_eps")


def _with_longrope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with its rope's kind as it is called today."""
    fields = ConfigFields(config)
    changed = dict(config)
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.mapping(name)
        if rope is not None:
            kinds = {
                k: "longrope"
                for k in ("type", "rope_type")
                if rope.get(k) in _OLD_NAMES_OF_LONGROPE
            }
            changed[name] = rope | kinds
    return changed


FAMILIES = (
    Family(
        "Phi3ForCausalLM",
        "phi3",
        read_phi3,
        spelled(Spelling(qkv=("qkv_proj",), gate_up=("gate_up_proj",))),
    ),
)

"""Bamba and Falcon-H1: Mamba-2 in most layers beside attention in a few, or both in each."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    FULL,
    attention_of,
    decoder_of,
    max_positions_of,
    mlp_of,
    num_layers_of,
)
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.families.mamba import (
    inner_size_of,
    mamba_tensors,
    read_mamba,
)
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.recurrent.specs import MambaSpec
from engine_worker.compute.models.spec import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec
from engine_worker.compute.models.tensors import (
    Spelling,
    Tensors,
    attention_tensors,
    mlp_tensors,
    outer_tensors,
)
from engine_worker.errors import UnsupportedFeatureError

_SPELLING = Spelling(
    last_norm="final_layernorm", mlp_block="feed_forward.", mlp_norm="pre_ff_layernorm"
)
_COMMON: dict[str, Any] = {"rms_norm_eps": 1e-5, "num_key_value_heads": 8}
_BAMBA = _COMMON | {"max_position_embeddings": 262_144}
_FALCON = _COMMON | {"max_position_embeddings": 8192, "mamba_d_ssm": 1024}
_NUM_MLP_MULTIPLIERS, _NUM_MAMBA_MULTIPLIERS = 2, 5


def read_bamba(config: Mapping[str, Any]) -> DecoderSpec:
    """Bamba: attention in those layers that the config names, half of each head rotated."""
    # Not in its config: half of each head.
    config = {**_BAMBA, **config, "partial_rotary_factor": 0.5}
    fields = ConfigFields(config)
    ropes = read_ropes(config, 10_000.0, max_positions_of(fields))
    attention, mlp = _attention_and_mlp(fields, ropes[FULL])
    mamba = read_mamba(fields, config, inner_size_of(fields))
    attending = fields.integers("attn_layer_indices") or ()
    layers = [
        LayerSpec(attention if index in attending else mamba, mlp)
        for index in range(num_layers_of(fields))
    ]
    return decoder_of(fields, "BambaForCausalLM", layers, "rms_norm_eps")


def read_falcon_h1(config: Mapping[str, Any]) -> DecoderSpec:
    """Falcon-H1: Mamba and attention side by side in every layer, and a multiplier of each part.

    Each of its layers is two here, of which the second has the MLP.
    """
    config = _FALCON | dict(config)
    fields = ConfigFields(config)
    ropes = read_ropes(config, 10_000.0, max_positions_of(fields))
    attention, mlp = _attention_and_mlp(fields, ropes[FULL])
    into = fields.number("attention_in_multiplier", 1.0)
    if attention.qkv_bias and into != 1.0:
        raise UnsupportedFeatureError(
            "config.json: attention_in_multiplier beside attention_bias is not supported"
        )
    # Queries and keys both have it, values once.
    scale = attention.scale * fields.number("key_multiplier", 1.0) * into**2
    gate, down = _multipliers(fields, "mlp_multipliers", _NUM_MLP_MULTIPLIERS)
    pair = (
        LayerSpec(
            _falcon_mamba(fields, config),
            None,
            mixer_multiplier=fields.number("ssm_out_multiplier", 1.0),
        ),
        LayerSpec(
            replace(attention, scale=scale),
            replace(mlp, gate_multiplier=gate),
            is_beside=True,
            mixer_multiplier=fields.number("attention_out_multiplier", 1.0) * into,
            mlp_multiplier=down,
        ),
    )
    layers = pair * num_layers_of(fields)
    spec = decoder_of(fields, "FalconH1ForCausalLM", layers, "rms_norm_eps")
    return replace(
        spec,
        embedding_multiplier=fields.number("embedding_multiplier", 1.0),
        logits_multiplier=fields.number("lm_head_multiplier", 1.0),
    )


def _falcon_mamba(fields: ConfigFields, config: Mapping[str, Any]) -> MambaSpec:
    inner = fields.size("mamba_d_ssm") if fields.present("mamba_d_ssm") else inner_size_of(fields)
    mamba = read_mamba(fields, config, inner)
    into = fields.number("ssm_in_multiplier", 1.0)
    if mamba.proj_bias and into != 1.0:
        raise UnsupportedFeatureError(
            "config.json: ssm_in_multiplier beside mamba_proj_bias is not supported"
        )
    gate, values, writes, reads, time = _multipliers(
        fields, "ssm_multipliers", _NUM_MAMBA_MULTIPLIERS
    )
    return replace(
        mamba,
        out_bias=fields.flag("projectors_bias", False),
        norm_groups=mamba.num_groups if fields.flag("mamba_rms_norm", False) else 0,
        is_normed_first=fields.flag("mamba_norm_before_gate", True),
        multipliers=(gate * into, values * into, writes * into, reads * into, time * into),
    )


def _multipliers(fields: ConfigFields, name: str, count: int) -> tuple[float, ...]:
    if not fields.present(name):
        return (1.0,) * count
    values = fields.numbers(name)
    if len(values) != count:
        raise fields.error(name, f"must hold {count} numbers", values)
    return values


def _attention_and_mlp(fields: ConfigFields, rope: Any) -> tuple[AttentionSpec, MlpSpec]:
    bias = fields.flag("attention_bias", False)
    attention = attention_of(fields, rope, None, bias=(bias, bias))
    return attention, mlp_of(fields, bias=fields.flag("mlp_bias", False))


def _tensors(spec: DecoderSpec, _: Collection[str]) -> Tensors:
    sources, number = outer_tensors(spec, _SPELLING), 0
    for index, layer in enumerate(spec.layers):
        ours, theirs = f"layers.{index}.", f"model.layers.{number}."
        if isinstance(layer.mixer, AttentionSpec):
            sources |= attention_tensors(ours, theirs, layer.mixer, spec.hidden_size, _SPELLING)
        else:
            assert isinstance(layer.mixer, MambaSpec)
            sources |= mamba_tensors(f"{ours}recurrent.", theirs, layer.mixer, spec.hidden_size)
        if layer.mlp is not None:
            assert isinstance(layer.mlp, MlpSpec)
            sources |= mlp_tensors(ours, theirs, layer.mlp, spec.hidden_size, _SPELLING)
            number += 1
    return sources


FAMILIES = (
    Family("BambaForCausalLM", "bamba", read_bamba, _tensors),
    Family("FalconH1ForCausalLM", "falcon_h1", read_falcon_h1, _tensors),
)

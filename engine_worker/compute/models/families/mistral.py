"""Ministral 3, and the text models of Mistral Small 3 and 4 and Ministral 3 that also see."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    attention_of,
    decoder_of,
    max_positions_of,
    mlp_of,
    num_layers_of,
    stated_window,
    text_config_of,
)
from engine_worker.compute.models.families.deepseek import deepseek_tensors, read_mistral4
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.spec import DecoderSpec, LayerSpec, QueryScale
from engine_worker.compute.models.tensors import (
    Tensors,
    text_model_of_others,
    text_model_tensors,
)
from engine_worker.errors import UnsupportedFeatureError

_MINISTRAL3, _MISTRAL4 = "ministral3", "mistral4"
_MINISTRAL3_DEFAULTS = {"rms_norm_eps": 1e-5, "head_dim": 128, "num_key_value_heads": 8}
_MISTRAL_DEFAULTS = {
    "rms_norm_eps": 1e-5,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "hidden_size": 5120,
    "intermediate_size": 32_768,
    "max_position_embeddings": 131_072,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "vocab_size": 131_072,
}
"""Mistral Small 3.1's, which transformers takes where the text model's config is silent."""
_OUTSIDE_TEXT = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)


def read_ministral3(
    config: Mapping[str, Any], architecture: str = "Ministral3ForCausalLM"
) -> DecoderSpec:
    """Ministral 3: queries grow with their position beyond the original length."""
    spec = _read(config, _MINISTRAL3_DEFAULTS, architecture, theta=1_000_000.0)
    whole = ConfigFields(config)
    name = "rope_parameters" if whole.mapping("rope_parameters") else "rope_scaling"
    fields = ConfigFields(whole.mapping(name) or {}, f"config.json: {name}")
    beta = fields.optional_number("llama_4_scaling_beta")
    if beta is None:
        return spec
    scale = QueryScale(beta, fields.size("original_max_position_embeddings"))
    attention = replace(spec.layers[0].attention, query_scale=scale)
    layer = LayerSpec(attention, spec.layers[0].mlp)
    return replace(spec, layers=(layer,) * spec.num_layers)


def read_mistral3(config: Mapping[str, Any]) -> DecoderSpec:
    """The text model of a model that also sees: Mistral Small 3.1, 3.2 and 4, Ministral 3."""
    # A head in the checkpoint goes before this, as in transformers.
    text = text_config_of({"tie_word_embeddings": True, **config})
    architecture = "Mistral3ForConditionalGeneration"
    model_type = ConfigFields(text).text("model_type", "mistral")
    if model_type == _MINISTRAL3:
        return read_ministral3(text, architecture)
    if model_type == _MISTRAL4:
        return read_mistral4(text, architecture)
    if model_type != "mistral":
        raise UnsupportedFeatureError(
            f"config.json: text_config: model_type {model_type!r} is not supported"
        )
    return _read(text, _MISTRAL_DEFAULTS, architecture, theta=1_000_000_000.0)


def _read(
    config: Mapping[str, Any], defaults: Mapping[str, Any], architecture: str, theta: float
) -> DecoderSpec:
    fields = ConfigFields({**defaults, **config})
    rope = read_ropes(config, theta, max_positions_of(fields))["full_attention"]
    layer = LayerSpec(attention_of(fields, rope, stated_window(fields)), mlp_of(fields))
    return decoder_of(fields, architecture, [layer] * num_layers_of(fields), "rms_norm_eps")


_PLAIN, _LATENT = text_model_tensors(), text_model_of_others(deepseek_tensors)


def _tensors(spec: DecoderSpec, names: Collection[str] = ()) -> Tensors:
    """Mistral 4's attention keeps a latent; that of the others is the usual one."""
    is_latent = spec.layers[0].attention.latent is not None
    return (_LATENT if is_latent else _PLAIN)(spec, names)


FAMILIES = (
    Family("Ministral3ForCausalLM", _MINISTRAL3, read_ministral3),
    Family(
        "Mistral3ForConditionalGeneration",
        "mistral3",
        read_mistral3,
        _tensors,
        _OUTSIDE_TEXT,
    ),
)

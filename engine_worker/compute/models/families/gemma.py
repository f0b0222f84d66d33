"""Gemma 1, 2 and 3: norms that multiply by 1 + w, a scaled embedding, GELU in the gate.

Gemma 2 has norms around each sublayer, caps on scores and logits, and a window in every other
layer; Gemma 3 has query/key norms, and a window with a rope of its own in five of six.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    SLIDING,
    HeadDefaults,
    activation_of,
    attention_of,
    decoder_of,
    max_positions_of,
    mlp_of,
    num_layers_of,
    ropes_by_layer_type,
    stated_window,
    text_config_of,
    windows_between_full_layers,
)
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.spec import (
    Activation,
    DecoderSpec,
    LayerSpec,
    NormKind,
    NormPlacement,
    QkNorm,
)
from engine_worker.compute.models.tensors import Spelling, spelled, text_model_tensors
from engine_worker.errors import UnsupportedFeatureError

_SANDWICH = Spelling(mlp_norm="pre_feedforward_layernorm")
_COMMON = {"rms_norm_eps": 1e-6, "tie_word_embeddings": True}
_GEMMA = _COMMON | {"head_dim": 256, "num_key_value_heads": 16}
_GEMMA2 = _COMMON | {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_GEMMA3 = _GEMMA2 | {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 131_072,
}
"""The configs of checkpoints with a vision tower leave these out where they are so."""
_OUTSIDE_TEXT = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)


def read_gemma(config: Mapping[str, Any]) -> DecoderSpec:
    """Gemma 1."""
    fields = _fields(config, _GEMMA)
    ropes = read_ropes(config, 10_000.0, max_positions_of(fields))
    attention = attention_of(fields, ropes["full_attention"], None, bias=_bias(fields))
    layer = LayerSpec(attention, mlp_of(fields, activation=_gemma_activation(fields)))
    return _decoder(fields, "GemmaForCausalLM", [layer] * num_layers_of(fields))


def _gemma_activation(fields: ConfigFields) -> Activation:
    """By `hidden_activation`, where a config has it; `hidden_act: gelu` meant the tanh form."""
    if fields.present("hidden_activation"):
        return activation_of(fields, "hidden_activation")
    if fields.text("hidden_act", "gelu") == "gelu":
        return Activation.GELU_TANH
    return activation_of(fields)


def read_gemma2(config: Mapping[str, Any]) -> DecoderSpec:
    """Gemma 2."""
    fields = _fields(config, _GEMMA2)
    ropes = read_ropes(config, 10_000.0, max_positions_of(fields))
    layers = _windowed_layers(
        fields,
        ropes,
        period=2,
        softcap=fields.optional_number("attn_logit_softcapping", 50.0),
    )
    spec = _decoder(fields, "Gemma2ForCausalLM", layers)
    return replace(spec, final_softcap=fields.optional_number("final_logit_softcapping", 30.0))


def read_gemma3(config: Mapping[str, Any], architecture: str = "Gemma3ForCausalLM") -> DecoderSpec:
    """Gemma 3, text."""
    fields = _fields(config, _GEMMA3)
    ropes = ropes_by_layer_type(config, 1_000_000.0, 10_000.0, max_positions_of(fields))
    layers = _windowed_layers(
        fields,
        ropes,
        period=6,
        # Its config has Gemma 2's field, which transformers reads and computes nothing with.
        softcap=None,
        qk_norm=QkNorm.PER_HEAD,
    )
    spec = _decoder(fields, architecture, layers)
    return replace(spec, final_softcap=fields.optional_number("final_logit_softcapping"))


def read_gemma3_with_vision(config: Mapping[str, Any]) -> DecoderSpec:
    """The text model of a Gemma 3 that also sees."""
    return read_gemma3(text_config_of(config), "Gemma3ForConditionalGeneration")


def _fields(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> ConfigFields:
    fields = ConfigFields({**defaults, **config})
    if fields.flag("use_bidirectional_attention", False):
        raise UnsupportedFeatureError(
            "config.json: use_bidirectional_attention: a model that sees what comes after a token "
            "cannot generate"
        )
    return fields


def _bias(fields: ConfigFields) -> tuple[bool, bool]:
    bias = fields.flag("attention_bias", False)
    return bias, bias


def _windowed_layers(
    fields: ConfigFields,
    ropes: Mapping[str, Any],
    *,
    period: int,
    softcap: float | None,
    qk_norm: QkNorm = QkNorm.NONE,
) -> list[LayerSpec]:
    mlp = mlp_of(fields, activation=activation_of(fields, "hidden_activation", "gelu_pytorch_tanh"))
    scale = fields.number("query_pre_attn_scalar") ** -0.5
    window = stated_window(fields)
    layers = []
    for layer_type in windows_between_full_layers(fields, num_layers_of(fields), period):
        attention = attention_of(
            fields,
            ropes[layer_type],
            window if layer_type == SLIDING else None,
            heads=HeadDefaults(head_dim=256),
            bias=_bias(fields),
            qk_norm=qk_norm,
        )
        layers.append(LayerSpec(replace(attention, scale=scale, softcap=softcap), mlp))
    return layers


def _decoder(fields: ConfigFields, architecture: str, layers: list[LayerSpec]) -> DecoderSpec:
    spec = decoder_of(fields, architecture, layers, "rms_norm_eps")
    is_first = architecture == "GemmaForCausalLM"
    return replace(
        spec,
        norm_kind=NormKind.RMS_PLUS_ONE,
        norm_placement=NormPlacement.PRE if is_first else NormPlacement.SANDWICH,
        embedding_multiplier=math.sqrt(spec.hidden_size),
    )


FAMILIES = (
    Family("GemmaForCausalLM", "gemma", read_gemma),
    Family("Gemma2ForCausalLM", "gemma2", read_gemma2, spelled(_SANDWICH)),
    Family("Gemma3ForCausalLM", "gemma3_text", read_gemma3, spelled(_SANDWICH)),
    Family(
        "Gemma3ForConditionalGeneration",
        "gemma3",
        read_gemma3_with_vision,
        text_model_tensors(_SANDWICH),
        _OUTSIDE_TEXT,
    ),
)

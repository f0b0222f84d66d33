"""Llama and the families that differ from it in windows, biases, q/k norms and positions only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    FULL,
    NO_DEFAULTS,
    SLIDING,
    HeadDefaults,
    all_full,
    all_sliding,
    attention_of,
    max_positions_of,
    mlp_of,
    no_window,
    num_layers_of,
    plain_window,
    stated_layer_types,
    switched_window,
)
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.spec import DecoderSpec, LayerSpec, QkNorm


@dataclass(frozen=True, slots=True)
class _Traits:
    """What a family is where its config is silent, and how it differs from plain Llama.

    Attributes:
        layer_types: Which layers attend through the window.
        window: Width of the window in tokens; None is no window at all.
        attention_bias: What the q/k/v and the output projection carry.
        rotates: Whether each layer has positions.
        mlp_bias: Whether the MLP may carry one.
    """

    architecture: str
    model_type: str
    layer_types: Callable[[ConfigFields, int], tuple[str, ...]]
    window: Callable[[ConfigFields], int | None]
    attention_bias: Callable[[ConfigFields], tuple[bool, bool]]
    rotates: Callable[[ConfigFields, int], tuple[bool, ...]]
    mlp_bias: bool = False
    qk_norm: QkNorm = QkNorm.NONE
    heads: HeadDefaults = NO_DEFAULTS
    theta: float = 10_000.0
    tied_head: bool = False


def _read(traits: _Traits, config: Mapping[str, Any]) -> DecoderSpec:
    fields = ConfigFields(config)
    num_layers, max_positions = num_layers_of(fields), max_positions_of(fields)
    ropes = read_ropes(config, traits.theta, max_positions)
    window = traits.window(fields)
    mlp = mlp_of(fields, bias=traits.mlp_bias and fields.flag("mlp_bias", False))
    layers = []
    types = traits.layer_types(fields, num_layers)
    for layer_type, rotates in zip(types, traits.rotates(fields, num_layers), strict=True):
        attention = attention_of(
            fields,
            ropes[layer_type] if rotates else None,
            window if layer_type == SLIDING else None,
            heads=traits.heads,
            bias=traits.attention_bias(fields),
            qk_norm=traits.qk_norm,
        )
        layers.append(LayerSpec(attention, mlp))
    return DecoderSpec(
        architecture=traits.architecture,
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        layers=tuple(layers),
        max_position_embeddings=max_positions,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        tied_head=fields.flag("tie_word_embeddings", traits.tied_head),
        eos_token_ids=fields.integers("eos_token_id") or (),
    )


def _ministral_layer_types(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    return stated_layer_types(fields, num_layers) or all_sliding(fields, num_layers)


def _qwen_layer_types(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    stated = stated_layer_types(fields, num_layers)
    if stated is not None or switched_window(fields) is None:
        return stated or all_full(fields, num_layers)
    first = fields.size("max_window_layers", 28, minimum=0)
    return tuple(SLIDING if index >= first else FULL for index in range(num_layers))


def _smollm3_layer_types(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    stated = stated_layer_types(fields, num_layers)
    if stated is not None or _smollm3_window(fields) is None:
        return stated or all_full(fields, num_layers)
    return tuple(FULL if rotates else SLIDING for rotates in _nope(fields, num_layers))


def _smollm3_window(fields: ConfigFields) -> int | None:
    """SmolLM3: as Qwen, but without a width of its own."""
    return switched_window(fields) if fields.present("sliding_window") else None


def _no_bias(_: ConfigFields) -> tuple[bool, bool]:
    return False, False


def _qkv_bias(_: ConfigFields) -> tuple[bool, bool]:
    return True, False


def _stated_bias(fields: ConfigFields) -> tuple[bool, bool]:
    bias = fields.flag("attention_bias", False)
    return bias, bias


def _always(_: ConfigFields, num_layers: int) -> tuple[bool, ...]:
    return (True,) * num_layers


def _nope(fields: ConfigFields, num_layers: int) -> tuple[bool, ...]:
    """SmolLM3: `no_rope_layers` is 1 where a layer does rotate, 0 where it doesn't."""
    stated = fields.integers("no_rope_layers")
    if stated is None:
        interval = fields.size("no_rope_layer_interval", 4)
        return tuple((index + 1) % interval != 0 for index in range(num_layers))
    if len(stated) < num_layers:
        raise fields.error("no_rope_layers", f"must cover all {num_layers} layers", stated)
    return tuple(value != 0 for value in stated[:num_layers])


_ALL = (
    _Traits("LlamaForCausalLM", "llama", all_full, no_window, _stated_bias, _always, mlp_bias=True),
    _Traits(
        "MistralForCausalLM",
        "mistral",
        all_sliding,
        plain_window,
        _no_bias,
        _always,
        heads=HeadDefaults(num_kv_heads=8),
    ),
    _Traits(
        "MinistralForCausalLM",
        "ministral",
        _ministral_layer_types,
        plain_window,
        _no_bias,
        _always,
        heads=HeadDefaults(num_kv_heads=8),
    ),
    _Traits("Qwen2ForCausalLM", "qwen2", _qwen_layer_types, switched_window, _qkv_bias, _always),
    _Traits(
        "Qwen3ForCausalLM",
        "qwen3",
        _qwen_layer_types,
        switched_window,
        _stated_bias,
        _always,
        qk_norm=QkNorm.PER_HEAD,
        heads=HeadDefaults(head_dim=128),
    ),
    _Traits(
        "SmolLM3ForCausalLM",
        "smollm3",
        _smollm3_layer_types,
        _smollm3_window,
        _stated_bias,
        _nope,
        mlp_bias=True,
        heads=HeadDefaults(num_kv_heads=4),
        theta=2_000_000.0,
        tied_head=True,
    ),
)

FAMILIES = tuple(
    Family(traits.architecture, traits.model_type, partial(_read, traits)) for traits in _ALL
)

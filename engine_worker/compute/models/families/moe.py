"""Families that are Llama or Qwen with experts in place of the MLP."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
    stated_layer_types,
    switched_window,
)
from engine_worker.compute.models.families.experts import ExpertNames, tensors_with_experts
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.hf_rope import MAX_POSITIONS, read_ropes
from engine_worker.compute.models.spec import DecoderSpec, LayerSpec, MlpSpec, MoeSpec, QkNorm

MAX_EXPERTS = 4096


@dataclass(frozen=True, slots=True)
class _Traits:
    """What a family is where its config is silent, and how it differs from plain Llama.

    Attributes:
        mlp: Of a layer.
        names: Of its experts' tensors, in every spelling.
        attention_bias: What the q/k/v and the output projection carry.
        layer_types: Which layers attend through the window.
        window: Width of the window in tokens; None is no window at all.
    """

    architecture: str
    model_type: str
    mlp: Callable[[ConfigFields, int], MlpSpec | MoeSpec]
    names: tuple[ExpertNames, ...]
    attention_bias: Callable[[ConfigFields], tuple[bool, bool]]
    layer_types: Callable[[ConfigFields, int], tuple[str, ...]] = all_full
    window: Callable[[ConfigFields], int | None] = no_window
    qk_norm: QkNorm = QkNorm.NONE
    heads: HeadDefaults = NO_DEFAULTS
    theta: float = 10_000.0
    norm_eps: float = 1e-6


def _read(traits: _Traits, config: Mapping[str, Any]) -> DecoderSpec:
    fields = ConfigFields(config)
    num_layers, max_positions = num_layers_of(fields), max_positions_of(fields)
    ropes = read_ropes(config, traits.theta, max_positions)
    window = traits.window(fields)
    layers = []
    for index, layer_type in enumerate(traits.layer_types(fields, num_layers)):
        attention = attention_of(
            fields,
            ropes[layer_type],
            window if layer_type == SLIDING else None,
            heads=traits.heads,
            bias=traits.attention_bias(fields),
            qk_norm=traits.qk_norm,
        )
        layers.append(LayerSpec(attention, traits.mlp(fields, index)))
    return DecoderSpec(
        architecture=traits.architecture,
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        layers=tuple(layers),
        max_position_embeddings=max_positions,
        norm_eps=fields.number("rms_norm_eps", traits.norm_eps),
        tied_head=fields.flag("tie_word_embeddings", False),
        eos_token_ids=fields.integers("eos_token_id") or (),
    )


def num_experts_of(fields: ConfigFields, default: int, *names: str) -> int:
    """How many routed experts a layer has, by the first of several names that is there."""
    stated = [name for name in names if fields.present(name)]
    return fields.size(stated[0] if stated else names[0], default, maximum=MAX_EXPERTS)


def num_chosen_of(fields: ConfigFields, num_experts: int, default: int, name: str) -> int:
    """How many experts a token has, at most all of them."""
    return fields.size(name, min(default, num_experts), maximum=num_experts)


def _qwen_mlp(default_chosen: int, default_experts: int, has_shared: bool) -> Any:
    """Qwen 2 and 3: experts in every n-th layer, but for those that are named."""

    def mlp(fields: ConfigFields, layer: int) -> MlpSpec | MoeSpec:
        dense = mlp_of(fields)
        num_experts = fields.size(
            "num_experts", fields.size("num_local_experts", default_experts, minimum=0), minimum=0
        )
        step = fields.size("decoder_sparse_step", 1)
        if layer in (fields.integers("mlp_only_layers") or ()) or not num_experts:
            return dense
        if (layer + 1) % step:
            return dense
        shared = None
        if has_shared:
            width = fields.size("shared_expert_intermediate_size", 5632)
            shared = replace(dense, intermediate_size=width)
        return MoeSpec(
            num_experts=num_experts,
            num_experts_per_token=num_chosen_of(
                fields, num_experts, default_chosen, "num_experts_per_tok"
            ),
            expert=replace(
                dense,
                intermediate_size=fields.size("moe_intermediate_size", 1408 if has_shared else 768),
            ),
            normalize_weights=fields.flag("norm_topk_prob", False),
            shared=shared,
            shared_gate=has_shared,
        )

    return mlp


def _mixtral_mlp(fields: ConfigFields, _: int) -> MoeSpec:
    num_experts = num_experts_of(fields, 8, "num_local_experts", "num_experts")
    return MoeSpec(
        num_experts=num_experts,
        num_experts_per_token=num_chosen_of(fields, num_experts, 2, "num_experts_per_tok"),
        expert=mlp_of(fields),
    )


def _qwen2_layer_types(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    stated = stated_layer_types(fields, num_layers)
    if stated is not None or switched_window(fields) is None:
        return stated or all_full(fields, num_layers)
    first_full = fields.size("max_window_layers", 28, minimum=0)
    return tuple(
        SLIDING if index % 2 == 0 and index < first_full else FULL for index in range(num_layers)
    )


def _mixtral_window(fields: ConfigFields) -> int | None:
    if not fields.present("sliding_window"):
        return None
    return fields.size("sliding_window", maximum=MAX_POSITIONS)


def _qkv_bias(fields: ConfigFields) -> tuple[bool, bool]:
    return fields.flag("qkv_bias", True), False


def _stated_bias(fields: ConfigFields) -> tuple[bool, bool]:
    bias = fields.flag("attention_bias", False)
    return bias, bias


def _no_bias(_: ConfigFields) -> tuple[bool, bool]:
    return False, False


_ALL = (
    _Traits(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        _qwen_mlp(8, 128, has_shared=False),
        (ExpertNames(),),
        _stated_bias,
        all_sliding,
        switched_window,
        qk_norm=QkNorm.PER_HEAD,
        heads=HeadDefaults(num_kv_heads=4),
    ),
    _Traits(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        _qwen_mlp(4, 60, has_shared=True),
        (ExpertNames(shared="shared_expert."),),
        _qkv_bias,
        _qwen2_layer_types,
        switched_window,
        heads=HeadDefaults(num_kv_heads=16),
    ),
    _Traits(
        "MixtralForCausalLM",
        "mixtral",
        _mixtral_mlp,
        (
            ExpertNames("block_sparse_moe.", "w1", "w3", "w2"),
            ExpertNames("mlp.", "w1", "w3", "w2"),
        ),
        _no_bias,
        all_sliding,
        _mixtral_window,
        heads=HeadDefaults(num_kv_heads=8),
        theta=1_000_000.0,
        norm_eps=1e-5,
    ),
)

FAMILIES = tuple(
    Family(
        traits.architecture,
        traits.model_type,
        partial(_read, traits),
        tensors_with_experts(*traits.names),
    )
    for traits in _ALL
)

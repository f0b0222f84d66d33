"""Granite 4: Mamba-2, with attention in a few layers, and experts in the larger ones."""

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    FULL,
    attention_of,
    max_positions_of,
    mlp_of,
    num_layers_of,
)
from engine_worker.compute.models.families.experts import tensors_with_experts
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.families.moe import (
    GRANITE_EXPERTS,
    num_chosen_of,
    num_experts_of,
)
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.recurrent.specs import MambaSpec
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
)
from engine_worker.compute.models.tensors import Source, Tensors
from engine_worker.errors import UnsupportedFeatureError

MAX_KERNEL = 64
"""Tokens that a convolution sees; those of all models see three or four."""
_MAMBA = ("mamba", "linear_attention")
_ATTENTION = ("attention", FULL)


def _read(config: Mapping[str, Any]) -> DecoderSpec:
    fields = ConfigFields(config)
    num_layers, max_positions = num_layers_of(fields), max_positions_of(fields)
    # Without a kind nothing is rotated.
    is_rotated = fields.text("position_embedding_type", "nope") == "rope"
    bias = fields.flag("attention_bias", False)
    attention = attention_of(
        fields,
        read_ropes(config, 10_000.0, max_positions)[FULL] if is_rotated else None,
        None,
        bias=(bias, bias),
    )
    attention = replace(attention, scale=fields.number("attention_multiplier", 1.0))
    kinds = _layer_types(fields, num_layers)
    mamba = _mamba(fields, config) if set(kinds) & set(_MAMBA) else None
    mlp = _mlp(fields)
    return DecoderSpec(
        architecture="GraniteMoeHybridForCausalLM",
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        layers=tuple(
            LayerSpec(attention if mamba is None or kind in _ATTENTION else mamba, mlp)
            for kind in kinds
        ),
        max_position_embeddings=max_positions,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        tied_head=fields.flag("tie_word_embeddings", False),
        eos_token_ids=fields.integers("eos_token_id") or (),
        embedding_multiplier=fields.number("embedding_multiplier", 1.0),
        residual_multiplier=fields.number("residual_multiplier", 1.0),
        logits_multiplier=1.0 / fields.number("logits_scaling", 1.0),
    )


def _layer_types(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    types = fields.strings("layer_types")
    if types is None:
        return _MAMBA[:1] * num_layers
    if len(types) < num_layers:
        raise fields.error("layer_types", f"must name all {num_layers} layers", types)
    unknown = sorted(set(types) - {*_MAMBA, *_ATTENTION})
    if unknown:
        raise UnsupportedFeatureError(f"config.json: layer type {unknown[0]!r} is not supported")
    return types[:num_layers]


def _mamba(fields: ConfigFields, config: Mapping[str, Any]) -> MambaSpec:
    return read_mamba(fields, config, inner_size_of(fields))


def inner_size_of(fields: ConfigFields) -> int:
    """Width of a Mamba block's values, as a multiple of the residual's."""
    return fields.size("mamba_expand", 2, maximum=64) * fields.size("hidden_size")


def read_mamba(fields: ConfigFields, config: Mapping[str, Any], inner: int) -> MambaSpec:
    """The Mamba blocks of a config that spells them as Bamba's does.

    Args:
        fields: The config, with the family's own defaults.
        config: The same.
        inner: Width of all values.
    """
    if fields.text("hidden_act", "silu") not in {"silu", "swish"}:
        raise UnsupportedFeatureError("config.json: Mamba-2 with another activation than silu")
    num_heads = fields.size("mamba_n_heads", 128)
    num_groups = fields.size("mamba_n_groups", 1)
    if inner % num_heads:
        raise fields.error("mamba_n_heads", f"must divide the inner width {inner}", num_heads)
    if num_heads % num_groups:
        raise fields.error("mamba_n_groups", f"must divide {num_heads} heads", num_groups)
    head_dim = inner // num_heads
    stated = config.get("mamba_d_head")
    if stated not in (None, "auto", head_dim):
        raise fields.error("mamba_d_head", f"must be {head_dim}", stated)
    return MambaSpec(
        num_heads=num_heads,
        head_dim=head_dim,
        num_groups=num_groups,
        state_size=fields.size("mamba_d_state", 256),
        kernel_size=fields.size("mamba_d_conv", 4, minimum=2, maximum=MAX_KERNEL),
        conv_bias=fields.flag("mamba_conv_bias", True),
        proj_bias=fields.flag("mamba_proj_bias", False),
        out_bias=fields.flag("mamba_proj_bias", False),
        norm_groups=num_groups,
        time_limits=time_limits_of(fields, config.get("time_step_limit")),
    )


def time_limits_of(fields: ConfigFields, limits: object) -> tuple[float, float]:
    """Two numbers, of which the second may be infinite, as JSON can't say in one way."""
    if limits is None:
        return 0.0, math.inf
    match limits:
        case [int() | float() as low, {"__float__": "Infinity"}]:
            pair = low, math.inf
        case [int() | float() as low, int() | float() as high]:
            pair = low, high
        case _:
            pair = math.nan, math.nan
    # JSON knows whole numbers beyond every float.
    is_float = pair[0] <= sys.float_info.max and (
        pair[1] <= sys.float_info.max or pair[1] == math.inf
    )
    if not is_float or not 0 <= pair[0] < pair[1]:
        raise fields.error("time_step_limit", "must be two rising numbers", limits)
    return float(pair[0]), float(pair[1])


def _mlp(fields: ConfigFields) -> MlpSpec | MoeSpec:
    routed = mlp_of(fields)
    shared = replace(routed, intermediate_size=fields.size("shared_intermediate_size", 1024))
    if fields.size("num_local_experts", 8, minimum=0) == 0:
        return shared
    num_experts = num_experts_of(fields, 8, "num_local_experts")
    return MoeSpec(
        num_experts=num_experts,
        num_experts_per_token=num_chosen_of(fields, num_experts, 2, "num_experts_per_tok"),
        expert=routed,
        shared=shared,
    )


def _tensors(spec: DecoderSpec, names: Collection[str]) -> Tensors:
    hidden = spec.hidden_size
    sources = tensors_with_experts(GRANITE_EXPERTS)(spec, names)
    for index, layer in enumerate(spec.layers):
        ours, theirs = f"layers.{index}.", f"model.layers.{index}."
        if not isinstance(layer.mixer, AttentionSpec):
            assert isinstance(layer.mixer, MambaSpec)
            sources |= mamba_tensors(f"{ours}recurrent.", theirs, layer.mixer, hidden)
        assert layer.mlp is not None, "every layer has one"
        shared = layer.mlp if isinstance(layer.mlp, MlpSpec) else layer.mlp.shared
        assert shared is not None
        part = f"{ours}mlp." if isinstance(layer.mlp, MlpSpec) else f"{ours}mlp.shared."
        inner, block = shared.intermediate_size, f"{theirs}shared_mlp."
        sources |= {
            f"{part}gate_up.weight": (Source(f"{block}input_linear.weight", (2 * inner, hidden)),),
            f"{part}down.weight": (Source(f"{block}output_linear.weight", (hidden, inner)),),
        }
    return sources


def mamba_tensors(
    ours: str,
    theirs: str,
    mamba: MambaSpec,
    hidden: int,
    block: str = "mamba.",
    norm: str = "input_layernorm",
) -> Tensors:
    """The Mamba block of a layer.

    Args:
        ours: Prefix of the block's weights, `layers.0.recurrent.`.
        theirs: Prefix of the layer's tensors, `model.layers.0.`.
        mamba: The layer's.
        hidden: Width of the residual.
        block: Where it is in the layer, with a dot at the end.
        norm: Before it.
    """
    inner, heads = mamba.inner_size, (mamba.num_heads,)
    width = inner + mamba.channels + mamba.num_heads
    block = f"{theirs}{block}"
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "in_proj.weight": ("in_proj.weight", (width, hidden)),
        "in_proj.bias": ("in_proj.bias", (width,)),
        "conv.weight": ("conv1d.weight", (mamba.channels, 1, mamba.kernel_size)),
        "conv.bias": ("conv1d.bias", (mamba.channels,)),
        "decay": ("A_log", heads),
        "time_bias": ("dt_bias", heads),
        "passed": ("D", heads),
        "out_norm.weight": ("norm.weight", (inner,)),
        "out_proj.weight": ("out_proj.weight", (hidden, inner)),
        "out_proj.bias": ("out_proj.bias", (hidden,)),
    }
    return {
        f"{ours}norm.weight": (Source(f"{theirs}{norm}.weight", (hidden,)),),
        **{
            f"{ours}{name}": (Source(f"{block}{tensor}", shape),)
            for name, (tensor, shape) in shapes.items()
        },
    }


FAMILIES = (Family("GraniteMoeHybridForCausalLM", "granitemoehybrid", _read, _tensors),)

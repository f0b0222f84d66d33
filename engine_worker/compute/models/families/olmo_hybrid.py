"""OLMo hybrid: gated delta nets in most layers, full attention in the others.

Norms stand before a delta net and its MLP, but behind attention and its MLP.
"""

from collections.abc import Collection, Mapping
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
from engine_worker.compute.models.families.mamba import MAX_KERNEL
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.recurrent.specs import DeltaNetSpec
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    NormPlacement,
    QkNorm,
)
from engine_worker.compute.models.tensors import (
    Source,
    Spelling,
    Tensors,
    attention_tensors,
    mlp_tensors,
    outer_tensors,
)
from engine_worker.errors import UnsupportedFeatureError

_ARCHITECTURE = "OlmoHybridForCausalLM"
_LINEAR = "linear_attention"
_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 65_536}
_PERIOD = 4
_THETA = 10_000.0
"""Of a config that says nothing of it, as in transformers."""
_RECALLED_NORM_EPS = 1e-5
"""Whatever the config says of the other norms."""


def _read(config: Mapping[str, Any]) -> DecoderSpec:
    fields = ConfigFields({**_DEFAULTS, **config})
    bias = fields.flag("attention_bias", False)
    attention = attention_of(
        fields,
        read_ropes(config, _THETA, max_positions_of(fields))[FULL] if _is_rotated(config) else None,
        None,
        bias=(bias, bias),
        qk_norm=QkNorm.FULL_WIDTH,
    )
    mlp, delta = mlp_of(fields), _delta_net(fields)
    layers = [
        LayerSpec(attention, mlp, norm_placement=NormPlacement.POST)
        if kind == FULL
        else LayerSpec(delta, mlp)
        for kind in _layer_types(fields)
    ]
    return decoder_of(fields, _ARCHITECTURE, layers, "rms_norm_eps")


def _is_rotated(config: Mapping[str, Any]) -> bool:
    """Released checkpoints rotate nothing: their theta is null, which is not one left out."""
    fields = ConfigFields(config)
    stated = fields.mapping("rope_parameters") or fields.mapping("rope_scaling") or {}
    return stated.get("rope_theta", config.get("rope_theta", _THETA)) is not None


def _layer_types(fields: ConfigFields) -> tuple[str, ...]:
    num_layers = num_layers_of(fields)
    types = fields.strings("layer_types")
    if types is None:
        kinds = [_LINEAR if (index + 1) % _PERIOD else FULL for index in range(num_layers)]
        if FULL not in kinds:
            kinds[-1] = FULL
        return tuple(kinds)
    if len(types) < num_layers:
        raise fields.error("layer_types", f"must name all {num_layers} layers", types)
    unknown = sorted(set(types) - {_LINEAR, FULL})
    if unknown:
        raise UnsupportedFeatureError(f"config.json: layer type {unknown[0]!r} is not supported")
    return types[:num_layers]


def _delta_net(fields: ConfigFields) -> DeltaNetSpec:
    if fields.text("hidden_act", "silu") not in {"silu", "swish"}:
        raise UnsupportedFeatureError("config.json: delta net with another activation than silu")
    num_heads = fields.size("num_attention_heads")
    num_key_heads = fields.size("linear_num_key_heads", num_heads)
    num_value_heads = fields.size("linear_num_value_heads", num_heads)
    if num_value_heads % num_key_heads:
        what = f"must be a multiple of {num_key_heads} key heads"
        raise fields.error("linear_num_value_heads", what, num_value_heads)
    key_dim = fields.size(
        "linear_key_head_dim", int(0.75 * fields.size("hidden_size") / num_key_heads)
    )
    return DeltaNetSpec(
        num_key_heads=num_key_heads,
        num_value_heads=num_value_heads,
        key_dim=key_dim,
        value_dim=fields.size("linear_value_head_dim", 2 * key_dim),
        kernel_size=fields.size("linear_conv_kernel_dim", 4, minimum=2, maximum=MAX_KERNEL),
        max_strength=2.0 if fields.flag("linear_allow_neg_eigval", True) else 1.0,
        norm_eps=_RECALLED_NORM_EPS,
    )


def _tensors(spec: DecoderSpec, names: Collection[str]) -> Tensors:
    sources, hidden = outer_tensors(spec), spec.hidden_size
    for index, layer in enumerate(spec.layers):
        ours, theirs = f"layers.{index}.", f"model.layers.{index}."
        spelling = _spelling(theirs, names)
        if isinstance(layer.mixer, AttentionSpec):
            sources |= attention_tensors(ours, theirs, layer.mixer, hidden, spelling)
        else:
            assert isinstance(layer.mixer, DeltaNetSpec)
            norm = f"{theirs}{spelling.attention_norm}.weight"
            sources |= _delta_tensors(f"{ours}recurrent.", theirs, layer.mixer, hidden, names)
            sources[f"{ours}recurrent.norm.weight"] = (Source(norm, (hidden,)),)
        assert isinstance(layer.mlp, MlpSpec)
        sources |= mlp_tensors(ours, theirs, layer.mlp, hidden, spelling)
    return sources


def _spelling(theirs: str, names: Collection[str]) -> Spelling:
    """The norms of a layer, which hub checkpoints and transformers name apart.

    transformers writes `feedforward_layer_norm` for its `post_attention_layernorm` in all layers,
    whatever it stands for there; the hub's have it in those of a delta net only.
    """
    second = "feedforward_layer_norm"
    if f"{theirs}{second}.weight" not in names:
        second = "post_attention_layernorm"
    first = "attention_layer_norm"
    if f"{theirs}{first}.weight" not in names:
        first = "input_layernorm"
    return Spelling(attention_norm=first, attention_post_norm=second, mlp_norm=second)


def _delta_tensors(
    ours: str, theirs: str, delta: DeltaNetSpec, hidden: int, names: Collection[str]
) -> Tensors:
    block, heads = f"{theirs}linear_attn.", (delta.num_value_heads,)
    parts = {
        "q_proj": delta.keys_size,
        "k_proj": delta.keys_size,
        "v_proj": delta.values_size,
        "g_proj": delta.values_size,
        "b_proj": delta.num_value_heads,
        "a_proj": delta.num_value_heads,
    }
    kernel = (1, delta.kernel_size)
    conv: tuple[Source, ...] = (Source(f"{block}conv1d.weight", (delta.channels, *kernel)),)
    if f"{block}q_conv1d.weight" in names:
        sizes = {"q": delta.keys_size, "k": delta.keys_size, "v": delta.values_size}
        conv = tuple(
            Source(f"{block}{name}_conv1d.weight", (size, *kernel)) for name, size in sizes.items()
        )
    return {
        f"{ours}in_proj.weight": tuple(
            Source(f"{block}{name}.weight", (size, hidden)) for name, size in parts.items()
        ),
        f"{ours}conv.weight": conv,
        f"{ours}decay": (Source(f"{block}A_log", heads),),
        f"{ours}time_bias": (Source(f"{block}dt_bias", heads),),
        f"{ours}out_norm.weight": (Source(f"{block}o_norm.weight", (delta.value_dim,)),),
        f"{ours}out_proj.weight": (Source(f"{block}o_proj.weight", (hidden, delta.values_size)),),
    }


FAMILIES = (Family(_ARCHITECTURE, "olmo_hybrid", _read, _tensors),)

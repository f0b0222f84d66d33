"""What the configs of several families say in the same way."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.hf_rope import LAYER_TYPES, MAX_POSITIONS, read_ropes
from engine_worker.compute.models.spec import (
    Activation,
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    QkNorm,
    RopeKind,
    RopeSpec,
)
from engine_worker.errors import UnsupportedFeatureError

FULL, SLIDING = LAYER_TYPES
MAX_LAYERS = 1024
_DEFAULT_WINDOW = 4096


@dataclass(frozen=True, slots=True)
class HeadDefaults:
    """What a family's heads are where its config is silent; None is what the widths give."""

    head_dim: int | None = None
    num_kv_heads: int | None = None


NO_DEFAULTS = HeadDefaults()


def num_layers_of(fields: ConfigFields, name: str = "num_hidden_layers") -> int:
    """How many layers there are."""
    return fields.size(name, maximum=MAX_LAYERS)


def max_positions_of(fields: ConfigFields) -> int:
    """The longest context, in tokens."""
    return fields.size("max_position_embeddings", maximum=MAX_POSITIONS)


def attention_of(
    fields: ConfigFields,
    rope: RopeSpec | None,
    window: int | None,
    *,
    heads: HeadDefaults = NO_DEFAULTS,
    bias: tuple[bool, bool] = (False, False),
    qk_norm: QkNorm = QkNorm.NONE,
) -> AttentionSpec:
    """The attention of a layer, by the fields that most families share.

    Args:
        fields: The config.
        rope: Of the layer; None for a layer without positions.
        window: Of the layer; None is all.
        heads: Where the config is silent.
        bias: Whether the q/k/v and the output projection carry one.
        qk_norm: Of the family.
    """
    hidden, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    num_kv_heads = fields.size("num_key_value_heads", heads.num_kv_heads or num_heads)
    if num_heads % num_kv_heads:
        raise fields.error(
            "num_attention_heads",
            f"must be a multiple of {num_kv_heads} key/value heads",
            num_heads,
        )
    if not fields.present("head_dim") and heads.head_dim is None and hidden % num_heads:
        raise fields.error("hidden_size", f"must be a multiple of {num_heads} heads", hidden)
    head_dim = fields.size("head_dim", heads.head_dim or hidden // num_heads)
    if head_dim % 2:
        raise fields.error("head_dim", "must be even", head_dim)
    if rope is not None:
        _check_longrope(fields, rope, head_dim)
    qkv_bias, o_bias = bias
    return AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope,
        window=window,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        qk_norm=qk_norm,
    )


def _check_longrope(fields: ConfigFields, rope: RopeSpec, head_dim: int) -> None:
    num_pairs = (int(head_dim * rope.partial_factor) + 1) // 2
    if rope.kind is not RopeKind.LONGROPE:
        return
    for name, factors in (("short_factor", rope.short_factors), ("long_factor", rope.long_factors)):
        if len(factors) != num_pairs:
            what = f"must hold {num_pairs} numbers, one for each rotated pair of a head"
            raise fields.error(f"rope_scaling: {name}", what, factors)


_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    # Three ways to compute one and the same function.
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "relu": Activation.RELU,
    "relu2": Activation.RELU_SQUARED,
}


def activation_of(
    fields: ConfigFields, name: str = "hidden_act", default: str = "silu"
) -> Activation:
    """The activation of the MLP, by the field that names it."""
    stated = fields.text(name, default)
    if stated not in _ACTIVATIONS:
        raise UnsupportedFeatureError(f"config.json: activation {stated!r} is not supported")
    return _ACTIVATIONS[stated]


def mlp_of(
    fields: ConfigFields, *, bias: bool = False, activation: Activation | None = None
) -> MlpSpec:
    """The gated MLP of every layer, by the fields that most families share."""
    return MlpSpec(
        intermediate_size=fields.size("intermediate_size"),
        activation=activation or activation_of(fields),
        bias=bias,
    )


def decoder_of(
    fields: ConfigFields, architecture: str, layers: Iterable[LayerSpec], norm_eps: str
) -> DecoderSpec:
    """A decoder, by the fields that all families share; what a family adds is replaced in it.

    Args:
        fields: The config, with the family's own defaults.
        architecture: Of the family.
        layers: In order.
        norm_eps: The field that holds it.
    """
    return DecoderSpec(
        architecture=architecture,
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        layers=tuple(layers),
        max_position_embeddings=max_positions_of(fields),
        norm_eps=fields.number(norm_eps),
        tied_head=fields.flag("tie_word_embeddings", False),
        eos_token_ids=fields.integers("eos_token_id") or (),
    )


def text_config_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the text model in one that has more; what both say counts as said outside."""
    text = ConfigFields(config).mapping("text_config") or {}
    outer = ("eos_token_id", "tie_word_embeddings")
    return text | {name: config[name] for name in outer if config.get(name) is not None}


def ropes_by_layer_type(
    config: Mapping[str, Any], full_theta: float, sliding_theta: float, max_positions: int
) -> dict[str, RopeSpec]:
    """The ropes of a family that scales the one of its full layers only.

    Before transformers 5, `rope_scaling` is theirs, and `rope_local_base_freq` is the theta of the
    others; since then `rope_parameters` holds both by the type of the layer.

    Args:
        config: The whole `config.json`.
        full_theta: Of the full layers, where the config names none.
        sliding_theta: Of the others.
        max_positions: The context length.
    """
    fields = ConfigFields(config)
    stated = fields.mapping("rope_parameters") or {}
    scaling = fields.mapping("rope_scaling") or {}
    if any(isinstance(stated.get(name), dict) for name in LAYER_TYPES):
        by_type = ConfigFields(stated, "config.json: rope_parameters")
        full, sliding = (by_type.mapping(name) or {} for name in LAYER_TYPES)
    else:
        full, sliding = stated | scaling, {}
    nested = {
        FULL: {"rope_theta": fields.number("rope_theta", full_theta), **full},
        SLIDING: {
            "rope_theta": fields.number("rope_local_base_freq", sliding_theta),
            **sliding,
        },
    }
    return read_ropes({**config, "rope_parameters": nested}, full_theta, max_positions)


def windows_between_full_layers(
    fields: ConfigFields, num_layers: int, period: int
) -> tuple[str, ...]:
    """The types of layers that a config lists, or every `period`-th full and the others sliding."""
    stated = stated_layer_types(fields, num_layers)
    period = fields.size("sliding_window_pattern", period)
    return stated or tuple(SLIDING if (index + 1) % period else FULL for index in range(num_layers))


def stated_layer_types(fields: ConfigFields, num_layers: int) -> tuple[str, ...] | None:
    """Which layers attend through the window, where the config lists them."""
    types = fields.strings("layer_types")
    if types is None:
        return None
    if len(types) < num_layers:
        raise fields.error("layer_types", f"must name all {num_layers} layers", types)
    unknown = sorted(set(types) - set(LAYER_TYPES))
    if unknown:
        raise UnsupportedFeatureError(f"config.json: layer type {unknown[0]!r} is not supported")
    return types[:num_layers]


def all_full(_: ConfigFields, num_layers: int) -> tuple[str, ...]:
    """Every layer sees all tokens."""
    return (FULL,) * num_layers


def all_sliding(_: ConfigFields, num_layers: int) -> tuple[str, ...]:
    """Every layer sees the window."""
    return (SLIDING,) * num_layers


def no_window(_: ConfigFields) -> int | None:
    """No layer has one."""
    return None


def plain_window(fields: ConfigFields) -> int | None:
    """Mistral: absent means the default, null means none."""
    if fields.stated("sliding_window") and not fields.present("sliding_window"):
        return None
    return fields.size("sliding_window", _DEFAULT_WINDOW, maximum=MAX_POSITIONS)


def stated_window(fields: ConfigFields) -> int | None:
    """A width where the config has one."""
    return plain_window(fields) if fields.present("sliding_window") else None


def switched_window(fields: ConfigFields) -> int | None:
    """Qwen: a width that counts only when it is switched on."""
    return plain_window(fields) if fields.flag("use_sliding_window", False) else None

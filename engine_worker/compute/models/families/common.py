"""What the configs of several families say in the same way."""

from dataclasses import dataclass

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.hf_rope import LAYER_TYPES, MAX_POSITIONS
from engine_worker.compute.models.spec import Activation, AttentionSpec, MlpSpec, QkNorm, RopeSpec
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


def num_layers_of(fields: ConfigFields) -> int:
    """How many decoder layers there are."""
    return fields.size("num_hidden_layers", maximum=MAX_LAYERS)


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


def mlp_of(fields: ConfigFields, *, bias: bool = False) -> MlpSpec:
    """The gated MLP of every layer, by the fields that most families share."""
    name = fields.text("hidden_act", Activation.SILU.value)
    try:
        activation = Activation("silu" if name == "swish" else name)
    except ValueError:
        raise UnsupportedFeatureError(
            f"config.json: activation {name!r} is not supported"
        ) from None
    return MlpSpec(
        intermediate_size=fields.size("intermediate_size"),
        activation=activation,
        bias=bias,
    )


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


def switched_window(fields: ConfigFields) -> int | None:
    """Qwen: a width that counts only when it is switched on."""
    return plain_window(fields) if fields.flag("use_sliding_window", False) else None

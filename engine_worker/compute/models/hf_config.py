"""From a Hugging Face `config.json` to a `DecoderSpec`: one short normaliser per family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields, read_config
from engine_worker.compute.models.hf_rope import LAYER_TYPES, MAX_POSITIONS, read_ropes
from engine_worker.compute.models.spec import (
    Activation,
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    QkNorm,
    RopeSpec,
)
from engine_worker.errors import (
    UnsupportedArchitectureError,
    UnsupportedFeatureError,
    UnsupportedFormatError,
)

FULL, SLIDING = LAYER_TYPES
MAX_LAYERS = 1024
_DEFAULT_WINDOW = 4096


@dataclass(frozen=True, slots=True)
class _Family:
    """What a family is where its config is silent, and how it differs from plain Llama.

    Attributes:
        layer_types: Which layers attend through the window.
        window: Width of the window in tokens; None is no window at all.
        attention_bias: What the q/k/v and the output projection carry.
        rotates: Whether each layer has positions.
    """

    model_type: str
    layer_types: Callable[[ConfigFields, int], tuple[str, ...]]
    window: Callable[[ConfigFields], int | None]
    attention_bias: Callable[[ConfigFields], tuple[bool, bool]]
    rotates: Callable[[ConfigFields, int], tuple[bool, ...]]
    mlp_bias: bool = False
    qk_norm: QkNorm = QkNorm.NONE
    head_dim: int | None = None
    num_kv_heads: int | None = None
    theta: float = 10_000.0
    tied_head: bool = False


def load_spec(folder: Path) -> DecoderSpec:
    """Reads the decoder of a model folder.

    Args:
        folder: Holds `config.json`.

    Returns:
        A spec that `declare` accepts or refuses by name.

    Raises:
        ModelConfigError: The file is missing, unreadable or contradicts itself.
        UnsupportedArchitectureError: No decoder for it; lists those that have one.
        UnsupportedFormatError: The weights are quantised in a format that is not read.
        UnsupportedFeatureError: One value of the config has no meaning here.
    """
    return decoder_spec(read_config(folder))


def decoder_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """Turns a parsed `config.json` into a spec; errors as `load_spec`."""
    fields = ConfigFields(config)
    architecture = _architecture(fields)
    _refuse_quantized(fields)
    family = FAMILIES[architecture]
    num_layers = fields.size("num_hidden_layers", maximum=MAX_LAYERS)
    max_positions = fields.size("max_position_embeddings", maximum=MAX_POSITIONS)
    ropes = read_ropes(config, family.theta, max_positions)
    window = family.window(fields)
    mlp = _mlp(fields, family)
    layers = []
    types = family.layer_types(fields, num_layers)
    for layer_type, rotates in zip(types, family.rotates(fields, num_layers), strict=True):
        rope = ropes[layer_type] if rotates else None
        attention = _attention(fields, family, rope, window if layer_type == SLIDING else None)
        layers.append(LayerSpec(attention, mlp))
    return DecoderSpec(
        architecture=architecture,
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        layers=tuple(layers),
        max_position_embeddings=max_positions,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        tied_head=fields.flag("tie_word_embeddings", family.tied_head),
        eos_token_ids=fields.integers("eos_token_id") or (),
    )


def _architecture(fields: ConfigFields) -> str:
    """The first supported architecture that the config names, else the one of its model type."""
    named = fields.strings("architectures") or ()
    for architecture in named:
        if architecture in FAMILIES:
            return architecture
    model_type = fields.text("model_type", "")
    if not named:
        for architecture, family in FAMILIES.items():
            if family.model_type == model_type:
                return architecture
    name = named[0] if named else f"model type {model_type!r}"
    raise UnsupportedArchitectureError(
        f"{name} is not supported; supported architectures: {', '.join(FAMILIES)}"
    )


def _refuse_quantized(fields: ConfigFields) -> None:
    quantization = fields.mapping("quantization_config")
    if quantization is None:
        return
    method = ConfigFields(quantization, "config.json: quantization_config").text(
        "quant_method", "an unnamed method"
    )
    raise UnsupportedFormatError(
        f"the weights are quantised ({method}), a format that is not supported; use the original "
        "model with float32, float16 or bfloat16 safetensors"
    )


def _attention(
    fields: ConfigFields, family: _Family, rope: RopeSpec | None, window: int | None
) -> AttentionSpec:
    hidden, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    num_kv_heads = fields.size("num_key_value_heads", family.num_kv_heads or num_heads)
    if num_heads % num_kv_heads:
        raise fields.error(
            "num_attention_heads",
            f"must be a multiple of {num_kv_heads} key/value heads",
            num_heads,
        )
    if not fields.present("head_dim") and family.head_dim is None and hidden % num_heads:
        raise fields.error("hidden_size", f"must be a multiple of {num_heads} heads", hidden)
    head_dim = fields.size("head_dim", family.head_dim or hidden // num_heads)
    if head_dim % 2:
        raise fields.error("head_dim", "must be even", head_dim)
    qkv_bias, o_bias = family.attention_bias(fields)
    return AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope,
        window=window,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        qk_norm=family.qk_norm,
    )


def _mlp(fields: ConfigFields, family: _Family) -> MlpSpec:
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
        bias=family.mlp_bias and fields.flag("mlp_bias", False),
    )


def _stated_layer_types(fields: ConfigFields, num_layers: int) -> tuple[str, ...] | None:
    types = fields.strings("layer_types")
    if types is None:
        return None
    if len(types) < num_layers:
        raise fields.error("layer_types", f"must name all {num_layers} layers", types)
    unknown = sorted(set(types) - set(LAYER_TYPES))
    if unknown:
        raise UnsupportedFeatureError(f"config.json: layer type {unknown[0]!r} is not supported")
    return types[:num_layers]


def _all_full(_: ConfigFields, num_layers: int) -> tuple[str, ...]:
    return (FULL,) * num_layers


def _all_sliding(_: ConfigFields, num_layers: int) -> tuple[str, ...]:
    return (SLIDING,) * num_layers


def _ministral_layer_types(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    return _stated_layer_types(fields, num_layers) or _all_sliding(fields, num_layers)


def _qwen_layer_types(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    stated = _stated_layer_types(fields, num_layers)
    if stated is not None or _switched_window(fields) is None:
        return stated or _all_full(fields, num_layers)
    first = fields.size("max_window_layers", 28, minimum=0)
    return tuple(SLIDING if index >= first else FULL for index in range(num_layers))


def _smollm3_layer_types(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    stated = _stated_layer_types(fields, num_layers)
    if stated is not None or _smollm3_window(fields) is None:
        return stated or _all_full(fields, num_layers)
    return tuple(FULL if rotates else SLIDING for rotates in _nope(fields, num_layers))


def _no_window(_: ConfigFields) -> int | None:
    return None


def _plain_window(fields: ConfigFields) -> int | None:
    """Mistral: absent means the default, null means none."""
    if fields.stated("sliding_window") and not fields.present("sliding_window"):
        return None
    return fields.size("sliding_window", _DEFAULT_WINDOW, maximum=MAX_POSITIONS)


def _switched_window(fields: ConfigFields) -> int | None:
    """Qwen: a width that counts only when it is switched on."""
    return _plain_window(fields) if fields.flag("use_sliding_window", False) else None


def _smollm3_window(fields: ConfigFields) -> int | None:
    """SmolLM3: as Qwen, but without a width of its own."""
    return _switched_window(fields) if fields.present("sliding_window") else None


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


FAMILIES: dict[str, _Family] = {
    "LlamaForCausalLM": _Family(
        "llama", _all_full, _no_window, _stated_bias, _always, mlp_bias=True
    ),
    "MistralForCausalLM": _Family(
        "mistral", _all_sliding, _plain_window, _no_bias, _always, num_kv_heads=8
    ),
    "MinistralForCausalLM": _Family(
        "ministral", _ministral_layer_types, _plain_window, _no_bias, _always, num_kv_heads=8
    ),
    "Qwen2ForCausalLM": _Family("qwen2", _qwen_layer_types, _switched_window, _qkv_bias, _always),
    "Qwen3ForCausalLM": _Family(
        "qwen3",
        _qwen_layer_types,
        _switched_window,
        _stated_bias,
        _always,
        qk_norm=QkNorm.PER_HEAD,
        head_dim=128,
    ),
    "SmolLM3ForCausalLM": _Family(
        "smollm3",
        _smollm3_layer_types,
        _smollm3_window,
        _stated_bias,
        _nope,
        mlp_bias=True,
        num_kv_heads=4,
        theta=2_000_000.0,
        tied_head=True,
    ),
}
"""Every architecture that is served, by the name in `architectures`."""

"""ModernBERT (arXiv 2412.13663): rotary positions, windows, GeGLU, pre-norm, hardly a bias."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import num_layers_of
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.tensors import Source, Tensors
from engine_worker.embedding.encoder_spec import EncoderLayerSpec, EncoderSpec, HeadSpec
from engine_worker.embedding.families.common import activation_of, max_tokens_of, num_heads_of
from engine_worker.embedding.families.family import EncoderFamily, norm, pair
from engine_worker.errors import UnsupportedFeatureError

_FULL: Final = "full_attention"
_SLIDING: Final = "sliding_attention"
_GLOBAL_THETA: Final = 160_000.0
_LOCAL_THETA: Final = 10_000.0


def _read(config: Mapping[str, Any]) -> EncoderSpec:
    fields = ConfigFields(config)
    hidden_size = fields.size("hidden_size")
    positions = fields.size("max_position_embeddings", 8192)
    num_layers = num_layers_of(fields)
    types = _layer_types(fields, num_layers)
    ropes = {
        kind: read_ropes(config, theta, positions)[kind] for kind, theta in _thetas(fields).items()
    }
    # The whole window is stated; half of it lies on either side.
    window = fields.size("local_attention", 128) // 2
    bias = fields.flag("attention_bias", False)
    mlp_bias = fields.flag("mlp_bias", False)
    return EncoderSpec(
        architecture="",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads_of(fields, hidden_size),
        intermediate_size=fields.size("intermediate_size"),
        layers=tuple(
            EncoderLayerSpec(
                rope=ropes[kind],
                window=window if kind == _SLIDING else None,
                has_attention_norm=index > 0,
            )
            for index, kind in enumerate(types)
        ),
        max_tokens=max_tokens_of(fields, "max_position_embeddings", 8192),
        activation=activation_of(fields, "hidden_activation", "gelu"),
        norm_eps=fields.number("norm_eps", 1e-5),
        is_pre_norm=True,
        is_gated=True,
        norm_bias=fields.flag("norm_bias", False),
        qkv_bias=bias,
        o_bias=bias,
        up_bias=mlp_bias,
        down_bias=mlp_bias,
    )


def _thetas(fields: ConfigFields) -> dict[str, float]:
    """The base of either kind of layers; null for those with a window is that of the others."""
    name = "local_rope_theta"
    every = fields.number("global_rope_theta", _GLOBAL_THETA)
    is_shared = fields.stated(name) and not fields.present(name)
    return {_FULL: every, _SLIDING: every if is_shared else fields.number(name, _LOCAL_THETA)}


def _layer_types(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    stated = fields.strings("layer_types")
    if stated is None:
        interval = fields.size("global_attn_every_n_layers", 3)
        return tuple(_SLIDING if index % interval else _FULL for index in range(num_layers))
    if len(stated) != num_layers or not set(stated) <= {_FULL, _SLIDING}:
        raise fields.error(
            "layer_types", f"must say {_FULL} or {_SLIDING} for all {num_layers} layers", stated
        )
    return stated


def _head(config: Mapping[str, Any], num_labels: int) -> HeadSpec:
    fields = ConfigFields(config)
    pooling = fields.text("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise UnsupportedFeatureError(
            f"config.json: not supported yet: classifier_pooling {pooling!r}"
        )
    return HeadSpec(
        num_labels,
        activation_of(fields, "classifier_activation", "gelu"),
        pooling="mean" if pooling == "mean" else "cls",
        dense_bias=fields.flag("classifier_bias", False),
        has_norm=True,
    )


def _tensors(spec: EncoderSpec, prefix: str, names: Collection[str]) -> Tensors:
    hidden, inner, bias = spec.hidden_size, spec.intermediate_size, spec.norm_bias
    words = Source(f"{prefix}embeddings.tok_embeddings.weight", (spec.vocab_size, hidden))
    found: Tensors = {"words.weight": (words,)}
    found |= norm("norm", f"{prefix}embeddings.norm", hidden, names, bias=bias)
    found |= norm("final_norm", f"{prefix}final_norm", hidden, names, bias=bias)
    for index in range(spec.num_layers):
        ours, theirs = f"layers.{index}.", f"{prefix}layers.{index}."
        qkv = (3 * hidden, hidden)
        found |= norm(f"{ours}attention_norm", f"{theirs}attn_norm", hidden, names, bias=bias)
        found |= pair(f"{ours}qkv", f"{theirs}attn.Wqkv", qkv, bias=spec.qkv_bias)
        found |= pair(f"{ours}o", f"{theirs}attn.Wo", (hidden, hidden), bias=spec.o_bias)
        found |= norm(f"{ours}mlp_norm", f"{theirs}mlp_norm", hidden, names, bias=bias)
        up = (2 * inner, hidden)
        found |= pair(f"{ours}mlp.up", f"{theirs}mlp.Wi", up, bias=spec.up_bias)
        found |= pair(f"{ours}mlp.down", f"{theirs}mlp.Wo", (hidden, inner), bias=spec.down_bias)
    if spec.head is not None:
        square = (hidden, hidden)
        found |= pair("head.dense", "head.dense", square, bias=spec.head.dense_bias)
        found |= norm("head.norm", "head.norm", hidden, names, bias=bias)
        found |= pair("head.out", "classifier", (spec.head.num_labels, hidden))
    return found


FAMILIES = (
    EncoderFamily(
        "ModernBERT",
        ("modernbert",),
        ("model.",),
        "embeddings.tok_embeddings.weight",
        _read,
        _tensors,
        _head,
    ),
)

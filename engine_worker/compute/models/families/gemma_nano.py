"""Gemma 3n and Gemma 4: vectors of the tokens for each layer, and layers that share keys.

Gemma 3n has several residuals side by side beside them; Gemma 4 has wider heads in its full layers
than in those with a window, and, where it is large, experts beside a dense MLP.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from statistics import NormalDist
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    FULL,
    SLIDING,
    activation_of,
    attention_of,
    decoder_of,
    max_positions_of,
    mlp_of,
    num_layers_of,
    ropes_by_layer_type,
    stated_layer_types,
    stated_window,
    text_config_of,
    windows_between_full_layers,
)
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.families.moe import num_chosen_of, num_experts_of
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.spec import (
    AltUpSpec,
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    NormPlacement,
    QkNorm,
    RopeSpec,
    TokenInputSpec,
)
from engine_worker.compute.models.tensors import (
    Source,
    Spelling,
    TensorNames,
    Tensors,
    text_model_tensors,
)
from engine_worker.errors import ModelConfigError, UnsupportedFeatureError

_SANDWICH = Spelling(mlp_norm="pre_feedforward_layernorm")
_COMMON = {
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "head_dim": 256,
    "sliding_window": 512,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
}
_GEMMA3N: dict[str, Any] = _COMMON | {
    "vocab_size": 262_400,
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "num_kv_shared_layers": 15,
    "altup_active_idx": 0,
    "altup_num_inputs": 4,
    "laurel_rank": 64,
}
_GEMMA4: dict[str, Any] = _COMMON | {
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
    "num_kv_shared_layers": 0,
    "rope_parameters": {
        SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
        FULL: {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1_000_000.0,
        },
    },
}
"""What configs leave out where it is so."""
_OUTSIDE_TEXT = tuple(
    f"{prefix}{part}."
    for prefix in ("", "model.")
    for part in ("vision_tower", "embed_vision", "audio_tower", "embed_audio")
)
_MAX_STREAMS = 64
_FEWEST_SPARSE_LAYERS, _SPARSITY = 10, 0.95


def read_gemma3n(
    config: Mapping[str, Any], architecture: str = "Gemma3nForCausalLM"
) -> DecoderSpec:
    """Gemma 3n, text."""
    fields = ConfigFields({**_GEMMA3N, **config})
    num_layers = num_layers_of(fields)
    types = windows_between_full_layers(fields, num_layers, 5)
    ropes = ropes_by_layer_type(config, 1_000_000.0, 10_000.0, max_positions_of(fields))
    bias = fields.flag("attention_bias", False)
    window = stated_window(fields)
    attentions = [
        attention_of(
            fields,
            ropes[layer_type],
            window if layer_type == SLIDING else None,
            bias=(bias, bias),
            qk_norm=QkNorm.PER_HEAD,
        )
        for layer_type in types
    ]
    layers = [
        LayerSpec(attention, mlp)
        for attention, mlp in zip(
            _sharing(fields, types, attentions), _gemma3n_mlps(fields, config), strict=True
        )
    ]
    num_streams = fields.size("altup_num_inputs", maximum=_MAX_STREAMS)
    spec = replace(
        _decoder(fields, architecture, layers),
        alt_up=AltUpSpec(
            num_streams=num_streams,
            active=fields.size("altup_active_idx", minimum=0, maximum=num_streams - 1),
            has_output_scale=fields.flag("altup_correct_scale", True),
            laurel_rank=fields.size("laurel_rank"),
        ),
        final_softcap=fields.optional_number("final_logit_softcapping", 30.0),
    )
    if spec.token_inputs is None:
        raise UnsupportedFeatureError(
            "config.json: hidden_size_per_layer_input: Gemma 3n has vectors for each layer"
        )
    return spec


def _gemma3n_mlps(fields: ConfigFields, config: Mapping[str, Any]) -> list[MlpSpec]:
    num_layers, activation = num_layers_of(fields), _activation(fields)
    widths = config.get("intermediate_size", _GEMMA3N["intermediate_size"])
    if not isinstance(widths, list):
        widths = [fields.size("intermediate_size")] * num_layers
    sparsity = config.get("activation_sparsity_pattern")
    if sparsity is None:
        num_sparse = _FEWEST_SPARSE_LAYERS if num_layers > _FEWEST_SPARSE_LAYERS else 0
        sparsity = [_SPARSITY] * num_sparse + [0.0] * (num_layers - num_sparse)
    elif not isinstance(sparsity, list):
        sparsity = [sparsity] * num_layers
    for name, values in (("intermediate_size", widths), ("activation_sparsity_pattern", sparsity)):
        if len(values) != num_layers:
            raise fields.error(name, f"must have a number for each of {num_layers} layers", values)
    for share in sparsity:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            what = "must hold numbers from 0 to below 1"
            raise fields.error("activation_sparsity_pattern", what, share)
    return [
        MlpSpec(
            intermediate_size=ConfigFields({"intermediate_size": width}).size("intermediate_size"),
            activation=activation,
            gate_cutoff=NormalDist().inv_cdf(share) if share else None,
        )
        for width, share in zip(widths, sparsity, strict=True)
    ]


def read_gemma4(config: Mapping[str, Any], architecture: str = "Gemma4ForCausalLM") -> DecoderSpec:
    """Gemma 4, text."""
    config = {**_GEMMA4, **{name: value for name, value in config.items() if value is not None}}
    fields = ConfigFields(config)
    if config.get("use_bidirectional_attention") == "all":
        raise UnsupportedFeatureError(
            "config.json: use_bidirectional_attention: a model that sees what comes after a token "
            "cannot generate"
        )
    num_layers = num_layers_of(fields)
    stated = stated_layer_types(fields, num_layers)
    types = stated or windows_between_full_layers(fields, num_layers, 6)
    types = (*types[:-1], FULL)
    ropes = read_ropes(config, 10_000.0, max_positions_of(fields))
    attentions = [
        _gemma4_attention(fields, config, index, layer_type, ropes[layer_type])
        for index, layer_type in enumerate(types)
    ]
    num_own = num_layers - fields.size("num_kv_shared_layers", minimum=0, maximum=num_layers)
    is_wider = fields.flag("use_double_wide_mlp", False)
    layers = [
        LayerSpec(attention, _gemma4_mlp(fields, is_wide=is_wider and index >= num_own))
        for index, attention in enumerate(_sharing(fields, types, attentions))
    ]
    spec = _decoder(fields, architecture, layers)
    softcap = fields.optional_number("final_logit_softcapping")
    return replace(spec, final_softcap=softcap, layer_scales=True)


def _gemma4_attention(
    fields: ConfigFields,
    config: Mapping[str, Any],
    index: int,
    layer_type: str,
    rope: RopeSpec,
) -> AttentionSpec:
    is_full = layer_type == FULL
    of_key = fields.flag("attention_k_eq_v", False) and is_full
    heads = {name: config[name] for name in ("head_dim", "num_key_value_heads")}
    by_layer = fields.mapping("per_layer_config")
    if by_layer is not None:
        own = ConfigFields(by_layer, "config.json: per_layer_config").mapping(str(index)) or {}
        heads |= {name: own[name] for name in heads if name in own}
    elif is_full:
        heads["head_dim"] = config.get("global_head_dim", 512)
        if of_key and fields.present("num_global_key_value_heads"):
            heads["num_key_value_heads"] = config["num_global_key_value_heads"]
    bias = fields.flag("attention_bias", False)
    return replace(
        attention_of(
            ConfigFields({**config, **heads}),
            rope,
            None if is_full else stated_window(fields),
            bias=(bias, bias),
            qk_norm=QkNorm.PER_HEAD,
        ),
        is_value_of_key=of_key,
    )


def _gemma4_mlp(fields: ConfigFields, *, is_wide: bool) -> MlpSpec | MoeSpec:
    dense = mlp_of(fields, activation=_activation(fields))
    if is_wide:
        dense = replace(dense, intermediate_size=2 * dense.intermediate_size)
    if not fields.flag("enable_moe_block", False):
        return dense
    num_experts = num_experts_of(fields, 128, "num_experts")
    return MoeSpec(
        num_experts=num_experts,
        num_experts_per_token=num_chosen_of(fields, num_experts, 8, "top_k_experts"),
        expert=replace(dense, intermediate_size=fields.size("moe_intermediate_size")),
        shared=dense,
        is_beside_dense=True,
    )


def _activation(fields: ConfigFields) -> Any:
    return activation_of(fields, "hidden_activation", "gelu_pytorch_tanh")


def _sharing(
    fields: ConfigFields, types: tuple[str, ...], attentions: list[AttentionSpec]
) -> list[AttentionSpec]:
    """The attention of all layers, of which the last read the keys of the last before them.

    Of those before them, that is, the last one of their type.
    """
    num_layers = len(types)
    num_own = num_layers - fields.size("num_kv_shared_layers", minimum=0, maximum=num_layers)
    last = {layer_type: index for index, layer_type in enumerate(types[:num_own])}
    shared = []
    for index, (layer_type, attention) in enumerate(zip(types, attentions, strict=True)):
        own = replace(attention, scale=1.0, value_norm=True)
        if index >= num_own:
            if layer_type not in last:
                raise ModelConfigError(
                    f"config.json: num_kv_shared_layers: no layer with {layer_type} is left whose "
                    "keys and values the others could share"
                )
            source = attentions[last[layer_type]]
            if (own.num_kv_heads, own.head_dim) != (source.num_kv_heads, source.head_dim):
                raise ModelConfigError(
                    f"config.json: per_layer_config: layers {last[layer_type]} and {index} share "
                    "keys and values of different heads"
                )
            own = replace(own, shared_from=last[layer_type], value_norm=False)
            own = replace(own, is_value_of_key=False)
        shared.append(own)
    return shared


def _decoder(fields: ConfigFields, architecture: str, layers: list[LayerSpec]) -> DecoderSpec:
    spec = decoder_of(fields, architecture, layers, "rms_norm_eps")
    width = fields.size("hidden_size_per_layer_input", minimum=0)
    inputs = None
    if width:
        vocab_size = fields.size("vocab_size_per_layer_input")
        inputs = TokenInputSpec(width, vocab_size, _activation(fields))
    return replace(
        spec,
        norm_placement=NormPlacement.SANDWICH,
        embedding_multiplier=math.sqrt(spec.hidden_size),
        token_inputs=inputs,
    )


def _tensors(usual: TensorNames) -> TensorNames:
    """What both families have beside the usual."""

    def tensors(spec: DecoderSpec, names: Collection[str] = ()) -> Tensors:
        sources = usual(spec, names)
        (embedding,) = sources["embedding.weight"]
        model = embedding.name.removesuffix("embed_tokens.weight")
        hidden = spec.hidden_size
        sources |= _input_tensors(spec, model) | _stream_tensors(spec, model)
        for index, layer in enumerate(spec.layers):
            ours, theirs = f"layers.{index}.", f"{model}layers.{index}."
            sources |= _qkv_tensors(f"{ours}attention.", theirs, layer.attention, hidden)
            sources[f"{ours}scale"] = (Source(f"{theirs}layer_scalar", (1,)),)
            if isinstance(layer.mlp, MoeSpec):
                sources |= _expert_tensors(f"{ours}mlp.", theirs, layer.mlp, hidden)
            if spec.token_inputs is not None:
                sources |= _layer_input_tensors(ours, theirs, spec.token_inputs.width, hidden)
            if spec.alt_up is not None:
                sources |= _alt_up_tensors(f"{ours}alt_up.", theirs, spec.alt_up, hidden)
        return sources

    return tensors


def _qkv_tensors(ours: str, theirs: str, attention: AttentionSpec, hidden: int) -> Tensors:
    """Only those projections that a layer has."""
    parts = [
        (f"{theirs}self_attn.{name}", size)
        for name, size in zip(
            ("q_proj", "k_proj", "v_proj"), attention.projected_sizes, strict=True
        )
        if size
    ]
    return {
        f"{ours}qkv.weight": tuple(
            Source(f"{name}.weight", (size, hidden)) for name, size in parts
        ),
        f"{ours}qkv.bias": tuple(Source(f"{name}.bias", (size,)) for name, size in parts),
    }


def _expert_tensors(ours: str, theirs: str, moe: MoeSpec, hidden: int) -> Tensors:
    assert moe.shared is not None, "read with it"
    num, inner, dense = moe.num_experts, moe.expert.intermediate_size, moe.shared.intermediate_size
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "norm.weight": ("pre_feedforward_layernorm.weight", (hidden,)),
        "post_norm.weight": ("post_feedforward_layernorm.weight", (hidden,)),
        "router.weight": ("router.proj.weight", (num, hidden)),
        "gate_up.weight": ("experts.gate_up_proj", (num, 2 * inner, hidden)),
        "down.weight": ("experts.down_proj", (num, hidden, inner)),
        "shared.down.weight": ("mlp.down_proj.weight", (hidden, dense)),
        "beside.experts_norm.weight": ("pre_feedforward_layernorm_2.weight", (hidden,)),
        "beside.experts_post_norm.weight": ("post_feedforward_layernorm_2.weight", (hidden,)),
        "beside.dense_post_norm.weight": ("post_feedforward_layernorm_1.weight", (hidden,)),
        "beside.input_scale": ("router.scale", (hidden,)),
        "beside.expert_scale": ("router.per_expert_scale", (num,)),
    }
    gate_up = tuple(
        Source(f"{theirs}mlp.{name}.weight", (dense, hidden)) for name in ("gate_proj", "up_proj")
    )
    return {f"{ours}shared.gate_up.weight": gate_up} | _renamed(ours, theirs, shapes)


def _input_tensors(spec: DecoderSpec, model: str) -> Tensors:
    inputs = spec.token_inputs
    if inputs is None:
        return {}
    size = spec.num_layers * inputs.width
    shapes = {
        "embedding.weight": ("embed_tokens_per_layer.weight", (inputs.vocab_size, size)),
        "projection.weight": ("per_layer_model_projection.weight", (size, spec.hidden_size)),
        "norm.weight": ("per_layer_projection_norm.weight", (inputs.width,)),
    }
    return _renamed("token_inputs.", model, shapes)


def _layer_input_tensors(ours: str, theirs: str, width: int, hidden: int) -> Tensors:
    shapes = {
        "gate.weight": ("per_layer_input_gate.weight", (width, hidden)),
        "projection.weight": ("per_layer_projection.weight", (hidden, width)),
        "norm.weight": ("post_per_layer_input_norm.weight", (hidden,)),
    }
    return _renamed(f"{ours}token_input.", theirs, shapes)


def _stream_tensors(spec: DecoderSpec, model: str) -> Tensors:
    if spec.alt_up is None:
        return {}
    square = (spec.hidden_size, spec.hidden_size)
    return {
        f"streams.{ours}.{index}.weight": (Source(f"{model}{theirs}.{index}.weight", square),)
        for ours, theirs in (
            ("projections", "altup_projections"),
            ("returns", "altup_unembed_projections"),
        )
        for index in range(spec.alt_up.num_streams - 1)
    }


def _alt_up_tensors(ours: str, theirs: str, alt_up: AltUpSpec, hidden: int) -> Tensors:
    num, rank = alt_up.num_streams, alt_up.laurel_rank
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "router.weight": ("altup.modality_router.weight", (num, hidden)),
        "router_norm.weight": ("altup.router_norm.weight", (hidden,)),
        "prediction.weight": ("altup.prediction_coefs.weight", (num * num, num)),
        "correction.weight": ("altup.correction_coefs.weight", (num, num)),
        "output_scale": ("altup.correct_output_scale", (hidden,)),
        "laurel_in.weight": ("laurel.linear_left.weight", (rank, hidden)),
        "laurel_out.weight": ("laurel.linear_right.weight", (hidden, rank)),
        "laurel_norm.weight": ("laurel.post_laurel_norm.weight", (hidden,)),
    }
    return _renamed(ours, theirs, shapes)


def _renamed(ours: str, theirs: str, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> Tensors:
    return {
        f"{ours}{name}": (Source(f"{theirs}{tensor}", shape),)
        for name, (tensor, shape) in shapes.items()
    }


def _read_with_towers(read: Any, architecture: str) -> Any:
    def read_text(config: Mapping[str, Any]) -> DecoderSpec:
        """The text model of one that also sees and hears."""
        spec: DecoderSpec = read(text_config_of(config), architecture)
        return spec

    return read_text


_TENSORS = _tensors(text_model_tensors(_SANDWICH))

FAMILIES = (
    Family("Gemma3nForCausalLM", "gemma3n_text", read_gemma3n, _TENSORS),
    Family(
        "Gemma3nForConditionalGeneration",
        "gemma3n",
        _read_with_towers(read_gemma3n, "Gemma3nForConditionalGeneration"),
        _TENSORS,
        _OUTSIDE_TEXT,
    ),
    Family("Gemma4ForCausalLM", "gemma4_text", read_gemma4, _TENSORS),
    Family(
        "Gemma4ForConditionalGeneration",
        "gemma4",
        _read_with_towers(read_gemma4, "Gemma4ForConditionalGeneration"),
        _TENSORS,
        _OUTSIDE_TEXT,
    ),
)

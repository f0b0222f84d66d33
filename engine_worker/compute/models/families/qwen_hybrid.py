"""Qwen3-Next and Qwen3.5: gated delta nets, with gated attention in every few layers."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    FULL,
    HeadDefaults,
    attention_of,
    max_positions_of,
    mlp_of,
    num_layers_of,
)
from engine_worker.compute.models.families.experts import ExpertNames, tensors_with_experts
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.families.moe import num_chosen_of, num_experts_of
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.recurrent.specs import DeltaNetSpec
from engine_worker.compute.models.spec import (
    Activation,
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    NormKind,
    QkNorm,
)
from engine_worker.compute.models.tensors import HEAD, Source, Tensors
from engine_worker.errors import UnsupportedFeatureError

LINEAR = "linear_attention"
MAX_KERNEL = 64
"""Tokens that a convolution sees; those of all models see three or four."""
_ROTATED_SHARE = 0.25
_WITH_EXPERTS = tensors_with_experts(ExpertNames(shared="shared_expert."))
_NESTED = "model.language_model."
"""Stands before the text model's tensors in checkpoints that have a vision tower, too."""

_Mlps = Callable[[ConfigFields, int], MlpSpec | MoeSpec]
_Projections = Callable[[str, DeltaNetSpec, int], tuple[Source, ...]]


@dataclass(frozen=True, slots=True)
class _Traits:
    """How the families of this file differ.

    Attributes:
        mlp: Of a layer, by its index.
        projections: The tensors of a delta net's one product.
        is_nested: The text model's config is part of a larger one.
        num_kv_heads: Where the config is silent.
    """

    architecture: str
    model_type: str
    mlp: _Mlps
    projections: _Projections
    is_nested: bool = False
    num_kv_heads: int = 2


def _read(traits: _Traits, config: Mapping[str, Any]) -> DecoderSpec:
    outer = ConfigFields(config)
    if traits.is_nested:
        config = outer.mapping("text_config") or {}
    fields = ConfigFields(config, "config.json: text_config" if traits.is_nested else "config.json")
    num_layers, max_positions = num_layers_of(fields), max_positions_of(fields)
    ropes = read_ropes({"partial_rotary_factor": _ROTATED_SHARE, **config}, 1e4, max_positions)
    bias = fields.flag("attention_bias", False)
    attention = attention_of(
        fields,
        ropes[FULL],
        None,
        heads=HeadDefaults(head_dim=256, num_kv_heads=traits.num_kv_heads),
        bias=(bias, bias),
        qk_norm=QkNorm.PER_HEAD,
    )
    attention, delta = replace(attention, output_gate=True), _delta_net(fields)
    return DecoderSpec(
        architecture=traits.architecture,
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        layers=tuple(
            LayerSpec(delta if kind == LINEAR else attention, traits.mlp(fields, index))
            for index, kind in enumerate(_layer_types(fields, num_layers))
        ),
        max_position_embeddings=max_positions,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        tied_head=outer.flag("tie_word_embeddings", fields.flag("tie_word_embeddings", False)),
        norm_kind=NormKind.RMS_PLUS_ONE,
        eos_token_ids=fields.integers("eos_token_id") or outer.integers("eos_token_id") or (),
    )


def _delta_net(fields: ConfigFields) -> DeltaNetSpec:
    # Its convolution is followed by what the MLP has, too, and no model has another one.
    if mlp_activation(fields) is not Activation.SILU:
        raise UnsupportedFeatureError("config.json: a delta net with another activation than silu")
    num_key_heads = fields.size("linear_num_key_heads", 16)
    num_value_heads = fields.size("linear_num_value_heads", 32)
    if num_value_heads % num_key_heads:
        raise fields.error(
            "linear_num_value_heads", f"must be a multiple of {num_key_heads}", num_value_heads
        )
    return DeltaNetSpec(
        num_key_heads=num_key_heads,
        num_value_heads=num_value_heads,
        key_dim=fields.size("linear_key_head_dim", 128),
        value_dim=fields.size("linear_value_head_dim", 128),
        kernel_size=fields.size("linear_conv_kernel_dim", 4, minimum=2, maximum=MAX_KERNEL),
    )


def mlp_activation(fields: ConfigFields) -> Activation:
    """What `hidden_act` says."""
    name = fields.text("hidden_act", Activation.SILU.value)
    if name not in {*Activation, "swish"}:
        raise UnsupportedFeatureError(f"config.json: activation {name!r} is not supported")
    return Activation.SILU if name == "swish" else Activation(name)


def _layer_types(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    types = fields.strings("layer_types")
    if types is None:
        interval = fields.size("full_attention_interval", 4)
        return tuple(LINEAR if (index + 1) % interval else FULL for index in range(num_layers))
    if len(types) < num_layers:
        raise fields.error("layer_types", f"must name all {num_layers} layers", types)
    unknown = sorted(set(types) - {FULL, LINEAR})
    if unknown:
        raise UnsupportedFeatureError(f"config.json: layer type {unknown[0]!r} is not supported")
    return types[:num_layers]


def _dense(fields: ConfigFields, _: int) -> MlpSpec:
    return mlp_of(fields)


def _experts(fields: ConfigFields, default_experts: int, default_chosen: int) -> MoeSpec:
    num_experts = num_experts_of(fields, default_experts, "num_experts", "num_local_experts")
    activation = mlp_activation(fields)
    return MoeSpec(
        num_experts=num_experts,
        num_experts_per_token=num_chosen_of(
            fields, num_experts, default_chosen, "num_experts_per_tok"
        ),
        expert=MlpSpec(fields.size("moe_intermediate_size", 512), activation),
        normalize_weights=fields.flag("norm_topk_prob", True),
        shared=MlpSpec(fields.size("shared_expert_intermediate_size", 512), activation),
        shared_gate=True,
    )


def _next_mlp(fields: ConfigFields, layer: int) -> MlpSpec | MoeSpec:
    """Qwen3-Next: experts in every n-th layer, but for those that are named."""
    step = fields.size("decoder_sparse_step", 1)
    num_experts = fields.size("num_experts", 512, minimum=0)
    is_dense = layer in (fields.integers("mlp_only_layers") or ()) or (layer + 1) % step
    return mlp_of(fields) if is_dense or not num_experts else _experts(fields, 512, 10)


def _experts_everywhere(fields: ConfigFields, _: int) -> MoeSpec:
    # Not in its config: they are always normalised.
    return replace(_experts(fields, 256, 8), normalize_weights=True)


def _next_projections(block: str, delta: DeltaNetSpec, hidden: int) -> tuple[Source, ...]:
    """Qwen3-Next: the parts stand side by side for each key head."""
    shared_by = delta.num_value_heads // delta.num_key_heads
    values = shared_by * delta.value_dim
    heads = (delta.key_dim, delta.key_dim, values, values)
    return (
        *_parts(f"{block}in_proj_qkvz.weight", heads, delta.num_key_heads, hidden),
        *_parts(f"{block}in_proj_ba.weight", (shared_by, shared_by), delta.num_key_heads, hidden),
    )


def _parts(name: str, sizes: tuple[int, ...], num_groups: int, hidden: int) -> tuple[Source, ...]:
    """A matrix whose rows come in equal groups of parts of such sizes: for each part all groups."""
    period = sum(sizes)
    shape = (num_groups * period, hidden)
    return tuple(
        Source(name, shape, rows=(end - size, end), period=period)
        for size, end in zip(sizes, accumulate(sizes), strict=True)
    )


def _separate_projections(block: str, delta: DeltaNetSpec, hidden: int) -> tuple[Source, ...]:
    """Qwen3.5: each part is a tensor."""
    rows = {
        "in_proj_qkv": delta.channels,
        "in_proj_z": delta.values_size,
        "in_proj_b": delta.num_value_heads,
        "in_proj_a": delta.num_value_heads,
    }
    return tuple(Source(f"{block}{name}.weight", (size, hidden)) for name, size in rows.items())


def _tensors(projections: _Projections, spec: DecoderSpec, names: Collection[str]) -> Tensors:
    nested = f"{_NESTED}embed_tokens.weight" in names
    # Everything below spells names without the vision tower's prefix.
    plain = {name.replace(_NESTED, "model.", 1) for name in names} if nested else names
    sources = _WITH_EXPERTS(spec, plain)
    for index, layer in enumerate(spec.layers):
        ours, theirs = f"layers.{index}.", f"model.layers.{index}."
        if isinstance(layer.mixer, AttentionSpec):
            sources |= _gated_attention(ours, theirs, layer.mixer, spec.hidden_size)
        else:
            assert isinstance(layer.mixer, DeltaNetSpec)
            sources |= _delta_tensors(ours, theirs, layer.mixer, spec.hidden_size, projections)
    if not nested:
        return sources
    return {
        path: tuple(
            replace(source, name=source.name.replace("model.", _NESTED, 1))
            if source.name != HEAD
            else source
            for source in parts
        )
        for path, parts in sources.items()
    }


def _gated_attention(ours: str, theirs: str, attention: AttentionSpec, hidden: int) -> Tensors:
    """A head's gate stands behind its query in `q_proj`; ours all stand at the end."""
    block, head = f"{theirs}self_attn.", attention.head_dim

    def fused(kind: str, *columns: int) -> tuple[Source, ...]:
        q_shape, kv_shape = (2 * attention.q_size, *columns), (attention.kv_size, *columns)
        query = Source(f"{block}q_proj.{kind}", q_shape, rows=(0, head), period=2 * head)
        return (
            query,
            Source(f"{block}k_proj.{kind}", kv_shape),
            Source(f"{block}v_proj.{kind}", kv_shape),
            replace(query, rows=(head, 2 * head)),
        )

    return {
        f"{ours}attention.qkv.weight": fused("weight", hidden),
        f"{ours}attention.qkv.bias": fused("bias"),
    }


def _delta_tensors(
    ours: str, theirs: str, delta: DeltaNetSpec, hidden: int, projections: _Projections
) -> Tensors:
    ours, block = f"{ours}recurrent.", f"{theirs}linear_attn."
    heads = (delta.num_value_heads,)
    conv = (delta.channels, 1, delta.kernel_size)
    return {
        f"{ours}norm.weight": (Source(f"{theirs}input_layernorm.weight", (hidden,)),),
        f"{ours}in_proj.weight": projections(block, delta, hidden),
        f"{ours}conv.weight": (Source(f"{block}conv1d.weight", conv),),
        f"{ours}decay": (Source(f"{block}A_log", heads),),
        f"{ours}time_bias": (Source(f"{block}dt_bias", heads),),
        f"{ours}out_norm.weight": (Source(f"{block}norm.weight", (delta.value_dim,)),),
        f"{ours}out_proj.weight": (Source(f"{block}out_proj.weight", (hidden, delta.values_size)),),
    }


_ALL = (
    _Traits("Qwen3NextForCausalLM", "qwen3_next", _next_mlp, _next_projections),
    _Traits("Qwen3_5ForCausalLM", "qwen3_5_text", _dense, _separate_projections, num_kv_heads=4),
    _Traits(
        "Qwen3_5ForConditionalGeneration",
        "qwen3_5",
        _dense,
        _separate_projections,
        is_nested=True,
        num_kv_heads=4,
    ),
    _Traits(
        "Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", _experts_everywhere, _separate_projections
    ),
    _Traits(
        "Qwen3_5MoeForConditionalGeneration",
        "qwen3_5_moe",
        _experts_everywhere,
        _separate_projections,
        is_nested=True,
    ),
)

FAMILIES = tuple(
    Family(
        traits.architecture,
        traits.model_type,
        partial(_read, traits),
        partial(_tensors, traits.projections),
        # What drafts tokens ahead, and a vision tower.
        ignored_prefixes=("mtp.", "model.visual."),
        # Which stands behind the other layers in GGUF files.
        has_prediction_layers=True,
    )
    for traits in _ALL
)

"""Llama 4, text: chunks of attention, layers without positions, experts beside a shared one."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    FULL,
    attention_of,
    decoder_of,
    max_positions_of,
    mlp_of,
    num_layers_of,
    text_config_of,
)
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.families.moe import num_chosen_of, num_experts_of
from engine_worker.compute.models.hf_rope import MAX_POSITIONS, read_ropes
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    QkNorm,
    QueryScale,
    RouterScore,
)
from engine_worker.compute.models.tensors import (
    Source,
    Spelling,
    Tensors,
    mlp_tensors,
    text_model_tensors,
)
from engine_worker.errors import UnsupportedFeatureError

_CHUNKED = "chunked_attention"
_SPELLING = Spelling(mlp_block="feed_forward.")
_USUAL = text_model_tensors(_SPELLING)
_DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131_072,
    "head_dim": 128,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16_384,
    "num_key_value_heads": 8,
}


def read_llama4(config: Mapping[str, Any], architecture: str = "Llama4ForCausalLM") -> DecoderSpec:
    """Llama 4, text."""
    config = _DEFAULTS | dict(config)
    fields = ConfigFields(config)
    rope = read_ropes(config, 500_000.0, max_positions_of(fields))[FULL]
    bias = fields.flag("attention_bias", False)
    # Rotated or not, chunked or not, layer by layer.
    rotated = attention_of(fields, replace(rope, interleaved=True), None, bias=(bias, bias))
    plain = replace(rotated, rope=None)
    if fields.flag("use_qk_norm", True):
        # Behind the rotation, whose factor it takes away.
        unscaled = replace(rope, interleaved=True, attention_factor=1.0)
        rotated = replace(rotated, rope=unscaled, qk_norm=QkNorm.WEIGHTLESS)
    if _are_queries_scaled(config, fields):
        length = fields.size("floor_scale", 8192, maximum=MAX_POSITIONS)
        scale = QueryScale(fields.number("attn_scale", 0.1), length, offset=1)
        plain = replace(plain, query_scale=scale)
    num_layers = num_layers_of(fields)
    turns = _rotated_layers(fields, num_layers)
    types = _layer_types(fields, turns)
    chunk = None
    if _CHUNKED in types:
        chunk = fields.size("attention_chunk_size", 8192, maximum=MAX_POSITIONS)
    with_experts = _expert_layers(fields, num_layers)
    dense, experts = _dense(fields), _experts(fields) if with_experts else None
    layers = []
    for index, (turn, kind) in enumerate(zip(turns, types, strict=True)):
        attention = rotated if turn else plain
        if kind == _CHUNKED:
            attention = replace(attention, chunk=chunk)
        mlp = experts if index in with_experts else dense
        assert mlp is not None, "read above"
        layers.append(LayerSpec(attention, mlp))
    return decoder_of(fields, architecture, layers, "rms_norm_eps")


def read_llama4_with_vision(config: Mapping[str, Any]) -> DecoderSpec:
    """The text model of a Llama 4 that also sees."""
    return read_llama4(text_config_of(config), "Llama4ForConditionalGeneration")


def _are_queries_scaled(config: Mapping[str, Any], fields: ConfigFields) -> bool:
    """Whether queries of layers without positions grow; published configs say it by a 4."""
    stated = config.get("attn_temperature_tuning")
    if isinstance(stated, int) and stated >= 0:
        return bool(stated)
    return fields.flag("attn_temperature_tuning", True)


def _rotated_layers(fields: ConfigFields, num_layers: int) -> tuple[bool, ...]:
    """Which layers rotate: `no_rope_layers` has 1 for those that do."""
    stated = fields.integers("no_rope_layers")
    if not stated:
        interval = fields.size("no_rope_layer_interval", 4)
        return tuple(bool((index + 1) % interval) for index in range(num_layers))
    if len(stated) < num_layers:
        raise fields.error("no_rope_layers", f"must name all {num_layers} layers", stated)
    return tuple(map(bool, stated[:num_layers]))


def _layer_types(fields: ConfigFields, turns: tuple[bool, ...]) -> tuple[str, ...]:
    types = fields.strings("layer_types")
    if types is None:
        has_chunks = fields.present("attention_chunk_size") or not fields.stated(
            "attention_chunk_size"
        )
        return tuple(_CHUNKED if turn and has_chunks else FULL for turn in turns)
    if len(types) < len(turns):
        raise fields.error("layer_types", f"must name all {len(turns)} layers", types)
    unknown = sorted(set(types) - {_CHUNKED, FULL})
    if unknown:
        raise UnsupportedFeatureError(f"config.json: layer type {unknown[0]!r} is not supported")
    return types[: len(turns)]


def _expert_layers(fields: ConfigFields, num_layers: int) -> frozenset[int]:
    stated = fields.integers("moe_layers")
    if stated is not None:
        return frozenset(stated)
    step = fields.size("interleave_moe_layer_step", 1)
    return frozenset(range(step - 1, num_layers, step))


def _dense(fields: ConfigFields) -> MlpSpec:
    return replace(mlp_of(fields), intermediate_size=fields.size("intermediate_size_mlp"))


def _experts(fields: ConfigFields) -> MoeSpec:
    expert = mlp_of(fields)
    num_experts = num_experts_of(fields, 16, "num_local_experts")
    return MoeSpec(
        num_experts=num_experts,
        num_experts_per_token=num_chosen_of(fields, num_experts, 1, "num_experts_per_tok"),
        expert=expert,
        score=RouterScore.SIGMOID,
        normalize_weights=False,
        weighs_input=True,
        shared=expert,
    )


def _tensors(spec: DecoderSpec, names: Collection[str] = ()) -> Tensors:
    sources = _USUAL(spec, names)
    (embedding,) = sources["embedding.weight"]
    model = embedding.name.removesuffix("embed_tokens.weight")
    for index, layer in enumerate(spec.layers):
        assert isinstance(layer.mixer, AttentionSpec), "read so"
        if isinstance(layer.mlp, MoeSpec):
            theirs = f"{model}layers.{index}."
            sources |= _expert_tensors(f"layers.{index}.", theirs, layer.mlp, spec.hidden_size)
    return sources


def _expert_tensors(ours: str, theirs: str, moe: MoeSpec, hidden: int) -> Tensors:
    assert moe.shared is not None, "read with it"
    num, inner, block = moe.num_experts, moe.expert.intermediate_size, f"{theirs}feed_forward."
    shared = mlp_tensors(
        ours,
        theirs,
        moe.shared,
        hidden,
        replace(_SPELLING, mlp_block="feed_forward.shared_expert."),
    )
    moved = {
        path.replace(f"{ours}mlp.", f"{ours}mlp.shared."): parts
        for path, parts in shared.items()
        if not path.startswith((f"{ours}mlp.norm", f"{ours}mlp.post_norm"))
    }
    norm = f"{ours}mlp.norm.weight"
    gate_up = Source(f"{block}experts.gate_up_proj", (num, hidden, 2 * inner), is_transposed=True)
    down = Source(f"{block}experts.down_proj", (num, inner, hidden), is_transposed=True)
    return moved | {
        norm: shared[norm],
        f"{ours}mlp.router.weight": (Source(f"{block}router.weight", (num, hidden)),),
        f"{ours}mlp.gate_up.weight": (gate_up,),
        f"{ours}mlp.down.weight": (down,),
    }


FAMILIES = (
    Family("Llama4ForCausalLM", "llama4_text", read_llama4, _tensors),
    Family(
        "Llama4ForConditionalGeneration",
        "llama4",
        read_llama4_with_vision,
        _tensors,
        ("vision_model.", "multi_modal_projector."),
    ),
)

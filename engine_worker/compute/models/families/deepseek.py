"""DeepSeek V2 and V3 and those with their latent attention: GLM-4-MoE-Lite and Mistral 4."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    FULL,
    max_positions_of,
    mlp_of,
    num_layers_of,
)
from engine_worker.compute.models.families.experts import ExpertNames, tensors_with_experts
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.families.moe import grouped_experts
from engine_worker.compute.models.hf_rope import read_ropes, yarn_temperature
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LatentSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    QueryScale,
    RopeKind,
    RouterScore,
)
from engine_worker.compute.models.tensors import Source, Tensors
from engine_worker.errors import UnsupportedFeatureError


@dataclass(frozen=True, slots=True)
class _Traits:
    """How a family differs from DeepSeek V3.

    Attributes:
        mlp: Of a layer.
        norm_eps: Where the config is silent.
        has_query_scale: Queries grow with their position, by the rope's `llama_4_scaling_beta`.
    """

    architecture: str
    model_type: str
    mlp: Callable[[ConfigFields, int], MlpSpec | MoeSpec]
    norm_eps: float = 1e-6
    has_query_scale: bool = False


def _read(traits: _Traits, config: Mapping[str, Any]) -> DecoderSpec:
    fields = ConfigFields(config)
    num_layers, max_positions = num_layers_of(fields), max_positions_of(fields)
    attention = _attention(traits, config, fields, max_positions)
    return DecoderSpec(
        architecture=traits.architecture,
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        layers=tuple(LayerSpec(attention, traits.mlp(fields, i)) for i in range(num_layers)),
        max_position_embeddings=max_positions,
        norm_eps=fields.number("rms_norm_eps", traits.norm_eps),
        tied_head=fields.flag("tie_word_embeddings", False),
        eos_token_ids=fields.integers("eos_token_id") or (),
    )


def _attention(
    traits: _Traits, config: Mapping[str, Any], fields: ConfigFields, max_positions: int
) -> AttentionSpec:
    rotated, plain = fields.size("qk_rope_head_dim", 64), fields.size("qk_nope_head_dim", 128)
    if rotated % 2:
        raise fields.error("qk_rope_head_dim", "must be even", rotated)
    rope = read_ropes(config, 10_000.0, max_positions)[FULL]
    # The share of a head that is rotated is what the two widths say.
    rope = replace(rope, interleaved=fields.flag("rope_interleave", True), partial_factor=1.0)
    said = fields.mapping("rope_parameters") or fields.mapping("rope_scaling") or {}
    rope_fields = ConfigFields(said, "config.json: rope_parameters")
    scale = (plain + rotated) ** -0.5
    all_dim = rope_fields.number_or_zero("mscale_all_dim")
    if rope.kind is not RopeKind.DEFAULT and all_dim:
        # Where cosine and sine don't carry it, scores get it squared.
        scale *= yarn_temperature(rope.factor, all_dim) ** 2
    query_scale = None
    if traits.has_query_scale and rope_fields.present("llama_4_scaling_beta"):
        length = rope_fields.size("original_max_position_embeddings")
        query_scale = QueryScale(rope_fields.number("llama_4_scaling_beta"), length)
    bias = fields.flag("attention_bias", False)
    return AttentionSpec(
        num_heads=fields.size("num_attention_heads"),
        num_kv_heads=1,
        head_dim=rotated,
        scale=scale,
        rope=rope,
        qkv_bias=bias,
        o_bias=bias,
        query_scale=query_scale,
        latent=LatentSpec(
            q_rank=fields.size("q_lora_rank") if fields.present("q_lora_rank") else None,
            kv_rank=fields.size("kv_lora_rank", 512),
            plain_dim=plain,
            value_dim=fields.size("v_head_dim", 128),
        ),
    )


def _is_dense(fields: ConfigFields, layer: int, default: int) -> bool:
    return layer < fields.size("first_k_dense_replace", default, minimum=0)


def _v3_mlp(fields: ConfigFields, layer: int) -> MlpSpec | MoeSpec:
    dense = mlp_of(fields)
    return dense if _is_dense(fields, layer, 3) else grouped_experts(fields, dense, num_experts=256)


def _v2_mlp(fields: ConfigFields, layer: int) -> MlpSpec | MoeSpec:
    dense = mlp_of(fields, bias=fields.flag("mlp_bias", False))
    if _is_dense(fields, layer, 0):
        return dense
    if fields.flag("norm_topk_prob", False):
        raise UnsupportedFeatureError("config.json: norm_topk_prob of DeepSeek V2 is not supported")
    method = fields.text("topk_method", "greedy")
    experts = replace(
        grouped_experts(fields, dense, num_experts=64, num_shared=2),
        score=RouterScore.SOFTMAX,
        normalize_weights=False,
        correction_bias=False,
        num_group_scores=1,
    )
    # Routed experts have no bias, whatever the others have.
    experts = replace(experts, expert=replace(experts.expert, bias=False))
    if method == "greedy":
        return replace(experts, num_groups=1, num_groups_per_token=1)
    if method != "group_limited_greedy":
        raise UnsupportedFeatureError(f"config.json: topk_method {method!r:.80} is not supported")
    return experts


def _glm_lite_mlp(fields: ConfigFields, layer: int) -> MlpSpec | MoeSpec:
    dense, types = mlp_of(fields), fields.strings("mlp_layer_types")
    if types is None:
        is_dense = _is_dense(fields, layer, 1)
    elif layer >= len(types) or types[layer] not in ("dense", "sparse"):
        raise fields.error("mlp_layer_types", "must be dense or sparse for every layer", types)
    else:
        is_dense = types[layer] == "dense"
    return dense if is_dense else grouped_experts(fields, dense, num_experts=64)


def _mistral_mlp(fields: ConfigFields, layer: int) -> MlpSpec | MoeSpec:
    dense = mlp_of(fields)
    if _is_dense(fields, layer, 0):
        return dense
    experts = grouped_experts(fields, dense, num_experts=128)
    return replace(experts, score=RouterScore.SOFTMAX, correction_bias=False)


def read_mistral4(config: Mapping[str, Any], architecture: str) -> DecoderSpec:
    """Mistral 4, of which another architecture may be the text model."""
    return _read(replace(_MISTRAL4, architecture=architecture), config)


def deepseek_tensors(spec: DecoderSpec, names: Collection[str]) -> Tensors:
    """The tensors of a decoder of this file."""
    sources = tensors_with_experts(ExpertNames())(spec, names)
    for index, layer in enumerate(spec.layers):
        sources |= latent_tensors(
            f"layers.{index}.attention.",
            f"model.layers.{index}.self_attn.",
            layer.attention,
            spec.hidden_size,
        )
    return sources


def latent_tensors(ours: str, block: str, attention: AttentionSpec, hidden: int) -> Tensors:
    """The attention block of a layer, but for its norm.

    Args:
        ours: Prefix of the block's weights.
        block: Prefix of its tensors.
        attention: The layer's.
        hidden: Width of the residual.
    """
    latent, heads, rotated = attention.latent, attention.num_heads, attention.head_dim
    assert latent is not None, "a latent attention"
    q_rows, kv_rows = heads * (latent.plain_dim + rotated), latent.kv_rank + rotated
    down, kv_down = latent.q_rank or 0, f"{block}kv_a_proj_with_mqa."
    q = f"{block}q_proj.weight" if latent.q_rank is None else f"{block}q_b_proj.weight"
    up_rows, out = heads * (latent.plain_dim + latent.value_dim), heads * latent.value_dim
    return {
        f"{ours}q_a.weight": (Source(f"{block}q_a_proj.weight", (down, hidden)),),
        f"{ours}q_a.bias": (Source(f"{block}q_a_proj.bias", (down,)),),
        f"{ours}q_a_norm.weight": (Source(f"{block}q_a_layernorm.weight", (down,)),),
        f"{ours}q.weight": (Source(q, (q_rows, down or hidden)),),
        f"{ours}kv_a.weight": (Source(f"{kv_down}weight", (kv_rows, hidden)),),
        f"{ours}kv_a.bias": (Source(f"{kv_down}bias", (kv_rows,)),),
        f"{ours}kv_a_norm.weight": (Source(f"{block}kv_a_layernorm.weight", (latent.kv_rank,)),),
        f"{ours}kv_b": (Source(f"{block}kv_b_proj.weight", (up_rows, latent.kv_rank)),),
        f"{ours}o.weight": (Source(f"{block}o_proj.weight", (hidden, out)),),
        f"{ours}o.bias": (Source(f"{block}o_proj.bias", (hidden,)),),
    }


_MISTRAL4 = _Traits("Mistral4ForCausalLM", "mistral4", _mistral_mlp, has_query_scale=True)
_ALL = (
    _Traits("DeepseekV2ForCausalLM", "deepseek_v2", _v2_mlp),
    _Traits("DeepseekV3ForCausalLM", "deepseek_v3", _v3_mlp),
    _Traits("Glm4MoeLiteForCausalLM", "glm4_moe_lite", _glm_lite_mlp, norm_eps=1e-5),
    _MISTRAL4,
)

FAMILIES = tuple(
    Family(
        traits.architecture,
        traits.model_type,
        partial(_read, traits),
        deepseek_tensors,
        has_prediction_layers=True,
    )
    for traits in _ALL
)

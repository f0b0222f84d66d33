"""Families that are Llama or Qwen with experts in place of the MLP."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    FULL,
    NO_DEFAULTS,
    SLIDING,
    HeadDefaults,
    all_full,
    all_sliding,
    attention_of,
    max_positions_of,
    mlp_of,
    no_window,
    num_layers_of,
    stated_layer_types,
    switched_window,
)
from engine_worker.compute.models.families.experts import ExpertNames, tensors_with_experts
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.hf_rope import MAX_POSITIONS, read_ropes
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    QkNorm,
    RouterScore,
)
from engine_worker.compute.models.tensors import TensorNames, rotated_by_halves
from engine_worker.errors import UnsupportedFeatureError

MAX_EXPERTS = 4096
GRANITE_EXPERTS = ExpertNames(
    "block_sparse_moe.",
    gate="",
    stacked=(
        ("input_linear.weight", "output_linear.weight"),
        ("experts.gate_up_proj", "experts.down_proj"),
    ),
    router=("router.layer.weight", "router.weight"),
)
"""As published first; transformers 5 renames them."""


@dataclass(frozen=True, slots=True)
class _Traits:
    """What a family is where its config is silent, and how it differs from plain Llama.

    Attributes:
        mlp: Of a layer.
        names: Of its experts' tensors, in every spelling.
        attention_bias: What the q/k/v and the output projection carry.
        finish: What else the family changes.
        layer_types: Which layers attend through the window.
        window: Width of the window in tokens; None is no window at all.
        rotates_neighbours: Pairs of a head's numbers are neighbours instead of halves.
    """

    architecture: str
    model_type: str
    mlp: Callable[[ConfigFields, int], MlpSpec | MoeSpec]
    names: tuple[ExpertNames, ...]
    attention_bias: Callable[[ConfigFields], tuple[bool, bool]]
    finish: Callable[[ConfigFields, DecoderSpec], DecoderSpec] = lambda _, spec: spec
    layer_types: Callable[[ConfigFields, int], tuple[str, ...]] = all_full
    window: Callable[[ConfigFields], int | None] = no_window
    qk_norm: QkNorm = QkNorm.NONE
    heads: HeadDefaults = NO_DEFAULTS
    theta: float = 10_000.0
    norm_eps: float = 1e-6
    tied_head: bool = False
    rotates_neighbours: bool = False
    has_prediction_layers: bool = False


def _read(traits: _Traits, config: Mapping[str, Any]) -> DecoderSpec:
    fields = ConfigFields(config)
    num_layers, max_positions = num_layers_of(fields), max_positions_of(fields)
    ropes = read_ropes(config, traits.theta, max_positions)
    window = traits.window(fields)
    layers = []
    for index, layer_type in enumerate(traits.layer_types(fields, num_layers)):
        attention = attention_of(
            fields,
            ropes[layer_type],
            window if layer_type == SLIDING else None,
            heads=traits.heads,
            bias=traits.attention_bias(fields),
            qk_norm=traits.qk_norm,
        )
        layers.append(LayerSpec(attention, traits.mlp(fields, index)))
    spec = DecoderSpec(
        architecture=traits.architecture,
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        layers=tuple(layers),
        max_position_embeddings=max_positions,
        norm_eps=fields.number("rms_norm_eps", traits.norm_eps),
        tied_head=fields.flag("tie_word_embeddings", traits.tied_head),
        eos_token_ids=fields.integers("eos_token_id") or (),
    )
    return traits.finish(fields, spec)


def with_attention(
    spec: DecoderSpec, change: Callable[[AttentionSpec], AttentionSpec]
) -> DecoderSpec:
    """A decoder with another attention in each layer."""
    layers = (replace(layer, mixer=change(layer.attention)) for layer in spec.layers)
    return replace(spec, layers=tuple(layers))


def num_experts_of(fields: ConfigFields, default: int, *names: str) -> int:
    """How many routed experts a layer has, by the first of several names that is there."""
    stated = [name for name in names if fields.present(name)]
    return fields.size(stated[0] if stated else names[0], default, maximum=MAX_EXPERTS)


def num_chosen_of(fields: ConfigFields, num_experts: int, default: int, name: str) -> int:
    """How many experts a token has, at most all of them."""
    return fields.size(name, min(default, num_experts), maximum=num_experts)


def _qwen_mlp(
    default_chosen: int, default_experts: int, *, has_shared: bool
) -> Callable[[ConfigFields, int], MlpSpec | MoeSpec]:
    """Qwen 2 and 3: experts in every n-th layer, but for those that are named."""

    def mlp(fields: ConfigFields, layer: int) -> MlpSpec | MoeSpec:
        dense = mlp_of(fields)
        most = MAX_EXPERTS
        num_experts = fields.size("num_local_experts", default_experts, minimum=0, maximum=most)
        num_experts = fields.size("num_experts", num_experts, minimum=0, maximum=most)
        step = fields.size("decoder_sparse_step", 1)
        if layer in (fields.integers("mlp_only_layers") or ()) or not num_experts:
            return dense
        if (layer + 1) % step:
            return dense
        shared = None
        if has_shared:
            width = fields.size("shared_expert_intermediate_size", 5632)
            shared = replace(dense, intermediate_size=width)
        return MoeSpec(
            num_experts=num_experts,
            num_experts_per_token=num_chosen_of(
                fields, num_experts, default_chosen, "num_experts_per_tok"
            ),
            expert=replace(
                dense,
                intermediate_size=fields.size("moe_intermediate_size", 1408 if has_shared else 768),
            ),
            normalize_weights=fields.flag("norm_topk_prob", False),
            shared=shared,
            shared_gate=has_shared,
        )

    return mlp


def _two_experts_mlp(fields: ConfigFields, _: int) -> MoeSpec:
    """Experts as Mixtral has them, two of eight unless it says otherwise."""
    num_experts = num_experts_of(fields, 8, "num_local_experts", "num_experts")
    return MoeSpec(
        num_experts=num_experts,
        num_experts_per_token=num_chosen_of(fields, num_experts, 2, "num_experts_per_tok"),
        expert=mlp_of(fields),
    )


def _olmoe_mlp(fields: ConfigFields, _: int) -> MoeSpec:
    num_experts = num_experts_of(fields, 64, "num_experts", "num_local_experts")
    return MoeSpec(
        num_experts=num_experts,
        num_experts_per_token=num_chosen_of(fields, num_experts, 8, "num_experts_per_tok"),
        expert=mlp_of(fields),
        normalize_weights=fields.flag("norm_topk_prob", False),
    )


def _finish_olmoe(fields: ConfigFields, spec: DecoderSpec) -> DecoderSpec:
    if fields.present("clip_qkv"):
        raise UnsupportedFeatureError("config.json: clip_qkv is not supported")
    return spec


def _finish_granite(fields: ConfigFields, spec: DecoderSpec) -> DecoderSpec:
    scale = fields.number("attention_multiplier", 1.0)
    spec = with_attention(spec, lambda attention: replace(attention, scale=scale))
    return replace(
        spec,
        embedding_multiplier=fields.number("embedding_multiplier", 1.0),
        residual_multiplier=fields.number("residual_multiplier", 1.0),
        logits_multiplier=1.0 / fields.number("logits_scaling", 1.0),
    )


def grouped_experts(
    fields: ConfigFields, dense: MlpSpec, *, num_experts: int, num_shared: int = 1
) -> MoeSpec:
    """The experts of DeepSeek V3 and those that follow it; by `n_routed_experts` and the like.

    Args:
        fields: The config.
        dense: Whose activation they have.
        num_experts: Where the config is silent.
        num_shared: Likewise.
    """
    num_experts = num_experts_of(fields, num_experts, "n_routed_experts", "num_local_experts")
    width = fields.size("moe_intermediate_size")
    num_shared = fields.size("n_shared_experts", num_shared, minimum=0, maximum=MAX_EXPERTS)
    num_groups = fields.size("n_group", 1, maximum=num_experts)
    group_size, rest = divmod(num_experts, num_groups)
    if rest:
        raise fields.error("n_group", f"must divide {num_experts} experts", num_groups)
    num_chosen_groups = fields.size("topk_group", 1, maximum=num_groups)
    num_chosen = num_chosen_of(fields, num_experts, 8, "num_experts_per_tok")
    if num_chosen > num_chosen_groups * group_size:
        raise fields.error(
            "num_experts_per_tok", f"must fit into {num_chosen_groups} groups", num_chosen
        )
    return MoeSpec(
        num_experts=num_experts,
        num_experts_per_token=num_chosen,
        expert=replace(dense, intermediate_size=width),
        score=RouterScore.SIGMOID,
        normalize_weights=fields.flag("norm_topk_prob", True),
        weights_multiplier=fields.number("routed_scaling_factor", 1.0),
        correction_bias=True,
        num_groups=num_groups,
        num_groups_per_token=num_chosen_groups,
        num_group_scores=min(2, group_size),
        shared=replace(dense, intermediate_size=width * num_shared) if num_shared else None,
    )


def _glm4_mlp(fields: ConfigFields, layer: int) -> MlpSpec | MoeSpec:
    dense = mlp_of(fields)
    if layer < fields.size("first_k_dense_replace", 1, minimum=0):
        return dense
    return grouped_experts(fields, dense, num_experts=128)


def _finish_glm4(fields: ConfigFields, spec: DecoderSpec) -> DecoderSpec:
    has_norms = fields.flag("use_qk_norm", False)
    stated = [fields] + [
        ConfigFields(rope)
        for name in ("rope_parameters", "rope_scaling")
        if (rope := fields.mapping(name))
    ]
    is_stated = any(part.present("partial_rotary_factor") for part in stated)

    def change(attention: AttentionSpec) -> AttentionSpec:
        rope = attention.rope
        if rope is not None and not is_stated:
            rope = replace(rope, partial_factor=0.5)
        qk_norm = QkNorm.PER_HEAD if has_norms else QkNorm.NONE
        return replace(attention, rope=rope, qk_norm=qk_norm)

    return with_attention(spec, change)


def _ernie_mlp(fields: ConfigFields, layer: int) -> MlpSpec | MoeSpec:
    dense = mlp_of(fields)
    last = fields.size("num_hidden_layers") - 1
    stated = fields.integer("moe_layer_end_index", -1)
    first, last = fields.size("moe_layer_start_index", 1, minimum=0), last if stated < 0 else stated
    interval = fields.size("moe_layer_interval", 1)
    if not first <= layer <= last or (layer + 1) % interval:
        return dense
    num_experts = num_experts_of(fields, 64, "moe_num_experts", "num_experts")
    width = fields.size("moe_intermediate_size", 1536)
    num_shared = fields.size("moe_num_shared_experts", 2, minimum=0, maximum=MAX_EXPERTS)
    return MoeSpec(
        num_experts=num_experts,
        num_experts_per_token=num_chosen_of(fields, num_experts, 6, "moe_k"),
        expert=replace(dense, intermediate_size=width),
        correction_bias=True,
        shared=replace(dense, intermediate_size=width * num_shared) if num_shared else None,
    )


def _finish_ernie(fields: ConfigFields, spec: DecoderSpec) -> DecoderSpec:
    if fields.flag("use_bias", False):
        raise UnsupportedFeatureError("config.json: use_bias is not supported: a head with a bias")
    return spec


def _qwen2_layer_types(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    stated = stated_layer_types(fields, num_layers)
    if stated is not None or switched_window(fields) is None:
        return stated or all_full(fields, num_layers)
    first_full = fields.size("max_window_layers", 28, minimum=0)
    return tuple(
        SLIDING if index % 2 == 0 and index < first_full else FULL for index in range(num_layers)
    )


def _mixtral_window(fields: ConfigFields) -> int | None:
    if not fields.present("sliding_window"):
        return None
    return fields.size("sliding_window", maximum=MAX_POSITIONS)


def _qkv_bias(fields: ConfigFields) -> tuple[bool, bool]:
    return fields.flag("qkv_bias", True), False


def _stated_bias(fields: ConfigFields) -> tuple[bool, bool]:
    bias = fields.flag("attention_bias", False)
    return bias, bias


def _glm4_bias(fields: ConfigFields) -> tuple[bool, bool]:
    return fields.flag("attention_bias", False), False


def _no_bias(_: ConfigFields) -> tuple[bool, bool]:
    return False, False


_ALL = (
    _Traits(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        _qwen_mlp(8, 128, has_shared=False),
        (ExpertNames(),),
        _stated_bias,
        layer_types=all_sliding,
        window=switched_window,
        qk_norm=QkNorm.PER_HEAD,
        heads=HeadDefaults(num_kv_heads=4),
    ),
    _Traits(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        _qwen_mlp(4, 60, has_shared=True),
        (ExpertNames(shared="shared_expert."),),
        _qkv_bias,
        layer_types=_qwen2_layer_types,
        window=switched_window,
        heads=HeadDefaults(num_kv_heads=16),
    ),
    _Traits(
        "MixtralForCausalLM",
        "mixtral",
        _two_experts_mlp,
        (
            ExpertNames("block_sparse_moe.", "w1", "w3", "w2"),
            ExpertNames("mlp.", "w1", "w3", "w2"),
        ),
        _no_bias,
        layer_types=all_sliding,
        window=_mixtral_window,
        heads=HeadDefaults(num_kv_heads=8),
        theta=1_000_000.0,
        norm_eps=1e-5,
    ),
    _Traits(
        "OlmoeForCausalLM",
        "olmoe",
        _olmoe_mlp,
        (ExpertNames(),),
        _stated_bias,
        _finish_olmoe,
        qk_norm=QkNorm.FULL_WIDTH,
        norm_eps=1e-5,
    ),
    _Traits(
        "GraniteMoeForCausalLM",
        "granitemoe",
        _two_experts_mlp,
        (GRANITE_EXPERTS,),
        _stated_bias,
        _finish_granite,
    ),
    _Traits(
        "Glm4MoeForCausalLM",
        "glm4_moe",
        _glm4_mlp,
        (ExpertNames(),),
        _glm4_bias,
        _finish_glm4,
        heads=HeadDefaults(num_kv_heads=8),
        norm_eps=1e-5,
        has_prediction_layers=True,
    ),
    _Traits(
        "Ernie4_5_MoeForCausalLM",
        "ernie4_5_moe",
        _ernie_mlp,
        (
            ExpertNames(
                correction=(
                    "moe_statics.e_score_correction_bias",
                    "gate.moe_statics.e_score_correction_bias",
                ),
                correction_shape=lambda num_experts: (1, num_experts),
            ),
        ),
        _no_bias,
        _finish_ernie,
        heads=HeadDefaults(num_kv_heads=4),
        theta=500_000.0,
        norm_eps=1e-5,
        tied_head=True,
        rotates_neighbours=True,
    ),
)


def _tensors(traits: _Traits) -> TensorNames:
    usual = tensors_with_experts(*traits.names)
    return rotated_by_halves(usual) if traits.rotates_neighbours else usual


FAMILIES = tuple(
    Family(
        traits.architecture,
        traits.model_type,
        partial(_read, traits),
        _tensors(traits),
        has_prediction_layers=traits.has_prediction_layers,
    )
    for traits in _ALL
)

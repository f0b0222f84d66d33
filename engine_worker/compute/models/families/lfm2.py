"""LFM2: gated short convolutions, with attention in some layers; in LFM2-MoE with experts."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    FULL,
    HeadDefaults,
    attention_of,
    max_positions_of,
    num_layers_of,
)
from engine_worker.compute.models.families.experts import ExpertNames, expert_tensors
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.families.moe import num_chosen_of, num_experts_of
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.recurrent.specs import ShortConvSpec
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    QkNorm,
    RouterScore,
)
from engine_worker.compute.models.tensors import EMBEDDING, HEAD, Source, Tensors
from engine_worker.errors import UnsupportedFeatureError

CONV = "conv"
MAX_KERNEL = 64
"""Tokens that a convolution sees; those of all models see three or four."""
_EXPERTS = ExpertNames("feed_forward.", gate="w1", up="w3", down="w2", correction=("expert_bias",))

_Mlp = Callable[[ConfigFields, int], MlpSpec | MoeSpec]


def _read(architecture: str, mlp: _Mlp, config: Mapping[str, Any]) -> DecoderSpec:
    fields = ConfigFields(config)
    num_layers, max_positions = num_layers_of(fields), max_positions_of(fields)
    attention = attention_of(
        fields,
        read_ropes(config, 1_000_000.0, max_positions)[FULL],
        None,
        heads=HeadDefaults(num_kv_heads=8),
        qk_norm=QkNorm.PER_HEAD,
    )
    conv = ShortConvSpec(
        channels=fields.size("hidden_size"),
        kernel_size=fields.size("conv_L_cache", 3, minimum=2, maximum=MAX_KERNEL),
        bias=fields.flag("conv_bias", False),
    )
    return DecoderSpec(
        architecture=architecture,
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        layers=tuple(
            LayerSpec(conv if kind == CONV else attention, mlp(fields, index))
            for index, kind in enumerate(_layer_types(fields, num_layers))
        ),
        max_position_embeddings=max_positions,
        norm_eps=fields.number("norm_eps", 1e-5),
        tied_head=fields.flag("tie_embedding", fields.flag("tie_word_embeddings", True)),
        eos_token_ids=fields.integers("eos_token_id") or (),
    )


def _layer_types(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    types = fields.strings("layer_types")
    if types is None:
        # Older files list the layers that attend; without a list all do.
        attending = fields.integers("full_attn_idxs")
        return tuple(
            FULL if attending is None or index in attending else CONV for index in range(num_layers)
        )
    if len(types) < num_layers:
        raise fields.error("layer_types", f"must name all {num_layers} layers", types)
    unknown = sorted(set(types) - {FULL, CONV})
    if unknown:
        raise UnsupportedFeatureError(f"config.json: layer type {unknown[0]!r} is not supported")
    return types[:num_layers]


def _adjusted_mlp(fields: ConfigFields, _: int) -> MlpSpec:
    """The MLP, whose width configs state before it is adjusted."""
    size = fields.size("block_ff_dim", fields.size("intermediate_size", 12288))
    if not fields.flag("block_auto_adjust_ff_dim", True):
        return MlpSpec(size)
    size = int(fields.number("block_ffn_dim_multiplier", 1.0) * int(2 * size / 3))
    multiple = fields.size("block_multiple_of", 256)
    return MlpSpec(max(1, -(-size // multiple)) * multiple)


def _experts(fields: ConfigFields, layer: int) -> MlpSpec | MoeSpec:
    if layer < fields.size("num_dense_layers", 2, minimum=0):
        return MlpSpec(fields.size("intermediate_size", 7168))
    num_experts = num_experts_of(fields, 32, "num_experts")
    return MoeSpec(
        num_experts=num_experts,
        num_experts_per_token=num_chosen_of(fields, num_experts, 4, "num_experts_per_tok"),
        expert=MlpSpec(fields.size("moe_intermediate_size", 1792)),
        score=RouterScore.SIGMOID,
        normalize_weights=fields.flag("norm_topk_prob", True),
        weights_multiplier=fields.number("routed_scaling_factor", 1.0),
        correction_bias=fields.flag("use_expert_bias", True),
    )


def _tensors(spec: DecoderSpec, names: Collection[str] = ()) -> Tensors:
    hidden = spec.hidden_size
    table = (spec.vocab_size, hidden)
    sources: Tensors = {
        "embedding.weight": (Source(EMBEDDING, table),),
        "norm.weight": (Source("model.embedding_norm.weight", (hidden,)),),
        "head.weight": (Source(HEAD, table),),
    }
    for index, layer in enumerate(spec.layers):
        ours, theirs = f"layers.{index}.", f"model.layers.{index}."
        if isinstance(layer.mixer, AttentionSpec):
            sources |= _attention_tensors(f"{ours}attention.", theirs, layer.mixer, hidden)
        else:
            assert isinstance(layer.mixer, ShortConvSpec)
            sources |= _conv_tensors(f"{ours}recurrent.", theirs, layer.mixer, hidden)
        if isinstance(layer.mlp, MlpSpec):
            sources |= _mlp_tensors(f"{ours}mlp.", theirs, layer.mlp, hidden)
        elif layer.mlp is not None:
            sources |= expert_tensors(ours, theirs, layer.mlp, hidden, _EXPERTS, names)
        norm = Source(f"{theirs}ffn_norm.weight", (hidden,))
        sources[f"{ours}mlp.norm.weight"] = (norm,)
    return sources


def _attention_tensors(ours: str, theirs: str, attention: AttentionSpec, hidden: int) -> Tensors:
    block = f"{theirs}self_attn."
    rows = {"q_proj": attention.q_size, "k_proj": attention.kv_size, "v_proj": attention.kv_size}
    head = (attention.head_dim,)
    return {
        f"{ours}norm.weight": (Source(f"{theirs}operator_norm.weight", (hidden,)),),
        f"{ours}qkv.weight": tuple(
            Source(f"{block}{name}.weight", (size, hidden)) for name, size in rows.items()
        ),
        f"{ours}q_norm.weight": (Source(f"{block}q_layernorm.weight", head),),
        f"{ours}k_norm.weight": (Source(f"{block}k_layernorm.weight", head),),
        f"{ours}o.weight": (Source(f"{block}out_proj.weight", (hidden, attention.q_size)),),
    }


def _conv_tensors(ours: str, theirs: str, conv: ShortConvSpec, hidden: int) -> Tensors:
    block, channels = f"{theirs}conv.", conv.channels
    shapes: dict[str, tuple[int, ...]] = {
        "in_proj.weight": (3 * channels, hidden),
        "in_proj.bias": (3 * channels,),
        "conv.weight": (channels, 1, conv.kernel_size),
        "conv.bias": (channels,),
        "out_proj.weight": (hidden, channels),
        "out_proj.bias": (hidden,),
    }
    return {
        f"{ours}norm.weight": (Source(f"{theirs}operator_norm.weight", (hidden,)),),
        **{f"{ours}{name}": (Source(block + name, shape),) for name, shape in shapes.items()},
    }


def _mlp_tensors(ours: str, theirs: str, mlp: MlpSpec, hidden: int) -> Tensors:
    block, inner = f"{theirs}feed_forward.", mlp.intermediate_size
    return {
        f"{ours}gate_up.weight": tuple(
            Source(f"{block}{name}.weight", (inner, hidden)) for name in ("w1", "w3")
        ),
        f"{ours}down.weight": (Source(f"{block}w2.weight", (hidden, inner)),),
    }


_ALL: tuple[tuple[str, str, _Mlp], ...] = (
    ("Lfm2ForCausalLM", "lfm2", _adjusted_mlp),
    ("Lfm2MoeForCausalLM", "lfm2_moe", _experts),
)

FAMILIES = tuple(
    Family(architecture, model_type, partial(_read, architecture, mlp), _tensors)
    for architecture, model_type, mlp in _ALL
)

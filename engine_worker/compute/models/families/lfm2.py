"""LFM2: gated short convolutions, with attention in some layers."""

from collections.abc import Collection, Mapping
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    FULL,
    HeadDefaults,
    attention_of,
    max_positions_of,
    num_layers_of,
)
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.recurrent.specs import ShortConvSpec
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    QkNorm,
)
from engine_worker.compute.models.tensors import EMBEDDING, HEAD, Source, Tensors
from engine_worker.errors import UnsupportedFeatureError

CONV = "conv"
MAX_KERNEL = 64
"""Tokens that a convolution sees; those of all models see three or four."""


def _read(config: Mapping[str, Any]) -> DecoderSpec:
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
    mlp = MlpSpec(intermediate_size=_intermediate_size(fields))
    return DecoderSpec(
        architecture="Lfm2ForCausalLM",
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        layers=tuple(
            LayerSpec(conv if kind == CONV else attention, mlp)
            for kind in _layer_types(fields, num_layers)
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


def _intermediate_size(fields: ConfigFields) -> int:
    """The MLP's width, which configs state before it is adjusted."""
    size = fields.size("block_ff_dim", fields.size("intermediate_size", 12288))
    if not fields.flag("block_auto_adjust_ff_dim", True):
        return size
    size = int(fields.number("block_ffn_dim_multiplier", 1.0) * int(2 * size / 3))
    multiple = fields.size("block_multiple_of", 256)
    return max(1, -(-size // multiple)) * multiple


def _tensors(spec: DecoderSpec, _: Collection[str] = ()) -> Tensors:
    hidden = spec.hidden_size
    table = (spec.vocab_size, hidden)
    sources: Tensors = {
        "embedding.weight": (Source(EMBEDDING, table),),
        "norm.weight": (Source("model.embedding_norm.weight", (hidden,)),),
        "head.weight": (Source(HEAD, table),),
    }
    for index, layer in enumerate(spec.layers):
        ours, theirs = f"layers.{index}.", f"model.layers.{index}."
        assert isinstance(layer.mlp, MlpSpec)
        if isinstance(layer.mixer, AttentionSpec):
            sources |= _attention_tensors(f"{ours}attention.", theirs, layer.mixer, hidden)
        else:
            assert isinstance(layer.mixer, ShortConvSpec)
            sources |= _conv_tensors(f"{ours}recurrent.", theirs, layer.mixer, hidden)
        sources |= _mlp_tensors(f"{ours}mlp.", theirs, layer.mlp, hidden)
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
        f"{ours}norm.weight": (Source(f"{theirs}ffn_norm.weight", (hidden,)),),
        f"{ours}gate_up.weight": tuple(
            Source(f"{block}{name}.weight", (inner, hidden)) for name in ("w1", "w3")
        ),
        f"{ours}down.weight": (Source(f"{block}w2.weight", (hidden, inner)),),
    }


FAMILIES = (Family("Lfm2ForCausalLM", "lfm2", _read, _tensors),)

"""NomicBERT (arXiv 2402.01613) and GTE's `NewModel` (arXiv 2407.19669).

BERT's post-norm layers with rotary positions and a gated MLP. Each has two spellings: that of its
first checkpoints, which came with code of their own, and that of transformers since release 5.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import num_layers_of
from engine_worker.compute.models.families.moe import num_chosen_of, num_experts_of
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.spec import Activation, MlpSpec, MoeSpec, RopeKind, RopeSpec
from engine_worker.compute.models.tensors import Source, Tensors
from engine_worker.embedding.encoder_spec import EncoderLayerSpec, EncoderSpec
from engine_worker.embedding.families.common import (
    activation_of,
    max_tokens_of,
    num_heads_of,
    refuse_decoding,
    refuse_unless,
    tanh_head,
)
from engine_worker.embedding.families.family import EncoderFamily, joined, norm, pair
from engine_worker.errors import UnsupportedFeatureError

_EMBEDDING = "embeddings.word_embeddings.weight"
_EXPERT_BIAS = "experts.bias"
_NOMIC_THETA = 1000.0
_GTE_THETA = 160_000.0
_MLPS = {"swiglu": ("silu", True), "geglu": ("gelu", True), "gelu": ("gelu", False)}
"""By `activation_function`: the activation, and whether there is a gate."""


def _read_nomic(config: Mapping[str, Any]) -> EncoderSpec:
    fields = ConfigFields(config)
    if not fields.present("n_embd"):
        return _read_rotary(config, _NOMIC_THETA, has_bias=False, activation="silu")
    refuse_unless(
        config,
        causal=False,
        prenorm=False,
        parallel_block=False,
        use_rms_norm=False,
        rotary_emb_fraction=1.0,
        rotary_emb_interleaved=False,
        rotary_emb_scale_base=None,
    )
    name = fields.text("activation_function", "swiglu")
    if name not in _MLPS:
        raise UnsupportedFeatureError(
            f"config.json: not supported yet: activation_function {name!r}, only {', '.join(_MLPS)}"
        )
    activation, is_gated = _MLPS[name]
    hidden_size, longest = fields.size("n_embd"), max_tokens_of(fields, "n_positions", 2048)
    inner = fields.size("n_inner", 4 * hidden_size)
    rope = RopeSpec(theta=fields.number("rotary_emb_base", _NOMIC_THETA))
    qkv_bias = fields.flag("qkv_proj_bias", False)
    return EncoderSpec(
        architecture="",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads_of(fields, hidden_size, "n_head"),
        intermediate_size=inner,
        layers=tuple(
            EncoderLayerSpec(rope, experts=experts)
            for experts in _nomic_experts(config, inner, num_layers_of(fields, "n_layer"))
        ),
        # Beyond what it was trained on, its authors scale the positions, which isn't computed.
        max_tokens=min(longest, fields.size("max_trained_positions", 2048)),
        activation=activation,
        norm_eps=fields.number("layer_norm_epsilon", 1e-12),
        num_types=fields.size("type_vocab_size", 2, minimum=0),
        is_gated=is_gated,
        qkv_bias=qkv_bias,
        o_bias=qkv_bias,
        up_bias=fields.flag("mlp_fc1_bias", False),
        down_bias=fields.flag("mlp_fc2_bias", False),
    )


def _nomic_experts(
    config: Mapping[str, Any], inner: int, num_layers: int
) -> tuple[MoeSpec | None, ...]:
    """Of each layer: nomic-embed-text-v2-moe has them in every second one."""
    fields = ConfigFields(config)
    step = fields.integer("moe_every_n_layers", 0)
    if step <= 0:
        return (None,) * num_layers
    refuse_unless(
        config,
        activation_function="gelu",
        moe_normalize_expert_weights=False,
        num_shared_experts=0,
        expert_choice_router=False,
        ffn_div=1,
    )
    num_experts = num_experts_of(fields, 8, "num_experts")
    experts = MoeSpec(
        num_experts=num_experts,
        num_experts_per_token=num_chosen_of(fields, num_experts, 1, "moe_top_k"),
        expert=MlpSpec(inner, Activation.GELU, gated=False),
        normalize_weights=False,
    )
    return tuple(experts if index % step == 1 else None for index in range(num_layers))


def _read_gte(config: Mapping[str, Any]) -> EncoderSpec:
    refuse_decoding(config)
    refuse_unless(
        config,
        position_embedding_type="rope",
        layer_norm_type="layer_norm",
        logn_attention_scale=False,
    )
    return _read_rotary(config, _GTE_THETA, has_bias=True, activation="gelu")


def _read_rotary(
    config: Mapping[str, Any], theta: float, *, has_bias: bool, activation: str
) -> EncoderSpec:
    fields = ConfigFields(config)
    hidden_size = fields.size("hidden_size")
    num_heads = num_heads_of(fields, hidden_size)
    head_dim = hidden_size // num_heads
    if fields.size("head_dim", head_dim) != head_dim:
        raise UnsupportedFeatureError(
            f"config.json: not supported yet: head_dim {config['head_dim']}, only {head_dim}"
        )
    positions = fields.size("max_position_embeddings")
    rope = _ntk_rope(fields, theta, head_dim)
    if rope is None:
        rope = read_ropes(config, theta, positions)["full_attention"]
    return EncoderSpec(
        architecture="",
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        intermediate_size=fields.size("intermediate_size"),
        layers=(EncoderLayerSpec(rope),) * num_layers_of(fields),
        max_tokens=max_tokens_of(fields, "max_position_embeddings"),
        activation=activation_of(fields, "hidden_act", activation),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        num_types=fields.size("type_vocab_size", 1, minimum=0),
        is_gated=True,
        qkv_bias=has_bias,
        o_bias=has_bias,
        up_bias=False,
        down_bias=has_bias,
    )


def _ntk_rope(fields: ConfigFields, theta: float, head_dim: int) -> RopeSpec | None:
    """The rope of `rope_scaling` with type `ntk`; None for another one.

    The base grows by the factor and the frequencies shrink by its root, as in the code that came
    with those checkpoints.
    """
    values = fields.mapping("rope_scaling") or {}
    if values.get("type") != "ntk" or fields.mapping("rope_parameters"):
        return None
    if values.get("mixed_b") is not None:
        raise UnsupportedFeatureError("config.json: not supported yet: rope_scaling with mixed_b")
    factor = ConfigFields(values, "config.json: rope_scaling").number("factor")
    plain = RopeSpec(theta=fields.number("rope_theta", theta))
    if factor <= 1.0:
        return plain
    return replace(
        plain,
        kind=RopeKind.LINEAR,
        theta=plain.theta * factor,
        factor=factor ** (2.0 / head_dim),
    )


def _nomic_tensors(spec: EncoderSpec, prefix: str, names: Collection[str]) -> Tensors:
    hidden = spec.hidden_size
    if f"{prefix}emb_ln.weight" not in names:
        return _rotary_tensors(spec, prefix, names)
    found = _tables(spec, prefix) | norm("norm", f"{prefix}emb_ln", hidden, names)
    for index in range(spec.num_layers):
        ours, theirs = f"layers.{index}.", f"{prefix}encoder.layers.{index}."
        found |= pair(f"{ours}qkv", f"{theirs}attn.Wqkv", (3 * hidden, hidden), bias=spec.qkv_bias)
        found |= pair(f"{ours}o", f"{theirs}attn.out_proj", (hidden, hidden), bias=spec.o_bias)
        found |= norm(f"{ours}attention_norm", f"{theirs}norm1", hidden, names)
        found |= _nomic_mlp(f"{ours}mlp.", f"{theirs}mlp.", spec, spec.layers[index].experts)
        found |= norm(f"{ours}mlp_norm", f"{theirs}norm2", hidden, names)
    return found | _head(spec, prefix)


def _nomic_mlp(ours: str, theirs: str, spec: EncoderSpec, experts: MoeSpec | None) -> Tensors:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    if experts is not None:
        # Both matrices of an expert are [inner, hidden], those of all behind one another.
        stack = (experts.num_experts * inner, hidden)
        router = (experts.num_experts, hidden)
        found: Tensors = {
            f"{ours}router.weight": (Source(f"{theirs}router.layer.weight", router),),
            f"{ours}up.weight": (Source(f"{theirs}experts.mlp.w1", stack),),
            f"{ours}down": (Source(f"{theirs}experts.mlp.w2", stack),),
        }
        if spec.has_expert_bias:
            found[f"{ours}bias"] = (Source(f"{theirs}{_EXPERT_BIAS}", (hidden,)),)
        return found
    down = pair(f"{ours}down", f"{theirs}fc2", (hidden, inner), bias=spec.down_bias)
    if not spec.is_gated:
        return down | pair(f"{ours}up", f"{theirs}fc1", (inner, hidden), bias=spec.up_bias)
    gate_up = (f"{theirs}fc12", f"{theirs}fc11")
    return down | joined(f"{ours}up", gate_up, (inner, hidden), bias=spec.up_bias)


def _with_expert_bias(spec: EncoderSpec, names: Collection[str]) -> EncoderSpec:
    """GGUF files leave the bias of experts out."""
    if all(layer.experts is None for layer in spec.layers):
        return spec
    return replace(spec, has_expert_bias=any(name.endswith(_EXPERT_BIAS) for name in names))


def _gte_tensors(spec: EncoderSpec, prefix: str, names: Collection[str]) -> Tensors:
    if f"{prefix}encoder.layer.0.attn_ln.weight" not in names:
        return _rotary_tensors(spec, prefix, names)
    hidden, inner = spec.hidden_size, spec.intermediate_size
    found = _tables(spec, prefix) | norm("norm", f"{prefix}embeddings.LayerNorm", hidden, names)
    for index in range(spec.num_layers):
        ours, theirs = f"layers.{index}.", f"{prefix}encoder.layer.{index}."
        up_gate, shape = f"{theirs}mlp.up_gate_proj.weight", (2 * inner, hidden)
        found[f"{ours}mlp.up.weight"] = (
            Source(up_gate, shape, rows=(inner, 2 * inner)),
            Source(up_gate, shape, rows=(0, inner)),
        )
        qkv = f"{theirs}attention.qkv_proj"
        if f"{qkv}.weight" in names:
            found |= pair(f"{ours}qkv", qkv, (3 * hidden, hidden))
        else:  # `pack_qkv` false
            parts = tuple(f"{theirs}attention.{name}" for name in ("q_proj", "k_proj", "v_proj"))
            found |= joined(f"{ours}qkv", parts, (hidden, hidden))
        found |= pair(f"{ours}o", f"{theirs}attention.o_proj", (hidden, hidden))
        found |= norm(f"{ours}attention_norm", f"{theirs}attn_ln", hidden, names)
        found |= pair(f"{ours}mlp.down", f"{theirs}mlp.down_proj", (hidden, inner))
        found |= norm(f"{ours}mlp_norm", f"{theirs}mlp_ln", hidden, names)
    return found | _head(spec, prefix)


def _rotary_tensors(spec: EncoderSpec, prefix: str, names: Collection[str]) -> Tensors:
    """As transformers names them."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    found = _tables(spec, prefix) | norm("norm", f"{prefix}embeddings.LayerNorm", hidden, names)
    for index in range(spec.num_layers):
        ours, theirs = f"layers.{index}.", f"{prefix}layers.{index}."
        parts = tuple(f"{theirs}self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj"))
        gate_up = (f"{theirs}mlp.gate_proj", f"{theirs}mlp.up_proj")
        square, down = (hidden, hidden), (hidden, inner)
        found |= joined(f"{ours}qkv", parts, square, bias=spec.qkv_bias)
        found |= pair(f"{ours}o", f"{theirs}self_attn.o_proj", square, bias=spec.o_bias)
        found |= norm(f"{ours}attention_norm", f"{theirs}post_attention_layernorm", hidden, names)
        found |= joined(f"{ours}mlp.up", gate_up, (inner, hidden), bias=False)
        found |= pair(f"{ours}mlp.down", f"{theirs}mlp.down_proj", down, bias=spec.down_bias)
        found |= norm(f"{ours}mlp_norm", f"{theirs}post_mlp_layernorm", hidden, names)
    return found | _head(spec, prefix)


def _tables(spec: EncoderSpec, prefix: str) -> Tensors:
    head, hidden = f"{prefix}embeddings.", spec.hidden_size
    found: Tensors = {
        "words.weight": (Source(f"{head}word_embeddings.weight", (spec.vocab_size, hidden)),)
    }
    if spec.num_types:
        types = Source(f"{head}token_type_embeddings.weight", (spec.num_types, hidden))
        found["types.weight"] = (types,)
    return found


def _head(spec: EncoderSpec, prefix: str) -> Tensors:
    if spec.head is None:
        return {}
    hidden = spec.hidden_size
    return {
        **pair("head.dense", f"{prefix}pooler.dense", (hidden, hidden)),
        **pair("head.out", "classifier", (spec.head.num_labels, hidden)),
    }


FAMILIES = (
    EncoderFamily(
        "NomicBERT",
        ("nomic_bert",),
        ("nomic_bert.", "bert."),
        _EMBEDDING,
        _read_nomic,
        _nomic_tensors,
        tanh_head,
        _with_expert_bias,
    ),
    EncoderFamily(
        "GTE (NewModel)",
        ("new", "gte"),
        ("new.", "gte."),
        _EMBEDDING,
        _read_gte,
        _gte_tensors,
        tanh_head,
    ),
)

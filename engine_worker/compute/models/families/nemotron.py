"""Nemotron-H: a row of Mamba-2, attention, MLP and expert blocks, each with a norm before it.

A mixer and the MLP or experts behind it, if any, are one layer here.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    MAX_LAYERS,
    activation_of,
    attention_of,
    decoder_of,
)
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.families.mamba import MAX_KERNEL, mamba_tensors
from engine_worker.compute.models.families.moe import num_chosen_of, num_experts_of
from engine_worker.compute.models.recurrent.specs import MambaSpec
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    RouterScore,
)
from engine_worker.compute.models.tensors import (
    Source,
    Spelling,
    Tensors,
    attention_tensors,
    mlp_tensors,
    outer_tensors,
)
from engine_worker.errors import UnsupportedFeatureError

_ARCHITECTURE = "NemotronHForCausalLM"
_MAMBA, _ATTENTION, _MLP, _EXPERTS = "mamba", "attention", "mlp", "moe"
_BY_SIGN = {"M": _MAMBA, "*": _ATTENTION, "-": _MLP, "E": _EXPERTS}
_BY_NAME = {
    "linear_attention": _MAMBA,
    "full_attention": _ATTENTION,
    **{name: name for name in _BY_SIGN.values()},
}
_DEFAULTS: dict[str, Any] = {
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "layer_norm_epsilon": 1e-5,
    "intermediate_size": 21_504,
}
_OLDER_NAMES = {
    "mamba_n_groups": "n_groups",
    "mamba_d_conv": "conv_kernel",
    "mamba_dt_min": "time_step_min",
    "mamba_conv_bias": "use_conv_bias",
}


def _read(config: Mapping[str, Any]) -> DecoderSpec:
    older = {new: config[old] for old, new in _OLDER_NAMES.items() if old in config}
    fields = ConfigFields({**_DEFAULTS, **config, **older})
    kinds = _kinds(fields)
    blocks: dict[str, Any] = {
        _MAMBA: _mamba(fields) if _MAMBA in kinds else None,
        _ATTENTION: replace(attention_of(fields, None, None), qkv_bias=False, o_bias=False),
        _MLP: _mlp(fields, fields.size("intermediate_size")),
        _EXPERTS: _experts(fields) if _EXPERTS in kinds else None,
    }
    layers: list[LayerSpec] = []
    for kind in kinds:
        if kind in {_MAMBA, _ATTENTION}:
            layers.append(LayerSpec(blocks[kind], None))
        elif not layers or layers[-1].mlp is not None:
            raise UnsupportedFeatureError(
                f"config.json: layers_block_type: {kind} is not behind mamba or attention"
            )
        else:
            layers[-1] = replace(layers[-1], mlp=blocks[kind])
    return decoder_of(fields, _ARCHITECTURE, layers, "layer_norm_epsilon")


def _kinds(fields: ConfigFields) -> tuple[str, ...]:
    name = "layers_block_type" if fields.present("layers_block_type") else "layer_types"
    stated = fields.strings(name)
    known = _BY_NAME
    if stated is None:
        name, known = "hybrid_override_pattern", _BY_SIGN
        stated = tuple(fields.text(name))
    if not 0 < len(stated) <= MAX_LAYERS:
        raise fields.error(name, f"must name 1 to {MAX_LAYERS} layers", stated)
    unknown = sorted(set(stated) - set(known))
    if unknown:
        raise UnsupportedFeatureError(f"config.json: layer type {unknown[0]!r} is not supported")
    return tuple(known[one] for one in stated)


def _mamba(fields: ConfigFields) -> MambaSpec:
    if fields.text("mamba_hidden_act", "silu") not in {"silu", "swish"}:
        raise UnsupportedFeatureError("config.json: Mamba-2 with another activation than silu")
    num_heads, num_groups = fields.size("mamba_num_heads", 128), fields.size("n_groups", 8)
    if num_heads % num_groups:
        raise fields.error("n_groups", f"must divide {num_heads} heads", num_groups)
    bias = fields.flag("use_bias", False)
    return MambaSpec(
        num_heads=num_heads,
        head_dim=fields.size("mamba_head_dim", 64),
        num_groups=num_groups,
        state_size=fields.size("ssm_state_size", 128),
        kernel_size=fields.size("conv_kernel", 4, minimum=2, maximum=MAX_KERNEL),
        conv_bias=fields.flag("use_conv_bias", True),
        proj_bias=bias,
        out_bias=bias,
        # `time_step_limit` and `time_step_max` are for training.
        time_limits=(fields.number("time_step_min", 0.001), math.inf),
        norm_groups=num_groups,
    )


def _mlp(fields: ConfigFields, width: int) -> MlpSpec:
    return MlpSpec(
        intermediate_size=width,
        activation=activation_of(fields, "mlp_hidden_act", "relu2"),
        gated=False,
        bias=fields.flag("mlp_bias", False),
    )


def _experts(fields: ConfigFields) -> MoeSpec:
    num_experts = num_experts_of(fields, 8, "n_routed_experts", "num_local_experts")
    num_groups = fields.size("n_group", 1)
    if num_experts % num_groups:
        raise fields.error("n_group", f"must divide {num_experts} experts", num_groups)
    expert = _mlp(fields, fields.size("moe_intermediate_size", 7688))
    return MoeSpec(
        num_experts=num_experts,
        num_experts_per_token=num_chosen_of(fields, num_experts, 2, "num_experts_per_tok"),
        # Experts themselves never have biases; the products round them may.
        expert=replace(expert, bias=False),
        score=RouterScore.SIGMOID,
        normalize_weights=fields.flag("norm_topk_prob", True),
        weights_multiplier=fields.number("routed_scaling_factor", 1.0),
        correction_bias=True,
        num_groups=num_groups,
        num_groups_per_token=fields.size("topk_group", 1, maximum=num_groups),
        num_group_scores=min(2, num_experts // num_groups),
        shared=_mlp(fields, fields.size("moe_shared_expert_intermediate_size", 7688)),
        latent_size=fields.size("moe_latent_size") if fields.present("moe_latent_size") else None,
    )


def _spelling(names: Collection[str]) -> Spelling:
    """The model is `model` since transformers 5, and was `backbone` before."""
    usual = Spelling(
        model="backbone.",
        embedding_name="embeddings",
        last_norm="norm_f",
        attention_norm="norm",
        attention_block="mixer.",
        mlp_norm="norm",
        mlp_block="mixer.",
        gate_up=("up_proj",),
    )
    newer = replace(usual, model="model.")
    return newer if newer.embedding in names else usual


def _tensors(spec: DecoderSpec, names: Collection[str]) -> Tensors:
    spelling, hidden = _spelling(names), spec.hidden_size
    sources = outer_tensors(spec, spelling)
    numbers: Iterator[str] = (f"{spelling.model}layers.{n}." for n in range(MAX_LAYERS))
    for index, layer in enumerate(spec.layers):
        ours, theirs = f"layers.{index}.", next(numbers)
        if isinstance(layer.mixer, AttentionSpec):
            sources |= attention_tensors(ours, theirs, layer.mixer, hidden, spelling)
        else:
            assert isinstance(layer.mixer, MambaSpec)
            sources |= mamba_tensors(
                f"{ours}recurrent.", theirs, layer.mixer, hidden, "mixer.", "norm"
            )
        if isinstance(layer.mlp, MlpSpec):
            sources |= mlp_tensors(ours, next(numbers), layer.mlp, hidden, spelling)
        elif layer.mlp is not None:
            sources |= _expert_tensors(f"{ours}mlp.", next(numbers), layer.mlp, hidden, names)
    return sources


def _expert_tensors(
    ours: str, theirs: str, moe: MoeSpec, hidden: int, names: Collection[str]
) -> Tensors:
    block, num = f"{theirs}mixer.", moe.num_experts
    inner, width = moe.expert.intermediate_size, moe.latent_size or hidden
    assert moe.shared is not None, "read with it"
    shared = moe.shared.intermediate_size
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "router.weight": ("gate.weight", (num, hidden)),
        "correction_bias": ("gate.e_score_correction_bias", (num,)),
        "shared.gate_up.weight": ("shared_experts.up_proj.weight", (shared, hidden)),
        "shared.gate_up.bias": ("shared_experts.up_proj.bias", (shared,)),
        "shared.down.weight": ("shared_experts.down_proj.weight", (hidden, shared)),
        "shared.down.bias": ("shared_experts.down_proj.bias", (hidden,)),
        "to_latent.weight": ("fc1_latent_proj.weight", (width, hidden)),
        "to_latent.bias": ("fc1_latent_proj.bias", (width,)),
        "from_latent.weight": ("fc2_latent_proj.weight", (hidden, width)),
        "from_latent.bias": ("fc2_latent_proj.bias", (hidden,)),
    }
    sources: Tensors = {
        f"{ours}norm.weight": (Source(f"{theirs}norm.weight", (hidden,)),),
        **{
            f"{ours}{name}": (Source(f"{block}{tensor}", shape),)
            for name, (tensor, shape) in shapes.items()
        },
    }
    experts = {"gate_up": ("up_proj", (inner, width)), "down": ("down_proj", (width, inner))}
    for name, (tensor, shape) in experts.items():
        if f"{block}experts.{tensor}" in names:
            parts: tuple[Source, ...] = (Source(f"{block}experts.{tensor}", (num, *shape)),)
        else:
            parts = tuple(
                Source(f"{block}experts.{expert}.{tensor}.weight", shape) for expert in range(num)
            )
        sources[f"{ours}{name}.weight"] = parts
    return sources


FAMILIES = (Family(_ARCHITECTURE, "nemotron_h", _read, _tensors, ignored_prefixes=("mtp.",)),)

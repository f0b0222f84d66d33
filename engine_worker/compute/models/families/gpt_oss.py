"""GPT-OSS: attention sinks, windows in every second layer, experts with biases and a clamped gate.

Its experts stand transposed, gate and up in turn; checkpoints in MXFP4 are read as these.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    FULL,
    SLIDING,
    HeadDefaults,
    attention_of,
    max_positions_of,
    num_layers_of,
    stated_layer_types,
)
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.families.moe import num_chosen_of, num_experts_of
from engine_worker.compute.models.hf_rope import MAX_POSITIONS, read_ropes
from engine_worker.compute.models.spec import (
    Activation,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
)
from engine_worker.compute.models.tensors import Source, Tensors, decoder_tensors
from engine_worker.errors import UnsupportedFeatureError

_ALPHA = 1.702
"""Of `Activation.QUICK_GELU`."""
_DEFAULT_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _read(config: Mapping[str, Any]) -> DecoderSpec:
    fields = ConfigFields(config)
    num_layers, max_positions = num_layers_of(fields), max_positions_of(fields)
    if not any(fields.mapping(name) for name in ("rope_parameters", "rope_scaling")):
        config = {**config, "rope_scaling": _DEFAULT_ROPE}
    ropes = read_ropes(config, 150_000.0, max_positions)
    window = fields.size("sliding_window", 128, maximum=MAX_POSITIONS)
    bias = fields.flag("attention_bias", True)
    types = stated_layer_types(fields, num_layers) or tuple(
        FULL if index % 2 else SLIDING for index in range(num_layers)
    )
    experts = _experts(fields)
    layers = []
    for layer_type in types:
        attention = attention_of(
            fields,
            ropes[layer_type],
            window if layer_type == SLIDING else None,
            heads=HeadDefaults(head_dim=64, num_kv_heads=8),
            bias=(bias, bias),
        )
        layers.append(LayerSpec(replace(attention, sinks=True), experts))
    return DecoderSpec(
        architecture="GptOssForCausalLM",
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        layers=tuple(layers),
        max_position_embeddings=max_positions,
        norm_eps=fields.number("rms_norm_eps", 1e-5),
        tied_head=fields.flag("tie_word_embeddings", False),
        eos_token_ids=fields.integers("eos_token_id") or (),
    )


def _experts(fields: ConfigFields) -> MoeSpec:
    alpha = fields.number("swiglu_alpha", _ALPHA)
    if alpha != _ALPHA:
        raise UnsupportedFeatureError(f"config.json: swiglu_alpha {alpha} is not supported")
    num_experts = num_experts_of(fields, 128, "num_local_experts", "num_experts")
    return MoeSpec(
        num_experts=num_experts,
        # Some files have the older name beside or instead of the newer one.
        num_experts_per_token=num_chosen_of(
            fields,
            num_experts,
            4,
            "num_experts_per_tok" if fields.present("num_experts_per_tok") else "experts_per_token",
        ),
        expert=MlpSpec(
            fields.size("intermediate_size"),
            Activation.QUICK_GELU,
            bias=True,
            clamp=fields.number("swiglu_limit", 7.0),
            up_offset=1.0,
        ),
        router_bias=True,
    )


def _tensors(spec: DecoderSpec, names: Collection[str]) -> Tensors:
    sources = decoder_tensors(spec, names)
    for index, layer in enumerate(spec.layers):
        assert isinstance(layer.mlp, MoeSpec), "every layer has experts"
        ours, theirs = f"layers.{index}.", f"model.layers.{index}."
        sources |= _expert_tensors(ours, theirs, layer.mlp, spec.hidden_size)
    return sources


def _expert_tensors(ours: str, theirs: str, moe: MoeSpec, hidden: int) -> Tensors:
    num_experts, inner = moe.num_experts, moe.expert.intermediate_size
    router, experts = f"{theirs}mlp.router.", f"{theirs}mlp.experts."
    shapes = {"gate_up": (hidden, 2 * inner), "down": (inner, hidden)}
    sources: Tensors = {
        f"{ours}mlp.norm.weight": (Source(f"{theirs}post_attention_layernorm.weight", (hidden,)),),
        f"{ours}mlp.router.weight": (Source(f"{router}weight", (num_experts, hidden)),),
        f"{ours}mlp.router.bias": (Source(f"{router}bias", (num_experts,)),),
    }
    for name, shape in shapes.items():
        in_turn = name == "gate_up"
        matrices = Source(
            f"{experts}{name}_proj",
            (num_experts, *shape),
            is_transposed=True,
            has_halves_in_turn=in_turn,
        )
        biases = Source(
            f"{experts}{name}_proj_bias", (num_experts, shape[1]), has_halves_in_turn=in_turn
        )
        sources |= {f"{ours}mlp.{name}.weight": (matrices,), f"{ours}mlp.{name}.bias": (biases,)}
    return sources


FAMILIES = (Family("GptOssForCausalLM", "gpt_oss", _read, _tensors),)

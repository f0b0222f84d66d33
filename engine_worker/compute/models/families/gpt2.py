"""GPT-2 and StarCoder2: LayerNorms with biases, and MLPs without a gate."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    activation_of,
    attention_of,
    decoder_of,
    max_positions_of,
    num_layers_of,
    stated_window,
)
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    NormKind,
)
from engine_worker.compute.models.tensors import HEAD, Source, Spelling, Tensors, spelled
from engine_worker.errors import UnsupportedFeatureError

_STARCODER2 = {
    "norm_epsilon": 1e-5,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
_GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
}
_GPT2 = {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
_GPT2_PREFIX = "transformer."


def read_starcoder2(config: Mapping[str, Any]) -> DecoderSpec:
    """StarCoder2."""
    fields = ConfigFields({**_STARCODER2, **config})
    rope = read_ropes(config, 10_000.0, max_positions_of(fields))["full_attention"]
    bias = fields.flag("use_bias", True)
    mlp = MlpSpec(
        fields.size("intermediate_size"),
        activation_of(fields, default="gelu_pytorch_tanh"),
        gated=False,
        bias=bias,
    )
    layer = LayerSpec(attention_of(fields, rope, stated_window(fields), bias=(bias, bias)), mlp)
    spec = decoder_of(
        fields, "Starcoder2ForCausalLM", [layer] * num_layers_of(fields), "norm_epsilon"
    )
    return replace(spec, norm_kind=NormKind.LAYER, norm_bias=True)


def read_gpt2(config: Mapping[str, Any]) -> DecoderSpec:
    """GPT-2: positions are learned vectors, and its config has names of its own."""
    renamed = {_GPT2_NAMES.get(name, name): value for name, value in config.items()}
    fields = ConfigFields({**_GPT2, **renamed})
    if fields.flag("add_cross_attention", False):
        raise UnsupportedFeatureError("config.json: add_cross_attention is not supported")
    hidden = fields.size("hidden_size")
    mlp = MlpSpec(
        fields.size("n_inner", 4 * hidden),
        activation_of(fields, "activation_function", "gelu_new"),
        gated=False,
        bias=True,
    )
    attention = attention_of(fields, None, None, bias=(True, True))
    layers = [
        LayerSpec(replace(attention, scale=_gpt2_scale(fields, attention, index)), mlp)
        for index in range(num_layers_of(fields))
    ]
    spec = decoder_of(fields, "GPT2LMHeadModel", layers, "layer_norm_epsilon")
    return replace(spec, norm_kind=NormKind.LAYER, norm_bias=True, learned_positions=True)


def _gpt2_scale(fields: ConfigFields, attention: AttentionSpec, layer: int) -> float:
    scale = attention.scale if fields.flag("scale_attn_weights", True) else 1.0
    return scale / (layer + 1) if fields.flag("scale_attn_by_inverse_layer_idx", False) else scale


def gpt2_tensors(spec: DecoderSpec, names: Collection[str] = ()) -> Tensors:
    """GPT-2's names, with and without a prefix; its matrices are [in, out]."""
    prefix = "" if "wte.weight" in names else _GPT2_PREFIX
    hidden, table = spec.hidden_size, (spec.vocab_size, spec.hidden_size)
    positions = (spec.max_position_embeddings, hidden)
    sources: Tensors = {
        "embedding.weight": (Source(f"{prefix}wte.weight", table),),
        "position_embedding.weight": (Source(f"{prefix}wpe.weight", positions),),
        "head.weight": (Source(HEAD, table),),
    }
    vectors = {"norm": f"{prefix}ln_f"}
    for index, layer in enumerate(spec.layers):
        assert isinstance(layer.mlp, MlpSpec), "GPT-2 has no experts"
        inner = layer.mlp.intermediate_size
        ours, theirs = f"layers.{index}.", f"{prefix}h.{index}."
        vectors |= {f"{ours}attention.norm": f"{theirs}ln_1", f"{ours}mlp.norm": f"{theirs}ln_2"}
        for path, name, in_size, out_size in (
            ("attention.qkv", "attn.c_attn", hidden, 3 * hidden),
            ("attention.o", "attn.c_proj", hidden, hidden),
            ("mlp.gate_up", "mlp.c_fc", hidden, inner),
            ("mlp.down", "mlp.c_proj", inner, hidden),
        ):
            matrix = Source(f"{theirs}{name}.weight", (in_size, out_size), is_transposed=True)
            sources[f"{ours}{path}.weight"] = (matrix,)
            sources[f"{ours}{path}.bias"] = (Source(f"{theirs}{name}.bias", (out_size,)),)
    for path, name in vectors.items():
        for part in ("weight", "bias"):
            sources[f"{path}.{part}"] = (Source(f"{name}.{part}", (hidden,)),)
    return sources


FAMILIES = (
    Family("GPT2LMHeadModel", "gpt2", read_gpt2, gpt2_tensors),
    Family(
        "Starcoder2ForCausalLM",
        "starcoder2",
        read_starcoder2,
        spelled(Spelling(gate_up=("c_fc",), down="c_proj")),
    ),
)

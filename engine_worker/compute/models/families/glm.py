"""GLM-4, Seed-OSS and ERNIE 4.5: Llama with biases, other norms, or neighbouring pairs rotated."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families.common import (
    attention_of,
    decoder_of,
    max_positions_of,
    mlp_of,
    num_layers_of,
)
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.hf_rope import read_ropes
from engine_worker.compute.models.spec import (
    DecoderSpec,
    LayerSpec,
    NormPlacement,
)
from engine_worker.compute.models.tensors import (
    Spelling,
    decoder_tensors,
    rotated_by_halves,
    spelled,
)

_GLM = {
    "rms_norm_eps": 1.5625e-7,
    "head_dim": 128,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
}
_SEED_OSS = {
    "rms_norm_eps": 1e-6,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "attention_bias": True,
}
_ERNIE = {
    "rms_norm_eps": 1e-5,
    "head_dim": 128,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
_FUSED = Spelling(gate_up=("gate_up_proj",))


def read_glm(config: Mapping[str, Any]) -> DecoderSpec:
    """GLM-4-9B-chat, whose layers have Llama's norms."""
    return _read_glm(config, "GlmForCausalLM")


def read_glm4(config: Mapping[str, Any]) -> DecoderSpec:
    """GLM-4-0414, whose sublayers have norms around them."""
    spec = _read_glm(config, "Glm4ForCausalLM")
    return replace(spec, norm_placement=NormPlacement.SANDWICH)


def _read_glm(config: Mapping[str, Any], architecture: str) -> DecoderSpec:
    config = {**_GLM, **config}
    bias = ConfigFields(config).flag("attention_bias", True), False
    return _read(config, architecture, theta=10_000.0, bias=bias)


def read_seed_oss(config: Mapping[str, Any]) -> DecoderSpec:
    """Seed-OSS."""
    config = {**_SEED_OSS, **config}
    fields = ConfigFields(config)
    bias = fields.flag("attention_bias", True), fields.flag("attention_out_bias", False)
    mlp_bias = fields.flag("mlp_bias", False)
    return _read(config, "SeedOssForCausalLM", theta=10_000.0, bias=bias, mlp_bias=mlp_bias)


def read_ernie(config: Mapping[str, Any]) -> DecoderSpec:
    """ERNIE 4.5, dense."""
    config = {**_ERNIE, **config}
    bias = ConfigFields(config).flag("use_bias", False)
    return _read(
        config,
        "Ernie4_5ForCausalLM",
        theta=500_000.0,
        bias=(bias, bias),
        mlp_bias=bias,
    )


def _read(
    config: Mapping[str, Any],
    architecture: str,
    *,
    theta: float,
    bias: tuple[bool, bool],
    mlp_bias: bool = False,
) -> DecoderSpec:
    fields = ConfigFields(config)
    rope = read_ropes(config, theta, max_positions_of(fields))["full_attention"]
    layer = LayerSpec(
        attention_of(fields, rope, None, bias=bias),
        mlp_of(fields, bias=mlp_bias),
    )
    return decoder_of(fields, architecture, [layer] * num_layers_of(fields), "rms_norm_eps")


FAMILIES = (
    Family("GlmForCausalLM", "glm", read_glm, rotated_by_halves(spelled(_FUSED))),
    Family(
        "Glm4ForCausalLM",
        "glm4",
        read_glm4,
        rotated_by_halves(
            spelled(
                replace(
                    _FUSED,
                    attention_post_norm="post_self_attn_layernorm",
                    mlp_post_norm="post_mlp_layernorm",
                )
            )
        ),
    ),
    Family("SeedOssForCausalLM", "seed_oss", read_seed_oss),
    Family("Ernie4_5ForCausalLM", "ernie4_5", read_ernie, rotated_by_halves(decoder_tensors)),
)

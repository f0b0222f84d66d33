"""The text models of Qwen 2-VL, 2.5-VL and 3-VL, which are Qwen 2 and Qwen 3, dense or of experts.

Positions of text alone are the same along all three axes of their rope, which is a plain one then.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.families import llama, moe
from engine_worker.compute.models.families.common import text_config_of
from engine_worker.compute.models.families.experts import ExpertNames, tensors_with_experts
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.spec import DecoderSpec
from engine_worker.compute.models.tensors import (
    TensorNames,
    text_model_of_others,
    text_model_tensors,
)

_ROPES = ("rope_scaling", "rope_parameters")
_OLD_KIND = "mrope"
_TIED = "tie_word_embeddings"
_READ = {family.architecture: family.read for family in (*llama.FAMILIES, *moe.FAMILIES)}
_EXPERTS: Mapping[str, Any] = {
    "num_local_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "num_key_value_heads": 16,
    "norm_topk_prob": True,
}
"""What configs of experts leave out where it is so; the last is in no config of transformers'."""


def _read(
    text_model: str, architecture: str, defaults: Mapping[str, Any], config: Mapping[str, Any]
) -> DecoderSpec:
    whole = ConfigFields(config)
    text: dict[str, Any] = dict(config)
    if whole.mapping("text_config") is not None:
        text = text_config_of(config)
        # transformers before release 5 wrote it into the text model's config alone.
        inner = ConfigFields(whole.mapping("text_config") or {}, "config.json: text_config")
        text[_TIED] = whole.flag(_TIED, False) or inner.flag(_TIED, False)
    text = {**defaults, **text}
    for name in _ROPES:
        rope = ConfigFields(text).mapping(name)
        if rope is not None:
            text[name] = {key: value for key, value in rope.items() if value != _OLD_KIND}
    return replace(_READ[text_model](text), architecture=architecture)


def _family(
    architecture: str,
    model_type: str,
    text_model: str,
    tensors: TensorNames | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Family:
    return Family(
        architecture,
        model_type,
        partial(_read, text_model, architecture, defaults),
        tensors or text_model_tensors(),
        ("visual.", "model.visual."),
    )


FAMILIES = (
    _family("Qwen2VLForConditionalGeneration", "qwen2_vl", "Qwen2ForCausalLM"),
    _family("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", "Qwen2ForCausalLM"),
    _family("Qwen3VLForConditionalGeneration", "qwen3_vl", "Qwen3ForCausalLM"),
    _family(
        "Qwen3VLMoeForConditionalGeneration",
        "qwen3_vl_moe",
        "Qwen3MoeForCausalLM",
        text_model_of_others(tensors_with_experts(ExpertNames(is_stacked_transposed=True))),
        _EXPERTS,
    ),
)

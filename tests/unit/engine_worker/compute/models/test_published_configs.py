"""Values that configs on the hub have, and that no class of transformers writes any more."""

from typing import Any

import pytest

from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.quantization import QuantMethod, read_quantization
from engine_worker.compute.models.spec import Activation, MlpSpec, QueryScale
from engine_worker.errors import (
    ModelConfigError,
    UnsupportedFeatureError,
    UnsupportedFormatError,
)
from tests.fakes.tiny_checkpoint import TINY_LLAMA

GEMMA: dict[str, Any] = {
    **TINY_LLAMA,
    "architectures": ["GemmaForCausalLM"],
    "model_type": "gemma",
    "head_dim": 8,
}
LATENT: dict[str, Any] = {
    **TINY_LLAMA,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "first_k_dense_replace": 8,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def changed(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The config with other values; those of None are left out."""
    whole = {**config, **changes}
    return {name: value for name, value in whole.items() if value is not None}


@pytest.mark.parametrize(
    ("act", "activation", "expected"),
    [
        ("gelu", "gelu_pytorch_tanh", Activation.GELU_TANH),
        ("gelu", None, Activation.GELU_TANH),
        ("gelu_pytorch_tanh", None, Activation.GELU_TANH),
        (None, None, Activation.GELU_TANH),
        ("gelu_pytorch_tanh", "gelu", Activation.GELU),
    ],
)
def test_the_activation_of_gemma_is_the_newer_field_s(
    act: str | None, activation: str | None, expected: Activation
) -> None:
    """gelu beside gelu_pytorch_tanh was the exact function."""
    spec = decoder_spec(changed(GEMMA, hidden_act=act, hidden_activation=activation))
    (mlp, *_) = (layer.mlp for layer in spec.layers)
    assert isinstance(mlp, MlpSpec)
    assert mlp.activation is expected


@pytest.mark.parametrize("said", [{"mscale": 0.0}, {"mscale_all_dim": 0}, {"mscale": 0.7}])
def test_a_temperature_of_zero_is_none(said: dict[str, float]) -> None:
    plain = decoder_spec({**LATENT, "rope_scaling": YARN})
    spec = decoder_spec({**LATENT, "rope_scaling": YARN | said})
    assert spec == plain
    both = decoder_spec({**LATENT, "rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}})
    assert both.layers[0].attention.scale > plain.layers[0].attention.scale
    with pytest.raises(ModelConfigError, match="mscale"):
        decoder_spec({**LATENT, "rope_scaling": YARN | {"mscale": -1.0}})


def test_yarn_needs_a_base_above_one() -> None:
    """It was a division by zero when programs were traced."""
    with pytest.raises(ModelConfigError, match="rope_theta must be above 1"):
        decoder_spec({**LATENT, "rope_theta": 1.0, "rope_scaling": YARN})


@pytest.mark.parametrize(("stated", "expected"), [(4, True), (0, False), (True, True)])
def test_llama_4_s_queries_grow_where_a_number_says_so(stated: Any, expected: bool) -> None:
    """As Scout and Maverick were published: the start was refused."""
    config = {
        **TINY_LLAMA,
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "head_dim": 8,
        "num_hidden_layers": 4,
        "num_local_experts": 2,
        "attn_temperature_tuning": stated,
    }
    scale = decoder_spec(config).layers[3].attention.query_scale
    assert scale == (QueryScale(0.1, 8192, offset=1) if expected else None)
    with pytest.raises(ModelConfigError, match="attn_temperature_tuning"):
        decoder_spec(config | {"attn_temperature_tuning": "yes"})


@pytest.mark.parametrize("name", ["load_in_4bit", "load_in_8bit"])
def test_bitsandbytes_is_known_from_before_methods_had_names(name: str) -> None:
    found = read_quantization({"quantization_config": {name: True}})
    assert found is not None
    assert found.method is QuantMethod.BITSANDBYTES
    with pytest.raises(UnsupportedFormatError, match="an unnamed method"):
        read_quantization({"quantization_config": {name: False}})


@pytest.mark.parametrize(
    ("scaling", "longest"),
    [
        (None, 64),
        ({**YARN, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 4.0}, 256),
        (YARN, 64),
        ({"rope_type": "yarn", "original_max_position_embeddings": 16}, 64),
        ({**YARN, "factor": 1e300}, 2**31 - 1),
        ({"rope_type": "linear", "factor": 4.0}, 64),
    ],
)
def test_a_context_that_yarn_makes_longer_is_served(
    scaling: dict[str, Any] | None, longest: int
) -> None:
    """`rope_scaling` as Qwen's pages have it beside the length that was: more was refused."""
    config = {**TINY_LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    assert decoder_spec({**config, "rope_scaling": scaling}).max_position_embeddings == longest


@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_a_rope_scaling_that_was_added_to_rope_parameters_counts(kind: str) -> None:
    """It was passed over without a word."""
    config = {**TINY_LLAMA, "rope_theta": None}
    scaling = {kind: "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    parameters = {"rope_type": "default", "rope_theta": 500.0}
    both = decoder_spec({**config, "rope_parameters": parameters, "rope_scaling": scaling})
    assert both == decoder_spec({**TINY_LLAMA, "rope_theta": 500.0, "rope_scaling": scaling})
    whole = {**parameters, **scaling, "rope_type": "yarn"}
    assert both == decoder_spec({**config, "rope_parameters": whole, "rope_scaling": None})


def test_experts_whose_names_alone_would_take_gigabytes_are_refused() -> None:
    """A config of a few lines kept a start busy for minutes before a tensor was missing."""
    config = {
        **TINY_LLAMA,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": 32,
        "num_experts": 4096,
    }
    assert len(decoder_spec(config).layers) == 32
    with pytest.raises(ModelConfigError, match="135168 experts; at most 131072 are read"):
        decoder_spec({**config, "num_hidden_layers": 33})


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 1e-300},
        {"rope_scaling": {**YARN, "beta_fast": 5e-324}},
        {"rope_scaling": {**YARN, "factor": 1e-300}},
        {"rope_scaling": {**YARN, "attention_factor": 1e300}},
    ],
)
def test_a_rope_without_finite_frequencies_is_refused(changes: dict[str, Any]) -> None:
    """It was a traceback, or every answer was NaN."""
    with pytest.raises(UnsupportedFeatureError, match="frequencies are no finite numbers"):
        declare(decoder_spec({**TINY_LLAMA, **changes}), "float32")


def test_no_more_than_all_of_a_head_is_rotated() -> None:
    with pytest.raises(ModelConfigError, match="partial_rotary_factor must be at most 1"):
        decoder_spec({**TINY_LLAMA, "partial_rotary_factor": 1.5})

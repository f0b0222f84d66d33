"""What each family's config.json turns into, and what is refused, by name."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec, load_spec
from engine_worker.compute.models.spec import AttentionSpec, DecoderSpec, QkNorm, RopeKind, RopeSpec
from engine_worker.errors import (
    ModelConfigError,
    UnsupportedArchitectureError,
    UnsupportedFeatureError,
    UnsupportedFormatError,
)
from tests.fakes.tiny_checkpoint import TINY_LLAMA, write_config

PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "SmolLM2-135M": (
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "rope_theta": 100000,
            "rope_scaling": None,
            "tie_word_embeddings": True,
        },
        134_515_008,
    ),
    "Llama-3.2-1B": (
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "tie_word_embeddings": True,
        },
        1_235_814_400,
    ),
    "Mistral-7B-v0.1": (
        {
            "architectures": ["MistralForCausalLM"],
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32000,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
        },
        7_241_732_096,
    ),
    "Qwen2.5-0.5B": (
        {
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "use_sliding_window": False,
            "max_window_layers": 24,
            "tie_word_embeddings": True,
        },
        494_032_768,
    ),
    "Qwen3-0.6B": (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
            "rope_theta": 1000000,
            "tie_word_embeddings": True,
        },
        596_049_920,
    ),
    "SmolLM3-3B": (
        {
            "architectures": ["SmolLM3ForCausalLM"],
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "vocab_size": 128256,
            "max_position_embeddings": 65536,
            "rope_theta": 5000000.0,
            "no_rope_layer_interval": 4,
        },
        3_075_098_624,
    ),
    "GPT-2": (
        {
            "architectures": ["GPT2LMHeadModel"],
            "activation_function": "gelu_new",
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 1024,
            "vocab_size": 50257,
        },
        124_439_808,
    ),
    "Gemma-2-2B": (
        {
            "architectures": ["Gemma2ForCausalLM"],
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 256000,
            "max_position_embeddings": 8192,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window": 4096,
        },
        2_614_341_888,
    ),
    "Gemma-3-1B": (
        {
            "architectures": ["Gemma3ForCausalLM"],
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "vocab_size": 262144,
            "max_position_embeddings": 32768,
            "rope_theta": 1000000,
            "rope_local_base_freq": 10000,
            "rope_scaling": None,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
        },
        999_885_952,
    ),
    "Phi-3-mini-4k": (
        {
            "architectures": ["Phi3ForCausalLM"],
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "sliding_window": 2047,
        },
        3_821_079_552,
    ),
    "Phi-4-mini": (
        {
            "architectures": ["Phi3ForCausalLM"],
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "vocab_size": 200064,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 48,
                "long_factor": [1.5] * 48,
            },
            "sliding_window": 262144,
            "tie_word_embeddings": True,
        },
        3_836_021_760,
    ),
    "StarCoder2-3B": (
        {
            "architectures": ["Starcoder2ForCausalLM"],
            "hidden_size": 3072,
            "intermediate_size": 12288,
            "num_hidden_layers": 30,
            "num_attention_heads": 24,
            "num_key_value_heads": 2,
            "vocab_size": 49152,
            "max_position_embeddings": 16384,
            "rope_theta": 999999.4420358813,
            "sliding_window": 4096,
            "use_bias": True,
        },
        3_030_371_328,
    ),
    "OLMo-2-1B": (
        {
            "architectures": ["Olmo2ForCausalLM"],
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "vocab_size": 100352,
            "max_position_embeddings": 4096,
            "rope_theta": 500000,
        },
        1_484_916_736,
    ),
}


def spec_of(**differences: Any) -> DecoderSpec:
    return decoder_spec(TINY_LLAMA | differences)


def family(architecture: str, **differences: Any) -> DecoderSpec:
    return spec_of(architectures=[architecture], **differences)


def attention_of(spec: DecoderSpec, layer: int = 0) -> AttentionSpec:
    return spec.layers[layer].attention


def rope_of(spec: DecoderSpec) -> RopeSpec:
    rope = attention_of(spec).rope
    assert rope is not None
    return rope


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_declares_the_published_number_of_parameters(name: str) -> None:
    config, num_parameters = PUBLISHED[name]
    graph = declare(decoder_spec(config), jnp.bfloat16)
    assert graph.num_parameters == num_parameters
    assert graph.size_bytes == 2 * num_parameters


def test_a_spec_is_hashable_and_equal_configs_give_equal_specs() -> None:
    assert hash(spec_of()) == hash(spec_of())
    assert spec_of() == spec_of()
    assert spec_of() != spec_of(vocab_size=65)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ],
)
def test_both_spellings_of_a_rope_mean_the_same(scaling: dict[str, Any] | None) -> None:
    old = spec_of(rope_theta=5000.0, rope_scaling=scaling)
    values = {"rope_type": "default", **(scaling or {}), "rope_theta": 5000.0}
    if "type" in values:
        values["rope_type"] = values.pop("type")
    config = {k: v for k, v in TINY_LLAMA.items() if k != "rope_theta"}
    new = decoder_spec(config | {"rope_parameters": values})
    assert old == new
    assert rope_of(new).theta == 5000.0
    assert rope_of(new).kind == values["rope_type"]


def test_rope_parameters_may_differ_by_the_type_of_the_layer() -> None:
    spec = family(
        "MinistralForCausalLM",
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0},
        },
    )
    sliding, full = (layer.attention for layer in spec.layers)
    assert (sliding.window, sliding.rope) == (8, RopeSpec(theta=10.0))
    assert (full.window, full.rope) == (None, RopeSpec(RopeKind.LINEAR, theta=1000.0, factor=2.0))


def test_yarn_infers_what_its_config_leaves_out() -> None:
    rope = rope_of(
        spec_of(
            max_position_embeddings=128,
            rope_scaling={"type": "yarn", "original_max_position_embeddings": 32},
        )
    )
    assert rope.factor == 4.0
    assert rope.attention_factor == pytest.approx(1.1386294)
    assert rope.truncate


def test_llama_has_biases_only_where_the_config_states_them() -> None:
    plain, biased = spec_of(), spec_of(attention_bias=True, mlp_bias=True)
    assert not attention_of(plain).qkv_bias
    assert attention_of(biased).qkv_bias
    assert attention_of(biased).o_bias
    paths = {parameter.path for parameter in declare(biased, jnp.float32).parameters}
    assert {"layers.0.attention.qkv.bias", "layers.1.mlp.down.bias"} <= paths
    assert not any("bias" in p.path for p in declare(plain, jnp.float32).parameters)


@pytest.mark.parametrize(
    ("stated", "window"), [({}, 4096), ({"sliding_window": None}, None), ({"sliding_window": 8}, 8)]
)
def test_mistral_has_a_window_unless_the_config_says_null(
    stated: dict[str, Any], window: int | None
) -> None:
    assert attention_of(family("MistralForCausalLM", **stated)).window == window


def test_qwen2_has_a_window_only_when_it_is_switched_on_and_from_max_window_layers_up() -> None:
    off = family("Qwen2ForCausalLM", sliding_window=8, max_window_layers=1)
    switched = {"use_sliding_window": True, "sliding_window": 8}
    on = family("Qwen2ForCausalLM", max_window_layers=1, **switched)
    every = family("Qwen2ForCausalLM", max_window_layers=0, **switched)
    assert [layer.attention.window for layer in off.layers] == [None, None]
    assert [layer.attention.window for layer in on.layers] == [None, 8]
    assert [layer.attention.window for layer in every.layers] == [8, 8]
    assert attention_of(on).qkv_bias
    assert not attention_of(on).o_bias


def test_qwen3_normalises_each_head_and_defaults_to_heads_of_128() -> None:
    attention = attention_of(family("Qwen3ForCausalLM"))
    assert attention.qk_norm is QkNorm.PER_HEAD
    assert attention.head_dim == 128
    assert attention.scale == 128**-0.5


def test_smollm3_leaves_out_positions_where_no_rope_layers_is_zero() -> None:
    by_list = family("SmolLM3ForCausalLM", no_rope_layers=[0, 1])
    by_interval = family("SmolLM3ForCausalLM", no_rope_layer_interval=2)
    assert [layer.attention.rope is None for layer in by_list.layers] == [True, False]
    assert [layer.attention.rope is None for layer in by_interval.layers] == [False, True]


def test_gemma3_before_and_since_transformers_5_means_the_same() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    plain = {k: v for k, v in TINY_LLAMA.items() if k != "rope_theta"} | {
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": 6,
        "head_dim": 8,
        "sliding_window": 512,
    }
    old = {
        "rope_theta": 500.0,
        "rope_local_base_freq": 20.0,
        "rope_scaling": scaling,
        "sliding_window_pattern": 3,
    }
    new = {
        "rope_parameters": {
            "full_attention": {"rope_theta": 500.0, **scaling},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        },
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    }
    spec = decoder_spec(plain | new)
    assert decoder_spec(plain | old) == spec
    sliding, full = spec.layers[0].attention, spec.layers[2].attention
    assert (sliding.window, sliding.rope) == (512, RopeSpec(theta=20.0))
    assert (full.window, full.rope) == (None, RopeSpec(RopeKind.LINEAR, theta=500.0, factor=8.0))
    assert full.scale == 256**-0.5
    assert spec.embedding_multiplier == 4.0


def test_a_gemma3_that_sees_has_the_text_models_defaults_and_its_own_end_of_sequence() -> None:
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    spec = decoder_spec(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "eos_token_id": [1, 106],
            "text_config": text | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
            "vision_config": {"hidden_size": 1152},
        }
    )
    assert declare(spec, jnp.bfloat16).num_parameters == 3_880_099_328 + 64 * 2560
    assert spec.eos_token_ids == (1, 106)
    assert spec.max_position_embeddings == 131_072


def test_phi3_knows_longrope_by_its_old_names() -> None:
    scaling = {"short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0]}
    specs = {
        kind: family(
            "Phi3ForCausalLM",
            original_max_position_embeddings=16,
            rope_scaling={"type": kind, **scaling},
        )
        for kind in ("su", "yarn", "longrope")
    }
    assert len(set(specs.values())) == 1
    assert rope_of(specs["su"]).kind is RopeKind.LONGROPE
    with pytest.raises(ModelConfigError, match=r"long_factor must hold 2 numbers, one for each"):
        family("Phi3ForCausalLM", rope_scaling={"type": "su", **scaling, "long_factor": [2.0]})


def test_olmo3_scales_the_rope_of_its_full_layers_only() -> None:
    scaling = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
    spec = family("Olmo3ForCausalLM", num_hidden_layers=4, rope_scaling=scaling)
    kinds = [layer.attention.rope and layer.attention.rope.kind for layer in spec.layers]
    assert kinds == [RopeKind.DEFAULT] * 3 + [RopeKind.YARN]
    assert [layer.attention.window for layer in spec.layers] == [4096] * 3 + [None]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"architectures": ["Gemma3ForCausalLM"], "use_bidirectional_attention": True}, "bidirec"),
        (
            {
                "architectures": ["Mistral3ForConditionalGeneration"],
                "text_config": {"model_type": "mamba"},
            },
            "text_config: model_type 'mamba'",
        ),
    ],
)
def test_what_a_family_has_no_computation_for_is_refused_by_name(
    config: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedFeatureError, match=named):
        spec_of(**config)


def test_without_architectures_the_model_type_decides() -> None:
    config = {k: v for k, v in TINY_LLAMA.items() if k != "architectures"}
    assert decoder_spec(config | {"model_type": "qwen3"}).architecture == "Qwen3ForCausalLM"


@pytest.mark.parametrize(("stated", "ids"), [(7, (7,)), ([7, 9], (7, 9)), (None, ())])
def test_end_of_sequence_ids_may_be_one_or_several_or_none(
    stated: object, ids: tuple[int, ...]
) -> None:
    assert spec_of(eos_token_id=stated).eos_token_ids == ids


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["MistralForCausalLMv2"]}, "^MistralForCausalLMv2 .* MistralForCausal"),
        ({"architectures": ["SmolLM4ForCausalLM"]}, "^SmolLM4ForCausalLM .* SmolLM3ForCausalLM"),
        ({"model_type": "qwen2_tts"}, "^model type 'qwen2_tts' .* Qwen2ForCausalLM"),
        ({}, "^model type '' is not supported; the nearest that is: "),
    ],
)
def test_an_unknown_architecture_is_refused_naming_the_nearest_and_all_that_are_supported(
    config: dict[str, Any], message: str
) -> None:
    message = message.replace(" .* ", " is not supported; the nearest that is: ")
    with pytest.raises(UnsupportedArchitectureError, match=message) as refusal:
        decoder_spec(config)
    assert "supported architectures: LlamaForCausalLM, MistralForCausalLM, " in str(refusal.value)


@pytest.mark.parametrize("method", ["quip", "aqlm", "gguf"])
def test_a_method_of_quantising_that_is_not_read_is_refused_naming_it_and_those_that_are(
    method: str,
) -> None:
    with pytest.raises(UnsupportedFormatError, match=f"'{method}', which is not read; .*mxfp4"):
        spec_of(quantization_config={"quant_method": method, "bits": 4})


def test_weights_quantised_by_a_method_that_is_read_have_the_spec_of_the_original() -> None:
    assert spec_of(quantization_config={"quant_method": "mxfp4"}) == spec_of()


@pytest.mark.parametrize(
    ("differences", "named"),
    [
        ({"rope_scaling": {"type": "mrope"}}, "rope type 'mrope'"),
        ({"hidden_act": "mish"}, "activation 'mish'"),
        (
            {"architectures": ["Qwen3ForCausalLM"], "layer_types": ["chunked_attention"] * 2},
            "layer type 'chunked_attention'",
        ),
    ],
)
def test_a_value_that_is_not_implemented_is_refused_by_name(
    differences: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedFeatureError, match=named):
        declare(spec_of(**differences), jnp.float32)


@pytest.mark.parametrize(
    ("differences", "field"),
    [
        ({"hidden_size": "16"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 18}, "hidden_size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_attention_heads"),
        ({"head_dim": 5}, "head_dim"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"rope_scaling": 5}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor"),
        (
            {
                "rope_scaling": {
                    "type": "llama3",
                    "factor": 8,
                    "low_freq_factor": 4.5,
                    "high_freq_factor": 4,
                }
            },
            "low_freq_factor",
        ),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": ["a"]}, "eos_token_id"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"architectures": [5]}, "architectures"),
        ({"hidden_act": 5}, "hidden_act"),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": []}, "layer_types"),
        ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1]}, "no_rope_layers"),
    ],
)
def test_a_wrong_value_is_refused_naming_its_field(differences: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelConfigError, match=field):
        spec_of(**differences)


def test_load_spec_reads_the_file(tmp_path: Path) -> None:
    write_config(tmp_path, TINY_LLAMA)
    assert load_spec(tmp_path) == spec_of()


@pytest.mark.parametrize("content", ["{", "[]", "\ud800", "[" * 100_000])
def test_a_broken_config_file_is_refused_naming_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ModelConfigError, match=r"config\.json"):
        load_spec(tmp_path)


def test_a_missing_folder_or_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match="no such folder"):
        load_spec(tmp_path / "nowhere")
    with pytest.raises(ModelConfigError, match=r"no config\.json"):
        load_spec(tmp_path)


def test_an_oversized_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"x": "y" * 9_000_000}), encoding="utf-8")
    with pytest.raises(ModelConfigError, match="larger than"):
        load_spec(tmp_path)

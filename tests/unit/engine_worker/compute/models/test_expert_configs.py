"""What the configs of families with experts turn into, and what is refused, by name."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.spec import (
    LatentSpec,
    MlpSpec,
    MoeSpec,
    QkNorm,
    RouterScore,
)
from engine_worker.compute.weights.sources import is_ignorable, weight_sources
from engine_worker.errors import ModelConfigError, UnsupportedFeatureError

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
}
LATENT = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12, "kv_lora_rank": 20}

PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Qwen3-30B-A3B": (
        {
            "architectures": ["Qwen3MoeForCausalLM"],
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
        },
        30_532_122_624,
    ),
    "Mixtral-8x7B": (
        {
            "architectures": ["MixtralForCausalLM"],
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "vocab_size": 32000,
            "max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
        },
        46_702_792_704,
    ),
    "DeepSeek-V2-Lite": (
        {
            "architectures": ["DeepseekV2ForCausalLM"],
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 512,
            "q_lora_rank": None,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "vocab_size": 102400,
            "max_position_embeddings": 163840,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
        },
        15_706_484_224,
    ),
}


def spec_of(architecture: str, **differences: Any) -> Any:
    return decoder_spec({"architectures": [architecture], **SIZES, **differences})


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_declares_the_published_number_of_parameters(name: str) -> None:
    config, num_parameters = PUBLISHED[name]
    assert declare(decoder_spec(config), jnp.bfloat16).num_parameters == num_parameters


def test_qwen_has_experts_in_every_nth_layer_but_for_those_that_are_named() -> None:
    spec = spec_of("Qwen3MoeForCausalLM", num_experts=6, decoder_sparse_step=2, mlp_only_layers=[3])
    assert [isinstance(layer.mlp, MoeSpec) for layer in spec.layers] == [False, True, False, False]
    assert spec.layers[1].mlp.expert.intermediate_size == 32
    assert spec.layers[0].mlp == MlpSpec(96)


@pytest.mark.parametrize("architecture", ["Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"])
@pytest.mark.parametrize("name", ["num_experts", "num_local_experts"])
def test_experts_that_no_file_could_hold_are_refused_before_there_is_a_list_of_them(
    architecture: str, name: str
) -> None:
    config = {**SIZES, "architectures": [architecture]}
    moe = decoder_spec({**config, name: 4096}).layers[0].mlp
    assert isinstance(moe, MoeSpec)
    assert moe.num_experts == 4096
    with pytest.raises(ModelConfigError, match=f"{name} must be a whole number from 0 to 4096"):
        decoder_spec({**config, name: 4097})


def test_a_list_that_is_read_for_each_layer_is_not_longer_than_any_model_s() -> None:
    config = {**SIZES, "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4}
    decoder_spec({**config, "mlp_only_layers": [9] * 2**14})
    with pytest.raises(ModelConfigError, match="mlp_only_layers must hold at most 16384 values"):
        decoder_spec({**config, "mlp_only_layers": [9] * (2**14 + 1)})


def test_the_number_of_experts_has_two_names() -> None:
    for name in ("num_experts", "num_local_experts"):
        assert spec_of("Qwen3MoeForCausalLM", **{name: 7}).layers[0].mlp.num_experts == 7
        assert spec_of("MixtralForCausalLM", **{name: 7}).layers[0].mlp.num_experts == 7


def test_qwen2_moe_shares_an_expert_behind_a_gate() -> None:
    moe = spec_of("Qwen2MoeForCausalLM", num_experts=6, shared_expert_intermediate_size=48)
    assert moe.layers[0].mlp.shared == MlpSpec(48)
    assert moe.layers[0].mlp.shared_gate
    assert not moe.layers[0].mlp.normalize_weights
    assert moe.layers[0].attention.qkv_bias


def test_gpt_oss_has_its_rope_and_windows_where_the_config_is_silent() -> None:
    spec = spec_of("GptOssForCausalLM", num_local_experts=4, num_hidden_layers=2)
    assert [layer.attention.window for layer in spec.layers] == [128, None]
    rope = spec.layers[0].attention.rope
    assert (rope.kind, rope.factor, rope.theta, rope.truncate) == ("yarn", 32.0, 150_000.0, False)
    assert spec.layers[0].attention.sinks
    assert spec.layers[0].mlp.expert.clamp == 7.0


def test_glm4_moe_rotates_half_of_a_head_unless_the_config_says_so() -> None:
    values = {"n_routed_experts": 8, "use_qk_norm": True}
    spec = spec_of("Glm4MoeForCausalLM", **values)
    assert spec.layers[0].attention.rope.partial_factor == 0.5
    assert spec.layers[0].attention.qk_norm is QkNorm.PER_HEAD
    assert isinstance(spec.layers[0].mlp, MlpSpec)
    assert spec.layers[1].mlp.score is RouterScore.SIGMOID
    stated = spec_of("Glm4MoeForCausalLM", **values, partial_rotary_factor=1.0)
    assert stated.layers[0].attention.rope.partial_factor == 1.0


def test_layers_that_predict_several_tokens_are_left_out() -> None:
    glm = spec_of("Glm4MoeForCausalLM", n_routed_experts=8)
    assert is_ignorable("model.layers.4.eh_proj.weight", glm)
    assert not is_ignorable("model.layers.3.eh_proj.weight", glm)
    assert not is_ignorable("model.layers.4.eh_proj.weight", spec_of("MixtralForCausalLM"))


def test_deepseek_caches_a_latent_and_one_rotated_key() -> None:
    spec = spec_of(
        "DeepseekV3ForCausalLM",
        **LATENT,
        q_lora_rank=24,
        n_routed_experts=8,
        n_group=4,
        topk_group=2,
        rope_scaling={"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0},
    )
    attention = spec.layers[0].attention
    assert attention.latent == LatentSpec(24, 20, 16, 12)
    assert (attention.num_kv_heads, attention.head_dim, attention.cached_value_dim) == (1, 8, 20)
    temperature = 0.1 * np.log(40) + 1
    assert attention.scale == pytest.approx(24**-0.5 * temperature**2)
    layout = XlaBackend(declare(spec, jnp.float32)).kv_layout(num_blocks=1, block_size=16)
    assert layout.block_bytes == (4 * spec.num_layers * 16 * (8 + 20),)


def test_int8_is_for_matrices_of_experts_but_not_for_routers_and_biases() -> None:
    spec = spec_of("GptOssForCausalLM", num_local_experts=4, num_hidden_layers=1)
    backend = XlaBackend(declare(spec, jnp.float32), "int8")
    types = {
        weight.name: [(part.shape, str(part.dtype)) for part in weight.parts]
        for weight in backend.packing.weights
    }
    assert types["layers.0.mlp.gate_up.weight"] == [((4, 192, 64), "int8"), ((4, 192), "float32")]
    assert types["layers.0.mlp.down.weight"] == [((4, 64, 96), "int8"), ((4, 64), "float32")]
    assert types["layers.0.mlp.router.weight"] == [((4, 64), "float32")]
    assert types["layers.0.mlp.gate_up.bias"] == [((4, 192), "float32")]


def test_bfloat16_experts_are_handed_over_as_bits() -> None:
    spec = spec_of("MixtralForCausalLM", num_local_experts=4, num_hidden_layers=1)
    backend = XlaBackend(declare(spec, jnp.bfloat16))
    weight = next(w for w in backend.packing.weights if w.name == "layers.0.mlp.down.weight")
    values = np.random.default_rng(0).standard_normal((4, 64, 96)).astype(jnp.bfloat16)
    (bits,) = weight.pack([values])
    assert bits.dtype == weight.parts[0].dtype == np.uint16
    np.testing.assert_array_equal(bits.view(jnp.bfloat16), values)


@pytest.mark.parametrize(
    ("architecture", "differences", "named"),
    [
        ("OlmoeForCausalLM", {"clip_qkv": 8.0}, "clip_qkv"),
        ("Ernie4_5_MoeForCausalLM", {"use_bias": True}, "use_bias"),
        ("GptOssForCausalLM", {"swiglu_alpha": 1.5}, "swiglu_alpha 1.5"),
        ("DeepseekV2ForCausalLM", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("DeepseekV2ForCausalLM", {"topk_method": "noaux_tc"}, "topk_method 'noaux_tc'"),
    ],
)
def test_a_value_without_a_meaning_here_is_refused_by_name(
    architecture: str, differences: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedFeatureError, match=named):
        spec_of(architecture, **LATENT, **differences)


@pytest.mark.parametrize(
    ("architecture", "differences", "field"),
    [
        (
            "MixtralForCausalLM",
            {"num_local_experts": 2, "num_experts_per_tok": 3},
            "num_experts_per",
        ),
        ("MixtralForCausalLM", {"num_local_experts": 5000}, "num_local_experts"),
        ("Glm4MoeForCausalLM", {"n_routed_experts": 10, "n_group": 4}, "n_group"),
        (
            "Glm4MoeForCausalLM",
            {"n_routed_experts": 8, "n_group": 2, "topk_group": 3},
            "topk_group",
        ),
        (
            "Glm4MoeForCausalLM",
            {"n_routed_experts": 8, "n_group": 8, "topk_group": 1},
            "num_experts_per_tok must fit into 1 groups",
        ),
        ("DeepseekV3ForCausalLM", {"qk_rope_head_dim": 7}, "qk_rope_head_dim"),
        ("Glm4MoeLiteForCausalLM", {"mlp_layer_types": ["dense"]}, "mlp_layer_types"),
        ("Ernie4_5_MoeForCausalLM", {"moe_layer_end_index": "last"}, "moe_layer_end_index"),
    ],
)
def test_a_wrong_value_is_refused_naming_its_field(
    architecture: str, differences: dict[str, Any], field: str
) -> None:
    with pytest.raises(ModelConfigError, match=field):
        spec_of(architecture, **LATENT | differences)


@pytest.mark.parametrize(
    "architecture",
    ["Qwen3MoeForCausalLM", "GraniteMoeForCausalLM", "GptOssForCausalLM", "DeepseekV3ForCausalLM"],
)
def test_without_names_of_tensors_the_usual_spelling_is_wanted(architecture: str) -> None:
    values = {"n_routed_experts": 8, "q_lora_rank": 24, "num_local_experts": 4}
    graph = declare(spec_of(architecture, **LATENT, **values), jnp.float32)
    sources = weight_sources(graph)
    for parameter, parts in zip(graph.parameters, sources, strict=True):
        sizes = [int(np.prod(source.shape)) for source in parts]
        assert sum(sizes) == parameter.num_elements, parameter.path


def test_qwen3_vl_of_experts_is_qwen3s_whose_experts_stand_transposed() -> None:
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 16, "vocab_size": 128, "max_position_embeddings": 512}
    config = {"architectures": ["Qwen3VLMoeForConditionalGeneration"], "text_config": text}
    spec = decoder_spec(config)
    expert = MlpSpec(1408)
    assert spec.layers[0].mlp == MoeSpec(60, 4, expert)
    attention = spec.layers[0].attention
    assert (attention.num_kv_heads, attention.qk_norm) == (16, QkNorm.PER_HEAD)
    assert not spec.tied_head
    prefix = "model.language_model."
    stacked = f"{prefix}layers.0.mlp.experts.gate_up_proj"
    graph = declare(spec, jnp.float32)
    for names, expected in (
        ({f"{prefix}embed_tokens.weight", stacked}, [(stacked, (60, 64, 2816), True)]),
        ({f"{prefix}embed_tokens.weight"}, [(f"{prefix}layers.0.mlp.experts.0.gate_proj.weight",)]),
    ):
        sources = dict(
            zip((one.path for one in graph.parameters), weight_sources(graph, names), strict=True)
        )
        found = [
            (one.name, one.shape, one.is_transposed)
            for one in sources["layers.0.mlp.gate_up.weight"]
        ]
        assert [one[: len(expected[0])] for one in found[:1]] == expected

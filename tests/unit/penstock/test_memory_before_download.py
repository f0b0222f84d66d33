"""What a model is told to take before it is downloaded, by its config alone."""

import pytest

from engine_worker.compute.models.quantization import OLD_METHODS as METHODS_OF_THE_ENGINE
from engine_worker.compute.models.quantization import QuantMethod
from penstock.errors import ModelError
from penstock.memory_estimate import (
    OLD_METHODS,
    QUANT_METHODS,
    MemoryEstimate,
    estimate_memory,
    require_memory,
)
from penstock.model_source import refuse_foreign_formats
from penstock.recurrent_states import CacheChoice

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 100,
}


def test_the_estimate_counts_weights_and_the_cache_of_one_request() -> None:
    estimate = estimate_memory(CONFIG, 1000, dtype="auto", max_model_len=None)
    assert estimate == MemoryEstimate(1000, 2 * 3 * 2 * 16 * 100 * 2, 100)
    asked = estimate_memory(CONFIG, 1000, dtype="auto", max_model_len=10)
    assert asked == MemoryEstimate(1000, estimate.kv_bytes // 10, 10)


def test_a_context_that_nobody_asked_for_need_not_fit_whole() -> None:
    """The engine cuts it to what fits; models of 128k tokens were refused before it could."""
    config = CONFIG | {"max_position_embeddings": 131072}
    estimate = estimate_memory(config, 1000, dtype="auto", max_model_len=None)
    assert estimate.num_tokens == 2048
    assert estimate.kv_bytes == 2 * 3 * 2 * 16 * 2048 * 2
    asked = estimate_memory(config, 1000, dtype="auto", max_model_len=131072)
    assert asked.kv_bytes == 64 * estimate.kv_bytes


@pytest.mark.parametrize(
    ("differences", "cached"),
    [
        ({"kv_lora_rank": 40, "qk_rope_head_dim": 8}, 3 * 48 * 1000),
        (
            {
                "layer_types": ["full_attention", "sliding_attention", "linear_attention"],
                "sliding_window": 100,
            },
            64 * (1000 + 100),
        ),
        ({"layer_types": ["full_attention", "sliding_attention", "conv"]}, 64 * 2000),
        ({"layer_types": ["full_attention"], "sliding_window": 100}, 64 * 3000),
        ({"layer_types": None, "sliding_window": None}, 64 * 3000),
    ],
)
def test_layers_that_keep_less_of_a_token_or_fewer_of_them_count_so(
    differences: dict[str, object], cached: int
) -> None:
    config = CONFIG | differences
    estimate = estimate_memory(config, 1000, dtype="auto", max_model_len=1000)
    assert estimate.kv_bytes == cached * 2


def test_float32_doubles_a_16_bit_checkpoint() -> None:
    narrow = estimate_memory(CONFIG, 1000, dtype="auto", max_model_len=10)
    wide = estimate_memory(CONFIG, 1000, dtype="float32", max_model_len=10)
    assert wide.total_bytes == 2 * narrow.total_bytes


@pytest.mark.parametrize(("kv_dtype", "bits"), [("float32", 32), ("bfloat16", 16), ("int8", 9)])
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_the_cache_takes_what_its_own_type_does(dtype: str, kv_dtype: str, bits: int) -> None:
    estimate = estimate_memory(CONFIG, 1000, dtype=dtype, max_model_len=8, kv_dtype=kv_dtype)
    plain = estimate_memory(CONFIG, 1000, dtype="auto", max_model_len=8)
    assert estimate.kv_bytes == plain.kv_bytes * bits // 16


@pytest.mark.parametrize(("dtype", "share"), [("int8", 1 / 2), ("int4", 5 / 16)])
def test_quantised_weights_take_less_and_the_cache_as_much(dtype: str, share: float) -> None:
    plain = estimate_memory(CONFIG | {"dtype": "bfloat16"}, 1600, dtype="auto", max_model_len=10)
    small = estimate_memory(CONFIG | {"dtype": "bfloat16"}, 1600, dtype=dtype, max_model_len=10)
    assert small.weights_bytes == 1600 * share
    assert small.kv_bytes == plain.kv_bytes


@pytest.mark.parametrize(
    ("quantization", "widening"),
    [
        ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "gptq", "bits": 8}, 2),
        ({"quant_method": "fp8"}, 2),
        ({"quant_method": "mxfp4"}, 4),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 2),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
            },
            4,
        ),
    ],
)
def test_quantised_checkpoints_take_what_their_weights_become(
    quantization: dict[str, object], widening: int
) -> None:
    config = CONFIG | {"dtype": "bfloat16", "quantization_config": quantization}
    estimate = estimate_memory(config, 1600, dtype="auto", max_model_len=10)
    assert estimate.weights_bytes == 1600 * widening
    packed = estimate_memory(config, 1600, dtype="int8", max_model_len=10)
    assert packed.weights_bytes == 1600 * widening // 2
    kept = estimate_memory(config, 1600, dtype="auto", max_model_len=10, keeps_stored=True)
    stays = quantization["quant_method"] in ("awq", "gptq", "compressed-tensors", "mxfp4")
    assert kept.weights_bytes == (1600 if stays else 1600 * widening)


def test_the_first_name_of_a_quantiser_s_key_counts_too() -> None:
    said = {
        "quant_method": "compressed-tensors",
        "config_groups": {"g": {"weights": {"num_bits": 4}}},
    }
    config = CONFIG | {"dtype": "bfloat16", "compression_config": said}
    estimate = estimate_memory(config, 1600, dtype="auto", max_model_len=10)
    assert estimate.weights_bytes == 1600 * 4


@pytest.mark.parametrize(("bits", "stays"), [(4, True), (8, False)])
def test_mlx_writes_no_name_of_its_method(bits: int, stays: bool) -> None:
    said = {"bits": bits, "group_size": 64}
    config = CONFIG | {"dtype": "bfloat16", "quantization": said, "quantization_config": said}
    refuse_foreign_formats("m", config, ["model.safetensors"])
    estimate = estimate_memory(config, 1600, dtype="auto", max_model_len=10)
    assert estimate.weights_bytes == 1600 * 16 // bits
    kept = estimate_memory(config, 1600, dtype="auto", max_model_len=10, keeps_stored=True)
    assert kept.weights_bytes == (1600 if stays else 1600 * 16 // bits)


def test_the_methods_let_through_are_those_that_the_engine_reads() -> None:
    assert set(QUANT_METHODS) == set(QuantMethod)
    assert OLD_METHODS == METHODS_OF_THE_ENGINE
    for name in OLD_METHODS:
        config = CONFIG | {"quantization_config": {"quant_method": name, "bits": 4}}
        refuse_foreign_formats("m", config, ["model.safetensors"])


def test_a_model_too_large_is_refused_with_both_numbers_and_a_way_out() -> None:
    with pytest.raises(
        ModelError, match=r"30\.0 GiB.*2048 tok.*16\.0 GiB.*--max-model.*int8 or .*int4"
    ):
        require_memory("big", MemoryEstimate(20 * 2**30, 10 * 2**30, 2048), 16 * 2**30)


HYBRID = CONFIG | {
    "head_dim": 16,
    "model_type": "qwen3_next",
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
}


def test_states_of_recurrent_layers_count_for_each_request_and_each_block() -> None:
    """They weren't counted: 2.6 GiB of Qwen3-Next 80B with eight requests."""
    # The convolution's inputs (queries, keys, values), and a matrix for each head, in float32.
    state_bytes = 2 * (3 * (2 * 4 * 64 + 8 * 64) + 8 * 64 * 64) * 4
    cache = CacheChoice(num_requests=7)
    estimate = estimate_memory(HYBRID, 1000, dtype="auto", max_model_len=1000, cache=cache)
    # Of a token 128 bytes are kept, so that blocks get as large as they may: four, and padding.
    assert estimate.states_bytes == (4 + 1 + (7 + 1) * (2 + 15)) * state_bytes
    assert (estimate.num_requests, estimate.kv_bytes) == (7, 2 * 2 * 16 * 1000 * 2)
    assert estimate_memory(
        CONFIG, 1000, dtype="auto", max_model_len=9, cache=cache
    ).total_bytes == (1000 + 2 * 3 * 2 * 16 * 9 * 2)


def test_states_that_do_not_fit_are_refused_with_fewer_requests_as_a_way_out() -> None:
    estimate = MemoryEstimate(2**30, 2**30, 2048, 20 * 2**30, 32)
    with pytest.raises(
        ModelError, match=r"20\.0 GiB states .*32 requests.*Lower --max-num-seqs or"
    ):
        require_memory("hybrid", estimate, 16 * 2**30)
    alone = MemoryEstimate(2**30, 2**30, 2048, 20 * 2**30)
    with pytest.raises(ModelError, match=r"for one request\).*Lower --max-model-len, use"):
        require_memory("hybrid", alone, 16 * 2**30)


def test_a_config_of_a_billion_layers_is_refused_and_makes_no_list_of_them() -> None:
    with pytest.raises(ValueError, match="1000000000 layers are more than 1024"):
        estimate_memory(CONFIG | {"num_hidden_layers": 10**9}, 1, dtype="auto", max_model_len=1)


GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "model_type": "siglip_vision_model",
    },
}
"""As published: the heads are those that transformers takes where nothing is said."""


def test_the_text_model_of_one_that_also_sees_is_counted() -> None:
    """Its sizes stand in `text_config`: no cache was counted, and what sees as weights."""
    files_bytes = 8_600_158_944
    estimate = estimate_memory(GEMMA3_4B, files_bytes, dtype="auto", max_model_len=32_768)
    per_token = 2 * 4 * 256 * 2
    assert estimate.kv_bytes == per_token * (5 * 32_768 + 29 * 1024)
    # Of 4.3 billion numbers 0.42 are of what sees.
    assert files_bytes - 2 * 420_000_000 < estimate.weights_bytes < files_bytes - 2 * 400_000_000


def test_a_type_that_is_said_of_the_text_model_alone_counts() -> None:
    """`int8` was estimated at a quarter of the file's bytes, not at half."""
    config = {"text_config": {**CONFIG, "dtype": "bfloat16"}}
    del config["text_config"]["torch_dtype"]
    packed = estimate_memory(config, 1600, dtype="int8", max_model_len=10)
    assert packed.weights_bytes == 800
    assert packed.kv_bytes == 2 * 3 * 2 * 16 * 10 * 2


def test_a_quantisation_that_is_said_of_the_text_model_alone_counts() -> None:
    text = CONFIG | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    estimate = estimate_memory({"text_config": text}, 1600, dtype="auto", max_model_len=10)
    assert estimate.weights_bytes == 1600 * 4

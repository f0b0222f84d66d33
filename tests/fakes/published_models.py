"""Models as they were published: what their `config.json` says of their size, and of their cache.

Each has the number of parameters that its publisher's files hold. A shape that gives the same
number, to the last digit, is that model's.
"""

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """One model.

    Attributes:
        name: As people call it.
        num_parameters: Of its files, without what is saved twice.
        config: The values of its `config.json` that decide memory.
    """

    name: str
    num_parameters: int
    config: dict[str, Any]


def _config(
    architecture: str,
    sizes: tuple[int, int, int],
    heads: tuple[int, int],
    vocab_size: int,
    context: int,
    **more: Any,
) -> dict[str, Any]:
    """A config of a plain decoder.

    Args:
        architecture: Its name.
        sizes: Of a layer's residual and of its MLP, and how many layers.
        heads: Of queries, and of keys and values.
        vocab_size: Tokens.
        context: Its longest text, tokens.
        more: What else it says.
    """
    hidden, intermediate, num_layers = sizes
    return {
        "architectures": [architecture],
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocab_size,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        **more,
    }


_TIED: Final[dict[str, Any]] = {"tie_word_embeddings": True}


def _windows_and_a_full_layer(num_layers: int, period: int) -> list[str]:
    """Every `period`-th layer sees all tokens."""
    return [
        "sliding_attention" if (index + 1) % period else "full_attention"
        for index in range(num_layers)
    ]


def _llama4(num_experts: int, interval: int) -> dict[str, Any]:
    """The text model of a Llama 4; with its vision tower a file holds 871,932,416 more."""
    return _config(
        "Llama4ForCausalLM",
        (5120, 8192, 48),
        (40, 8),
        202048,
        1_048_576,
        head_dim=128,
        intermediate_size_mlp=16384,
        num_local_experts=num_experts,
        num_experts_per_tok=1,
        interleave_moe_layer_step=interval,
        attention_chunk_size=8192,
    )


def _llama(sizes: tuple[int, int, int], heads: tuple[int, int], **more: Any) -> dict[str, Any]:
    return _config("LlamaForCausalLM", sizes, heads, 128256, 131072, **more)


def _mistral(
    sizes: tuple[int, int, int], vocab_size: int, context: int, **more: Any
) -> dict[str, Any]:
    return _config("MistralForCausalLM", sizes, (32, 8), vocab_size, context, **more)


def _qwen2(
    sizes: tuple[int, int, int], heads: tuple[int, int], vocab_size: int = 152064, **more: Any
) -> dict[str, Any]:
    return _config("Qwen2ForCausalLM", sizes, heads, vocab_size, 32768, **more)


def _qwen3(sizes: tuple[int, int, int], heads: tuple[int, int], **more: Any) -> dict[str, Any]:
    return _config("Qwen3ForCausalLM", sizes, heads, 151936, 40960, head_dim=128, **more)


def _gemma2(sizes: tuple[int, int, int], heads: tuple[int, int]) -> dict[str, Any]:
    return _config(
        "Gemma2ForCausalLM",
        sizes,
        heads,
        256000,
        8192,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=4096,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        hidden_activation="gelu_pytorch_tanh",
        **_TIED,
    )


def _gemma3(sizes: tuple[int, int, int]) -> dict[str, Any]:
    return _config(
        "Gemma3ForCausalLM",
        sizes,
        (4, 1),
        262144,
        32768,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        sliding_window_pattern=6,
        rope_local_base_freq=10000.0,
        rope_theta=1000000.0,
        hidden_activation="gelu_pytorch_tanh",
        **_TIED,
    )


def _gemma4(
    sizes: tuple[int, int, int], heads: tuple[int, int], context: int, **more: Any
) -> dict[str, Any]:
    """The text model of a Gemma 4."""
    return _config(
        "Gemma4ForCausalLM",
        sizes,
        heads,
        262144,
        context,
        **{
            "head_dim": 256,
            "global_head_dim": 512,
            "sliding_window": 1024,
            "final_logit_softcapping": 30.0,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "layer_types": _windows_and_a_full_layer(sizes[2], 6),
            **_TIED,
            **more,
        },
    )


def _gemma4_small(num_shared: int, **more: Any) -> dict[str, Any]:
    """What those with vectors of the tokens for each layer have otherwise."""
    return {
        "sliding_window": 512,
        "hidden_size_per_layer_input": 256,
        "vocab_size_per_layer_input": 262144,
        "attention_k_eq_v": False,
        "num_kv_shared_layers": num_shared,
        **more,
    }


_GEMMA3_4B: Final[dict[str, Any]] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "sliding_window": 1024,
}


def _gpt_oss(num_layers: int, num_experts: int) -> dict[str, Any]:
    return _config(
        "GptOssForCausalLM",
        (2880, 2880, num_layers),
        (64, 8),
        201088,
        131072,
        head_dim=64,
        num_local_experts=num_experts,
        num_experts_per_tok=4,
        sliding_window=128,
        rope_theta=150000,
        attention_bias=True,
    )


def _qwen3_5(
    sizes: tuple[int, int, int], heads: tuple[int, int], num_values: int, **more: Any
) -> dict[str, Any]:
    """The text model of a Qwen 3.5, or of one before it with the same layers.

    Args:
        sizes: As `_config` has them.
        heads: Likewise.
        num_values: Heads of values in a delta net.
        more: What else it says.
    """
    return _config(
        more.pop("architecture", "Qwen3_5ForCausalLM"),
        sizes,
        heads,
        more.pop("vocab_size", 248320),
        262144,
        head_dim=256,
        full_attention_interval=4,
        linear_num_key_heads=16,
        linear_num_value_heads=num_values,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
        partial_rotary_factor=0.25,
        **more,
    )


PUBLISHED: Final = (
    PublishedModel(
        "SmolLM2 135M",
        134_515_008,
        _config("LlamaForCausalLM", (576, 1536, 30), (9, 3), 49152, 8192, **_TIED),
    ),
    PublishedModel("Llama 3.2 1B", 1_235_814_400, _llama((2048, 8192, 16), (32, 8), **_TIED)),
    PublishedModel("Llama 3.2 3B", 3_212_749_824, _llama((3072, 8192, 28), (24, 8), **_TIED)),
    PublishedModel("Llama 3.1 8B", 8_030_261_248, _llama((4096, 14336, 32), (32, 8))),
    PublishedModel("Llama 3.3 70B", 70_553_706_496, _llama((8192, 28672, 80), (64, 8))),
    PublishedModel("Mistral 7B v0.3", 7_248_023_552, _mistral((4096, 14336, 32), 32768, 32768)),
    PublishedModel(
        "Mistral Nemo 12B",
        12_247_782_400,
        _mistral((5120, 14336, 40), 131072, 131072, head_dim=128),
    ),
    PublishedModel(
        "Mistral Small 24B (2501)",
        23_572_403_200,
        _mistral((5120, 32768, 40), 131072, 32768, head_dim=128),
    ),
    PublishedModel("Qwen 2.5 0.5B", 494_032_768, _qwen2((896, 4864, 24), (14, 2), 151936, **_TIED)),
    PublishedModel(
        "Qwen 2.5 1.5B", 1_543_714_304, _qwen2((1536, 8960, 28), (12, 2), 151936, **_TIED)
    ),
    PublishedModel("Qwen 2.5 7B", 7_615_616_512, _qwen2((3584, 18944, 28), (28, 4))),
    PublishedModel("Qwen 2.5 14B", 14_770_033_664, _qwen2((5120, 13824, 48), (40, 8))),
    PublishedModel("Qwen 3 0.6B", 596_049_920, _qwen3((1024, 3072, 28), (16, 8), **_TIED)),
    PublishedModel("Qwen 3 1.7B", 1_720_574_976, _qwen3((2048, 6144, 28), (16, 8), **_TIED)),
    PublishedModel("Qwen 3 4B", 4_022_468_096, _qwen3((2560, 9728, 36), (32, 8), **_TIED)),
    PublishedModel("Qwen 3 8B", 8_190_735_360, _qwen3((4096, 12288, 36), (32, 8))),
    PublishedModel("Qwen 3 14B", 14_768_307_200, _qwen3((5120, 17408, 40), (40, 8))),
    PublishedModel("Qwen 3 32B", 32_762_123_264, _qwen3((5120, 25600, 64), (64, 8))),
    PublishedModel(
        "Qwen 3 30B-A3B",
        30_532_122_624,
        _config(
            "Qwen3MoeForCausalLM",
            (2048, 6144, 48),
            (32, 4),
            151936,
            40960,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=768,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            norm_topk_prob=True,
        ),
    ),
    PublishedModel(
        "Qwen 3.5 4B, text", 4_205_751_296, _qwen3_5((2560, 9216, 32), (16, 4), 32, **_TIED)
    ),
    PublishedModel("Qwen 3.5 9B, text", 8_953_803_264, _qwen3_5((4096, 12288, 32), (16, 4), 32)),
    PublishedModel("Qwen 3.5 27B, text", 26_895_998_464, _qwen3_5((5120, 17408, 64), (24, 4), 48)),
    PublishedModel(
        "Qwen 3.5 35B-A3B, text",
        34_660_610_688,
        _qwen3_5(
            (2048, 512, 40),
            (16, 2),
            32,
            architecture="Qwen3_5MoeForCausalLM",
            num_experts=256,
            num_experts_per_tok=8,
            moe_intermediate_size=512,
            shared_expert_intermediate_size=512,
        ),
    ),
    PublishedModel(
        "Qwen3-Next 80B-A3B",
        79_674_391_296,
        _qwen3_5(
            (2048, 5120, 48),
            (16, 2),
            32,
            architecture="Qwen3NextForCausalLM",
            vocab_size=151936,
            num_experts=512,
            num_experts_per_tok=10,
            moe_intermediate_size=512,
            shared_expert_intermediate_size=512,
            norm_topk_prob=True,
        ),
    ),
    PublishedModel(
        "SmolLM3 3B",
        3_075_098_624,
        _config("SmolLM3ForCausalLM", (2048, 11008, 36), (16, 4), 128256, 65536, **_TIED),
    ),
    PublishedModel("Gemma 2 2B", 2_614_341_888, _gemma2((2304, 9216, 26), (8, 4))),
    PublishedModel("Gemma 2 9B", 9_241_705_984, _gemma2((3584, 14336, 42), (16, 8))),
    PublishedModel("Gemma 3 270M", 268_098_176, _gemma3((640, 2048, 18))),
    PublishedModel("Gemma 3 1B", 999_885_952, _gemma3((1152, 6912, 26))),
    PublishedModel(
        "Gemma 3 4B, text",
        3_880_263_168,
        {**_gemma3((2560, 10240, 34)), **_GEMMA3_4B},
    ),
    # Its files hold 31 million more, of keys and values that no layer reads (llama.cpp counts 6.87
    # billion). The sizes are those that transformers takes where a config is silent.
    PublishedModel(
        "Gemma 3n E4B, text",
        6_835_235_568,
        _config(
            "Gemma3nForCausalLM",
            (2048, 16384, 35),
            (8, 2),
            262400,
            32768,
            head_dim=256,
            sliding_window=512,
            layer_types=_windows_and_a_full_layer(35, 5),
            num_kv_shared_layers=15,
            vocab_size_per_layer_input=262144,
            hidden_size_per_layer_input=256,
            laurel_rank=64,
            altup_num_inputs=4,
            **_TIED,
        ),
    ),
    # As with Gemma 3n, files of the first two hold 19 and 55 million more (llama.cpp counts 4.65
    # and 7.52 billion). Those of the others hold 575,743,536 and 572,794,416 more, of what sees.
    PublishedModel(
        "Gemma 4 E2B, text",
        4_628_569_379,
        _gemma4(
            (1536, 6144, 35),
            (8, 1),
            131072,
            **_gemma4_small(
                20, layer_types=_windows_and_a_full_layer(35, 5), use_double_wide_mlp=True
            ),
        ),
    ),
    PublishedModel(
        "Gemma 4 E4B, text",
        7_463_013_418,
        _gemma4((2560, 10240, 42), (8, 2), 131072, **_gemma4_small(18)),
    ),
    PublishedModel(
        "Gemma 4 31B, text",
        30_697_345_340,
        _gemma4((5376, 21504, 60), (32, 16), 262144, num_global_key_value_heads=4),
    ),
    PublishedModel(
        "Gemma 4 26B-A4B, text",
        25_233_141_790,
        _gemma4(
            (2816, 2112, 30),
            (16, 8),
            262144,
            num_global_key_value_heads=2,
            enable_moe_block=True,
            num_experts=128,
            top_k_experts=8,
            moe_intermediate_size=704,
        ),
    ),
    PublishedModel(
        "Phi-3 mini 3.8B (4k)",
        3_821_079_552,
        _config("Phi3ForCausalLM", (3072, 8192, 32), (32, 32), 32064, 4096, sliding_window=2047),
    ),
    PublishedModel(
        "Phi-4 14B",
        14_659_507_200,
        _config("Phi3ForCausalLM", (5120, 17920, 40), (40, 10), 100352, 16384),
    ),
    PublishedModel(
        "Granite 3.1 8B",
        8_170_848_256,
        _config("GraniteForCausalLM", (4096, 12800, 40), (32, 8), 49155, 131072, **_TIED),
    ),
    PublishedModel(
        "Granite 4.0 H Micro",
        3_191_396_096,
        _config(
            "GraniteMoeHybridForCausalLM",
            (2048, 8192, 40),
            (32, 8),
            100352,
            131072,
            layer_types=[
                "attention" if index in (5, 15, 25, 35) else "mamba" for index in range(40)
            ],
            num_local_experts=0,
            shared_intermediate_size=8192,
            mamba_n_heads=64,
            mamba_d_head=64,
            mamba_d_state=128,
            mamba_d_conv=4,
            mamba_n_groups=1,
            mamba_expand=2,
            **_TIED,
        ),
    ),
    PublishedModel(
        "LFM2 1.2B",
        1_170_340_608,
        _config(
            "Lfm2ForCausalLM",
            (2048, 8192, 16),
            (32, 8),
            65536,
            128000,
            block_auto_adjust_ff_dim=False,
            conv_L_cache=3,
            norm_eps=1e-5,
            full_attn_idxs=[2, 5, 8, 10, 12, 14],
            **_TIED,
        ),
    ),
    PublishedModel(
        "GLM-4 9B (0414)",
        9_400_279_040,
        _config(
            "Glm4ForCausalLM",
            (4096, 13696, 40),
            (32, 2),
            151552,
            32768,
            head_dim=128,
            attention_bias=True,
        ),
    ),
    PublishedModel(
        "Aya Expanse 8B",
        8_028_033_024,
        _config(
            "CohereForCausalLM",
            (4096, 14336, 32),
            (32, 8),
            256000,
            8192,
            logit_scale=0.125,
            layer_norm_eps=1e-5,
            **_TIED,
        ),
    ),
    PublishedModel(
        "OLMo 2 7B",
        7_298_617_344,
        _config("Olmo2ForCausalLM", (4096, 11008, 32), (32, 32), 100352, 4096),
    ),
    PublishedModel(
        "Mixtral 8x7B",
        46_702_792_704,
        _config(
            "MixtralForCausalLM",
            (4096, 14336, 32),
            (32, 8),
            32000,
            32768,
            num_local_experts=8,
            num_experts_per_tok=2,
        ),
    ),
    PublishedModel("Llama 4 Scout 17B-16E, text", 107_769_861_120, _llama4(16, 1)),
    PublishedModel("Llama 4 Maverick 17B-128E, text", 400_711_848_960, _llama4(128, 2)),
    PublishedModel("gpt-oss 20b", 20_914_757_184, _gpt_oss(24, 32)),
    PublishedModel("gpt-oss 120b", 116_829_156_672, _gpt_oss(36, 128)),
    PublishedModel(
        "DeepSeek V2 Lite",
        15_706_484_224,
        _config(
            "DeepseekV2ForCausalLM",
            (2048, 10944, 27),
            (16, 16),
            102400,
            163840,
            q_lora_rank=None,
            kv_lora_rank=512,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
            moe_intermediate_size=1408,
            n_routed_experts=64,
            n_shared_experts=2,
            num_experts_per_tok=6,
            first_k_dense_replace=1,
            moe_layer_freq=1,
            topk_method="greedy",
            scoring_func="softmax",
            n_group=1,
            topk_group=1,
            norm_topk_prob=False,
            routed_scaling_factor=1.0,
        ),
    ),
)
"""By family, the smaller ones first."""

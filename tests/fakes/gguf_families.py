"""A small config of each family that GGUF files hold, and what llama.cpp's converter does to it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter

from tests.fakes.gguf_files import (
    Tensor,
    lfm2_tensors,
    llama_tensors,
    mixtral_tensors,
    moe_tensors,
    plain_tensors,
)
from tests.fakes.tiny_checkpoint import TINY_LLAMA


def _nothing(_: GGUFWriter) -> None:
    return


@dataclass(frozen=True)
class GgufCase:
    """One family.

    Attributes:
        arch: llama.cpp's name of it.
        config: Hugging Face's `config.json`.
        convert: What happens to tensors.
        more: Adds what only this family has.
    """

    arch: str
    config: Mapping[str, Any]
    convert: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Iterable[tuple[str, Tensor]]] = (
        llama_tensors
    )
    more: Callable[[GGUFWriter], None] = _nothing


def _config(architecture: str, model_type: str, **values: Any) -> dict[str, Any]:
    return {**TINY_LLAMA, "architectures": [architecture], "model_type": model_type, **values}


def _lfm2_more(writer: GGUFWriter) -> None:
    writer.add_shortconv_l_cache(3)
    writer.add_head_count_kv([0, 2, 0])


_LFM2 = _config(
    "Lfm2ForCausalLM",
    "lfm2",
    num_hidden_layers=3,
    layer_types=["conv", "full_attention", "conv"],
    conv_L_cache=3,
    norm_eps=1e-5,
    intermediate_size=24,
    block_auto_adjust_ff_dim=False,
)
GGUF_FAMILIES = (
    GgufCase("lfm2", _LFM2, lfm2_tensors, _lfm2_more),
    GgufCase("llama", TINY_LLAMA),
    GgufCase(
        "llama",
        {**TINY_LLAMA, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}
        | {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8, "hidden_size": 24},
    ),
    GgufCase(
        "llama",
        _config("MixtralForCausalLM", "mixtral", num_local_experts=5, num_experts_per_tok=2),
        mixtral_tensors,
    ),
    GgufCase(
        "qwen2moe",
        _config(
            "Qwen2MoeForCausalLM",
            "qwen2_moe",
            num_experts=5,
            num_experts_per_tok=2,
            moe_intermediate_size=12,
            shared_expert_intermediate_size=20,
            norm_topk_prob=False,
        ),
        moe_tensors,
    ),
    GgufCase(
        "qwen3moe",
        _config(
            "Qwen3MoeForCausalLM",
            "qwen3_moe",
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=12,
            norm_topk_prob=True,
            head_dim=8,
        ),
        moe_tensors,
    ),
    GgufCase("qwen2", _config("Qwen2ForCausalLM", "qwen2"), plain_tensors),
    GgufCase(
        "qwen3",
        _config("Qwen3ForCausalLM", "qwen3", head_dim=8, tie_word_embeddings=False),
        plain_tensors,
    ),
    GgufCase(
        "smollm3",
        _config("SmolLM3ForCausalLM", "smollm3", num_hidden_layers=5, no_rope_layer_interval=4),
    ),
)

"""What llama.cpp calls each family, its hyperparameters and tensors, and what it did to them.

The names are those of `gguf.constants`; what the converter changes stands in llama.cpp's
`convert_hf_to_gguf.py`. Each family makes a `config.json` as Hugging Face's checkpoints have it,
which the families of `engine_worker.compute.models` read, and says where its tensors are.
"""

from engine_worker.compute.weights.gguf.changes import EACH_TRANSPOSED, ONE_ROW, in_turn
from engine_worker.compute.weights.gguf.delta_net_families import DELTA_NETS
from engine_worker.compute.weights.gguf.dense_families import DENSE
from engine_worker.compute.weights.gguf.encoder_families import ENCODERS
from engine_worker.compute.weights.gguf.expert_families import EXPERTS
from engine_worker.compute.weights.gguf.family import Config, GgufFamily, rope_scaling
from engine_worker.compute.weights.gguf.gemma_nano_families import GEMMA_NANO
from engine_worker.compute.weights.gguf.hybrid_families import HYBRID
from engine_worker.compute.weights.gguf.mamba_families import MAMBA
from engine_worker.compute.weights.gguf.metadata import GgufMetadata


def _llama(metadata: GgufMetadata) -> Config:
    return {
        "attention_bias": "blk.0.attn_q.bias" in metadata.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in metadata.tensors,
    }


def _smollm3(metadata: GgufMetadata) -> Config:
    # llama.cpp, too, has the layers without positions in its program, not in the file.
    return {**_llama(metadata), "no_rope_layer_interval": 4}


def _has_experts(metadata: GgufMetadata) -> bool:
    return metadata.whole("expert_count", 0) > 0


def _expert_counts(metadata: GgufMetadata) -> Config:
    return {
        "num_local_experts": metadata.whole("expert_count"),
        "num_experts_per_tok": metadata.whole("expert_used_count"),
    }


def _qwen_moe(metadata: GgufMetadata) -> Config:
    config = {
        **_expert_counts(metadata),
        "num_experts": metadata.whole("expert_count"),
        "moe_intermediate_size": metadata.whole("expert_feed_forward_length"),
        # llama.cpp has it in its program.
        "norm_topk_prob": metadata.architecture in ("qwen3moe", "qwen3vlmoe"),
    }
    if metadata.has("expert_shared_feed_forward_length"):
        width = metadata.whole("expert_shared_feed_forward_length")
        config["shared_expert_intermediate_size"] = width
    return config


def _olmoe(metadata: GgufMetadata) -> Config:
    counts = _expert_counts(metadata)
    # llama.cpp has it in its program.
    return {**counts, "num_experts": counts["num_local_experts"], "norm_topk_prob": False}


def _experts(block: str, gate: str, up: str, down: str) -> dict[str, tuple[str, str]]:
    return {
        "ffn_gate_exps": (block, gate),
        "ffn_up_exps": (block, up),
        "ffn_down_exps": (block, down),
    }


def _gpt_oss(metadata: GgufMetadata) -> Config:
    scaling = rope_scaling(metadata)
    return {
        **_expert_counts(metadata),
        "intermediate_size": metadata.whole("expert_feed_forward_length"),
        "sliding_window": metadata.whole("attention.sliding_window"),
        # llama.cpp has it in its program.
        "rope_scaling": scaling and {**scaling, "truncate": False},
    }


_QWEN_EXPERTS = _experts("mlp.", "gate_proj", "up_proj", "down_proj")
_SHARED_EXPERT = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_ALL: tuple[tuple[str, GgufFamily], ...] = (
    (
        "llama",
        GgufFamily(
            "MixtralForCausalLM",
            "mixtral",
            _expert_counts,
            {"ffn_gate_inp": "block_sparse_moe.gate"},
            _experts("block_sparse_moe.", "w1", "w3", "w2"),
            rotates_pairs=True,
            fits=_has_experts,
        ),
    ),
    ("llama", GgufFamily("LlamaForCausalLM", "llama", _llama, rotates_pairs=True)),
    ("qwen2", GgufFamily("Qwen2ForCausalLM", "qwen2")),
    # Whose vision tower is a file of its own.
    ("qwen2vl", GgufFamily("Qwen2ForCausalLM", "qwen2")),
    (
        "qwen2moe",
        GgufFamily(
            "Qwen2MoeForCausalLM",
            "qwen2_moe",
            _qwen_moe,
            _SHARED_EXPERT,
            _QWEN_EXPERTS,
            changes={"ffn_gate_inp_shexp.weight": ONE_ROW},
        ),
    ),
    ("qwen3", GgufFamily("Qwen3ForCausalLM", "qwen3")),
    ("qwen3vl", GgufFamily("Qwen3ForCausalLM", "qwen3")),
    *(
        (
            name,
            GgufFamily(
                "Qwen3MoeForCausalLM",
                "qwen3_moe",
                _qwen_moe,
                {"ffn_gate_inp": "mlp.gate"},
                _QWEN_EXPERTS,
            ),
        )
        for name in ("qwen3moe", "qwen3vlmoe")
    ),
    (
        "olmoe",
        GgufFamily(
            "OlmoeForCausalLM", "olmoe", _olmoe, {"ffn_gate_inp": "mlp.gate"}, _QWEN_EXPERTS
        ),
    ),
    (
        "gpt-oss",
        GgufFamily(
            "GptOssForCausalLM",
            "gpt_oss",
            _gpt_oss,
            {
                "attn_sinks.weight": "self_attn.sinks",
                "post_attention_norm": "post_attention_layernorm",
                "ffn_gate_inp": "mlp.router",
                "ffn_down_exps.weight": "mlp.experts.down_proj",
                "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
            },
            joins={
                "mlp.experts.gate_up_proj": in_turn(
                    ("ffn_gate_exps.weight", "ffn_up_exps.weight"), transposed=True
                ),
                "mlp.experts.gate_up_proj_bias": in_turn(
                    ("ffn_gate_exps.bias", "ffn_up_exps.bias"), transposed=False
                ),
            },
            changes={"ffn_down_exps.weight": EACH_TRANSPOSED},
        ),
    ),
    ("smollm3", GgufFamily("SmolLM3ForCausalLM", "smollm3", _smollm3, rotates_pairs=True)),
)
_LISTED = (*_ALL, *DENSE, *GEMMA_NANO, *HYBRID, *DELTA_NETS, *MAMBA, *EXPERTS, *ENCODERS)
FAMILIES: dict[str, tuple[GgufFamily, ...]] = {
    name: tuple(family for other, family in _LISTED if other == name) for name, _ in _LISTED
}
"""By the name in `general.architecture`; of several the first that fits."""

"""GGUF files of GLM 4.7 Flash, which llama.cpp's converter writes under DeepSeek's name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import ExpertGatingFuncType, GGUFWriter

from engine_worker.compute.models.hf_config import decoder_spec, load_spec
from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.compute.weights.gguf.checkpoint import derive_config, open_gguf
from engine_worker.compute.weights.sources import is_ignorable
from tests.fakes.gguf_case import config_of
from tests.fakes.gguf_files import deepseek_tensors, write_gguf
from tests.fakes.tiny_checkpoint import random_tensors, write_checkpoint

NUM_LAYERS, NUM_HEADS = 3, 4
GLM = config_of(
    "Glm4MoeLiteForCausalLM",
    "glm4_moe_lite",
    num_hidden_layers=NUM_LAYERS,
    num_attention_heads=NUM_HEADS,
    num_key_value_heads=NUM_HEADS,
    n_routed_experts=6,
    num_experts_per_tok=3,
    n_shared_experts=1,
    moe_intermediate_size=12,
    first_k_dense_replace=1,
    routed_scaling_factor=1.8,
    norm_topk_prob=True,
    n_group=1,
    topk_group=1,
    q_lora_rank=14,
    kv_lora_rank=12,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=8,
    head_dim=None,
)


@pytest.mark.parametrize("is_first", [False, True], ids=["now", "at first"])
def test_it_is_read_as_deepseek_with_the_same_layers_and_tensors(
    tmp_path: Path, is_first: bool
) -> None:
    """At first files didn't say how experts are scored; now the layer that predicts is in them."""
    config = {name: value for name, value in GLM.items() if value is not None}
    write_checkpoint(tmp_path, config, random_tensors(config))

    def more(writer: GGUFWriter) -> None:
        writer.add_head_count_kv(1)
        writer.add_key_length(12 + 4)
        writer.add_value_length(12)
        writer.add_key_length_mla(10)
        writer.add_value_length_mla(8)
        writer.add_kv_lora_rank(12)
        writer.add_q_lora_rank(14)
        writer.add_rope_dimension_count(4)
        writer.add_expert_shared_count(1)
        writer.add_leading_dense_block_count(1)
        writer.add_expert_weights_norm(True)
        writer.add_expert_weights_scale(1.8)
        writer.add_expert_count(6)
        writer.add_expert_used_count(3)
        if not is_first:
            writer.add_block_count(NUM_LAYERS + 1)
            writer.add_nextn_predict_layers(1)
            writer.add_tensor("blk.3.nextn.eh_proj.weight", np.ones((16, 32), np.float32))
            writer.add_tensor("blk.3.attn_norm.weight", np.ones(16, np.float32))
            writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)

    path = tmp_path / "m.gguf"
    write_gguf(path, tmp_path, arch="deepseek2", convert=deepseek_tensors, more=more)
    checkpoint, original = open_gguf(path), open_checkpoint(tmp_path)
    spec, expected = decoder_spec(derive_config(checkpoint.metadata)), load_spec(tmp_path)
    assert replace(spec, architecture=expected.architecture) == expected
    beyond = {name for name in checkpoint.tensors if name.startswith("model.layers.3.")}
    assert bool(beyond) is not is_first
    assert all(is_ignorable(name, spec) for name in beyond)
    assert set(checkpoint.tensors) - beyond == set(original.tensors)
    with checkpoint.reading() as read, original.reading() as read_original:
        for name in original.tensors:
            np.testing.assert_allclose(read(name), read_original(name), atol=1e-6, err_msg=name)

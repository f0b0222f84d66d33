"""Which models are asked in the words that they were trained to rerank with."""

from pathlib import Path
from typing import Any

import pytest

from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.config import ModelSettings
from engine_worker.loading.decoder import choose_rerank_wording

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
HUB = "/cache/models--Qwen--Qwen3-Reranker-0.6B/snapshots/e61197ed"


@pytest.mark.parametrize(
    ("architecture", "path", "name", "setting", "expected"),
    [
        ("Qwen3ForCausalLM", HUB, "m", "auto", "qwen3-reranker"),
        ("Qwen3ForCausalLM", "/m", "my-Reranker", "auto", "qwen3-reranker"),
        ("Qwen3ForCausalLM", "/models/Qwen3-0.6B", "m", "auto", ""),
        ("LlamaForCausalLM", "/models/my-reranker", "m", "auto", ""),
        ("Qwen3ForCausalLM", HUB, "m", "plain", ""),
        ("LlamaForCausalLM", "/m", "m", "qwen3-reranker", "qwen3-reranker"),
    ],
)
def test_qwen3_models_that_say_so_are_asked_as_they_were_trained(
    architecture: str, path: str, name: str, setting: str, expected: str
) -> None:
    spec = decoder_spec({**SIZES, "architectures": [architecture]})
    settings = ModelSettings(path=Path(path), name=name, rerank_wording=setting)
    assert choose_rerank_wording(settings, spec) == expected

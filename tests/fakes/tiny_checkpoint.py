"""Writes small random checkpoints in Hugging Face's form: config.json and safetensors, no torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.weights.sources import weight_sources

TINY_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}

Tensors = dict[str, npt.NDArray[Any]]


def random_tensors(
    config: dict[str, Any],
    dtype: npt.DTypeLike = np.float32,
    scale: float = 0.2,
) -> Tensors:
    """Every tensor that a checkpoint of this config holds, by its Hugging Face name."""
    generator = np.random.default_rng(3)
    graph = declare(decoder_spec(config), np.float32)
    return {
        source.name: (
            np.float32("norm" in source.name) + scale * generator.standard_normal(source.shape)
        ).astype(dtype)
        for parts in weight_sources(graph)
        for source in parts
    }


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def write_checkpoint(
    folder: Path,
    config: dict[str, Any] | None = None,
    tensors: Tensors | None = None,
    num_shards: int = 1,
) -> Tensors:
    """Writes config.json and the weights, in one file or in shards with an index."""
    config = TINY_LLAMA if config is None else config
    tensors = random_tensors(config) if tensors is None else tensors
    write_config(folder, config)
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    weight_map: dict[str, str] = {}
    names = sorted(tensors)
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        held = {name: tensors[name] for name in names[shard::num_shards]}
        save_file(held, folder / file)
        weight_map |= dict.fromkeys(held, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return tensors

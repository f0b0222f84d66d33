"""Our decoder against transformers (torch, CPU, float32) on small random models per family."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from jax.typing import DTypeLike

from engine_worker.compute.models.decoder import DecoderWeights, declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.models.reference import ReferenceCache, reference_step
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.compute.weights.loader import load_weights
from tests.fakes.runner_requests import RunnerRequest, generate

NUM_TOKENS = 40
CHUNK = 16
SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_with_llama3_rope_and_biases": (
        "LlamaConfig",
        {
            "head_dim": 16,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama_with_linear_rope": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}},
    ),
    "mistral_with_window": ("MistralConfig", {"sliding_window": 7}),
    "ministral_with_mixed_windows": (
        "MinistralConfig",
        {
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention"],
            "head_dim": 8,
        },
    ),
    "qwen2": (
        "Qwen2Config",
        {
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 11,
            "max_window_layers": 1,
        },
    ),
    "qwen2_with_yarn_rope": (
        "Qwen2Config",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "smollm2": (
        "LlamaConfig",
        {
            "hidden_size": 72,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
        },
    ),
    "smollm3_without_positions_in_every_second_layer": (
        "SmolLM3Config",
        {"no_rope_layer_interval": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
}


@dataclass(frozen=True)
class Reference:
    """A saved checkpoint, a prompt, and what transformers computes for it."""

    folder: Path
    token_ids: npt.NDArray[np.int32]
    logits: npt.NDArray[np.float32]


@pytest.fixture(params=FAMILIES, scope="module")
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    config_name, differences = FAMILIES[request.param]
    return make_reference(tmp_path_factory.mktemp(request.param), config_name, SIZES | differences)


def make_reference(folder: Path, config_name: str, values: dict[str, Any]) -> Reference:
    config = getattr(transformers, config_name)(**values)
    generator = torch.Generator().manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Strong enough that attention is far from uniform and norms and biases matter.
            parameter.copy_(1.0 + 0.3 * noise if "norm" in name else 0.2 * noise)
        token_ids = torch.randint(
            3, int(values["vocab_size"]), (1, NUM_TOKENS), generator=generator
        )
        logits = model(token_ids).logits[0].numpy()
    model.save_pretrained(folder)
    return Reference(folder, token_ids[0].numpy().astype(np.int32), logits)


def load(folder: Path, dtype: DTypeLike = jnp.float32) -> DecoderWeights:
    return load_weights(folder, declare(load_spec(folder), dtype))


def compute(
    weights: DecoderWeights, token_ids: npt.NDArray[np.int32], chunks: list[int]
) -> npt.NDArray[np.float32]:
    """Logits of all tokens, computed chunk by chunk through a cache."""
    step = jax.jit(functools.partial(reference_step, weights.graph))
    cache = ReferenceCache.empty(weights.graph.spec, len(token_ids)).layers
    rows, start = [], 0
    for size in chunks:
        positions = np.arange(start, start + size, dtype=np.int32)
        logits, cache = step(weights.leaves, cache, token_ids[positions], positions)
        rows.append(np.asarray(logits))
        start += size
    return np.concatenate(rows)


def assert_parity(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> None:
    assert ours.shape == theirs.shape
    error = float(np.abs(ours - theirs).max())
    assert error <= 1e-3 * float(theirs.std())
    best = np.sort(theirs, axis=-1)
    clear = best[:, -1] - best[:, -2] > 10 * error
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(ours.argmax(-1)[clear], theirs.argmax(-1)[clear])


def test_logits_match_transformers_through_whole_prefill_chunked_prefill_and_decode(
    reference: Reference,
) -> None:
    weights = load(reference.folder)
    assert_parity(compute(weights, reference.token_ids, [NUM_TOKENS]), reference.logits)
    in_chunks = [CHUNK, CHUNK] + [1] * (NUM_TOKENS - 2 * CHUNK)
    assert_parity(compute(weights, reference.token_ids, in_chunks), reference.logits)


def test_bfloat16_weights_stay_near_the_float32_logits(tmp_path: Path) -> None:
    reference = make_reference(tmp_path, "LlamaConfig", SIZES)
    ours = compute(load(tmp_path, jnp.bfloat16), reference.token_ids, [NUM_TOKENS])
    assert ours.dtype == np.float32
    error = np.abs(ours - reference.logits)
    assert 0 < error.mean() < 0.03 * reference.logits.std()


@pytest.mark.parametrize("family", ["mistral_with_window", "qwen3"])
def test_the_paged_runner_chooses_what_transformers_would_choose(
    tmp_path: Path, family: str
) -> None:
    """Chunked prefill and decode through pages, checked token by token with forced logits."""
    config_name, differences = FAMILIES[family]
    reference = make_reference(tmp_path, config_name, SIZES | differences)
    runner = JaxModelRunner.create(
        load(tmp_path),
        num_blocks=16,
        max_model_len=64,
        block_size=8,
        max_num_seqs=1,
        max_num_batched_tokens=8,
    )
    prompt = [int(token_id) for token_id in reference.token_ids[:30]]
    output = generate(runner, RunnerRequest(0, prompt, list(range(8))), 20)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + output])).logits[0].numpy()
    forced = logits[len(prompt) - 1 : -1]
    chosen = forced[np.arange(len(output)), output]
    assert (forced.max(-1) - chosen <= 1e-3 * forced.std()).all()


def test_a_head_beside_a_tied_config_is_used_as_by_transformers(tmp_path: Path) -> None:
    make_reference(tmp_path, "LlamaConfig", SIZES | {"tie_word_embeddings": False})
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"tie_word_embeddings": True}), encoding="utf-8")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    token_ids = np.arange(3, 3 + NUM_TOKENS, dtype=np.int32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(token_ids[None].astype(np.int64))).logits[0].numpy()
    assert_parity(compute(load(tmp_path), token_ids, [NUM_TOKENS]), theirs)

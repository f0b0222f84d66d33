"""A small random model of transformers (torch, CPU, float32), and ours from the files it saved."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import DTypeLike
from safetensors.numpy import load_file, save_file

from engine_worker.compute.models.decoder import DecoderWeights, declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.models.reference import ReferenceCache, reference_step
from engine_worker.compute.weights.loader import load_weights
from tests.fakes.late import torch, transformers
from tests.fakes.model_families import NUM_GREEDY_TOKENS, NUM_PROMPT_TOKENS, SIZES, FamilyCase

TokenIds = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]
MIN_DISTINCT_TOKENS = 8


@dataclass(frozen=True)
class Reference:
    """A saved checkpoint and what transformers computes for it.

    Attributes:
        prompt: [NUM_PROMPT_TOKENS].
        logits: [NUM_PROMPT_TOKENS, vocab].
        output: The greedy tokens after the prompt.
        why_logits_only: As in `FamilyCase`.
    """

    folder: Path
    prompt: TokenIds
    logits: Logits
    output: list[int]
    why_logits_only: str = ""


def make_reference(folder: Path, case: FamilyCase) -> Reference:
    """Saves a random model of a case to a folder and computes with it."""
    model, prompt, logits = computed_model(case, NUM_PROMPT_TOKENS)
    with torch.no_grad():
        # Without ids that end an output, all of it is made.
        model.generation_config.eos_token_id = None
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NUM_GREEDY_TOKENS,
            do_sample=False,
        )
    save_model(folder, case, model)
    continuation = output[0, NUM_PROMPT_TOKENS:].tolist()
    assert len(set(continuation)) >= MIN_DISTINCT_TOKENS, "an output that repeats shows little"
    token_ids = prompt[0].numpy().astype(np.int32)
    return Reference(folder, token_ids, logits, continuation, case.why_logits_only)


def computed_model(case: FamilyCase, num_tokens: int) -> tuple[Any, Any, Logits]:
    """A random model of a case, random tokens [1, num_tokens], and their logits [num_tokens, V]."""
    config = getattr(transformers, case.config)(**case.values)
    generator = torch.Generator().manual_seed(7)
    model = random_model(config, case, generator)
    token_ids = torch.randint(3, SIZES["vocab_size"], (1, num_tokens), generator=generator)
    with torch.no_grad():
        logits: Logits = model(token_ids).logits[0].numpy()
    return model, token_ids, logits


def save_model(folder: Path, case: FamilyCase, model: Any) -> None:
    """Saves a model of a case to a folder."""
    model.save_pretrained(folder)
    if case.turns_experts:
        path = folder / "model.safetensors"
        tensors = {
            name: np.ascontiguousarray(one.swapaxes(1, 2)) if ".experts." in name else one
            for name, one in load_file(path).items()
        }
        save_file(tensors, path)
    if case.wrapped_as:
        wrap_text_model(folder, case)


def wrap_text_model(folder: Path, case: FamilyCase) -> None:
    """Rewrites a text model's files as those of a larger model that has it."""
    path = folder / "config.json"
    config = {
        "architectures": [case.wrapped_as],
        "text_config": json.loads(path.read_text(encoding="utf-8")),
    }
    path.write_text(json.dumps(config), encoding="utf-8")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    save_file(
        {name.replace("model.", case.text_model, 1): x for name, x in tensors.items()},
        weights,
    )


def random_model(config: Any, case: FamilyCase, generator: torch.Generator) -> Any:
    """A model in float32 whose weights are strong enough that every one of them matters."""
    automatic = case.model.startswith("Auto")
    model_class = getattr(transformers, case.model)
    if automatic:
        model = model_class.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    else:
        config._attn_implementation = "eager"
        model = model_class(config).to(torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Attention far from uniform, norms and biases far from one and nothing.
            is_norm = ("norm" in name or "ln_" in name) and not name.endswith("bias")
            is_embedding = name.endswith(("embed_tokens.weight", "wte.weight"))
            scale = case.embedding_scale if is_embedding else 0.2
            parameter.copy_(case.norm_mean + 0.3 * noise if is_norm else scale * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("layer_scalar"):
                buffer.copy_(0.7 + 0.6 * torch.rand(buffer.shape, generator=generator))
    return model


def load(folder: Path, dtype: DTypeLike = jnp.float32) -> DecoderWeights:
    """Our decoder from a folder."""
    return load_weights(folder, declare(load_spec(folder), dtype))


def compute(weights: DecoderWeights, token_ids: TokenIds, chunks: list[int]) -> Logits:
    """Logits of all tokens, computed chunk by chunk through a cache without pages."""
    step = jax.jit(functools.partial(reference_step, weights.graph))
    cache = ReferenceCache.empty(weights.graph.spec, len(token_ids)).layers
    rows, start = [], 0
    for size in chunks:
        positions = np.arange(start, start + size, dtype=np.int32)
        logits, cache = step(weights.leaves, cache, token_ids[positions], positions)
        rows.append(np.asarray(logits))
        start += size
    return np.concatenate(rows)


def assert_parity(ours: Logits, theirs: Logits) -> None:
    """The same logits within 1e-3 of their deviation, and the same tokens where it is clear."""
    assert ours.shape == theirs.shape
    error = float(np.abs(ours - theirs).max())
    assert error <= 1e-3 * float(theirs.std())
    best = np.sort(theirs, axis=-1)
    clear = best[:, -1] - best[:, -2] > 10 * error
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(ours.argmax(-1)[clear], theirs.argmax(-1)[clear])

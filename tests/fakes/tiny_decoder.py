"""A decoder of a few thousand random weights, and greedy decoding of it without pages."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import DTypeLike

from engine_worker.compute.models.decoder import DecoderWeights, declare, random_weights
from engine_worker.compute.models.recurrent.specs import DeltaNetSpec, MambaSpec, ShortConvSpec
from engine_worker.compute.models.reference import ReferenceCache, reference_step
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    RopeSpec,
)

VOCAB_SIZE = 64


def tiny_attention(window: int | None = None, softcap: float | None = None) -> AttentionSpec:
    """Four query heads over two key heads of 8 dimensions."""
    return AttentionSpec(
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        scale=8**-0.5,
        rope=RopeSpec(),
        window=window,
        softcap=softcap,
    )


def tiny_spec(
    windows: Sequence[int | None] = (None, 20), vocab_size: int = VOCAB_SIZE
) -> DecoderSpec:
    """A layer for each window."""
    return DecoderSpec(
        architecture="LlamaForCausalLM",
        vocab_size=vocab_size,
        hidden_size=32,
        layers=tuple(LayerSpec(tiny_attention(window), MlpSpec(48)) for window in windows),
        max_position_embeddings=512,
        norm_eps=1e-5,
        tied_head=True,
    )


def tiny_hybrid_spec() -> DecoderSpec:
    """Recurrent layers of every kind, with attention between them."""
    conv = ShortConvSpec(channels=32, kernel_size=3, bias=True)
    delta = DeltaNetSpec(num_key_heads=2, num_value_heads=4, key_dim=8, value_dim=6, kernel_size=4)
    mamba = MambaSpec(num_heads=4, head_dim=6, num_groups=2, state_size=8, kernel_size=3)
    mixers = (conv, tiny_attention(), delta, tiny_attention(window=20), mamba)
    layers = tuple(LayerSpec(mixer, MlpSpec(48)) for mixer in mixers)
    return replace(tiny_spec(), architecture="Lfm2ForCausalLM", layers=layers)


def tiny_weights(dtype: DTypeLike = jnp.float32, spec: DecoderSpec | None = None) -> DecoderWeights:
    """Random weights, large enough that neighbouring tokens differ."""
    return random_weights(declare(spec or tiny_spec(), dtype), seed=5, scale=0.3)


class GreedyReference:
    """Greedy continuations of one sequence at a time, by dense attention."""

    def __init__(self, weights: DecoderWeights, capacity: int) -> None:
        self._weights = weights
        self._empty = ReferenceCache.empty(weights.graph.spec, capacity).layers
        graph = weights.graph
        self._step = jax.jit(
            lambda leaves, cache, ids, positions: reference_step(
                graph, leaves, cache, ids, positions
            )
        )
        self._capacity = capacity

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """[T, vocab] for a whole sequence; padded to the capacity, so it compiles once."""
        padded = np.zeros(self._capacity, np.int32)
        padded[: len(token_ids)] = token_ids
        positions = np.arange(self._capacity, dtype=np.int32)
        logits, _ = self._step(self._weights.leaves, self._empty, padded, positions)
        return np.asarray(logits)[: len(token_ids)]

    def continue_greedily(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """The next tokens of a prompt."""
        token_ids = list(prompt)
        for _ in range(num_tokens):
            token_ids.append(int(self.logits(token_ids)[-1].argmax()))
        return token_ids[len(prompt) :]

"""Greedy generation with the training code's own forward, for evaluation during training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from tools.demo_model.model import ModelShape, Params, forward, logits

_CACHE_STEP = 128


class GreedyDecoder:
    """Generates for batches of prompts; one program per batch size and rounded length."""

    def __init__(self, params: Params, shape: ModelShape, eos_ids: list[int]) -> None:
        self._params = params
        self._shape = shape
        self._eos_ids = frozenset(eos_ids)

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """The token ids that follow each prompt, without the end-of-turn token.

        Prompts are padded on the left to one length, so that all rows write the same cache slot.
        """
        longest = max(map(len, prompts))
        num_prompt = -(-longest // _CACHE_STEP) * _CACHE_STEP
        token_ids = np.zeros((len(prompts), num_prompt), np.int32)
        num_padding = np.asarray([num_prompt - len(prompt) for prompt in prompts], np.int32)
        for row, prompt in enumerate(prompts):
            token_ids[row, num_padding[row] :] = prompt
        num_slots = num_prompt + max_tokens
        step = partial(_step, self._params, self._shape)
        head = self._shape.num_attention_heads
        cache_shape = (len(prompts), num_slots, head, self._shape.head_dim)
        cache = [
            (jnp.zeros(cache_shape), jnp.zeros(cache_shape))
            for _ in range(self._shape.num_hidden_layers)
        ]
        next_ids, cache = step(token_ids, num_padding, jnp.int32(0), cache)
        outputs: list[list[int]] = [[] for _ in prompts]
        unfinished = set(range(len(prompts)))
        for slot in range(num_prompt, num_slots):
            chosen = np.asarray(next_ids)
            for row in list(unfinished):
                if int(chosen[row]) in self._eos_ids:
                    unfinished.discard(row)
                else:
                    outputs[row].append(int(chosen[row]))
            if not unfinished or slot == num_slots - 1:
                break
            next_ids, cache = step(chosen[:, None], num_padding, jnp.int32(slot), cache)
        return outputs


@partial(jax.jit, static_argnums=1, donate_argnums=5)
def _step(
    params: Params,
    shape: ModelShape,
    token_ids: jax.Array,
    num_padding: jax.Array,
    slot: jax.Array,
    cache: list[tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Runs `token_ids [B, T]` from cache slot `slot` on; returns the next ids `[B]`."""
    slots = slot + jnp.arange(token_ids.shape[1])
    positions = jnp.maximum(slots[None] - num_padding[:, None], 0)
    cached = jnp.arange(cache[0][0].shape[1])
    visible = (cached[None, None] <= slots[None, :, None]) & (
        cached[None, None] >= num_padding[:, None, None]
    )
    hidden, cache = forward(params, shape, token_ids, positions, visible, cache, slot)
    return jnp.argmax(logits(params, hidden[:, -1]), axis=-1), cache

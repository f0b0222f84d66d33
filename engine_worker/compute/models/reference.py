"""The oracle of tests and benchmarks: dense float32 attention over a cache without pages.

Recurrent layers keep the one state after the sequence so far, so nothing is computed twice.

Slow and plain on purpose; every faster attention is held to it.
"""

import jax
import jax.numpy as jnp

from engine_worker.compute.models.decoder import DecoderGraph, Leaves
from engine_worker.compute.models.layers import Attend
from engine_worker.compute.models.recurrent.state import Advance, Inputs, Recur
from engine_worker.compute.models.spec import AttentionSpec, DecoderSpec, LayerSpec

LayerCache = tuple[jax.Array, ...]
"""Keys and values of one layer, each [capacity, KH, D] float32, indexed by position; or the state
of a recurrent layer, [1, *shape] float32; nothing for a layer that shares another one's."""


def dense_attention(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    q_positions: jax.Array,
    attention: AttentionSpec,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Causal attention of one sequence, written out.

    Args:
        q: [T, H, D], rotated, not scaled.
        keys: [S, KH, D]; the key of position j is row j. Rows beyond the queries are not read.
        values: [S, KH, D]; of a latent attention the first part of a key, too.
        q_positions: [T] int32.
        attention: Window, scale and softcap.
        sinks: [H] float32, a score of each head for which there is no value; None is none.

    Returns:
        [T, H, D] float32.
    """
    groups = attention.num_heads // attention.num_kv_heads
    keys = jnp.repeat(keys.astype(jnp.float32), groups, axis=1)
    values = jnp.repeat(values.astype(jnp.float32), groups, axis=1)
    if attention.latent is not None:
        keys = jnp.concatenate([values, keys], axis=-1)
    scores = jnp.einsum("thd,shd->hts", q.astype(jnp.float32), keys) * attention.scale
    if attention.softcap is not None:
        scores = attention.softcap * jnp.tanh(scores / attention.softcap)
    key_positions = jnp.arange(keys.shape[0], dtype=jnp.int32)
    distance = q_positions[:, None] - key_positions[None, :]
    visible = distance >= 0
    if attention.window is not None:
        visible &= distance < attention.window
    if attention.chunk is not None:
        visible &= q_positions[:, None] // attention.chunk == key_positions // attention.chunk
    scores = jnp.where(visible[None], scores, -jnp.inf)
    if sinks is not None:
        beside = jnp.broadcast_to(sinks[:, None, None], (*scores.shape[:2], 1))
        scores = jnp.concatenate([scores, beside], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., : keys.shape[0]]
    return jnp.einsum("hts,shd->thd", weights, values)


class ReferenceCache:
    """The dense cache of one sequence; `attend` writes to it and attends."""

    def __init__(self, layers: tuple[LayerCache, ...]) -> None:
        self.layers = layers

    @classmethod
    def empty(cls, spec: DecoderSpec, capacity: int) -> "ReferenceCache":
        """A cache for `capacity` tokens of one sequence."""
        return cls(tuple(_empty_layer(layer, capacity) for layer in spec.layers))

    def attend(self, spec: DecoderSpec, positions: jax.Array) -> Attend:
        """The `Attend` for tokens at `positions` [T]; it replaces `self.layers` as it goes."""

        def attend(
            layer: int,
            q: jax.Array,
            k: jax.Array | None,
            v: jax.Array | None,
            sinks: jax.Array | None,
        ) -> jax.Array:
            attention = spec.layers[layer].attention
            if attention.shared_from is None:
                keys, values = self.layers[layer]
                keys, values = keys.at[positions].set(k), values.at[positions].set(v)
                self._put(layer, (keys, values))
            else:
                keys, values = self.layers[attention.shared_from]
            return dense_attention(q, keys, values, positions, attention, sinks)

        return attend

    def recur(self, positions: jax.Array) -> Recur:
        """The `Recur` for tokens at `positions` [T], which follow the last ones."""
        is_token = (positions >= 0)[None]

        def recur(layer: int, inputs: Inputs, advance: Advance) -> jax.Array:
            row = tuple(each[None] for each in inputs)
            outputs, state = advance(self.layers[layer], row, is_token)
            self._put(layer, state)
            return outputs[0]

        return recur

    def _put(self, layer: int, cache: LayerCache) -> None:
        self.layers = (*self.layers[:layer], cache, *self.layers[layer + 1 :])


def _empty_layer(layer: LayerSpec, capacity: int) -> LayerCache:
    mixer = layer.mixer
    if isinstance(mixer, AttentionSpec) and mixer.shared_from is not None:
        return ()
    if isinstance(mixer, AttentionSpec):
        widths = (mixer.head_dim, mixer.cached_value_dim)
        shapes = [(capacity, mixer.num_kv_heads, width) for width in widths]
        return tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
    return tuple(jnp.zeros((1, *shape), jnp.float32) for shape in mixer.state_shapes)


def reference_step(
    graph: DecoderGraph,
    leaves: Leaves,
    cache: tuple[LayerCache, ...],
    token_ids: jax.Array,
    positions: jax.Array,
) -> tuple[jax.Array, tuple[LayerCache, ...]]:
    """Logits of every given token of one sequence; pure, may be jitted with `graph` static.

    Args:
        graph: The decoder.
        leaves: Its weights.
        cache: `ReferenceCache.layers`, holding every earlier position.
        token_ids: [T] int32.
        positions: [T] int32, below the cache's capacity.

    Returns:
        [T, vocab] float32 and the cache with these tokens in it.
    """
    state = ReferenceCache(cache)
    attend, recur = state.attend(graph.spec, positions), state.recur(positions)
    hidden = graph.forward(leaves, token_ids, positions, attend, recur)
    return graph.logits(leaves, hidden), state.layers

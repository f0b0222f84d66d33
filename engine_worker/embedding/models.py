"""The kinds of models of whole texts, behind one port: encoders, and decoders of either sight."""

from typing import Final, Protocol

import jax
import jax.numpy as jnp

from engine_worker.compute.backends.base import PackedDecoder, StepTokens, forward
from engine_worker.compute.backends.kv_layout import KvCache, KvLayout, StateRings
from engine_worker.compute.models.decoder import DecoderGraph, Leaves
from engine_worker.embedding.attention import attend
from engine_worker.embedding.encoder import EncoderGraph
from engine_worker.errors import UnsupportedFeatureError

BLOCK_SIZE: Final = 32
"""Tokens of a page, where no state lies with it."""


class EmbeddingModel(Protocol):
    """What turns rows of tokens into rows of vectors."""

    @property
    def num_dimensions(self) -> int:
        """D, numbers of a vector."""

    @property
    def leaves(self) -> Leaves:
        """The weights, handed to `hidden`."""

    def hidden(
        self, leaves: Leaves, token_ids: jax.Array, type_ids: jax.Array, lengths: jax.Array
    ) -> jax.Array:
        """Vectors of all tokens.

        Args:
            leaves: The weights.
            token_ids: [B, T] int32.
            type_ids: [B, T] int32: 1 in the second text of a pair, for models that care.
            lengths: [B] int32, tokens of each row.

        Returns:
            [B, T, D] float32; padding is noise.
        """


class EncoderModel:
    """An encoder with its weights: every token sees all of its row."""

    def __init__(self, graph: EncoderGraph, leaves: Leaves) -> None:
        self._graph = graph
        self._leaves = leaves

    @property
    def num_dimensions(self) -> int:
        return self._graph.spec.hidden_size

    @property
    def leaves(self) -> Leaves:
        return self._leaves

    def hidden(
        self, leaves: Leaves, token_ids: jax.Array, type_ids: jax.Array, lengths: jax.Array
    ) -> jax.Array:
        visible = jnp.arange(token_ids.shape[1], dtype=jnp.int32) < lengths[:, None]
        return self._graph.hidden(leaves, token_ids, type_ids, visible)


class DecoderModel:
    """A decoder with its weights, which it may share with generation: tokens see what is before.

    It attends through pages of its own, which last as long as one call.
    """

    def __init__(self, decoder: PackedDecoder) -> None:
        self._decoder = decoder

    @property
    def num_dimensions(self) -> int:
        return self._decoder.backend.spec.hidden_size

    @property
    def leaves(self) -> Leaves:
        return self._decoder.leaves

    def hidden(
        self, leaves: Leaves, token_ids: jax.Array, type_ids: jax.Array, lengths: jax.Array
    ) -> jax.Array:
        num_rows, num_tokens = token_ids.shape
        layout = self.layout(num_rows, num_tokens, BLOCK_SIZE)
        cache: KvCache = jax.tree.map(
            lambda like: jnp.zeros(like.shape, like.dtype), layout.abstract()
        )
        first = jnp.zeros((), jnp.int32)
        hidden, _ = self.step(leaves, cache, layout, token_ids, first, lengths)
        return hidden

    def layout(self, num_rows: int, num_tokens: int, piece_tokens: int) -> KvLayout:
        """The cache of some rows.

        Args:
            num_rows: Rows.
            num_tokens: The most tokens of a row.
            piece_tokens: How many tokens of a row are computed at a time. States of recurrent
                layers lie with blocks, one each, so that such a decoder gets blocks as large.
        """
        backend = self._decoder.backend
        block_size = piece_tokens if backend.spec.state_bytes else BLOCK_SIZE
        num_blocks = num_rows * -(-num_tokens // block_size)
        return backend.kv_layout(
            num_blocks=num_blocks, block_size=block_size, rings=StateRings(num_rows)
        )

    def step(
        self,
        leaves: Leaves,
        cache: KvCache,
        layout: KvLayout,
        token_ids: jax.Array,
        first: jax.Array,
        lengths: jax.Array,
    ) -> tuple[jax.Array, KvCache]:
        """Vectors of some tokens of each row, whose earlier ones are in the cache.

        Args:
            leaves: The weights.
            cache: Of this layout; updated in place when the caller's program donates it.
            layout: From `layout`, for as many rows.
            token_ids: [B, T] int32.
            first: int32, the position of the first of them, at the beginning of a block.
            lengths: [B] int32, all tokens of each row.

        Returns:
            [B, T, D] float32, noise for padding; and the cache with these tokens.
        """
        backend = self._decoder.backend
        num_rows, num_tokens = token_ids.shape
        num_blocks = layout.num_blocks[0] // num_rows
        padding = -num_blocks % backend.table_multiple(layout.block_size)
        tables = jnp.arange(num_rows * num_blocks, dtype=jnp.int32).reshape(num_rows, num_blocks)
        tables = jnp.pad(tables, ((0, 0), (0, padding)), constant_values=layout.padding_blocks[0])
        positions = first + jnp.arange(num_tokens, dtype=jnp.int32)
        step = StepTokens(
            token_ids=token_ids,
            positions=jnp.tile(positions, (num_rows, 1)),
            is_token=positions < lengths[:, None],
            num_stored=jnp.minimum(lengths, first + num_tokens),
            block_tables=(tables,) * len(layout.num_blocks),
            slots=jnp.arange(num_rows, dtype=jnp.int32),
            new_slots=jnp.arange(num_rows, dtype=jnp.int32),
            layout=layout,
        )
        hidden, cache = forward(backend.bind(leaves), backend.spec, cache, step)
        return hidden.reshape(num_rows, num_tokens, -1), cache


class BidirectionalModel:
    """A decoder's layers whose tokens see all of their row, as EuroBERT and EmbeddingGemma do.

    Args:
        graph: With attention in every layer, without sinks and soft caps.
        leaves: Its weights.

    Raises:
        UnsupportedFeatureError: A layer computes something else.
    """

    def __init__(self, graph: DecoderGraph, leaves: Leaves) -> None:
        for layer in graph.spec.layers:
            if not layer.is_attention or layer.attention.sinks or layer.attention.softcap:
                raise UnsupportedFeatureError(
                    f"{graph.spec.architecture}: not supported: attention to both sides with"
                    " recurrent layers, sinks or soft caps"
                )
            if layer.attention.shared_from is not None:
                raise UnsupportedFeatureError(
                    f"{graph.spec.architecture}: not supported: attention to both sides with"
                    " keys and values that layers share"
                )
        self._graph = graph
        self._leaves = leaves

    @property
    def num_dimensions(self) -> int:
        return self._graph.spec.hidden_size

    @property
    def leaves(self) -> Leaves:
        return self._leaves

    def hidden(
        self, leaves: Leaves, token_ids: jax.Array, type_ids: jax.Array, lengths: jax.Array
    ) -> jax.Array:
        num_rows, num_tokens = token_ids.shape
        positions = jnp.arange(num_tokens, dtype=jnp.int32)
        visible = positions < lengths[:, None]

        def attend_to_all(
            layer: int,
            q: jax.Array,
            k: jax.Array | None,
            v: jax.Array | None,
            sinks: jax.Array | None,
        ) -> jax.Array:
            assert k is not None, "no layer shares another one's"
            assert v is not None, "no layer shares another one's"
            spec = self._graph.spec.layers[layer].attention
            rows = (num_rows, num_tokens, -1, spec.head_dim)
            group = spec.num_heads // spec.num_kv_heads
            keys, values = (jnp.repeat(one.reshape(rows), group, axis=2) for one in (k, v))
            # `attend` scales by the root of the head's width.
            queries = q.reshape(rows) * (spec.scale * spec.head_dim**0.5)
            mixed = attend(
                queries.astype(jnp.float32),
                keys.astype(jnp.float32),
                values.astype(jnp.float32),
                visible,
                # The whole width is stated; half of it lies on either side.
                window=None if spec.window is None else spec.window // 2,
                relative=None,
            )
            return mixed.reshape(q.shape)

        hidden = self._graph.forward(
            leaves, token_ids.reshape(-1), jnp.tile(positions, num_rows), attend_to_all
        )
        return hidden.reshape(num_rows, num_tokens, -1)

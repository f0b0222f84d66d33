"""The port between a step and whoever computes it, and the forward over a decoder's blocks.

A decoder is a row of blocks, pure functions of weights, the residual, their part of the cache and
the step: embedding, then in each layer an attention or recurrent block and an MLP block (each from
its norm to the residual), a last norm, and the head.

    layout = backend.kv_layout(num_blocks=100, block_size=32, rings=StateRings(num_slots=8))
    blocks = backend.bind(leaves)                            # inside the caller's program
    hidden, cache = forward(blocks, backend.spec, cache, step)
    logits = blocks.head(hidden)

A backend owns how weights are packed, the layout and type of the cache, and how each block is
computed. Weights and cache are arguments of the caller's program, so nothing is baked into it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from engine_worker.compute.backends.kv_layout import NO_RINGS, KvCache, KvLayout, StateRings
from engine_worker.compute.backends.layer_groups import LayerGroups
from engine_worker.compute.backends.packing_plan import PackingPlan
from engine_worker.compute.models.decoder import DecoderGraph, Leaves
from engine_worker.compute.models.integer_blocks import BlockFormat
from engine_worker.compute.models.rope import RopeTables, rope_tables
from engine_worker.compute.models.spec import DecoderSpec, MoeSpec


class BlockKind(StrEnum):
    """What a decoder is made of; each kind runs on one backend."""

    EMBEDDING = "embedding"
    ATTENTION = "attention"
    RECURRENT = "recurrent"
    MLP = "mlp"
    HEAD = "head"


def kinds_of(spec: DecoderSpec) -> tuple[BlockKind, ...]:
    """The kinds of blocks that a decoder has."""
    missing = set()
    if all(layer.is_attention for layer in spec.layers):
        missing.add(BlockKind.RECURRENT)
    if not any(layer.is_attention for layer in spec.layers):
        missing.add(BlockKind.ATTENTION)
    return tuple(kind for kind in BlockKind if kind not in missing)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the blocks of one kind run, and why not elsewhere.

    Attributes:
        backend: `xla` or `cpu_native`.
        reason: Why the native backend doesn't compute it; empty where it does, or wasn't asked to.
        has_native_products: In some layers or in all XLA computes it but for the products with its
            matrices.
    """

    backend: str
    reason: str = ""
    has_native_products: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class StepTokens:
    """The tokens of one call: T rows of Q tokens, flat [T * Q] in the blocks.

    Attributes:
        token_ids: [T, Q] int32.
        positions: [T, Q] int32, of each token in its own sequence.
        is_token: [T, Q] bool; False is padding, which may be computed but never stored or seen.
        num_stored: [T] int32, tokens of the row in the cache once this call has stored its own.
        block_tables: For each cache group [T, MB] int32 ids of each row's blocks, in order; every
            id in range, of what lies behind a window the padding block's.
        slots: [T] int32, the slot whose ring holds the recurrent state of a row that begins in the
            middle of a block. In steps of one token a row, the rows of one sequence, and no others,
            share a slot; they stand one after the other, in the order of their positions.
        new_slots: [T] int32, the slot whose ring takes the states of the row's own tokens; the one
            behind the last where nobody goes on from them.
        layout: Of the cache; static.
    """

    token_ids: jax.Array
    positions: jax.Array
    is_token: jax.Array
    num_stored: jax.Array
    block_tables: tuple[jax.Array, ...]
    slots: jax.Array
    new_slots: jax.Array
    layout: KvLayout


Likeliest = Callable[[jax.Array, jax.Array | None], jax.Array]
"""From the arguments of `Blocks.head` to [R] int32: the token with each row's highest score, the
lowest id of a tie, and `NAN_LOGITS` of the sampler where a score is NaN or infinity."""


class Blocks(Protocol):
    """The blocks of a decoder with the weights that a program was given.

    Attributes:
        experts_read: How many experts `layers` read, each once: an int32 scalar for each layer that
            has some; empty before.
    """

    experts_read: list[jax.Array]

    def embedding(self, step: StepTokens) -> jax.Array:
        """The residual [T * Q, hidden] float32 before the first layer."""

    def layers(
        self,
        x: jax.Array,
        cache: KvCache,
        step: StepTokens,
        ropes: RopeTables,
        is_wanted: jax.Array | None = None,
    ) -> tuple[jax.Array, KvCache]:
        """All layers' attention, recurrent and MLP blocks.

        The keys and values of all the step's tokens are stored in a layer before any is read, so a
        token sees what is before it in its sequence, wherever in the step that stands. A recurrent
        layer goes through the rows of a sequence one after the other.

        Args:
            x: [T * Q, hidden] float32.
            cache: Updated in place when the caller's program donates it.
            step: The tokens.
            ropes: Cosine and sine for every distinct rope of the decoder.
            is_wanted: [T * Q] bool, tokens whose residual is looked at; None is all. What the
                others get is not said.

        Returns:
            The residual after the last layer, and the cache with the step's tokens.
        """

    def norm(self, x: jax.Array) -> jax.Array:
        """Hidden states [.., hidden] float32 of a residual: the norm before the head."""

    def head(self, hidden: jax.Array, is_wanted: jax.Array | None = None) -> jax.Array:
        """Scores of every token of the vocabulary.

        Args:
            hidden: [R, hidden] float32; R at least the backend's `min_rows`.
            is_wanted: [R] bool, rows whose scores are looked at; None is all. What the others get
                is not said.

        Returns:
            [R, vocab] float32.
        """

    @property
    def likeliest(self) -> Likeliest | None:
        """The likeliest tokens without scores; None where a look at the scores costs no more."""


class Backend(Protocol):
    """Computes one decoder; made before its weights are loaded.

    It is long because each question about a decoder is a method.

    Attributes:
        name: `xla` or `cpu_native`, by which it is asked for and shown.
    """

    name: str

    @property
    def graph(self) -> DecoderGraph:
        """The declared decoder, whose weights are packed."""

    @property
    def spec(self) -> DecoderSpec:
        """The decoder."""

    @property
    def weight_type(self) -> str:
        """Of the matrices: float32, bfloat16, int8 or int4."""

    @property
    def stored_formats(self) -> Mapping[str, BlockFormat]:
        """Matrices that stay as the checkpoint keeps them, by path; others are `weight_type`."""

    @property
    def packing(self) -> PackingPlan:
        """How weights are packed."""

    @property
    def cache_dtype(self) -> np.dtype[Any]:
        """Of keys and values as numbers; int8 has a scale for each token and key head."""

    @property
    def placements(self) -> Mapping[BlockKind, Placement]:
        """Where each kind of block runs."""

    @property
    def min_rows(self) -> int:
        """The fewest rows of a product that are computed well."""

    @property
    def skips_padding(self) -> bool:
        """Whether tokens of a step that are padding cost nothing, wherever they stand."""

    @property
    def is_batch_invariant(self) -> bool:
        """Whether a token's bits are the same whatever else its program computes, in any batch."""

    @property
    def custom_calls(self) -> Sequence[str]:
        """Targets that its programs call, of a library that is loaded wherever they are run."""

    def table_multiple(self, block_size: int) -> int:
        """The width of block tables is a multiple of this."""

    @property
    def layer_groups(self) -> LayerGroups:
        """Which layers share block tables."""

    def kv_layout(
        self, *, num_blocks: int | Sequence[int], block_size: int, rings: StateRings = NO_RINGS
    ) -> KvLayout:
        """The layout of a cache with so many blocks in each of `layer_groups`."""

    def unwritten(self, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
        """An array of a cache, whose whole pages in the host's memory may hold anything.

        Called while a program is traced that makes nothing else; see `KvLayout.allocate`.
        """

    def bind(self, leaves: Leaves) -> Blocks:
        """The blocks with packed weights; called while the caller's program is traced."""


@dataclass(frozen=True, slots=True)
class PackedDecoder:
    """A loaded decoder: who computes it, and its weights as that one packs them."""

    backend: Backend
    leaves: Leaves

    @property
    def size_bytes(self) -> int:
        """Bytes of the packed weights."""
        return sum(leaf.nbytes for leaf in self.leaves)

    @property
    def expert_bytes(self) -> tuple[int, ...]:
        """Bytes of the matrices of one expert, for each layer that has some."""
        packed = {weight.name: weight.size_bytes for weight in self.backend.packing.weights}
        return tuple(
            sum(packed[f"layers.{layer}.mlp.{name}.weight"] for name in ("gate_up", "down"))
            // spec.mlp.num_experts
            for layer, spec in enumerate(self.backend.spec.layers)
            if isinstance(spec.mlp, MoeSpec)
        )


def forward(
    blocks: Blocks,
    spec: DecoderSpec,
    cache: KvCache,
    step: StepTokens,
    is_wanted: jax.Array | None = None,
) -> tuple[jax.Array, KvCache]:
    """Computes hidden states of a step's tokens and stores their keys and values.

    Args:
        blocks: From `Backend.bind`.
        spec: The decoder.
        cache: As in `Blocks.layers`.
        step: The tokens.
        is_wanted: As in `Blocks.layers`.

    Returns:
        [T * Q, hidden] float32 after the last norm, and the cache.
    """
    x = blocks.embedding(step)
    ropes = rope_tables(spec, step.positions.reshape(-1))
    x, cache = blocks.layers(x, cache, step, ropes, is_wanted)
    return blocks.norm(x), cache


def live_positions(step: StepTokens) -> jax.Array:
    """[T * Q] int32 positions, -1 for padding."""
    return jnp.where(step.is_token, step.positions, -1).reshape(-1)

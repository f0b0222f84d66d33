"""The step program of one bucket: forward, KV writes, attention, logits and sampling, fused.

A decode program may go on with the tokens that it samples, without the host: that is a loop inside
the program, whose number of turns is an input.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from engine_worker.compute.backends.base import Backend, Blocks, StepTokens, forward
from engine_worker.compute.backends.kv_layout import KvCache, KvLayout
from engine_worker.compute.models.decoder import Leaves
from engine_worker.compute.runner.packing import LAST_TOKEN, PackedLayout, StepInputs
from engine_worker.compute.sampling.params import SamplingRows
from engine_worker.compute.sampling.sampler import (
    NOT_SAMPLED,
    count_sampled,
    needs_scores,
    sample_tokens,
)

MAX_NEW_TOKENS = 32
"""The most tokens that a row of a decode program samples in one call."""


class DeviceState(NamedTuple):
    """What lives on the device between steps; every program takes it donated and returns it.

    Attributes:
        cache: Keys and values.
        counts: [num_slots, V] int32 token counts for penalties.
        last_tokens: [num_slots + 1] int32, what each slot sampled last; the one behind the last is
            for padding.
        hidden: [H, hidden] float32, of the newest last token of each slot, for sampling apart from
            the step; H is at least num_slots + 1. In the deterministic mode, whose rows may share
            a slot, of each row.
    """

    cache: KvCache
    counts: jax.Array
    last_tokens: jax.Array
    hidden: jax.Array


class ProgramOutput(NamedTuple):
    """What a step program computed beside the new state.

    Attributes:
        tokens: [N, R] int32 token ids (`NOT_SAMPLED`, `NAN_LOGITS`), one below the other for rows
            that sample several; N is 1 for a prefill and `MAX_NEW_TOKENS` in decode.
        hidden: [Q, hidden] float32, of each token of a prefill of one prompt; None of others and in
            decode.
        experts_read: [L] int32, how many experts were read by all turns of a decode in each layer
            that has some, each once a turn; None of others and of prefills.
    """

    tokens: jax.Array
    hidden: jax.Array | None
    experts_read: jax.Array | None = None


class _DecodeLoop(NamedTuple):
    """The turns of a decode program so far.

    Attributes:
        turn: [] int32.
        is_live: [R] bool, rows that compute a token in this turn.
        token_ids: [R] int32, the token of each live row.
        tokens: [`MAX_NEW_TOKENS`, R] int32, what was sampled.
        hidden: [R, hidden] float32, of each row's last turn.
        experts_read: As in `ProgramOutput`.
        state: The arrays between steps.
    """

    turn: jax.Array
    is_live: jax.Array
    token_ids: jax.Array
    tokens: jax.Array
    hidden: jax.Array
    experts_read: jax.Array | None
    state: DeviceState


def _with(experts_read: jax.Array | None, blocks: Blocks) -> jax.Array | None:
    """The count of `ProgramOutput` with what some blocks read."""
    return None if experts_read is None else experts_read + jnp.stack(blocks.experts_read)


def _at_turn(inputs: StepInputs, loop: _DecodeLoop) -> StepInputs:
    """The inputs as they would be if the host had made them for this turn."""
    is_live, sampling = loop.is_live, inputs.sampling
    return inputs._replace(
        token_ids=loop.token_ids[:, None],
        positions=inputs.positions + loop.turn,
        is_token=is_live[:, None],
        num_stored=jnp.where(is_live, inputs.num_stored + loop.turn, 0),
        sampling=sampling._replace(
            sampled=sampling.sampled & is_live,
            positions=sampling.positions + loop.turn.astype(jnp.uint32),
        ),
    )


class StepProgram:
    """A pure step over (weights, state, packed inputs) for one bucket.

    Args:
        backend: Computes the decoder, whose packed weights are arguments.
        packed_layout: Of the packed inputs.
        kv_layout: Of the cache.
        is_hidden_by_row: Whether `DeviceState.hidden` has an entry for each row.
    """

    def __init__(
        self,
        backend: Backend,
        packed_layout: PackedLayout,
        kv_layout: KvLayout,
        *,
        is_hidden_by_row: bool,
    ) -> None:
        self._is_hidden_by_row = is_hidden_by_row
        self._backend = backend
        self._packed_layout = packed_layout
        self._kv_layout = kv_layout

    def __call__(
        self, leaves: Leaves, state: DeviceState, packed: jax.Array
    ) -> tuple[ProgramOutput, DeviceState]:
        """Computes the step.

        Args:
            leaves: All weights, as the backend packs them.
            state: Donated.
            packed: [num_entries] int32, see `PackedLayout`.

        Returns:
            What was computed, and the new state.
        """
        inputs = self._packed_layout.unpack(packed)
        if self._packed_layout.bucket.is_prefill:
            return self._prefill(leaves, state, inputs)
        return self._decode(leaves, state, inputs)

    def _prefill(
        self, leaves: Leaves, state: DeviceState, inputs: StepInputs
    ) -> tuple[ProgramOutput, DeviceState]:
        blocks = self._backend.bind(leaves)
        hidden, cache = self._forward(blocks, state.cache, inputs)
        last_hidden = _last_of_chunks(hidden, inputs)
        tokens = self._sample(blocks, last_hidden, state.counts, inputs.sampling)
        counts = count_sampled(state.counts, tokens, inputs.sampling)
        state = state._replace(cache=cache, counts=counts)
        num_prompts = inputs.slots.shape[0]
        known, last_known = jnp.maximum(tokens, 0)[:num_prompts], last_hidden[:num_prompts]
        state = self._remember(state, inputs.slots, known, last_known)
        return ProgramOutput(tokens[None], hidden if num_prompts == 1 else None), state

    def _decode(
        self, leaves: Leaves, state: DeviceState, inputs: StepInputs
    ) -> tuple[ProgramOutput, DeviceState]:
        num_rows = inputs.num_stored.shape[0]
        hidden_size = self._backend.spec.hidden_size
        num_with_experts = self._backend.spec.num_layers_with_experts
        known_ids = inputs.token_ids[:, 0]
        last_ids = state.last_tokens.at[inputs.slots].get(mode="clip")
        first_ids = jnp.where(known_ids == LAST_TOKEN, last_ids, known_ids)

        def is_unfinished(loop: _DecodeLoop) -> jax.Array:
            return jnp.any(loop.is_live)

        def go_on(loop: _DecodeLoop) -> _DecodeLoop:
            now = _at_turn(inputs, loop)
            # Bound to the turn, or the compiler would convert whole matrices ahead of the loop.
            bound, _ = lax.optimization_barrier(  # type: ignore[no-untyped-call]
                (leaves, loop.turn)
            )
            blocks = self._backend.bind(bound)
            hidden, cache = self._forward(blocks, loop.state.cache, now)
            tokens = self._sample(blocks, hidden, loop.state.counts, now.sampling)
            counts = count_sampled(loop.state.counts, tokens, now.sampling)
            is_stop = jnp.any(tokens[:, None] == inputs.stop_token_ids, axis=1)
            has_more = loop.turn + 1 < inputs.max_new_tokens
            return _DecodeLoop(
                turn=loop.turn + 1,
                # Whoever samples nothing (no number, or apart from the step) has no next token.
                is_live=loop.is_live & (tokens >= 0) & ~is_stop & has_more,
                token_ids=jnp.maximum(tokens, 0),
                tokens=lax.dynamic_update_slice(
                    loop.tokens, tokens[None], (loop.turn, jnp.int32(0))
                ),
                hidden=jnp.where(loop.is_live[:, None], hidden, loop.hidden),
                experts_read=_with(loop.experts_read, blocks),
                state=loop.state._replace(cache=cache, counts=counts),
            )

        loop = lax.while_loop(
            is_unfinished,
            go_on,
            _DecodeLoop(
                turn=jnp.int32(0),
                is_live=inputs.is_token[:, 0],
                token_ids=first_ids,
                tokens=jnp.full((MAX_NEW_TOKENS, num_rows), NOT_SAMPLED, jnp.int32),
                hidden=jnp.zeros((num_rows, hidden_size), jnp.float32),
                experts_read=jnp.zeros(num_with_experts, jnp.int32) if num_with_experts else None,
                state=state,
            ),
        )
        new_state = self._remember(loop.state, inputs.slots, loop.token_ids, loop.hidden)
        return ProgramOutput(loop.tokens, None, loop.experts_read), new_state

    def _remember(
        self, state: DeviceState, slots: jax.Array, tokens: jax.Array, hidden: jax.Array
    ) -> DeviceState:
        """The state with what the newest step of each slot left."""
        places = jnp.arange(slots.shape[0]) if self._is_hidden_by_row else slots
        return state._replace(
            last_tokens=state.last_tokens.at[slots].set(tokens),
            hidden=state.hidden.at[places].set(hidden),
        )

    def _forward(
        self, blocks: Blocks, cache: KvCache, inputs: StepInputs
    ) -> tuple[jax.Array, KvCache]:
        """Hidden states [T * Q, hidden] of all tokens, and the cache with all tokens."""
        step = StepTokens(
            token_ids=inputs.token_ids,
            positions=inputs.positions,
            is_token=inputs.is_token,
            num_stored=inputs.num_stored,
            block_tables=inputs.block_tables,
            slots=inputs.slots,
            new_slots=inputs.slots,
            layout=self._kv_layout,
        )
        return forward(blocks, self._backend.spec, cache, step)

    def _sample(
        self, blocks: Blocks, hidden: jax.Array, counts: jax.Array, rows: SamplingRows
    ) -> jax.Array:
        def choose_by_scores() -> jax.Array:
            return sample_tokens(blocks.head(hidden, rows.sampled), counts, rows)

        def choose() -> jax.Array:
            if (likeliest := blocks.likeliest) is None:
                return choose_by_scores()
            tokens: jax.Array = lax.cond(
                jnp.any(needs_scores(rows)),
                choose_by_scores,
                lambda: jnp.where(rows.sampled, likeliest(hidden, rows.sampled), NOT_SAMPLED),
            )
            return tokens

        # All chunks of a prompt but the last need no logits, nor do steps that sample apart.
        nothing = jnp.full(rows.slots.shape, NOT_SAMPLED, jnp.int32)
        is_wanted = jnp.any(rows.sampled)
        tokens: jax.Array = lax.cond(is_wanted, choose, lambda: nothing)
        return tokens


def _last_of_chunks(hidden: jax.Array, inputs: StepInputs) -> jax.Array:
    """Each row's last token, of one prompt as many times as there are rows.

    The head's product has all rows too. Of padding it is some token.
    """
    num_rows = inputs.sampling.slots.shape[0]
    num_prompts, num_queries = inputs.is_token.shape
    last = jnp.sum(inputs.is_token.astype(jnp.int32), axis=1) - 1
    last = last + num_queries * jnp.arange(num_prompts, dtype=jnp.int32)
    if num_prompts == 1:
        last = jnp.repeat(last, num_rows)
    return hidden.at[last].get(mode="clip")


def set_slot_counts(counts: jax.Array, slot: jax.Array, slot_counts: jax.Array) -> jax.Array:
    """Counts [S, V] with the row of one slot replaced by [V]; `counts` is to be donated."""
    return lax.dynamic_update_slice(counts, slot_counts[None], (slot, jnp.int32(0)))

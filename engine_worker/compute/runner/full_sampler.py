"""Sampling apart from the forward pass: with biases, masks and log probabilities.

Rows that need any of these are rare, so the step programs do without them. Of such a row a step
program only computes the hidden state, and this one goes on from there, for these rows alone: the
others are sampled in their step. Masks are asked for in between, so that they can be made while the
forward pass runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, auto
from functools import reduce
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from engine_worker.compute.backends.base import Backend
from engine_worker.compute.models.decoder import Leaves
from engine_worker.compute.runner.packing import NUM_ROW_FIELDS, pack_row_fields, unpack_row_fields
from engine_worker.compute.sampling.constraints import ConstraintRows, constrain
from engine_worker.compute.sampling.logprobs import no_scores, score_tokens
from engine_worker.compute.sampling.sampler import (
    NAN_LOGITS,
    WITHOUT_CHOICE,
    count_sampled,
    sample_tokens,
)
from engine_worker.core.choice.batch import RowWork, TokenScores
from engine_worker.core.choice.token_mask import MaskWords, allow_all
from protocol.wire.sampling_ranges import MAX_LOGIT_BIASES, MAX_LOGPROB_TOKEN_IDS, MAX_LOGPROBS

_NO_TARGET: Final = -1


class _ExtraField(IntEnum):
    """Column of what this program needs beside a row's usual fields."""

    TARGET = NUM_ROW_FIELDS
    PLACE = auto()
    IS_SCORED = auto()
    IS_BIASED = auto()
    IS_MASKED = auto()


_NUM_FIELDS: Final = _ExtraField.IS_MASKED + 1


class FullSamplerInputs(NamedTuple):
    """What a call takes from the host.

    Attributes:
        fields: [R, F] int32, floats as their bits.
        biases: [2, R, B] int32, token ids and the bits of the numbers that are added.
        allowed: [R, W] uint32.
        wanted: [R, K] int32, tokens whose log probabilities are told whatever is drawn.
    """

    fields: npt.NDArray[np.int32]
    biases: npt.NDArray[np.int32] | jax.Array
    allowed: MaskWords | jax.Array
    wanted: npt.NDArray[np.int32] | jax.Array


@dataclass(frozen=True, slots=True)
class FullSample:
    """What a call chose for one row.

    Attributes:
        token: A token id, `NOT_SAMPLED`, `NAN_LOGITS` or `WITHOUT_CHOICE`.
        scores: Of the token, or of the row's target.
        is_target: Whether the row was only scored.
    """

    token: int
    scores: TokenScores | None
    is_target: bool


class FullSampler:
    """A pure program over (weights, hidden states, counts, inputs) for some number of rows.

    Args:
        backend: Computes the head.
        num_rows: R.
        num_slots: Slots; padding rows name the slot after the last.
    """

    def __init__(self, backend: Backend, num_rows: int, num_slots: int) -> None:
        self._backend = backend
        self._num_rows = num_rows
        self._num_slots = num_slots
        self._vocab_size = backend.spec.vocab_size
        self._num_top = min(MAX_LOGPROBS, self._vocab_size)
        # Most calls have no bias or no mask: these never leave the device. Made by numpy, because
        # jax compiles a program for each shape that it fills.
        biases = np.full((2, num_rows, MAX_LOGIT_BIASES), self._vocab_size, np.int32)
        wanted = np.zeros((num_rows, MAX_LOGPROB_TOKEN_IDS), np.int32)
        allowed = np.tile(allow_all(self._vocab_size), (num_rows, 1))
        self._no_biases: jax.Array = jax.device_put(biases)
        self._none_wanted: jax.Array = jax.device_put(wanted)
        self._all_allowed: jax.Array = jax.device_put(allowed)

    def __call__(
        self,
        leaves: Leaves,
        counts: jax.Array,
        last_tokens: jax.Array,
        hidden: jax.Array,
        inputs: FullSamplerInputs,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Samples and scores.

        Args:
            leaves: All weights, as the backend packs them.
            counts: [num_slots, V] int32, donated.
            last_tokens: [num_slots + 1] int32, donated.
            hidden: [H, hidden] float32, in which each row has its place.
            inputs: See `pack`.

        Returns:
            [R, 3 + 2 * N + K] int32 for `read`, the new counts and the new last tokens.
        """
        fields, biases, allowed = jnp.asarray(inputs.fields), inputs.biases, inputs.allowed
        rows = unpack_row_fields(fields)
        constraints = ConstraintRows(
            is_biased=fields[:, _ExtraField.IS_BIASED] != 0,
            bias_token_ids=jnp.asarray(biases[0]),
            bias_values=lax.bitcast_convert_type(biases[1], jnp.float32),
            is_masked=fields[:, _ExtraField.IS_MASKED] != 0,
            allowed=jnp.asarray(allowed),
        )
        own = hidden.at[fields[:, _ExtraField.PLACE]].get(mode="clip")
        logits = self._backend.bind(leaves).head(own)
        constrained = constrain(logits, constraints)
        tokens = sample_tokens(constrained, counts, rows)
        has_choice = jnp.any(constrained > -jnp.inf, axis=1)
        tokens = jnp.where((tokens >= 0) & ~has_choice, WITHOUT_CHOICE, tokens)
        targets = fields[:, _ExtraField.TARGET]
        scored = jnp.where(targets >= 0, targets, tokens)
        scores = lax.cond(
            jnp.any(fields[:, _ExtraField.IS_SCORED] != 0),
            lambda: score_tokens(logits, scored, self._num_top, jnp.asarray(inputs.wanted)),
            lambda: no_scores(self._num_rows, self._num_top, MAX_LOGPROB_TOKEN_IDS),
        )
        columns = (
            # A row whose target is scored says by its token whether it holds NaN.
            jnp.where(jnp.any(~(logits < jnp.inf), axis=1), NAN_LOGITS, tokens)[:, None],
            lax.bitcast_convert_type(scores.logprobs, jnp.int32)[:, None],
            scores.ranks[:, None],
            scores.top_token_ids,
            lax.bitcast_convert_type(scores.top_logprobs, jnp.int32),
            lax.bitcast_convert_type(scores.wanted, jnp.int32),
        )
        # Of rows that are only scored, and of padding, the slot behind the last.
        last_tokens = last_tokens.at[rows.slots].set(jnp.maximum(tokens, 0))
        outputs = jnp.concatenate(columns, axis=1)
        return outputs, count_sampled(counts, tokens, rows), last_tokens

    def pack(
        self,
        rows: Sequence[RowWork],
        places: Sequence[int],
        targets: Sequence[int | None],
    ) -> FullSamplerInputs:
        """The inputs of one call; waits for masks that are still being made.

        Args:
            rows: At most R.
            places: Where the hidden state of each stands.
            targets: For each row a token to score instead of sampling one, or None.
        """
        fields = np.zeros((self._num_rows, _NUM_FIELDS), np.int32)
        fields[:, :NUM_ROW_FIELDS] = pack_row_fields(rows, self._num_rows, self._num_slots)
        fields[:, _ExtraField.TARGET] = _NO_TARGET
        fields[: len(rows), _ExtraField.PLACE] = places
        for index, (row, target) in enumerate(zip(rows, targets, strict=True)):
            if target is not None:
                fields[index, _ExtraField.TARGET] = target
            fields[index, _ExtraField.IS_SCORED] = _num_wanted(row, target) is not None
        return FullSamplerInputs(
            fields,
            self._pack_biases(rows, fields),
            self._masks(rows, fields),
            self._pack_wanted(rows),
        )

    def _pack_wanted(self, rows: Sequence[RowWork]) -> npt.NDArray[np.int32] | jax.Array:
        if not any(row.sampling.logprob_token_ids for row in rows):
            return self._none_wanted
        wanted = np.zeros((self._num_rows, MAX_LOGPROB_TOKEN_IDS), np.int32)
        for index, row in enumerate(rows):
            token_ids = row.sampling.logprob_token_ids
            wanted[index, : len(token_ids)] = token_ids
        return wanted

    def _pack_biases(
        self, rows: Sequence[RowWork], fields: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.int32] | jax.Array:
        biased = [i for i, row in enumerate(rows) if row.sample and row.sampling.logit_bias]
        if not biased:
            return self._no_biases
        biases = np.full((2, self._num_rows, MAX_LOGIT_BIASES), self._vocab_size, np.int32)
        for index in biased:
            token_ids, values = zip(*rows[index].sampling.logit_bias, strict=True)
            biases[0, index, : len(token_ids)] = token_ids
            biases.view(np.float32)[1, index, : len(values)] = values
        fields[biased, _ExtraField.IS_BIASED] = 1
        return biases

    def _masks(
        self, rows: Sequence[RowWork], fields: npt.NDArray[np.int32]
    ) -> MaskWords | jax.Array:
        masks = {index: mask for index, row in enumerate(rows) for mask in _masks_of(row)}
        if not masks:
            return self._all_allowed
        allowed = np.tile(allow_all(self._vocab_size), (self._num_rows, 1))
        for index, mask in masks.items():
            allowed[index] = mask
        fields[list(masks), _ExtraField.IS_MASKED] = 1
        return allowed

    def read(
        self,
        outputs: npt.NDArray[np.int32],
        rows: Sequence[RowWork],
        targets: Sequence[int | None],
    ) -> list[FullSample]:
        """What a call's first output says of each row."""
        num_top = self._num_top
        floats = outputs.view(np.float32)
        samples = []
        for index, (row, target) in enumerate(zip(rows, targets, strict=True)):
            token = int(outputs[index, 0])
            scored = token if target is None else target
            num_wanted = _num_wanted(row, target)
            scores = None
            if num_wanted is not None and token != NAN_LOGITS and scored >= 0:
                num_wanted = min(num_wanted, num_top)
                scores = TokenScores(
                    token_id=scored,
                    logprob=float(floats[index, 1]),
                    rank=int(outputs[index, 2]),
                    top=tuple(
                        zip(
                            outputs[index, 3 : 3 + num_wanted].tolist(),
                            floats[index, 3 + num_top : 3 + num_top + num_wanted].tolist(),
                            strict=True,
                        )
                    ),
                    wanted=() if target is not None else self._wanted_of(row, floats[index]),
                )
            samples.append(FullSample(token, scores, target is not None))
        return samples

    def _wanted_of(
        self, row: RowWork, floats: npt.NDArray[np.float32]
    ) -> tuple[tuple[int, float], ...]:
        token_ids, start = row.sampling.logprob_token_ids, 3 + 2 * self._num_top
        return tuple(zip(token_ids, floats[start : start + len(token_ids)].tolist(), strict=True))


def _num_wanted(row: RowWork, target: int | None) -> int | None:
    """How many likely tokens are wanted beside the row's token; None when no score is."""
    if target is not None:
        return row.sampling.num_prompt_logprobs or 0
    return row.sampling.num_logprobs if row.sample else None


def _masks_of(row: RowWork) -> list[MaskWords]:
    """The row's mask, if it has one: what both of its parts allow."""
    if not row.sample:
        return []
    parts = [] if row.allowed_mask is None else [row.allowed_mask]
    if row.pending_mask is not None:
        parts.append(row.pending_mask())
    return [reduce(np.bitwise_and, parts)] if parts else []

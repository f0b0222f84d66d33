"""A model runner without a model: each next token is a function of all tokens before it.

It keeps keys and values as a plain decoder does, and states as a recurrent one (ADR 50).
"""

from collections.abc import Callable, Sequence
from functools import reduce
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from engine_worker.core.choice.batch import (
    ModelRunner,
    ProgressCallback,
    RowWork,
    StepBatch,
    StepResult,
)
from engine_worker.core.choice.cache_group import NO_BLOCK, CacheGroup
from engine_worker.core.choice.score_pack import ScoreLimits, ScorePack, ScoreShape
from tests.fakes.recurrent_states import RecurrentStates

NextToken = Callable[[Sequence[int]], int]


def hashed_token(vocab_size: int) -> NextToken:
    """A next-token function without structure: a hash of everything before it."""

    def next_token(token_ids: Sequence[int]) -> int:
        digest = blake2b(np.asarray(token_ids, np.int64).tobytes(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % vocab_size

    return next_token


def scripted_tokens(prompt_length: int, output: Sequence[int]) -> NextToken:
    """Whatever the prompt, the output is this sequence (and repeats its last token)."""

    def next_token(token_ids: Sequence[int]) -> int:
        return output[min(len(token_ids) - prompt_length, len(output) - 1)]

    return next_token


def scored_logprob(token_ids: Sequence[int], token_id: int) -> float:
    """A number for a token after some others; `nan` after a token 666."""
    if 666 in token_ids:
        return float("nan")
    digest = blake2b(np.asarray([*token_ids, token_id], np.int64).tobytes(), digest_size=2).digest()
    return -int.from_bytes(digest, "little") / 4096


_NOTHING_ALLOWED = -3


def _nearest_allowed(token_id: int, row: RowWork) -> int:
    """The token itself if the row's masks allow it, else one of those they allow."""
    masks = [] if row.allowed_mask is None else [row.allowed_mask]
    if row.pending_mask is not None:
        masks.append(row.pending_mask())
    if not masks:
        return token_id
    words = reduce(np.bitwise_and, masks)
    allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
    if not len(allowed):
        return _NOTHING_ALLOWED
    return token_id if token_id in allowed else int(allowed[token_id % len(allowed)])


class DeterministicFakeRunner:
    """Implements `ModelRunner` on a paged cache that stores the token ids themselves.

    A token is read back through the block table, so that wrong blocks, freed blocks and wrong
    positions give wrong tokens, as they would in a real cache. It also keeps what a device has
    counted for penalties in each slot, and checks before it samples that this is every token so
    far.

    Args:
        next_token: From all tokens of a request to its next one.
        fail_steps: Numbers of the calls of `run` that raise.
        fail_packs: Numbers of the calls of `score` that raise, from 1.
        least_of_a_kind: See `ScoreLimits`.
        nan_prompts: First tokens of prompts whose rows report NaN when they sample.
        groups: Of the cache; by default one of `num_blocks` that sees all tokens. Only then, or in
            the first of two, can states be kept.
    """

    def __init__(
        self,
        next_token: NextToken,
        *,
        num_blocks: int = 64,
        groups: tuple[CacheGroup, ...] = (),
        block_size: int = 4,
        max_num_seqs: int = 4,
        max_num_batched_tokens: int = 16,
        prefill_chunk_size: int = 8,
        max_new_tokens: int = 1,
        decode_rows: tuple[int, ...] = (1, 2, 4),
        runs_ahead: bool = False,
        fail_steps: frozenset[int] = frozenset(),
        fail_packs: frozenset[int] = frozenset(),
        least_of_a_kind: int = 4,
        nan_prompts: frozenset[int] = frozenset(),
    ) -> None:
        self._next_token = next_token
        self._groups = groups or (CacheGroup(num_blocks),)
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._prefill_chunk_size = prefill_chunk_size
        self._max_new_tokens = max_new_tokens
        self._decode_rows = decode_rows
        self._runs_ahead = runs_ahead
        self._fail_steps = fail_steps
        self._fail_packs = fail_packs
        self._least_of_a_kind = least_of_a_kind
        self._nan_prompts = nan_prompts
        self._caches = [
            np.full((group.num_blocks, block_size), -1, np.int64) for group in self._groups
        ]
        self._states = RecurrentStates(block_size, self.max_draft_tokens + 2)
        self.batches: list[StepBatch] = []
        self.packs: list[ScorePack] = []
        self.released: list[list[int]] = []
        self.assigned: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []
        self._counted: dict[int, list[int]] = {}
        self.num_resets = 0
        self.is_closed = False

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        return self._groups

    @property
    def block_size(self) -> int:
        return self._block_size

    @property
    def max_num_seqs(self) -> int:
        return self._max_num_seqs

    @property
    def max_num_batched_tokens(self) -> int:
        return self._max_num_batched_tokens

    @property
    def prefill_chunk_size(self) -> int:
        return self._prefill_chunk_size

    @property
    def max_new_tokens(self) -> int:
        return self._max_new_tokens

    @property
    def decode_rows(self) -> tuple[int, ...]:
        return self._decode_rows

    @property
    def max_draft_tokens(self) -> int:
        return self._decode_rows[-1] - 1

    @property
    def runs_ahead(self) -> bool:
        return self._runs_ahead

    @property
    def num_compiles(self) -> int:
        return 0

    def assign_slot(
        self, slot: int, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]
    ) -> None:
        assert 0 <= slot < self._max_num_seqs
        self.assigned.append((slot, tuple(prompt_token_ids), tuple(output_token_ids)))
        self._counted[slot] = [*prompt_token_ids, *output_token_ids]

    def run(self, batch: StepBatch) -> StepResult:
        self._check(batch)
        self.batches.append(batch)
        if len(self.batches) - 1 in self._fail_steps:
            for cache in self._caches:
                cache[:] = -2
            self._states.lose()
            raise RuntimeError("planned failure")
        for row in batch.rows:
            for offset, token_id in enumerate((*row.token_ids, *row.draft_token_ids)):
                self._write(row, row.start + offset, token_id)
            self._compute_states(row, (*row.token_ids, *row.draft_token_ids))
        token_ids = np.full(len(batch.rows), -1, np.int32)
        has_nan = np.zeros(len(batch.rows), np.bool_)
        more: dict[int, list[int]] = {}
        for index, row in enumerate(batch.rows):
            if row.sample:
                seen = self._seen(row)
                assert min(seen) >= 0, "a position was read that nobody wrote"
                assert self._counted[row.slot] == seen, "tokens are missing in the counts"
                has_nan[index] = seen[0] in self._nan_prompts
                token_ids[index] = _nearest_allowed(self._next_token(seen), row)
                if row.max_new_tokens > 1:
                    more[index] = self._go_on(row, [*seen, int(token_ids[index])])
                elif row.draft_token_ids:
                    more[index] = self._check_draft(row, [*seen, int(token_ids[index])])
                self._counted[row.slot] = [*seen, int(token_ids[index]), *more.get(index, ())]
                if index in batch.next_rows:
                    # As if the next step was begun and dropped.
                    self._keep_states(row, seen, (int(token_ids[index]),))
        nothing_allowed = frozenset(np.flatnonzero(token_ids == _NOTHING_ALLOWED).tolist())
        return StepResult(token_ids, has_nan, nothing_allowed=nothing_allowed, more_token_ids=more)

    def _go_on(self, row: RowWork, seen: list[int]) -> list[int]:
        """The tokens after the first one, as the device would feed them back."""
        more: list[int] = []
        while seen[-1] not in row.stop_token_ids and len(more) + 1 < row.max_new_tokens:
            self._write(row, len(seen) - 1, seen[-1])
            self._keep_states(row, seen[:-1], seen[-1:])
            more.append(self._next_token(seen))
            seen.append(more[-1])
        return more

    def _check_draft(self, row: RowWork, seen: list[int]) -> list[int]:
        """The tokens after the first one, up to a wrong draft token; wrong ones stay in the
        cache."""
        more: list[int] = []
        for drafted in row.draft_token_ids:
            if drafted != seen[-1]:
                break
            assert self._read(row, len(seen) - 1) == drafted
            more.append(self._next_token(seen))
            seen.append(more[-1])
        return more

    @property
    def score_limits(self) -> ScoreLimits:
        return ScoreLimits(
            (ScoreShape(4, 4), ScoreShape(2, 16)),
            max_pairs=16,
            max_places=(6, 4),
            least_of_a_kind=self._least_of_a_kind,
        )

    def num_scratch_blocks(self, num_stored: int, num_tokens: int) -> int:
        return -(-(num_stored % self._block_size + num_tokens) // self._block_size)

    def score(
        self,
        pack: ScorePack,
        num_stored: int,
        slot: int,
        block_ids: Sequence[Sequence[int]],
        scratch_ids: Sequence[Sequence[Sequence[int]]],
    ) -> npt.NDArray[np.float32]:
        """`scored_logprob` of each pair, of the tokens in the blocks and those of its row before.

        Scratch blocks are spoilt, so whoever lent what is in use finds out.
        """
        limits = self.score_limits
        most = dict(zip(limits.shapes, limits.max_places, strict=True))[pack.shape]
        assert len({(pair.row, pair.offset) for pair in pack.pairs}) <= most
        assert 0 < len(pack.pairs) <= limits.max_pairs
        assert 0 < len(pack.rows) <= pack.shape.num_rows
        assert max(map(len, pack.rows)) <= pack.shape.num_tokens
        self.packs.append(pack)
        if len(self.packs) in self._fail_packs:
            raise RuntimeError("the device is gone")
        prompt = self._counted[slot][:num_stored]
        if self._groups[0].reach is None:
            prompt = self._caches[0][list(block_ids[0])].reshape(-1)[:num_stored].tolist()
            self._states.check(slot, block_ids[0], prompt)
        for cache, group, table, lent_rows in zip(
            self._caches, self._groups, block_ids, scratch_ids, strict=True
        ):
            first = 0 if group.reach is None else max(0, num_stored - group.reach + 1)
            for position in range(first, num_stored):
                block_id = table[position // self._block_size]
                assert cache[block_id, position % self._block_size] == prompt[position]
            lent = [block_id for row in lent_rows for block_id in row]
            assert len(set(lent)) == len(lent)
            assert not set(lent) & set(table)
            for row, scratch in zip(pack.rows, lent_rows, strict=True):
                assert len(scratch) == self.num_scratch_blocks(num_stored, len(row))
            cache[lent] = -1
        return np.array(
            [
                scored_logprob([*prompt, *pack.rows[one.row][: one.offset + 1]], one.token_id)
                for one in pack.pairs
            ],
            np.float32,
        )

    def warm_up(self, progress: ProgressCallback) -> None:
        progress(1.0, "nothing to compile")

    def reset(self) -> None:
        for cache in self._caches:
            cache[:] = -1
        self._states.lose()
        self._counted.clear()
        self.num_resets += 1

    def release_memory(self, block_ids: Sequence[Sequence[int]]) -> int:
        self.released.append([len(ids) for ids in block_ids])
        for cache, ids in zip(self._caches, block_ids, strict=True):
            cache[list(ids)] = -1
        return 0

    def close(self) -> None:
        self.is_closed = True

    def _check(self, batch: StepBatch) -> None:
        assert 0 < len(batch.rows) <= self._max_num_seqs
        assert len({row.slot for row in batch.rows}) == len(batch.rows)
        # What is forced upon an output may have one token of each row beside the prompts, too.
        num_prompt_tokens = sum(len(row.token_ids) - 1 for row in batch.rows)
        assert num_prompt_tokens <= self._max_num_batched_tokens
        num_drafted = sum(len(row.draft_token_ids) for row in batch.rows)
        assert not num_drafted or len(batch.rows) + num_drafted <= self._decode_rows[-1]
        for position, row in enumerate(batch.rows):
            assert 0 < len(row.token_ids) <= self._prefill_chunk_size
            assert not row.draft_token_ids or (row.sample and len(row.token_ids) == 1)
            assert 1 <= row.max_new_tokens <= self._max_new_tokens
            num_stored = row.start + len(row.token_ids) + row.max_new_tokens - 1
            num_stored += len(row.draft_token_ids)
            if position in batch.next_rows:
                assert self._runs_ahead
                assert row.sample
                assert row.max_new_tokens == 1
                assert not row.draft_token_ids
                num_stored += 1
            for index, table in enumerate(self._tables(row)):
                assert len(table) * self._block_size >= num_stored
                written = set(table[row.start // self._block_size :])
                for other in batch.rows:
                    shared = other is not row and written & set(self._tables(other)[index])
                    assert not shared, "a row writes to a block that another one has"

    def _tables(self, row: RowWork) -> list[Sequence[int]]:
        return [row.block_ids, row.window_block_ids][: len(self._groups)]

    def _compute_states(self, row: RowWork, token_ids: Sequence[int]) -> None:
        if self._groups[0].reach is None:
            known = [self._read(row, position) for position in range(row.start)]
            self._keep_states(row, known, token_ids)

    def _keep_states(self, row: RowWork, known: Sequence[int], token_ids: Sequence[int]) -> None:
        if self._groups[0].reach is None:
            self._states.compute(row.slot, row.block_ids, known, token_ids)

    def _write(self, row: RowWork, position: int, token_id: int) -> None:
        for cache, table in zip(self._caches, self._tables(row), strict=True):
            block_id = table[position // self._block_size]
            assert block_id != NO_BLOCK, "a freed block is written to"
            cache[block_id, position % self._block_size] = token_id

    def _read(self, row: RowWork, position: int, group: int = 0) -> int:
        block_id = self._tables(row)[group][position // self._block_size]
        assert block_id != NO_BLOCK, "a freed block is read"
        return int(self._caches[group][block_id, position % self._block_size])

    def _seen(self, row: RowWork) -> list[int]:
        """All tokens up to the row's last, as far as they can be read; the rest as they were
        told."""
        end = row.start + len(row.token_ids)
        seen = self._counted[row.slot][:end]
        if self._groups[0].reach is None:
            seen = [self._read(row, position) for position in range(end)]
        for index, group in enumerate(self._groups):
            first = 0 if group.reach is None else max(0, row.start - group.reach + 1)
            window = [self._read(row, position, index) for position in range(first, end)]
            assert window == seen[first:], "a window holds other tokens"
        return seen


def _implements_the_port(runner: DeterministicFakeRunner) -> ModelRunner:
    return runner

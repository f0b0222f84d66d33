"""Which prefill programs compute the prompts of a step: together what is cheaper together.

A call costs something beside its tokens, above all the read of all weights, which short prompts
pay each if each has a call of its own. But a program of several rows may compute more padding than
those of one row: on XLA every token of its shape, and each row attends to as many tokens as the
longest. So chunks share a program where it is predicted to cost less than they do alone, in a unit
that both have: tokens with none before them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from engine_worker.compute.runner.buckets import Bucket, Buckets
from engine_worker.core.choice.batch import RowWork

CALL_TOKENS: Final = 32
"""What a call costs beside its tokens."""
CONTEXT_TOKENS: Final = 2048
"""A token with so many before it costs twice as much as one with none: it attends to them."""

FirstReady = Callable[[Sequence[Bucket]], Bucket]


class Chunk(NamedTuple):
    """A piece of a prompt.

    Attributes:
        num_tokens: That are computed.
        num_stored: Of its sequence in the cache once they are.
    """

    num_tokens: int
    num_stored: int


def prompt_calls(
    buckets: Buckets, first_ready: FirstReady, rows: Sequence[RowWork], indices: Sequence[int]
) -> Iterator[tuple[Bucket, Sequence[int]]]:
    """Programs for the chunks of prompts of a step, and which of its rows each computes.

    Args:
        buckets: There are programs of.
        first_ready: See `ProgramStore.first_ready`.
        rows: Of the step.
        indices: Of those that are chunks of prompts.
    """
    # Whoever scores the tokens of a prompt needs the hidden states of all of them: alone.
    chunks = {
        i: Chunk(len(rows[i].token_ids), rows[i].start + len(rows[i].token_ids))
        for i in indices
        if not rows[i].scored_token_ids
    }
    alone = set(indices)
    for bucket, together in groups_of(buckets, chunks):
        # Until it is compiled, they are computed alone.
        if first_ready((bucket, buckets.prefill[-1])) == bucket:
            alone.difference_update(together)
            yield bucket, together
    for index in sorted(alone):
        yield first_ready(buckets.for_prefill(len(rows[index].token_ids))), [index]


def groups_of(buckets: Buckets, chunks: Mapping[int, Chunk]) -> list[tuple[Bucket, list[int]]]:
    """Which chunks of a step are cheaper together; the others are computed alone.

    Chunks that need the longest rows come first, those with the most tokens before them before the
    others, and shorter ones fill the rows that are left.

    Args:
        buckets: There are programs of.
        chunks: By any index.
    """
    longest_row = buckets.groups[-1].num_queries if buckets.groups else 0
    shapes = {
        i: next(bucket for bucket in buckets.groups if bucket.num_queries >= one.num_tokens)
        for i, one in chunks.items()
        if one.num_tokens <= longest_row
    }
    left = sorted(shapes, key=lambda i: (-shapes[i].num_queries, -chunks[i].num_stored))
    groups = []
    while left:
        bucket = shapes[left[0]]
        together = left[: bucket.num_prompts]
        members = [chunks[i] for i in together]
        if _cost(buckets, bucket, members) < sum(_cost_alone(buckets, one) for one in members):
            groups.append((bucket, together))
        else:
            together = together[:1]
        left = left[len(together) :]
    return groups


def _cost_alone(buckets: Buckets, chunk: Chunk) -> float:
    return _cost(buckets, buckets.for_prefill(chunk.num_tokens)[0], [chunk])


def _cost(buckets: Buckets, bucket: Bucket, chunks: Sequence[Chunk]) -> float:
    """The predicted cost of a call, in tokens with none before them."""
    if buckets.skips_padding:
        tokens = sum(one.num_tokens * _with_context(one.num_stored) for one in chunks)
    else:
        longest = max(one.num_stored for one in chunks)
        tokens = bucket.num_token_rows * bucket.num_queries * _with_context(longest)
    return CALL_TOKENS + tokens


def _with_context(num_stored: int) -> float:
    """What a token costs beside one with none before it."""
    return 1 + num_stored / CONTEXT_TOKENS

"""Rows with draft tokens as rows of one token each, and which of their draws count.

Any decode program computes them: a draft token stands in a row of its own, one position after the
row before it, with the same block table. Rows write their keys and values before any is read, so a
draft token sees all before it, as it would one step after the other.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from msgspec import structs

from engine_worker.core.choice.batch import RowWork, StepResult


def split_drafts(
    rows: Sequence[RowWork], max_rows: int, max_draft_tokens: int
) -> tuple[RowWork, ...]:
    """A row for each token and each draft token, in order.

    Args:
        rows: Of a step.
        max_rows: The most that a step with drafts may have.
        max_draft_tokens: The longest draft of a row.

    Raises:
        ValueError: A row may not draft, or there are too many.
    """
    if not any(row.draft_token_ids for row in rows):
        return tuple(rows)
    longest = max(len(row.draft_token_ids) for row in rows)
    if longest > max_draft_tokens:
        raise ValueError(f"a row drafts at most {max_draft_tokens} tokens, not {longest}")
    pieces = tuple(chain.from_iterable(map(_pieces, rows)))
    if len(pieces) > max_rows:
        raise ValueError(f"a step with drafts has at most {max_rows} rows, not {len(pieces)}")
    return pieces


def join_drafts(rows: Sequence[RowWork], result: StepResult) -> StepResult:
    """What the rows sampled, from the result of their pieces: draws up to a wrong draft token."""
    if not any(row.draft_token_ids for row in rows):
        return result
    sizes = [1 + len(row.draft_token_ids) for row in rows]
    firsts = np.cumsum([0, *sizes[:-1]])
    index_of = {int(first): index for index, first in enumerate(firsts)}
    more: dict[int, Sequence[int]] = {}
    for index, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        draws = result.token_ids[first : first + sizes[index]].tolist()
        num_right = 0
        for drafted, draw, following in zip(row.draft_token_ids, draws, draws[1:], strict=False):
            if drafted != draw or following < 0:
                break
            num_right += 1
        if num_right:
            more[index] = draws[1 : 1 + num_right]
    return StepResult(
        token_ids=result.token_ids[firsts],
        has_nan=result.has_nan[firsts],
        # Only rows without drafts have these, each in one piece.
        nothing_allowed=frozenset(index_of[piece] for piece in result.nothing_allowed),
        logprobs={index_of[piece]: scores for piece, scores in result.logprobs.items()},
        prompt_logprobs={index_of[piece]: each for piece, each in result.prompt_logprobs.items()},
        more_token_ids=more,
        expert_bytes=result.expert_bytes,
    )


def _pieces(row: RowWork) -> list[RowWork]:
    if not row.draft_token_ids:
        return [row]
    if (
        not row.sample
        or len(row.token_ids) > 1
        or row.max_new_tokens > 1
        or row.needs_full_sampler
        or row.sampling.uses_penalties
    ):
        raise ValueError("only decodes whose draws depend on nothing but logits draft tokens")
    return [
        structs.replace(row, token_ids=(token_id,), start=row.start + offset, draft_token_ids=())
        for offset, token_id in enumerate((*row.token_ids, *row.draft_token_ids))
    ]

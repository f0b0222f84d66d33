"""Turns rows of the schedule into work for the model runner."""

from engine_worker.core.choice.batch import RowWork
from engine_worker.core.choice.choice import Choice
from engine_worker.core.decoding.token_logprobs import prompt_tokens_to_score
from engine_worker.core.scheduling.scheduler import ScheduledRow


def row_work(row: ScheduledRow) -> RowWork:
    """What a row of the schedule asks of the runner."""
    if row.is_plain:
        return plain_work(row.choice)
    choice, start = row.choice, row.choice.num_computed_tokens
    assert choice.slot is not None
    samples = row.samples
    return RowWork(
        slot=choice.slot,
        token_ids=choice.token_ids(start, start + row.num_tokens),
        start=start,
        block_ids=choice.block_ids,
        sample=samples,
        sampling=choice.sampling,
        allowed_mask=choice.allowed_mask() if samples else None,
        pending_mask=choice.pending_mask if samples else None,
        scored_token_ids=prompt_tokens_to_score(choice, row.num_tokens),
        window_block_ids=choice.window_block_ids,
    )


def plain_work(choice: Choice, max_new_tokens: int = 1) -> RowWork:
    """What a plain decode asks of the runner; its blocks must hold all new tokens but the last."""
    assert choice.slot is not None
    return RowWork(
        choice.slot,
        (choice.output_token_ids[-1],),
        choice.num_computed_tokens,
        choice.block_ids,
        True,
        choice.sampling,
        max_new_tokens=max_new_tokens,
        stop_token_ids=choice.ending_token_ids,
        window_block_ids=choice.window_block_ids,
        is_plain=True,
    )

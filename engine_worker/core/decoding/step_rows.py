"""Turns rows of the schedule into work for the model runner."""

from engine_worker.core.choice.batch import RowWork
from engine_worker.core.decoding.token_logprobs import prompt_tokens_to_score
from engine_worker.core.scheduling.scheduler import ScheduledRow


def row_work(row: ScheduledRow) -> RowWork:
    """What a row of the schedule asks of the runner."""
    request = row.request
    assert request.slot is not None
    start = request.num_computed_tokens
    return RowWork(
        slot=request.slot,
        token_ids=request.token_ids(start, start + row.num_tokens),
        start=start,
        block_ids=request.block_ids,
        sample=row.samples,
        sampling=request.sampling,
        allowed_mask=request.allowed_mask() if row.samples else None,
        pending_mask=request.pending_mask if row.samples else None,
        scored_token_ids=prompt_tokens_to_score(request, row.num_tokens),
    )

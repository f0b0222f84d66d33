"""Drives a model runner with requests, as the scheduler would, but by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine_worker.core.choice.batch import ModelRunner, RowSampling, RowWork, StepBatch

GREEDY = RowSampling()


@dataclass
class RunnerRequest:
    """One request with its own slot and blocks, the same ones in each cache group."""

    slot: int
    prompt: Sequence[int]
    block_ids: Sequence[int]
    sampling: RowSampling = GREEDY
    output: list[int] = field(default_factory=list)
    num_computed: int = 0

    @property
    def token_ids(self) -> list[int]:
        return [*self.prompt, *self.output]

    def next_work(self, max_tokens: int) -> RowWork:
        """The next chunk of what is not computed yet; its end is sampled when nothing is left."""
        start = self.num_computed
        token_ids = self.token_ids[start : start + max_tokens]
        end = start + len(token_ids)
        self.num_computed = end
        sample = end == len(self.token_ids)
        return RowWork(
            self.slot,
            token_ids,
            start,
            self.block_ids,
            sample,
            self.sampling,
            window_block_ids=self.block_ids,
        )


def begin(runner: ModelRunner, request: RunnerRequest) -> None:
    """Takes the slot; also after a preemption, when all is computed again."""
    request.num_computed = 0
    runner.assign_slot(request.slot, request.prompt, request.output)


def step(
    runner: ModelRunner, requests: Sequence[RunnerRequest], max_tokens: int | None = None
) -> None:
    """One step with a row for each request, chunks of at most `max_tokens`."""
    limit = min(max_tokens or runner.prefill_chunk_size, runner.prefill_chunk_size)
    batch = StepBatch(tuple(request.next_work(limit) for request in requests))
    result = runner.run(batch)
    assert not result.has_nan.any()
    for request, row, token_id in zip(requests, batch.rows, result.token_ids, strict=True):
        assert (token_id >= 0) == row.sample
        if row.sample:
            request.output.append(int(token_id))


def generate(
    runner: ModelRunner, request: RunnerRequest, num_tokens: int, max_tokens: int | None = None
) -> list[int]:
    """A request alone, from its beginning to `num_tokens` of output."""
    begin(runner, request)
    while len(request.output) < num_tokens:
        step(runner, [request], max_tokens)
    return request.output

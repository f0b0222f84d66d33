"""Prompts of a step in one program beside each in its own: CPU time and time to the last token.

    python -m benchmarks.prompts --backend cpu_native --dtype bfloat16
    python -m benchmarks.prompts --backend xla --dtype float32 --prompts 16x24 4x100

Fresh prompts, as many as 8x24 says, go through the runner in as many steps as the budget of a step
asks for, once by a runner that computes them together where it predicts that to be cheaper and once
by one that never does, in turn. The CPU time of the process, which other processes disturb less
than the time that passes, is given beside that; medians of both.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

from benchmarks.random_decoder import BACKENDS, WEIGHT_TYPES, random_decoder
from benchmarks.shapes import SHAPES
from benchmarks.steps import BLOCK_SIZE, row_blocks
from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.runner import buckets
from engine_worker.compute.runner.compile_cache import prepare_backend
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.batch import RowSampling, RowWork, StepBatch

_PROMPTS = ("1x24", "2x24", "3x24", "8x24", "16x24", "1x100", "3x100", "8x100", "1x500")
_MOST_ROWS = 16
_SAMPLINGS = {
    "greedy": RowSampling(),
    "top-p 0.9": RowSampling(temperature=0.8, top_p=0.9, seed=1),
}


def make_runner(decoder: PackedDecoder, longest: int, *, together: bool) -> JaxModelRunner:
    """A runner of sixteen rows."""
    usual = buckets.MOST_PROMPTS
    buckets.MOST_PROMPTS = usual if together else 1
    try:
        return JaxModelRunner.create(
            decoder,
            num_blocks=_MOST_ROWS * -(-(longest + 1) // BLOCK_SIZE),
            max_model_len=longest + 1,
            block_size=BLOCK_SIZE,
            max_num_seqs=_MOST_ROWS,
        )
    finally:
        buckets.MOST_PROMPTS = usual


def steps_of(
    runner: JaxModelRunner, num_prompts: int, num_tokens: int, sampling: RowSampling
) -> list[StepBatch]:
    """The steps of some prompts, as the scheduler fills them."""
    blocks = row_blocks(runner, _MOST_ROWS)
    done = [0] * num_prompts
    steps = []
    while min(done) < num_tokens:
        budget, rows = runner.max_num_batched_tokens, []
        for slot, start in enumerate(done):
            size = min(num_tokens - start, budget, runner.prefill_chunk_size)
            if size > 0:
                budget -= size
                done[slot] = start + size
                is_last = done[slot] == num_tokens
                rows.append(RowWork(slot, (1,) * size, start, blocks[slot], is_last, sampling))
        steps.append(StepBatch(tuple(rows)))
    return steps


def time_steps(runner: JaxModelRunner, steps: Sequence[StepBatch]) -> tuple[float, float]:
    """CPU time and passed time of some steps, in seconds."""
    cpu, passed = time.process_time(), time.perf_counter()
    for batch in steps:
        runner.run(batch)
    return time.process_time() - cpu, time.perf_counter() - passed


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="SmolLM2-135M")
    parser.add_argument("--dtype", choices=WEIGHT_TYPES, default="bfloat16")
    parser.add_argument("--backend", choices=BACKENDS, default="cpu_native")
    parser.add_argument("--prompts", nargs="*", default=_PROMPTS, metavar="8x24")
    parser.add_argument("--sampling", choices=tuple(_SAMPLINGS), default="greedy")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    prepare_backend(None)
    sizes = [tuple(map(int, each.split("x"))) for each in options.prompts]
    sampling = _SAMPLINGS[options.sampling]
    decoder = random_decoder(options.shape, options.dtype, options.backend)
    longest = max(num_tokens for _, num_tokens in sizes)
    runners = [make_runner(decoder, longest, together=together) for together in (True, False)]
    print(f"{options.shape}, {options.dtype}, {options.backend}\n")
    print("| prompts | CPU ms together | alone | ratio | ms together | alone | ratio |")
    print("|---|---|---|---|---|---|---|")
    for num_prompts, num_tokens in sizes:
        times: list[list[tuple[float, float]]] = [[], []]
        for turn in range(options.rounds + 1):
            for kind, runner in enumerate(runners):
                steps = steps_of(runner, num_prompts, num_tokens, sampling)
                taken = time_steps(runner, steps)
                if turn > 0:  # the first compiles
                    times[kind].append(taken)
        cells = []
        for together, alone in zip(*(zip(*each, strict=True) for each in times), strict=True):
            both = statistics.median(together) * 1e3, statistics.median(alone) * 1e3
            cells += [f"{both[0]:.1f}", f"{both[1]:.1f}", f"{both[0] / both[1]:.2f}"]
        print(f"| {num_prompts} of {num_tokens} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

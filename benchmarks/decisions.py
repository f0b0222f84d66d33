"""What questions over one beginning cost, beside the computing of that beginning.

`python -m benchmarks.decisions` asks the bundled model, in this process and without HTTP, and
prints a table for docs/performance.md. Each round computes the beginning again, then scores the
questions on its blocks, so both share the machine's load; the figures are medians of the rounds.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import engine_worker.demo
from engine_worker.compute.backends.choice import BackendName, backend_label, choose_backend
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.batch import RowSampling, RowWork, StepBatch
from engine_worker.core.choice.score_pack import ScoredTexts, packs_of
from engine_worker.loading.weights import load_for_backend

_BLOCK_SIZE = 32
_LABELS = ((10,), (11,))


def _prefill(runner: JaxModelRunner, prompt: Sequence[int], block_ids: Sequence[int]) -> None:
    """All chunks of a prompt, with one token sampled behind it."""
    size = runner.prefill_chunk_size
    for start in range(0, len(prompt), size):
        chunk = prompt[start : start + size]
        row = RowWork(
            slot=0,
            token_ids=chunk,
            start=start,
            block_ids=block_ids,
            sample=start + len(chunk) == len(prompt),
            sampling=RowSampling(),
        )
        runner.run(StepBatch((row,)))


def _questions(num_questions: int, num_tokens: int) -> list[ScoredTexts]:
    """Questions of random tokens."""
    generator = np.random.default_rng(7)
    return [
        ScoredTexts(
            tuple(generator.integers(3, 2000, num_tokens).tolist()), _LABELS, number * len(_LABELS)
        )
        for number in range(num_questions)
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--context", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--backend", default="auto", choices=[name.value for name in BackendName])
    arguments = parser.parse_args()
    folder = Path(engine_worker.demo.__file__).parent
    graph = declare(load_spec(folder), arguments.dtype)
    backend = choose_backend(
        BackendName(arguments.backend), graph, arguments.dtype, block_size=_BLOCK_SIZE
    ).backend
    decoder = load_for_backend(folder, backend, None, lambda _done, _text: None)
    runner = JaxModelRunner.create(
        decoder, num_blocks=400, max_model_len=2048, block_size=_BLOCK_SIZE
    )
    context: int = arguments.context
    prompt = np.random.default_rng(1).integers(3, 2000, context).tolist()
    num_blocks = -(-context // _BLOCK_SIZE)
    block_ids = list(range(num_blocks))
    runner.assign_slot(0, prompt, ())
    print(f"{backend_label(backend)} {arguments.dtype}")
    print("| tokens a question | calls | questions / beginning | all together |")
    print("|---|---|---|---|")
    for num_tokens in (6, 12, 16, 19, 24, 30, 48):
        packs = list(packs_of(_questions(arguments.questions, num_tokens), runner.score_limits))
        ratios = []
        for number in range(arguments.rounds + 1):
            started = time.perf_counter()
            _prefill(runner, prompt, block_ids)
            between = time.perf_counter()
            for pack in packs:
                needed = runner.num_scratch_blocks(context, num_tokens)
                scratch = [
                    list(range(first, first + needed))
                    for first in range(num_blocks, num_blocks + needed * len(pack.rows), needed)
                ]
                runner.score(pack, context, 0, [block_ids], [scratch])
            ended = time.perf_counter()
            if number:  # the first round compiles
                ratios.append((ended - between) / (between - started))
        ratio = statistics.median(ratios)
        cells = (num_tokens, len(packs), f"{ratio:.1f}", f"{1 + ratio:.1f} x")
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()

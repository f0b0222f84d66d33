"""Times calls and engine steps, and the memory bandwidth that bounds them."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.models.decoder import DecoderWeights
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.batch import RowWork, StepBatch

BLOCK_SIZE = 32
MIN_SAMPLE_S = 0.3
AnyDecoder = DecoderWeights | PackedDecoder
"""As plain XLA takes its weights, or as some backend packed them."""


def median_s(call: Callable[[], object], num_repeats: int) -> float:
    """Median of `times_s`."""
    return statistics.median(times_s(call, num_repeats))


def times_s(call: Callable[[], object], num_repeats: int) -> list[float]:
    """Times of calls after one that is not counted, for `MIN_SAMPLE_S` or more altogether."""
    call()
    times: list[float] = []
    while len(times) < num_repeats or sum(times) < MIN_SAMPLE_S:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times


def measure_bandwidth(size_bytes: int = 2**28) -> float:
    """Bytes per second at which all cores together read an array that no cache holds, at best."""
    array = jnp.ones(size_bytes // 4, jnp.float32)
    read = jax.jit(jnp.max)
    return size_bytes / min(times_s(lambda: read(array).block_until_ready(), 20))


def row_blocks(runner: JaxModelRunner, num_rows: int) -> list[list[int]]:
    """Blocks for rows of the longest kind, scattered over the cache as they are after a while."""
    blocks = np.random.default_rng(0).permutation(runner.num_blocks)
    return [[int(block) for block in part] for part in np.array_split(blocks, num_rows)]


def decode_bytes(runner: JaxModelRunner, weights: AnyDecoder, rows: int, context: int) -> int:
    """Bytes that a decode step can't avoid to read; embeddings of the tied head count once."""
    layout = runner.kv_layout
    token_bytes = sum(layout.block_bytes) // layout.block_size
    weight_bytes = sum(leaf.nbytes for leaf in weights.leaves)
    return weight_bytes + rows * context * token_bytes


def time_decode(
    runner: JaxModelRunner, weights: AnyDecoder, rows: Sequence[RowWork], num_repeats: int
) -> tuple[float, float]:
    """Median seconds of a step through the runner, and of its bare program."""
    batch = StepBatch(tuple(rows))
    runner_s = median_s(lambda: runner.run(batch), num_repeats)
    fitting = [b for b in runner.programs if not b.is_prefill and b.num_rows >= len(rows)]
    bucket = min(fitting, key=lambda b: b.num_rows)
    program, packed = runner.programs[bucket], runner.packed_layouts[bucket].pack(rows)
    state = runner.state

    def call() -> None:
        nonlocal state
        output, state = program(weights.leaves, state, packed)
        np.asarray(output.tokens)

    program_s = median_s(call, num_repeats)
    # The runner's own arrays were donated to the first call.
    runner.reset()
    return runner_s, program_s


def progress(text: str) -> None:
    """One line to stderr, so that stdout stays a table."""
    print(text, file=sys.stderr, flush=True)

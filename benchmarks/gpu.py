"""Everything worth knowing about the engine on one accelerator, in one run of a few minutes.

    python -m benchmarks.gpu            # an accelerator: shapes of 0.5 and 8 billion parameters
    python -m benchmarks.gpu --tiny     # any machine: that the run itself works

Random weights are made on the device. What is printed, in this order: whether the device computes
what the CPU computes, the copy bandwidth that it reaches, decode steps against the time in which
that bandwidth reads weights and cache once, tokens per second of the whole engine by concurrency,
and transformers' `generate` on the same device where torch sees it.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import SHAPES
from benchmarks.steps import BLOCK_SIZE, decode_bytes, progress, row_blocks, time_decode, times_s
from benchmarks.whole_engine import WholeEngine, served_dtype
from engine_worker.compute.models.decoder import DecoderWeights, declare, random_weights
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.reference import ReferenceCache, reference_step
from engine_worker.compute.runner.compile_cache import prepare_backend
from engine_worker.core.choice.batch import RowSampling, RowWork

PARITY_SHAPE = "penstock-demo"
NUM_PARITY_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        shapes: Of `benchmarks.shapes.SHAPES`.
        concurrencies: Requests at once.
        num_tokens: Of each prompt, and of each output.
        copy_bytes: Of the array that is copied to measure the bandwidth.
        num_repeats: Of each timing.
    """

    shapes: Sequence[str]
    concurrencies: Sequence[int]
    num_tokens: int
    copy_bytes: int
    num_repeats: int


FULL = Plan(("Qwen2.5-0.5B", "Llama-3.1-8B"), (1, 8, 32, 128), 128, 2**31, 10)
TINY = Plan(("tiny",), (1, 2), 8, 2**20, 2)


@dataclass(frozen=True, slots=True)
class Point:
    """One shape at one concurrency."""

    shape: str
    concurrency: int
    step_s: float
    share_of_bound: float
    engine_tokens_per_s: float
    transformers_tokens_per_s: float | None


def measure_copy_bandwidth(size_bytes: int) -> float:
    """Bytes per second read and written by a copy of a large array, at best."""
    array = jnp.ones(size_bytes // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2 * size_bytes / min(times_s(lambda: copy(array).block_until_ready(), 10))


def parity_error() -> float:
    """The largest float32 difference of logits of this device and the CPU, over their spread."""
    graph = declare(decoder_spec(SHAPES[PARITY_SHAPE]), np.float32)
    generator = np.random.default_rng(0)
    token_ids = generator.integers(0, graph.spec.vocab_size, NUM_PARITY_TOKENS, np.int32)
    positions = np.arange(NUM_PARITY_TOKENS, dtype=np.int32)
    found = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(device):
            weights = random_weights(graph, seed=0)
            cache = ReferenceCache.empty(graph.spec, NUM_PARITY_TOKENS).layers
            step = jax.jit(reference_step, static_argnums=0)
            logits, _ = step(graph, weights.leaves, cache, token_ids, positions)
            found.append(np.asarray(logits))
    return float(np.abs(found[0] - found[1]).max() / found[1].std())


def device_weights(shape: str) -> DecoderWeights:
    """Random weights that never pass through the host."""
    graph = declare(decoder_spec(SHAPES[shape]), served_dtype(shape))
    keys = iter(jax.random.split(jax.random.key(0), len(graph.parameters)))
    leaves = []
    for parameter in graph.parameters:
        key = next(keys)
        if "norm" in parameter.path:
            leaves.append(jnp.ones(parameter.shape, parameter.dtype))
        else:
            leaves.append(jax.random.normal(key, parameter.shape, parameter.dtype) * 0.02)
    return DecoderWeights(graph, tuple(leaves))


def transformers_decode_rate(shape: str, concurrency: int, num_tokens: int) -> float | None:
    """Decode tokens per second of `generate` on torch's accelerator; None where there is none."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    from benchmarks.peers.transformers_generate import TransformersSide

    side = TransformersSide(shape, "bfloat16", device="cuda")
    side.generate(concurrency, 2, num_tokens)
    first_s = side.generate(concurrency, 1, num_tokens)
    whole_s = side.generate(concurrency, num_tokens, num_tokens)
    return concurrency * (num_tokens - 1) / (whole_s - first_s)


def measure_shape(shape: str, plan: Plan, bandwidth: float) -> Iterator[Point]:
    """Steps and whole runs of one shape."""
    progress(f"{shape}: making weights and compiling")
    weights = device_weights(shape)
    whole = WholeEngine(weights, max(plan.concurrencies), plan.num_tokens, plan.num_tokens)
    context = plan.num_tokens + plan.num_tokens // 2
    num_row_blocks = -(-(2 * plan.num_tokens + 1) // BLOCK_SIZE)
    for concurrency in plan.concurrencies:
        progress(f"{shape}: {concurrency} requests")
        blocks = row_blocks(whole.runner, concurrency)
        rows = [
            RowWork(slot, (1,), context - 1, blocks[slot][:num_row_blocks], True, RowSampling())
            for slot in range(concurrency)
        ]
        step_s, _ = time_decode(whole.runner, weights, rows, plan.num_repeats)
        bound_s = decode_bytes(whole.runner, weights, concurrency, context) / bandwidth
        rates = [whole.decode_rate(concurrency, is_streaming=False) for _ in range(3)]
        yield Point(
            shape=shape,
            concurrency=concurrency,
            step_s=step_s,
            share_of_bound=bound_s / step_s,
            engine_tokens_per_s=statistics.median(rates),
            transformers_tokens_per_s=transformers_decode_rate(shape, concurrency, plan.num_tokens),
        )


def print_points(points: Sequence[Point]) -> None:
    """The table, in Markdown."""
    print("| shape | requests | step ms | of bound | engine tokens/s | transformers tokens/s |")
    print("|---|---|---|---|---|---|")
    for p in points:
        peer = p.transformers_tokens_per_s
        print(
            f"| {p.shape} | {p.concurrency} | {p.step_s * 1e3:.2f} | {p.share_of_bound:.0%} "
            f"| {p.engine_tokens_per_s:.0f} | {'-' if peer is None else f'{peer:.0f}'} |"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description="The engine on one accelerator.")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, on any machine")
    options = parser.parse_args(arguments)
    plan: Plan = TINY if options.tiny else FULL
    prepare_backend(None)
    started = time.monotonic()
    device: Any = jax.devices()[0]
    if device.platform == "cpu" and not options.tiny:
        parser.error("there is no accelerator here; --tiny tries the run itself")
    print(f"device: {device.device_kind}, jax {jax.__version__}")
    print(f"logits differ from the CPU's by {parity_error():.1e} of their spread at most (float32)")
    bandwidth = measure_copy_bandwidth(plan.copy_bytes)
    print(f"copy: {bandwidth / 1e9:.0f} GB/s\n")
    points = [point for shape in plan.shapes for point in measure_shape(shape, plan, bandwidth)]
    print_points(points)
    print(f"\n{time.monotonic() - started:.0f} s altogether")


if __name__ == "__main__":
    main()

"""Times engine steps on this machine against the memory-bandwidth bound that it measures itself.

    python -m benchmarks.engine            # both shapes, both types: some minutes
    python -m benchmarks.engine --quick    # the demo model's shape and a few points
    python -m benchmarks.engine --backend cpu_native --dtype int8

A decode step must read every weight and every stored key and value of its rows once, so
`bytes / bandwidth` bounds it from below. The share of the bound that a step reaches is printed with
its time, once through the runner (packing and read-back included) and once for the bare program.
Prefill is timed in tokens per second. Weights are random; a table goes to stdout, JSON to `--json`.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.host_share import HostShare, measure_host_share, print_host_shares
from benchmarks.random_decoder import BACKENDS, WEIGHT_TYPES, random_decoder
from benchmarks.shapes import SHAPES
from benchmarks.steps import (
    BLOCK_SIZE,
    decode_bytes,
    measure_bandwidth,
    median_s,
    progress,
    row_blocks,
    time_decode,
)
from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.backends.kv_layout import BlockShapes
from engine_worker.compute.backends.xla.pages import store_tokens, xla_kv_layout
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.runner.compile_cache import prepare_backend
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.batch import RowSampling, RowWork, StepBatch

KV_SIZES = (4_096, 65_536)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SAMPLINGS = {
    "greedy": RowSampling(),
    "top-p 0.9": RowSampling(temperature=0.8, top_p=0.9, seed=1),
}


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """One decode point; times are medians in seconds."""

    shape: str
    dtype: str
    sampling: str
    num_rows: int
    context: int
    runner_s: float
    program_s: float
    tokens_per_s: float
    bound_s: float
    share_of_bound: float


@dataclass(frozen=True, slots=True)
class PrefillResult:
    """One prefill point: a fresh prompt of `num_tokens`, to its first token."""

    shape: str
    dtype: str
    num_tokens: int
    first_token_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class KvWriteResult:
    """Storing eight tokens in one layer of a cache of some size."""

    dtype: str
    num_cached_tokens: int
    write_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What is timed."""

    shapes: Sequence[str]
    dtypes: Sequence[str]
    samplings: Sequence[str]
    batches: Sequence[int]
    contexts: Sequence[int]
    prompts: Sequence[int]
    num_repeats: int
    backend: str = "xla"

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(*self.contexts, *self.prompts) + 1


QUICK = Plan(
    shapes=("penstock-demo",),
    dtypes=("bfloat16",),
    samplings=("greedy",),
    batches=(1, 8),
    contexts=(128,),
    prompts=(128,),
    num_repeats=10,
)
FULL = Plan(
    shapes=("penstock-demo", "SmolLM2-135M"),
    dtypes=tuple(DTYPES),
    samplings=tuple(SAMPLINGS),
    batches=(1, 2, 8, 32),
    contexts=(128, 1024),
    prompts=(32, 512),
    num_repeats=15,
)


def time_kv_write(dtype: str, num_cached_tokens: int) -> float:
    """Seconds to store eight tokens in one layer of a donated cache of a given size.

    It must not depend on the size: compilers have turned it into a rewrite of the whole cache.
    """
    spec = decoder_spec(SHAPES["SmolLM2-135M"])
    num_blocks = num_cached_tokens // BLOCK_SIZE
    layout = xla_kv_layout(spec, DTYPES[dtype], num_blocks=num_blocks, block_size=BLOCK_SIZE)
    pages = layout.allocate()[0]
    shapes = layout.layers[0]
    assert isinstance(shapes, BlockShapes)
    tokens = jnp.ones((8, *shapes.keys[:2]), jnp.float32)
    block_ids = jnp.arange(8, dtype=jnp.int32)
    write = jax.jit(store_tokens, donate_argnums=0)

    def call() -> None:
        nonlocal pages
        pages = write(pages, tokens, tokens, block_ids, block_ids)
        pages.keys.block_until_ready()

    return median_s(call, 30)


def make_runner(weights: PackedDecoder, plan: Plan) -> JaxModelRunner:
    """A runner whose cache holds every row of the plan."""
    num_blocks_per_row = -(-plan.longest // BLOCK_SIZE)
    return JaxModelRunner.create(
        weights,
        num_blocks=max(plan.batches) * num_blocks_per_row,
        max_model_len=plan.longest,
        block_size=BLOCK_SIZE,
        max_num_seqs=max(plan.batches),
    )


def decode_points(
    name: str, dtype: str, weights: PackedDecoder, plan: Plan, bandwidth: float
) -> Iterator[DecodeResult]:
    """Every decode point of one model."""
    runner = make_runner(weights, plan)
    blocks = row_blocks(runner, max(plan.batches))
    for num_rows in plan.batches:
        for context in plan.contexts:
            for sampling in plan.samplings:
                rows = [
                    RowWork(slot, (1,), context - 1, blocks[slot], True, SAMPLINGS[sampling])
                    for slot in range(num_rows)
                ]
                progress(f"{name} {dtype} {sampling}: {num_rows} rows, context {context}")
                runner_s, program_s = time_decode(runner, weights, rows, plan.num_repeats)
                bound_s = decode_bytes(runner, weights, num_rows, context) / bandwidth
                yield DecodeResult(
                    shape=name,
                    dtype=dtype,
                    sampling=sampling,
                    num_rows=num_rows,
                    context=context,
                    runner_s=runner_s,
                    program_s=program_s,
                    tokens_per_s=num_rows / runner_s,
                    bound_s=bound_s,
                    share_of_bound=bound_s / runner_s,
                )


def prefill_points(
    name: str, dtype: str, weights: PackedDecoder, plan: Plan
) -> Iterator[PrefillResult]:
    """Every prefill point of one model."""
    runner = make_runner(weights, plan)
    (blocks, *_) = row_blocks(runner, max(plan.batches))
    for num_tokens in plan.prompts:
        progress(f"{name} {dtype}: prompt of {num_tokens}")
        row = RowWork(0, (1,) * num_tokens, 0, blocks, True, RowSampling())
        batch = StepBatch((row,))
        first_token_s = median_s(partial(runner.run, batch), plan.num_repeats)
        yield PrefillResult(name, dtype, num_tokens, first_token_s, num_tokens / first_token_s)


def print_tables(
    bandwidth: float, decodes: Sequence[DecodeResult], prefills: Sequence[PrefillResult]
) -> None:
    """The results for people, in Markdown."""
    print(f"memory read: {bandwidth / 1e9:.1f} GB/s\n")
    print("| shape | type | sampling | rows | context | step ms | bare ms | tokens/s | of bound |")
    print("|---|---|---|---|---|---|---|---|---|")
    for r in decodes:
        print(
            f"| {r.shape} | {r.dtype} | {r.sampling} | {r.num_rows} | {r.context} "
            f"| {r.runner_s * 1e3:.2f} | {r.program_s * 1e3:.2f} | {r.tokens_per_s:.0f} "
            f"| {r.share_of_bound:.0%} |"
        )
    print("\n| shape | type | prompt | first token ms | tokens/s |\n|---|---|---|---|---|")
    for p in prefills:
        print(
            f"| {p.shape} | {p.dtype} | {p.num_tokens} | {p.first_token_s * 1e3:.1f} "
            f"| {p.tokens_per_s:.0f} |"
        )


def run(plan: Plan) -> dict[str, Any]:
    """Times everything in a plan and prints it.

    Returns:
        What `--json` writes.
    """
    progress("measuring memory bandwidth")
    bandwidth = measure_bandwidth()
    decodes: list[DecodeResult] = []
    prefills: list[PrefillResult] = []
    for name in plan.shapes:
        for dtype in plan.dtypes:
            progress(f"{name} {dtype}: making weights")
            weights = random_decoder(name, dtype, plan.backend)
            decodes.extend(decode_points(name, dtype, weights, plan, bandwidth))
            prefills.extend(prefill_points(name, dtype, weights, plan))
    print_tables(bandwidth, decodes, prefills)
    kv_writes = [
        KvWriteResult(dtype, size, time_kv_write(dtype, size))
        for dtype in plan.dtypes
        for size in KV_SIZES
        if dtype in DTYPES
    ]
    print("\n| type | cached tokens | KV write us |\n|---|---|---|")
    for result in kv_writes:
        print(f"| {result.dtype} | {result.num_cached_tokens} | {result.write_s * 1e6:.0f} |")
    shares: list[HostShare] = []
    for name in plan.shapes:
        progress(f"{name}: host share")
        shares.append(measure_host_share(name, max(plan.batches)))
    print_host_shares(shares)
    return {
        "jax": jax.__version__,
        "machine": platform.machine(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "bandwidth_bytes_per_s": bandwidth,
        "decode": [asdict(result) for result in decodes],
        "prefill": [asdict(result) for result in prefills],
        "host_share": [asdict(share) for share in shares],
        "kv_write": [asdict(result) for result in kv_writes],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description="Times engine steps against the memory bound.")
    parser.add_argument("--quick", action="store_true", help="a few points of the demo model")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="only this model")
    parser.add_argument("--dtype", choices=WEIGHT_TYPES, help="only this type")
    parser.add_argument("--backend", choices=BACKENDS, default="xla")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args(arguments)
    # Before any array is made, as in the engine's own process.
    prepare_backend(None)
    plan = replace(QUICK if options.quick else FULL, backend=options.backend)
    if options.shape:
        plan = replace(plan, shapes=(options.shape,))
    if options.dtype:
        plan = replace(plan, dtypes=(options.dtype,))
    results = run(plan)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

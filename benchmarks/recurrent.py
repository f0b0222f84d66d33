"""Times prompts of recurrent layers in chunks beside token by token, and decode beside its bound.

    python -m benchmarks.recurrent             # some minutes
    python -m benchmarks.recurrent --rounds 3 --prompts 512 --shape mamba-2
    python -m benchmarks.recurrent --no-prefill

Two runners share the weights: the programs of one compute recurrent layers as they are defined, one
token after the other. Rounds take turns; a table has the medians of time, and of CPU time, which
says more where other processes share the cores. Weights are random; three recurrent layers and one
of attention are enough, since all groups of layers cost the same.

A decode step reads all weights but the table of embeddings, and each row's states and keys, and
writes the states: `bytes / bandwidth` bounds it, and the bounds of its parts add up to that. It is
timed as it is served: what the native kernels cover runs on them, the rest on XLA.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import LLAMA
from benchmarks.steps import measure_bandwidth, progress, row_blocks
from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.backends.choice import BackendName, choose_backend, describe
from engine_worker.compute.backends.kv_layout import BlockShapes
from engine_worker.compute.memory.host_memory import DeviceArrays
from engine_worker.compute.models.decoder import DecoderWeights, declare, random_weights
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.recurrent.scan import Recurrence, each_token
from engine_worker.compute.models.recurrent.state import Inputs
from engine_worker.compute.runner.compile_cache import prepare_backend
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.batch import RowSampling, RowWork, StepBatch

LAYERS = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "vocab_size": 8192,
}
HYBRIDS = {
    "delta-net": LLAMA
    | LAYERS
    | {
        "architectures": ["Qwen3_5ForCausalLM"],
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 16,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
    },
    "mamba-2": LLAMA
    | LAYERS
    | {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "shared_intermediate_size": 2048,
        "num_local_experts": 0,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "mamba_n_heads": 32,
        "mamba_d_head": 64,
        "mamba_n_groups": 1,
        "mamba_d_state": 128,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
    },
}
BLOCK_SIZE = 256
"""What the engine chooses for states of this size."""
CONTEXT = 256
BATCHES = (1, 8)


def token_by_token() -> AbstractContextManager[object]:
    """Programs that are compiled within have no chunks."""

    def compute(
        self: Recurrence, memory: jax.Array, inputs: Inputs, is_token: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return each_token(self.one_token, memory, inputs, is_token)

    return mock.patch.object(Recurrence, "__call__", compute)


def as_served(weights: DecoderWeights) -> PackedDecoder:
    """Weights packed for the backend that `auto` takes."""
    choice = choose_backend(BackendName.AUTO, weights.graph, "bfloat16", block_size=BLOCK_SIZE)
    backend = choice.backend
    values = [np.asarray(leaf) for leaf in weights.leaves]
    leaves: list[jax.Array] = []
    arrays = DeviceArrays(backend.packing.parts)
    for weight in backend.packing.weights:
        leaves += map(arrays.put, weight.pack([values[index] for index in weight.sources]))
    return PackedDecoder(backend, tuple(leaves))


def make_runner(weights: DecoderWeights | PackedDecoder, prompts: Sequence[int]) -> JaxModelRunner:
    """A runner with room for a prompt, and for some short rows."""
    longest = max((*prompts, CONTEXT)) + 1
    return JaxModelRunner.create(
        weights,
        num_blocks=max(BATCHES) * -(-longest // BLOCK_SIZE),
        max_model_len=longest,
        block_size=BLOCK_SIZE,
        max_num_seqs=max(BATCHES),
    )


def prefill_s(runner: JaxModelRunner, num_tokens: int) -> tuple[float, float]:
    """Seconds of a prompt, in steps as the engine computes it, and of the process's CPU."""
    blocks = row_blocks(runner, max(BATCHES))[0]
    started, cpu_started = time.perf_counter(), time.process_time()
    most = runner.prefill_chunk_size
    for first in range(0, num_tokens, most):
        token_ids = tuple(range(first, min(first + most, num_tokens)))
        is_last = first + most >= num_tokens
        row = RowWork(0, token_ids, first, blocks, is_last, RowSampling())
        runner.run(StepBatch((row,)))
    return time.perf_counter() - started, time.process_time() - cpu_started


def compare_prefill(
    weights: DecoderWeights, name: str, prompts: Sequence[int], rounds: int
) -> None:
    """One line for each prompt."""
    runners = {}
    for form, context in (("tokens", token_by_token()), ("chunks", nullcontext())):
        progress(f"{name}: compiling {form}")
        with context:
            runners[form] = make_runner(weights, prompts)
            for num_tokens in prompts:
                prefill_s(runners[form], num_tokens)
    for num_tokens in prompts:
        times: dict[str, list[tuple[float, float]]] = {form: [] for form in runners}
        for _ in range(rounds):
            for form, runner in runners.items():
                times[form].append(prefill_s(runner, num_tokens))
        cells = [name, str(num_tokens)]
        for clock in range(2):
            tokens, chunks = (
                statistics.median(each[clock] for each in times[form]) * 1e3
                for form in ("tokens", "chunks")
            )
            cells += [f"{tokens:.0f}", f"{chunks:.0f}", f"{tokens / chunks:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def bound_bytes(runner: JaxModelRunner, weights: DecoderWeights, num_rows: int) -> int:
    """Bytes that a decode step can't avoid to read and write."""
    layout = runner.kv_layout
    row_bytes = 0
    for layer in layout.layers:
        if isinstance(layer, BlockShapes):
            row_bytes += layer.size_bytes * CONTEXT // layout.block_size
        elif layer is not None:
            row_bytes += 2 * layer.size_bytes
    return weights.graph.size_bytes + num_rows * row_bytes


def step_times_s(run: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Medians of a step's time and of the process's CPU time, after one that compiles."""
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        started, cpu_started = time.perf_counter(), time.process_time()
        run()
        times.append((time.perf_counter() - started, time.process_time() - cpu_started))
    step_s, cpu_s = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return step_s, cpu_s


def time_decodes(weights: DecoderWeights, name: str, rounds: int, bandwidth: float) -> None:
    """One line for each number of rows."""
    decoder = as_served(weights)
    progress(f"{name}: {describe(decoder.backend)}")
    runner = make_runner(decoder, ())
    blocks = row_blocks(runner, max(BATCHES))
    for num_rows in BATCHES:
        progress(f"{name}: decode, {num_rows} rows")
        rows = [
            RowWork(slot, (1,), CONTEXT - 1, blocks[slot], True, RowSampling())
            for slot in range(num_rows)
        ]
        batch = StepBatch(tuple(rows))
        step_s, cpu_s = step_times_s(partial(runner.run, batch), rounds)
        bound_s = bound_bytes(runner, weights, num_rows) / bandwidth
        print(
            f"| {name} | {num_rows} | {step_s * 1e3:.2f} | {bound_s * 1e3:.2f} "
            f"| {step_s / bound_s:.2f} | {cpu_s * 1e3:.2f} |",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=tuple(HYBRIDS), help="only this one")
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-decode", action="store_true", help="only prompts")
    parser.add_argument("--no-prefill", action="store_true", help="only decode")
    options = parser.parse_args(arguments)
    prepare_backend(None)
    models = {
        name: random_weights(declare(decoder_spec(HYBRIDS[name]), jnp.bfloat16), seed=0)
        for name in ([options.shape] if options.shape else HYBRIDS)
    }
    if not options.no_prefill:
        print("| layers | prompt | by token, ms | chunks, ms | ratio | CPU | chunks | ratio |")
        print("|---|---|---|---|---|---|---|---|")
        for name, weights in models.items():
            compare_prefill(weights, name, options.prompts, options.rounds)
    if options.no_decode:
        return
    bandwidth = measure_bandwidth()
    print(f"\nmemory read: {bandwidth / 1e9:.1f} GB/s\n")
    print("| layers | rows | decode step, ms | bound, ms | ratio | CPU, ms |")
    print("|---|---|---|---|---|---|")
    for name, weights in models.items():
        time_decodes(weights, name, 8 * options.rounds, bandwidth)


if __name__ == "__main__":
    main()

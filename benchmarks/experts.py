"""Times steps of a decoder with experts, on native kernels and on XLA, beside a dense one.

    python -m benchmarks.experts                     # bfloat16, 1, 2, 8 and 32 rows, 25 rounds
    python -m benchmarks.experts --dtype int8 --rows 1 --rounds 40
    python -m benchmarks.experts --stored Q4_0 Q8_0  # all matrices as such files keep them

The dense decoder's MLP is as wide as a token's experts together, so one row reads as many bytes of
either; more rows choose more experts. Attention, embedding and head are native in all three. The
three take turns in every round, so that what else the machine does meets all of them. Weights are
random. Ratios are of medians, by the dense step. With `--stored` the dense decoder is in bfloat16,
and each format is there twice: with its experts dequantised to bfloat16, and as it is.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, Final
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.stored_formats import FORMATS, random_blocks
from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.backends.cpu_native import coverage
from engine_worker.compute.backends.cpu_native.backend import CpuNativeBackend
from engine_worker.compute.backends.cpu_native.library import load
from engine_worker.compute.memory.host_memory import DeviceArrays
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.integer_blocks import BlockFormat
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    RopeSpec,
)
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.batch import RowSampling, RowWork, StepBatch, StepResult

NUM_LAYERS, HIDDEN, INNER, NUM_EXPERTS, NUM_CHOSEN = 6, 1024, 704, 16, 4
BLOCK_SIZE, CONTEXT = 32, 64


def spec_of(mlp: MlpSpec | MoeSpec) -> DecoderSpec:
    """The decoder round an MLP or experts."""
    attention = AttentionSpec(16, 4, 64, 0.125, RopeSpec())
    layers = (LayerSpec(attention, mlp),) * NUM_LAYERS
    return DecoderSpec("Any", 4096, HIDDEN, layers, 2048, norm_eps=1e-6, tied_head=True)


def packed(
    spec: DecoderSpec,
    weight_type: str,
    form: BlockFormat | None = None,
    *,
    keeps_experts: bool = True,
) -> PackedDecoder:
    """A decoder with random weights; those of all layers are alike, but each has its own copy.

    Args:
        spec: The decoder.
        weight_type: Of its matrices.
        form: How a checkpoint keeps them, where they stay so.
        keeps_experts: Those of experts do, too.
    """
    dtype = weight_type if weight_type == "bfloat16" else "float32"
    graph = declare(spec, jnp.dtype(dtype))
    stored = {
        one.path: form
        for one in graph.parameters
        if form is not None and len(one.shape) in ((2, 3) if keeps_experts else (2,))
    }
    backend = CpuNativeBackend(graph, weight_type, BLOCK_SIZE, stored)
    random, by_shape = np.random.default_rng(0), dict[tuple[int, ...], Any]()
    for parameter in graph.parameters:
        if parameter.shape not in by_shape:
            values = random.standard_normal(parameter.shape, np.float32) * np.float32(0.02)
            by_shape[parameter.shape] = values.astype(parameter.dtype)
    leaves: list[jax.Array] = []
    arrays = DeviceArrays(backend.packing.parts)
    for weight in backend.packing.weights:
        if weight.stored is not None:
            (index,) = weight.sources
            *many, outputs, inputs = graph.parameters[index].shape
            matrix = random_blocks(weight.stored, outputs, inputs)
            leaves += map(arrays.put, weight.pack([[matrix] * (many or [1])[0]]))
            continue
        sources = [by_shape[graph.parameters[index].shape] for index in weight.sources]
        leaves += map(arrays.put, weight.pack(sources))
    return PackedDecoder(backend, tuple(leaves))


def without_experts(*arguments: Any) -> str | None:
    """`coverage.uncovered` as it would be without a kernel of experts."""
    layer, block = arguments[1:3]
    if block == "mlp" and isinstance(layer.mlp, MoeSpec):
        return "measured on XLA"
    return _uncovered(*arguments)


_uncovered: Final = coverage.uncovered


def decoders(weight_type: str, formats: list[str]) -> dict[str, PackedDecoder]:
    """What is measured."""
    experts = spec_of(MoeSpec(NUM_EXPERTS, NUM_CHOSEN, MlpSpec(INNER)))
    if formats:
        found = {"dense": packed(spec_of(MlpSpec(NUM_CHOSEN * INNER)), weight_type)}
        for name in formats:
            form = FORMATS[name]
            assert isinstance(form, BlockFormat), "a format of checkpoints"
            before = packed(experts, weight_type, form, keeps_experts=False)
            found |= {f"{name}, dequantised": before, name: packed(experts, weight_type, form)}
        return found
    found = {
        "dense": packed(spec_of(MlpSpec(NUM_CHOSEN * INNER)), weight_type),
        "experts, native": packed(experts, weight_type),
    }
    if weight_type != "int4":
        # XLA's own form is of int8 there.
        with patch.object(coverage, "uncovered", without_experts):
            found["experts, XLA"] = packed(experts, weight_type)
    return found


def step_of(decoder: PackedDecoder, num_rows: int) -> Callable[[], StepResult]:
    """A step that decodes so many rows."""
    num_row_blocks = CONTEXT // BLOCK_SIZE + 1
    runner = JaxModelRunner.create(
        decoder,
        num_blocks=num_rows * num_row_blocks + 1,
        max_model_len=2 * CONTEXT,
        block_size=BLOCK_SIZE,
        max_num_seqs=max(num_rows, 2),
        max_num_batched_tokens=64,
    )
    rows = tuple(
        # Tokens of their own choose experts of their own.
        RowWork(
            row,
            (37 * row + 1,),
            CONTEXT,
            tuple(range(row * num_row_blocks, (row + 1) * num_row_blocks)),
            True,
            RowSampling(temperature=0.0),
        )
        for row in range(num_rows)
    )
    batch = StepBatch(rows)
    return lambda: runner.run(batch)


def measure(steps: dict[str, Callable[[], StepResult]], num_rounds: int) -> dict[str, float]:
    """Median seconds of each step."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(num_rounds + 2):
        for name, run in steps.items():
            started = time.perf_counter()
            run()
            if index >= 2:  # The first ones compile.
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(one) for name, one in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 8, 32])
    parser.add_argument("--rounds", type=int, default=25)
    formats = sorted(name for name, form in FORMATS.items() if isinstance(form, BlockFormat))
    parser.add_argument("--stored", nargs="+", default=[], choices=formats)
    options = parser.parse_args()
    library = load()
    print(f"{library.level}, {library.num_threads} threads, {options.dtype}")
    models = decoders(options.dtype, options.stored)
    for name, model in models.items():
        print(f"{name:20} {model.size_bytes / 1e6:6.0f} MB")
    for num_rows in options.rows:
        steps = {name: step_of(model, num_rows) for name, model in models.items()}
        found = measure(steps, options.rounds)
        for name, seconds in found.items():
            ratio, read = seconds / found["dense"], steps[name]().expert_bytes / 1e6
            print(
                f"{num_rows:3} rows  {name:20} {seconds * 1e3:8.2f} ms  {ratio:.2f}"
                f"  {read:7.1f} MB of experts",
                flush=True,
            )


if __name__ == "__main__":
    main()

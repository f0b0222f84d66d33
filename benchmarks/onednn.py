"""The native kernels' products beside oneDNN's, by torch's CPU build, in turn in one run.

    python -m benchmarks.onednn                        # SmolLM2-135M, bfloat16 and int8
    python -m benchmarks.onednn --shape Qwen2.5-0.5B --rows 32 512 --rounds 30 --busy

The matrices of a layer are multiplied by so many rows. Of each there are as many copies as come to
`COPIES_BYTES`, which take turns, so that they come from memory as those of a decoder's layers do.
Both sides have packed their weights before and compute with as many threads. Ours takes float32 and
rounds it, oneDNN takes bfloat16 or bytes that are rounded already; ours gives float32, oneDNN
bfloat16 (int8: float32). Times are medians; --busy gives the least CPU time on one thread, which
says more where others use the machine. Without torch there is only a message.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import SHAPES
from engine_worker.compute.backends.cpu_native import calls, packing
from engine_worker.compute.backends.cpu_native.library import load
from engine_worker.compute.memory.host_memory import DeviceArrays
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.spec import DecoderSpec, MlpSpec

TYPES: Final = ("bfloat16", "int8")
COPIES_BYTES: Final = 64 << 20

Product = Callable[[], Sequence[Any]]
"""Multiplies by all copies once, and gives the first row of each product: memory for all of them
would take longer than they do."""


def matrix_shapes(spec: DecoderSpec) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the matrices of a layer, by name."""
    attention, mlp = spec.layers[0].attention, spec.layers[0].mlp
    assert isinstance(mlp, MlpSpec)
    hidden, inner = spec.hidden_size, mlp.intermediate_size
    return {
        "queries, keys, values": (attention.q_size + 2 * attention.kv_size, hidden),
        "output": (hidden, attention.q_size),
        "gate and up": (2 * inner, hidden),
        "down": (hidden, inner),
    }


def native_product(copies: Sequence[Any], rows: Any, weight_type: str) -> Product:
    """By the kernels."""
    num_outputs = copies[0].shape[0]
    packed = [packing.pack(copy, weight_type, "linear")[0] for copy in copies]
    arrays = DeviceArrays(packed)
    matrices = [arrays.put(one) for one in packed]

    @jax.jit
    def multiply(x: Any, matrix: Any) -> Any:
        return calls.head(x, matrix, num_outputs, weight_type)

    x = jnp.asarray(rows)
    return lambda: [np.asarray(multiply(x, matrix))[:1].copy() for matrix in matrices]


def onednn_product(torch: Any, copies: Sequence[Any], rows: Any, weight_type: str) -> Product:
    """By oneDNN."""
    if weight_type == "int8":
        return _onednn_int8(torch, copies, rows)
    x = torch.from_numpy(rows).to(torch.bfloat16)
    pack, multiply = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
    weights = [pack(torch.from_numpy(copy).to(torch.bfloat16), len(rows)) for copy in copies]
    return lambda: [multiply(x, weight, None, "none", [], "")[:1].clone() for weight in weights]


def _onednn_int8(torch: Any, copies: Sequence[Any], rows: Any) -> Product:
    """One scale for all rows, and one for each output."""
    zero, x_scale = 128, float(np.abs(rows).max()) / 127
    x = torch.from_numpy((np.rint(rows / x_scale) + zero).astype(np.uint8))
    zeros = torch.zeros(copies[0].shape[0], dtype=torch.int32)
    weights = []
    for copy in copies:
        scales = np.abs(copy).max(1) / 127
        rounded = torch.from_numpy(np.rint(copy / scales[:, None]).astype(np.int8))
        packed = torch.ops.onednn.qlinear_prepack(rounded, list(rows.shape))
        weights.append((packed, torch.from_numpy(scales)))
    as_float32: Any = (None, 1.0, 0, torch.float32, "none", [], "")
    multiply = torch.ops.onednn.qlinear_pointwise
    return lambda: [
        multiply(x, x_scale, zero, packed, scales, zeros, *as_float32)[:1].clone()
        for packed, scales in weights
    ]


def times_in_turn(
    products: Sequence[Product], num_rounds: int, clock: Callable[[], float]
) -> list[list[float]]:
    """Seconds of each, one of each round; the first round isn't counted."""
    found: list[list[float]] = [[] for _ in products]
    for number in range(num_rounds + 1):
        for product, times in zip(products, found, strict=True):
            started = clock()
            product()
            if number:
                times.append(clock() - started)
    return found


def measure(args: argparse.Namespace, torch: Any) -> None:
    """Prints a table."""
    clock = time.process_time if args.busy else time.perf_counter
    generator = np.random.default_rng(0)
    print("| type | matrix | rows | kernels µs | oneDNN µs | times as fast |")
    print("|---|---|---|---|---|---|")
    for weight_type in args.types:
        for name, (outputs, inputs) in matrix_shapes(decoder_spec(SHAPES[args.shape])).items():
            num_copies = max(2, COPIES_BYTES // (2 * outputs * inputs))
            shape = (num_copies, outputs, inputs)
            copies = list(generator.standard_normal(shape, np.float32) * inputs**-0.5)
            for num_rows in args.rows:
                rows = generator.standard_normal((num_rows, inputs), np.float32)
                products = (
                    native_product(copies, rows, weight_type),
                    onednn_product(torch, copies, rows, weight_type),
                )
                found = times_in_turn(products, args.rounds, clock)
                typical = [min(one) if args.busy else statistics.median(one) for one in found]
                ours, theirs = (time_s / num_copies * 1e6 for time_s in typical)
                print(
                    f"| {weight_type} | {name} | {num_rows} | {ours:.0f} | {theirs:.0f}"
                    f" | {theirs / ours:.2f} |",
                    flush=True,
                )


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="SmolLM2-135M")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 512])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--busy", action="store_true", help="least CPU time of one thread")
    args = parser.parse_args(arguments)
    try:
        import torch
    except ImportError:
        sys.exit("oneDNN is left out: it comes with torch, which isn't installed here")
    num_threads = load(num_threads=1 if args.busy else None).num_threads
    torch.set_num_threads(num_threads)
    print(f"{args.shape}, {num_threads} threads, torch {torch.__version__}")
    measure(args, torch)


if __name__ == "__main__":
    main()

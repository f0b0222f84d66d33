"""Times the native kernels alone, beside what bounds them, both measured in turn in one run.

    python -m benchmarks.kernels                      # SmolLM2-135M, every type
    python -m benchmarks.kernels --shape Qwen2.5-0.5B --types bfloat16 int8 --rows 1 32 --rounds 7
    python -m benchmarks.kernels --level avx2

Three calls of a decode step are timed apart: all MLP blocks, all attention blocks (over --context
stored tokens) and the head. A call must read its weights, keys and values once, and multiply them
by every row; it is bounded by the slower of the two, at the rates that the machine showed in the
same round: memory read by as many threads, and products in registers. The bounds need a C++
compiler and AVX512-BF16; without them times are printed alone. Times are medians over the rounds.
"""

import argparse
import ctypes
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import SHAPES
from engine_worker.compute.backends.cpu_native import calls, packing
from engine_worker.compute.backends.cpu_native.calls import (
    Attention,
    AttentionConfig,
    Mlp,
    MlpConfig,
    Step,
)
from engine_worker.compute.backends.cpu_native.library import load
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.spec import DecoderSpec, MlpSpec

BLOCK_SIZE = 32
READ_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Timed:
    """One call.

    Attributes:
        name: For the table.
        run: Runs it to its end.
        read_bytes: What it reads at least.
        operations: Multiplications and additions of its products.
    """

    name: str
    run: Callable[[], object]
    read_bytes: int
    operations: int


class Bounds:
    """Rates of the machine, by a small library that is compiled for it."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._library: ctypes.CDLL | None = None
        compiler = shutil.which("c++")
        if compiler is None:
            return
        target = Path(tempfile.mkdtemp()) / "bounds.so"
        source = Path(__file__).with_name("kernel_bounds.cc")
        options = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]
        command = [compiler, *options, str(source), "-o", str(target)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            return
        self._library = ctypes.CDLL(str(target))
        self._library.read_rate.restype = self._library.multiply_rate.restype = ctypes.c_double
        self._data = np.ones(READ_BYTES, np.uint8)

    def measure(self, weight_type: str) -> tuple[float, float]:
        """Bytes read and operations done in a second; 0 where that can't be measured."""
        if self._library is None:
            return 0.0, 0.0
        address = ctypes.c_void_p(self._data.ctypes.data)
        read = self._library.read_rate(address, ctypes.c_int64(READ_BYTES), self._num_threads)
        is_bytes = weight_type in {"int8", "int4"}
        return read, self._library.multiply_rate(int(is_bytes), self._num_threads)


class Model:
    """The blocks of a shape with random weights."""

    def __init__(self, spec: DecoderSpec, weight_type: str) -> None:
        self.spec, self.weight_type = spec, weight_type
        self._random = np.random.default_rng(0)
        layer = spec.layers[0]
        assert isinstance(layer.mlp, MlpSpec)
        self._attention = AttentionConfig.of(
            spec, layer, weight_type=weight_type, cache_type="bfloat16"
        )
        self._mlp = MlpConfig.of(spec, layer, weight_type=weight_type)
        hidden, inner = spec.hidden_size, layer.mlp.intermediate_size
        attention = layer.attention
        norm = np.ones(hidden, np.float32)
        width = attention.q_size + 2 * attention.kv_size
        bias = np.zeros(width, np.float32) if attention.qkv_bias else None
        self._vectors = (
            jnp.asarray(calls.attention_vectors(norm=norm, qkv_bias=bias)),
            jnp.asarray(calls.mlp_vectors(norm=norm)),
        )
        self.layers = [
            (
                self._matrix(width, hidden),
                self._matrix(hidden, attention.q_size),
                self._matrix(2 * inner, hidden, "gate_up"),
                self._matrix(hidden, inner),
            )
            for _ in spec.layers
        ]
        self.table = self._matrix(spec.vocab_size, hidden)
        self.sizes = {
            "attention": hidden * width + hidden * attention.q_size,
            "mlp": 3 * hidden * inner,
        }

    def _matrix(self, outputs: int, inputs: int, kind: str = "linear") -> jax.Array:
        values = self._random.standard_normal((outputs, inputs), np.float32) * inputs**-0.5
        return jnp.asarray(packing.pack(values.astype(np.float32), self.weight_type, kind)[0])

    def timed_calls(self, num_rows: int, context: int) -> list[Timed]:
        """The calls of a step of some rows, each with `context` tokens stored."""
        spec, attention = self.spec, self.spec.layers[0].attention
        blocks = -(-(context + 1) // BLOCK_SIZE)
        key_shape, value_shape = calls.page_shapes(
            num_rows * blocks + 1,
            attention.num_kv_heads,
            attention.head_dim,
            BLOCK_SIZE,
            "bfloat16",
        )
        pages = [(jnp.zeros(*key_shape), jnp.zeros(*value_shape)) for _ in spec.layers]
        ids = self._random.permutation(num_rows * blocks).reshape(num_rows, blocks)
        step = Step(
            jnp.full(num_rows, context, jnp.int32),
            jnp.arange(num_rows, dtype=jnp.int32),
            jnp.asarray(ids, jnp.int32),
        )
        half = attention.head_dim // 2
        rope = (jnp.ones((num_rows, half)), jnp.zeros((num_rows, half)))
        x = jnp.asarray(self._random.standard_normal((num_rows, spec.hidden_size), np.float32))
        cache = sum(keys.nbytes + values.nbytes for keys, values in pages)
        weights = [sum(part.nbytes for part in layer[:2]) for layer in self.layers]
        mlp_weights = [sum(part.nbytes for part in layer[2:]) for layer in self.layers]
        num_layers = len(self.layers)
        return [
            Timed(
                "mlp",
                self._mlp_run(x, step),
                sum(mlp_weights),
                2 * num_rows * num_layers * self.sizes["mlp"],
            ),
            Timed(
                "attention",
                self._attention_run(x, step, rope, pages),
                sum(weights) + cache,
                2 * num_rows * num_layers * self.sizes["attention"],
            ),
            Timed(
                "head",
                self._head_run(x),
                self.table.nbytes,
                2 * num_rows * spec.vocab_size * spec.hidden_size,
            ),
        ]

    def _mlp_run(self, x: jax.Array, step: Step) -> Callable[[], object]:
        @jax.jit
        def program(x: Any, step: Any, layers: Any, vectors: Any) -> Any:
            blocks = [Mlp(self._mlp, vectors, layer[2], layer[3]) for layer in layers]
            return calls.run_blocks(x, Step(*step), [], blocks)[0]

        parts = (step.positions, step.rows, step.block_tables)
        return lambda: program(x, parts, self.layers, self._vectors[1]).block_until_ready()

    def _attention_run(
        self, x: jax.Array, step: Step, rope: calls.Rope, pages: list[Any]
    ) -> Callable[[], object]:
        def program(x: Any, step: Any, layers: Any, vectors: Any, pages: Any) -> Any:
            blocks = [
                Attention(self._attention, vectors, layer[0], layer[1], keys, values, 0)
                for layer, (keys, values) in zip(layers, pages, strict=True)
            ]
            return calls.run_blocks(x, Step(*step), [rope], blocks)

        donating = jax.jit(program, donate_argnums=4)
        parts = (step.positions, step.rows, step.block_tables)
        kept = [pages]

        def run() -> object:
            out, kept[0] = donating(x, parts, self.layers, self._vectors[0], kept[0])
            return out.block_until_ready()

        return run

    def _head_run(self, x: jax.Array) -> Callable[[], object]:
        program = jax.jit(
            lambda x, table: calls.head(x, table, self.spec.vocab_size, self.weight_type)
        )
        return lambda: program(x, self.table).block_until_ready()


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="SmolLM2-135M", choices=list(SHAPES))
    parser.add_argument("--types", nargs="+", default=["bfloat16", "int8", "int4"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--level")
    arguments = parser.parse_args()
    library = load(level=arguments.level)
    bounds = Bounds(library.num_threads)
    print(f"{arguments.shape}, {library.level}, {library.num_threads} threads")
    print("| type | rows | call | ms | bound ms | share | GB/s | G/s |")
    print("|---|---|---|---|---|---|---|---|")
    spec = decoder_spec(SHAPES[arguments.shape])
    for weight_type in arguments.types:
        model = Model(spec, weight_type)
        for num_rows in arguments.rows:
            for timed in model.timed_calls(num_rows, arguments.context):
                print_row(weight_type, num_rows, timed, bounds, arguments.rounds)


def print_row(
    weight_type: str, num_rows: int, timed: Timed, bounds: Bounds, num_rounds: int
) -> None:
    """Times a call and its bounds in turn."""
    timed.run()
    times, limits = [], []
    for _ in range(num_rounds):
        read, multiply = bounds.measure(weight_type)
        if read and multiply:
            limits.append(max(timed.read_bytes / read, timed.operations / multiply))
        for _ in range(3):
            start = time.perf_counter()
            timed.run()
            times.append(time.perf_counter() - start)
    taken = statistics.median(times)
    limit = statistics.median(limits) if limits else 0.0
    bound = f"{limit * 1e3:.2f} | {limit / taken:.0%}" if limit else "– | –"
    rates = f"{timed.read_bytes / taken / 1e9:.1f} | {timed.operations / taken / 1e9:.0f}"
    print(
        f"| {weight_type} | {num_rows} | {timed.name} | {taken * 1e3:.2f} | {bound} | {rates} |",
        flush=True,
    )


if __name__ == "__main__":
    main()

"""Times the native kernels alone, beside what bounds them, both measured in turn in one run.

    python -m benchmarks.kernels                      # SmolLM2-135M, every type
    python -m benchmarks.kernels --shape Qwen2.5-0.5B --types bfloat16 int8 --rows 1 32 --rounds 7
    python -m benchmarks.kernels --levels amx avx512_bf16 --rows 1 8 32
    python -m benchmarks.kernels --levels amx avx512_bf16 --rows 128 512 --prompt
    python -m benchmarks.kernels --kv-dtype int8 --types bfloat16 --context 4096

Three calls of a decode step are timed apart: all MLP blocks, all attention blocks (over --context
stored tokens) and the head. A call must read its weights, keys and values once, and multiply them
by every row; it is bounded by the slower of the two, at the rates that the machine showed in the
same round: memory read by as many threads, and products in registers. The bounds need a C++
compiler and AVX512-BF16; without them times are printed alone. Several levels take turns in every
round, and each is compared with the last one. Times are medians over the rounds.

Where others use the machine, waits of threads for each other are most of a time: --busy gives the
least CPU time of a call on one thread, without bounds.
"""

import argparse
import ctypes
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
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
from engine_worker.compute.backends.cpu_native.library import Library, load
from engine_worker.compute.memory.host_memory import DeviceArrays, release_pages, use_large_pages
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


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of a call, and of what bounds it."""

    times: list[float]
    limits: list[float]


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
        for name in ("read_rate", "multiply_rate", "multiply_rate_of_amx"):
            getattr(self._library, name).restype = ctypes.c_double
        self._data = np.ones(READ_BYTES, np.uint8)

    def rates(self, weight_type: str, level: str) -> tuple[float, float]:
        """Bytes read and operations done in a second; 0 where that can't be measured."""
        if self._library is None:
            return 0.0, 0.0
        address = ctypes.c_void_p(self._data.ctypes.data)
        read = self._library.read_rate(address, ctypes.c_int64(READ_BYTES), self._num_threads)
        is_bytes = weight_type in {"int8", "int4"}
        by_tiles = level == "amx" and weight_type != "float32"
        multiply = self._library.multiply_rate_of_amx if by_tiles else self._library.multiply_rate
        return read, multiply(int(is_bytes), self._num_threads)


class Model:
    """The blocks of a shape with random weights."""

    def __init__(self, spec: DecoderSpec, weight_type: str, cache_type: str) -> None:
        self.spec, self.weight_type = spec, weight_type
        self._random = np.random.default_rng(0)
        layer = spec.layers[0]
        assert isinstance(layer.mlp, MlpSpec)
        self._attention = AttentionConfig.of(
            spec, layer, weight_type=weight_type, cache_type=cache_type
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
        packed = packing.pack(values.astype(np.float32), self.weight_type, kind)[0]
        return DeviceArrays([packed]).put(packed)

    def timed_calls(self, num_rows: int, context: int, *, is_prompt: bool = False) -> list[Timed]:
        """The calls of a step of some rows, each with `context` tokens stored.

        With `is_prompt` the rows are neighbouring tokens of one prompt instead.
        """
        spec, attention = self.spec, self.spec.layers[0].attention
        num_requests, num_new = (1, num_rows) if is_prompt else (num_rows, 1)
        blocks = -(-(context + num_new) // BLOCK_SIZE)
        key_shape, value_shape = calls.page_shapes(
            num_requests * blocks + 1,
            attention.num_kv_heads,
            attention.head_dim,
            BLOCK_SIZE,
            self._attention.cache_type,
        )
        pages = [(_pages(*key_shape), _pages(*value_shape)) for _ in spec.layers]
        ids = self._random.permutation(num_requests * blocks).reshape(num_requests, blocks)
        index = jnp.arange(num_rows, dtype=jnp.int32)
        step = Step(context + index % num_new, index // num_new, jnp.asarray(ids, jnp.int32))
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


def _pages(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Zeros, in large pages as an engine's cache is."""
    pages = jnp.zeros(shape, dtype).block_until_ready()
    release_pages(pages)
    use_large_pages(pages)
    return pages


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="SmolLM2-135M", choices=list(SHAPES))
    parser.add_argument("--types", nargs="+", default=["bfloat16", "int8", "int4"])
    parser.add_argument("--kv-dtype", default="bfloat16", choices=calls.CACHE_TYPES)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", action="store_true", help="rows are tokens of one prompt")
    parser.add_argument("--busy", action="store_true", help="least CPU time of one thread")
    parser.add_argument("--levels", nargs="+", help="instruction levels; the best one by itself")
    arguments = parser.parse_args()
    library = load(num_threads=1 if arguments.busy else None)
    levels = arguments.levels or [library.level]
    bounds = None if arguments.busy else Bounds(library.num_threads)
    print(f"{arguments.shape}, {library.num_threads} threads")
    print("| type | rows | call | level | ms | times as fast | bound ms | share | GB/s | G/s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    spec = decoder_spec(SHAPES[arguments.shape])
    for weight_type in arguments.types:
        model = Model(spec, weight_type, arguments.kv_dtype)
        for num_rows in arguments.rows:
            context = arguments.context
            for timed in model.timed_calls(num_rows, context, is_prompt=arguments.prompt):
                measured = measure(timed, library, levels, bounds, weight_type, arguments.rounds)
                title = f"{weight_type} | {num_rows}"
                print_rows(title, timed, measured, is_busy=arguments.busy)


def measure(
    timed: Timed,
    library: Library,
    levels: Sequence[str],
    bounds: Bounds | None,
    weight_type: str,
    num_rounds: int,
) -> dict[str, Measured]:
    """A call at each level and its bounds, measured in turn; without bounds in CPU time."""
    measured = {level: Measured([], []) for level in levels}
    clock = time.perf_counter if bounds else time.process_time
    for number in range(num_rounds + 1):
        for level, found in measured.items():
            library.choose_level(level)
            timed.run()
            if number == 0:
                continue  # What a level keeps between calls has its size now.
            read, multiply = bounds.rates(weight_type, level) if bounds else (0.0, 0.0)
            if read and multiply:
                found.limits.append(max(timed.read_bytes / read, timed.operations / multiply))
            for _ in range(3):
                start = clock()
                timed.run()
                found.times.append(clock() - start)
    return measured


def print_rows(
    title: str, timed: Timed, measured: Mapping[str, Measured], *, is_busy: bool
) -> None:
    """A line for each level."""
    typical = min if is_busy else statistics.median
    taken_by = {level: typical(found.times) for level, found in measured.items()}
    reference = list(taken_by.values())[-1]
    for level, taken in taken_by.items():
        limits = measured[level].limits
        limit = statistics.median(limits) if limits else 0.0
        bound = f"{limit * 1e3:.2f} | {limit / taken:.0%}" if limit else "– | –"
        rates = f"{timed.read_bytes / taken / 1e9:.1f} | {timed.operations / taken / 1e9:.0f}"
        print(
            f"| {title} | {timed.name} | {level} | {taken * 1e3:.2f} | {reference / taken:.2f} "
            f"| {bound} | {rates} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

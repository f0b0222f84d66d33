"""Times MLP blocks whose matrices stay as a checkpoint keeps them, beside the other types.

    python -m benchmarks.stored_formats                       # one and eight rows, sixty rounds
    python -m benchmarks.stored_formats --rows 1 --rounds 20 --formats Q8_0 IQ4_NL

All formats take turns in every round, so that what else the machine does meets all of them. Weights
are random, and each layer has its own copy: they come from memory. Ratios are of medians, bfloat16
by the format.
"""

import argparse
import statistics
import time
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from engine_worker.compute.backends.cpu_native import calls, packing
from engine_worker.compute.backends.cpu_native.calls import Mlp, MlpConfig, Step
from engine_worker.compute.backends.cpu_native.library import load
from engine_worker.compute.memory.host_memory import DeviceArrays
from engine_worker.compute.models.integer_blocks import SCALE_DTYPES, BlockFormat, BlockMatrix

HIDDEN, INNER, NUM_LAYERS = 1024, 2816, 16
FORMATS: Final[dict[str, str | BlockFormat]] = {
    "bfloat16": "bfloat16",
    "int8": "int8",
    "int4": "int4",
    "Q8_0": BlockFormat(8, 32, 32),
    "Q4_0": BlockFormat(4, 32, 32),
    "Q4_K": BlockFormat(4, 32, 256, has_scales=True, has_minima=True),
    "Q5_K": BlockFormat(6, 32, 256, has_scales=True, has_minima=True),
    "Q6_K": BlockFormat(8, 16, 256, has_scales=True),
    "Q6_K in 6 bits": BlockFormat(6, 16, 256, has_scales=True),
    "Q5_0": BlockFormat(6, 32, 32),
    "MXFP4": BlockFormat(4, 32, 32, "float8_e8m0fnu", codes="fp4"),
    "IQ4_NL": BlockFormat(4, 32, 32, codes="iq4"),
    "IQ4_XS": BlockFormat(4, 32, 256, has_scales=True, codes="iq4"),
    "AWQ, groups of 128": BlockFormat(4, 128, 128, has_minima=True),
}


def random_matrix(form: str | BlockFormat, outputs: int, inputs: int, kind: str) -> Any:
    """A packed matrix."""
    if isinstance(form, BlockFormat):
        return packing.pack_blocks(random_blocks(form, outputs, inputs), kind)[0]
    random = np.random.default_rng(0)
    return packing.pack(random.standard_normal((outputs, inputs), np.float32), form, kind)[0]


def random_blocks(form: BlockFormat, outputs: int, inputs: int) -> BlockMatrix:
    """A matrix as a checkpoint keeps it."""
    random = np.random.default_rng(0)
    groups, blocks = (outputs, inputs // form.group_size), (outputs, inputs // form.block_size)
    scales = np.abs(random.standard_normal(blocks) * 1e-3).astype(SCALE_DTYPES[form.scale_dtype])
    whole = random.integers(0, 64, groups).astype(np.int8)
    return BlockMatrix(
        form,
        random.integers(0, 2**form.bits, (outputs, inputs)).astype(np.uint8),
        scales,
        whole if form.has_scales else None,
        whole if form.has_minima else None,
        scales if form.has_minima else None,
    )


def layers_of(form: str | BlockFormat) -> list[Mlp]:
    """Blocks of one format, none of which shares memory with another."""
    blocks = form if isinstance(form, BlockFormat) else None
    config = MlpConfig(
        INNER,
        1e-5,
        form if isinstance(form, str) else "bfloat16",
        gate_up_blocks=blocks,
        down_blocks=blocks,
    )
    vectors = jnp.asarray(calls.mlp_vectors(norm=np.ones(HIDDEN, np.float32)))
    gate_up = random_matrix(form, 2 * INNER, HIDDEN, "gate_up")
    down = random_matrix(form, HIDDEN, INNER, "linear")
    arrays = DeviceArrays([gate_up, down] * NUM_LAYERS)
    return [Mlp(config, vectors, arrays.put(gate_up), arrays.put(down)) for _ in range(NUM_LAYERS)]


def measure(num_rows: int, num_rounds: int, models: dict[str, list[Mlp]]) -> dict[str, float]:
    """Seconds of a call, by format."""
    rows = jnp.arange(num_rows, dtype=jnp.int32)
    step = Step(jnp.zeros(num_rows, jnp.int32), rows, jnp.zeros((num_rows, 1), jnp.int32))
    x = jnp.full((num_rows, HIDDEN), 0.01, jnp.float32)

    def program(layers: list[Mlp]) -> Any:
        config = layers[0].config

        def run(x: jax.Array, arrays: Any) -> jax.Array:
            return calls.run_blocks(x, step, [], [Mlp(config, *parts) for parts in arrays])[0]

        jitted = jax.jit(run)
        arrays = [(one.vectors, one.gate_up, one.down) for one in layers]
        return lambda: jitted(x, arrays).block_until_ready()

    programs = {name: program(layers) for name, layers in models.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for index in range(num_rounds + 1):
        for name, run in programs.items():
            start = time.perf_counter()
            run()
            if index:  # The first compiles.
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(one) for name, one in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = parser.parse_args()
    library = load()
    # Ratios are to bfloat16.
    names = dict.fromkeys(["bfloat16", *options.formats])
    models = {name: layers_of(FORMATS[name]) for name in names}
    print(f"{library.level}, {library.num_threads} threads")
    for num_rows in options.rows:
        found = measure(num_rows, options.rounds, models)
        for name, seconds in found.items():
            size = sum(one.gate_up.nbytes + one.down.nbytes for one in models[name])
            ratio = found["bfloat16"] / seconds
            print(
                f"{num_rows:3} rows  {name:18} {size / 1e6:4.0f} MB  {seconds * 1e3:7.2f} ms"
                f"  {ratio:.2f}x"
            )


if __name__ == "__main__":
    main()
